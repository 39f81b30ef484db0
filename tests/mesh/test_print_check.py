"""Shells, base, walls and overhangs of solids whose measures are known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.mesh.print_check import PrintReport, Walls, centre_of_mass, check_print, wall_warning
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import cuboid, hemisphere, joined, sphere, torus, turned_over


def report_of(mesh: TriMesh, *, min_wall_mm: float = 0.8) -> PrintReport:
    """Of a print of 100 mm."""
    return check_print(mesh, mm_per_unit=100 / float(np.ptp(mesh.bounds(), axis=0).max()), min_wall_mm=min_wall_mm)


def walls_of(mesh: TriMesh, *, min_wall_mm: float = 0.8) -> Walls:
    walls = report_of(mesh, min_wall_mm=min_wall_mm).walls
    assert walls is not None
    return walls


def hollow(wall: float) -> TriMesh:
    """A cube of side 1 with a cubic cavity."""
    return joined(cuboid((1, 1, 1)), turned_over(cuboid((1 - 2 * wall,) * 3)))


def cone(sides: int = 96) -> TriMesh:
    """Of radius 0.3 and height 1, its tip above."""
    angle = -2 * np.pi * np.arange(sides) / sides  # from above, counter-clockwise is towards -z
    ring = np.stack([0.3 * np.cos(angle), np.zeros(sides), 0.3 * np.sin(angle)], axis=1)
    here, after = np.arange(sides) + 2, (np.arange(sides) + 1) % sides + 2
    faces = [np.stack([np.full(sides, end), *pair], axis=1) for end, pair in ((0, (here, after)), (1, (after, here)))]
    return TriMesh(np.array([[0, 1, 0], [0, 0, 0], *ring], np.float32), np.concatenate(faces).astype(np.int32))


@pytest.mark.parametrize("wall_mm", [0.3, 0.5, 2.0, 10.0])
def test_the_wall_of_a_hollow_box_is_measured_on_both_sides_of_it(wall_mm: float) -> None:
    walls = walls_of(hollow(wall_mm / 100), min_wall_mm=1.1 * wall_mm)

    assert walls.thinnest_mm == pytest.approx(wall_mm, rel=1e-3)
    inner = (1 - wall_mm / 50) ** 2  # of the faces outside, what has the cavity behind it; beyond, a wall is in the way
    assert walls.thin_share == pytest.approx(2 * inner / (1 + inner), abs=0.01)
    assert walls_of(hollow(wall_mm / 100), min_wall_mm=wall_mm).thin_share == 0


def test_a_thin_plate_is_thin_and_a_thick_one_is_not() -> None:
    walls = walls_of(cuboid((1, 0.8, 0.006)))

    assert walls.thinnest_mm == pytest.approx(0.6, rel=1e-3) and walls.thin_share > 0.97
    assert (walls.from_mm, walls.to_mm) == pytest.approx((4, 76), abs=1)  # nine tenths of 80 mm
    assert walls_of(cuboid((1, 0.8, 0.009))).thin_share == 0


def test_sharp_edges_and_tips_are_no_thin_walls() -> None:
    for solid in (cone(), cuboid((1, 0.7, 0.4)), sphere(), torus()):
        report = report_of(solid)
        assert wall_warning(report, min_wall_mm=0.8) == ()
        assert report.walls is not None and report.walls.thinnest_mm is not None and report.walls.thinnest_mm > 0.8


def test_the_thickness_of_a_ball_and_of_its_wall() -> None:
    ball, shell = sphere(60, 0.4), joined(sphere(60, 0.4), turned_over(sphere(60, 0.3)))

    assert walls_of(ball).thinnest_mm == pytest.approx(100, rel=0.02)
    assert walls_of(shell).thinnest_mm == pytest.approx(12.5, rel=0.06)
    report = report_of(shell)
    assert (report.shells, report.cavities) == (1, 1)
    assert report.volume_mm3 == pytest.approx(4 / 3 * np.pi * (50**3 - 37.5**3), rel=0.01)


def test_a_wall_between_overlapping_shells_is_the_outer_one() -> None:
    """A square fin, 1 mm thick, of which half lies in a cube: no wall ends at the faces inside of the other shell."""
    other = TriMesh(cuboid((0.01, 0.5, 0.5)).vertices + np.float32([0.5, 0, 0]), cuboid().faces)
    report = report_of(joined(cuboid((1, 1, 1)), other))

    assert (report.shells, report.cavities) == (2, 0)
    assert report.walls is not None and report.walls.buried_share == pytest.approx(
        (2 * 0.25 + 4 * 0.0025) / 6.52, rel=0.02
    )
    assert report.walls.thin_share == 0


def test_the_base_is_flat_or_there_is_none() -> None:
    assert report_of(cuboid((1, 0.7, 0.4))).base_mm2 == pytest.approx(4000, rel=1e-3)
    assert report_of(cone()).base_mm2 == pytest.approx(np.pi * 900, rel=0.01)
    assert report_of(cuboid((1, 0.7, 0.4))).is_standing and report_of(cone()).is_standing
    for solid in (sphere(), turned_over(cone(), upside_down=True)):
        report = report_of(solid)
        assert not report.is_standing and report.base_mm2 < 50


def test_what_would_tip_over_does_not_stand() -> None:
    """A bar on a foot under its end."""
    foot = TriMesh(cuboid((0.2, 0.3, 0.2)).vertices + np.float32([0.4, -0.2, 0]), cuboid().faces)
    report = report_of(joined(cuboid((1, 0.2, 0.2)), foot))

    assert report.base_mm2 == pytest.approx(400, rel=1e-3) and not report.is_standing


def test_the_centre_of_mass_of_a_cone_is_a_quarter_up() -> None:
    assert centre_of_mass(cone()) == pytest.approx([0, 0.25, 0], abs=1e-6)


def test_what_hangs_over_is_a_share_of_the_surface() -> None:
    """The lower half of a ball needs support up to 45 degrees: 2 pi R^2 (1 - cos 45°) of 4 pi R^2."""
    assert report_of(sphere(80)).overhang_share == pytest.approx((1 - 2**-0.5) / 2, abs=0.01)
    assert report_of(cuboid()).overhang_share == 0


def test_an_open_surface_is_not_measured_further() -> None:
    report = report_of(hemisphere())

    assert not report.is_closed and report.walls is None
    assert report.as_dict().keys() == {"closed", "size_mm"}
    assert wall_warning(report, min_wall_mm=0.8) == ()


def test_the_warning_names_the_share_the_place_and_the_thinnest_wall() -> None:
    (warning,) = wall_warning(report_of(hollow(0.005)), min_wall_mm=0.8)

    assert warning.startswith("99.0% of the surface belongs to walls thinner than 0.8 mm")
    assert "the thinnest is 0.50 mm" in warning and "above its base" in warning and "print of 100 mm" in warning
