"""Made ready to print: one shell, no cavity, a flat base; what is right already stays as it is."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.mesh.print_check import PrintReport, check_print
from pipeline.mesh.printable import Printable, make_solid, simplify_for_print, with_base
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import (
    cuboid,
    grid,
    joined,
    leaf,
    of_field,
    organic,
    sphere,
    tetrahedron,
    turned_over,
    welded_report,
)
from tests.mesh.test_print_check import cone


def moved(mesh: TriMesh, x: float, y: float, z: float) -> TriMesh:
    return TriMesh(mesh.vertices + np.float32([x, y, z]), mesh.faces)


def checked(mesh: TriMesh) -> tuple[Printable, PrintReport]:
    """Made ready at 100 mm; the promises that hold of every result are checked here."""
    solid = make_solid(mesh, size_mm=100, min_wall_mm=0.8, most_faces=100_000)
    based = with_base(solid.mesh, size_mm=100)
    printable = Printable(based.mesh, (*solid.changes, *based.changes))
    sides = np.ptp(printable.mesh.bounds(), axis=0)
    report = check_print(printable.mesh, mm_per_unit=100 / float(sides.max()), min_wall_mm=0.8)
    assert (report.is_closed, report.shells, report.cavities, report.is_standing) == (True, 1, 0, True)
    closed, consistent, non_manifold, volume = welded_report(printable.mesh)
    assert closed and consistent and non_manifold == 0 and volume > 0
    return printable, report


def test_what_can_be_printed_is_not_touched() -> None:
    for solid in (cuboid(), cone()):
        printable, _ = checked(solid)
        assert printable.mesh is solid and printable.changes == ()


def test_a_cavity_is_filled() -> None:
    printable, report = checked(joined(cuboid((1, 1, 1)), turned_over(cuboid((0.5, 0.5, 0.5)))))

    assert report.volume_mm3 == pytest.approx(1e6, rel=1e-6)
    assert printable.changes == ("1 cavity inside of it was filled.",)


def test_overlapping_shells_become_one_of_their_common_volume() -> None:
    printable, _ = checked(joined(cuboid((0.6, 0.6, 0.6)), moved(cuboid((0.4, 0.4, 0.4)), 0.35, 0.01, 0.02)))

    assert printable.mesh.volume() == pytest.approx(0.6**3 + 0.4**3 - 0.15 * 0.4 * 0.4, rel=1e-5)
    assert printable.changes == ()


def test_a_room_that_shells_enclose_together_is_filled() -> None:
    """Six slabs around an empty cube."""
    slabs = []
    for axis in range(3):
        size, centre = np.full(3, 1.0), np.zeros(3)
        size[axis], centre[axis] = 0.2, 0.4
        slabs += [moved(cuboid(tuple(size)), *(sign * centre)) for sign in (1, -1)]
    printable, report = checked(joined(*slabs))

    assert report.volume_mm3 == pytest.approx(1e6, rel=1e-5)
    assert printable.mesh.bounds().tolist() == [[-0.5] * 3, [0.5] * 3]


def test_crumbs_are_removed_and_large_parts_are_joined_by_pins() -> None:
    body, crumbs = cuboid((0.8, 0.8, 0.8)), [tetrahedron((0.45 + 0.1 * k, 0.3, 0.2), 0.03) for k in range(3)]
    cleaned, _ = checked(joined(body, *crumbs))
    pair, _ = checked(joined(cuboid((0.4, 0.4, 0.4)), moved(cuboid((0.3, 0.3, 0.3)), 0.5, 0.2, 0)))

    assert cleaned.mesh.volume() == pytest.approx(0.8**3, rel=1e-6)
    assert cleaned.changes == ("3 small loose parts were removed.",)
    assert pair.changes == ("Parts that touched nothing are joined to it by pins of 3.0 mm.",)
    assert 0 < pair.mesh.volume() - 0.4**3 - 0.3**3 < 0.01 * 0.4**3


def test_many_parts_are_joined_one_after_another() -> None:
    parts = [moved(cuboid((0.08, 0.08, 0.08)), 0.12 * k, 0.05 * (k % 3), 0.03 * k) for k in range(7)]
    printable, _ = checked(joined(*parts))

    assert printable.mesh.volume() > 7 * 0.08**3


@pytest.mark.parametrize("solid", [sphere(), organic(), sphere(20, 0.2)])
def test_a_round_body_is_cut_flat_by_little(solid: TriMesh) -> None:
    printable, report = checked(solid)

    low, high = solid.bounds()
    cut = (printable.mesh.bounds()[0, 1] - low[1]) / (high[1] - low[1])
    assert 0 < cut <= 0.0301
    assert report.base_mm2 > 50
    assert printable.mesh.volume() > 0.98 * solid.volume()
    assert printable.changes[0].endswith("cut off below, so that it stands on a flat base.")


def test_what_stands_on_a_tip_gets_a_disc() -> None:
    solid = turned_over(cone(), upside_down=True)
    printable, report = checked(solid)

    assert report.base_mm2 == pytest.approx(np.pi * 20**2, rel=0.01)
    assert printable.changes == ("A disc of 40 × 1.5 mm was added below it as a base.",)
    assert printable.mesh.bounds()[:, 1] == pytest.approx(solid.bounds()[:, 1], abs=1e-5)


def test_a_bar_on_a_foot_under_its_end_gets_a_disc_that_reaches_both() -> None:
    foot = moved(cuboid((0.2, 0.3, 0.2)), 0.4, -0.2, 0)
    checked(joined(cuboid((1, 0.2, 0.2)), foot))


def test_a_sheet_becomes_a_body() -> None:
    printable, _ = checked(leaf())

    assert printable.changes[0] == "What encloses nothing was made 1.5 mm thick, on a grid of 0.39 mm."


def lollipop(cells: int) -> TriMesh:
    """A ball on a stick of 6 mm, which does not stand by itself."""
    x, y, z = grid(cells)
    ball = np.sqrt(x**2 + (y - 0.25) ** 2 + z**2) - 0.2
    stick = np.maximum(np.hypot(x, z) - 0.03, np.abs(y) - 0.45)
    return of_field(np.minimum(ball, stick))


@pytest.mark.parametrize("count", [400, 1000, 5000])
@pytest.mark.parametrize("solid", [organic(80), lollipop(96)])
def test_a_simplified_body_has_its_base_and_its_number_of_faces(solid: TriMesh, count: int) -> None:
    printable = simplify_for_print(solid, target_faces=count, size_mm=100)

    assert len(printable.mesh.faces) == pytest.approx(count, rel=0.01)
    again, _ = checked(printable.mesh)
    assert again.mesh is printable.mesh  # nothing is left to do


def test_equal_meshes_give_equal_bytes() -> None:
    first, second = (simplify_for_print(organic(), target_faces=2000, size_mm=100).mesh for _ in range(2))

    assert np.array_equal(first.vertices, second.vertices) and np.array_equal(first.faces, second.faces)
