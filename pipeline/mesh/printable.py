"""Makes one solid shell that stands on a flat base, for printing. Knows nothing of textures and wall thickness.

The rules, in this order; what already holds is left as it is:

1. Sheets are given a thickness, by sampling the surface anew; cavities are filled, and shells that overlap are united.
2. Shells of less than `CRUMB_SHARE` of the largest one's volume are removed. Others that touch nothing are joined to
   the rest by a pin along the shortest way, the nearest first.
3. The base is the section just above the lowest point. It must have `LEAST_BASE_SHARE` of the square of the longest
   side, and the centre of mass must lie above it. Otherwise the lowest part is cut off, at the least of `CUTS` that
   gives a base of `GOOD_BASE_SHARE`, else at the one that gives the largest; where none gives a base, a disc below the
   centre of mass becomes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from manifold3d import Error, Manifold, Mesh, OpType
from numpy.typing import NDArray
from scipy.spatial import KDTree

from pipeline.mesh.clean import clean
from pipeline.mesh.clean_open import faces_of_bodies
from pipeline.mesh.print_check import base_of, centre_of_mass, component_volumes, section
from pipeline.mesh.simplify import simplify
from pipeline.mesh.solidify import THICKNESS_SHARE, solidify
from pipeline.mesh.tri_mesh import TriMesh

CRUMB_SHARE = 0.01
PIN_DIAMETER_SHARE = 0.03
"""Diameter of a pin relative to the longest side: 3 mm in a print of 100 mm."""
MAX_PINS = 12
"""Shells beyond are removed, the smallest first."""
GOOD_BASE_SHARE = 0.02
"""Of the square of the longest side: a disc of 16 mm under a body of 100 mm holds on the bed without a brim."""
CUTS = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03)
"""Shares of the height that may be cut off from below."""
DISC_RADIUS_SHARE, DISC_HEIGHT_SHARE = 0.2, 0.015
"""Of the longest side: 40 mm across and 1.5 mm high under a body of 100 mm. Wider where it must reach the body."""
MOST_THICKNESS_SHARE = 0.05
"""Of the longest side: sheets do not get thicker for the sake of `min_wall_mm`."""
SEGMENTS = 48
MAX_ROUNDS = 4
MIN_AIM = 50
COUNT_TOLERANCE = 0.005
"""Share of the number of faces that `simplify_for_print` may miss it by."""


@dataclass(frozen=True, eq=False)
class Printable:
    """A mesh for printing.

    Attributes:
        mesh: one closed shell, wound outward; the given mesh itself where it was right.
        changes: sentences about what a printed part has otherwise than the subject.
    """

    mesh: TriMesh
    changes: tuple[str, ...] = ()


def make_solid(mesh: TriMesh, *, size_mm: float, min_wall_mm: float, most_faces: int) -> Printable:
    """Make a mesh one shell, by the first two rules.

    Args:
        mesh: +Y up, as `clean` or `clean_open` returns it.
        size_mm: longest side of the print.
        min_wall_mm: a sheet gets this thickness where it is more than `THICKNESS_SHARE`.
        most_faces: a surface with sheets is simplified to this number of faces; another one stays as it is.
    """
    mm_per_unit = size_mm / _longest_side(mesh)
    body, changes = mesh, tuple[str, ...]()
    if not faces_of_bodies(mesh).all():
        thickness_mm = max(THICKNESS_SHARE * size_mm, min(min_wall_mm, MOST_THICKNESS_SHARE * size_mm))
        made = solidify(mesh, thickness_m=thickness_mm / mm_per_unit, most_faces=most_faces)
        body = made.mesh
        changes = (
            f"What encloses nothing was made {made.thickness_m * mm_per_unit:.1f} mm thick, "
            f"on a grid of {made.cell_m * mm_per_unit:.2g} mm.",
        )
    joined, more = _one_shell(body, mm_per_unit)
    return Printable(joined, (*changes, *more))


def simplify_for_print(mesh: TriMesh, *, target_faces: int, size_mm: float) -> Printable:
    """Simplify a solid and give it a base, by the third rule, so that both together have the number of faces.

    The base comes last: a simplification would round it. Its faces are made up for by simplifying further.

    Args:
        mesh: of `make_solid`.
        size_mm: longest side of the print.
    """
    aim, source = target_faces, mesh
    nearest: Printable | None = None
    for _ in range(MAX_ROUNDS):
        simplified = simplify(source, target_faces=max(aim, MIN_AIM))
        based = with_base(simplified, size_mm=size_mm)
        excess = len(based.mesh.faces) - target_faces
        if nearest is None or abs(excess) < abs(len(nearest.mesh.faces) - target_faces):
            nearest = based
        if abs(excess) <= COUNT_TOLERANCE * target_faces or based.mesh is simplified:
            break
        aim -= excess
        source = simplified if aim < len(simplified.faces) else mesh
    assert nearest is not None
    return nearest


def with_base(mesh: TriMesh, *, size_mm: float) -> Printable:
    """Give one shell a base, by the third rule."""
    return Printable(*_with_base(mesh, size_mm / _longest_side(mesh)))


def _longest_side(mesh: TriMesh) -> float:
    low, high = mesh.bounds()
    return float((high - low).max())


def _one_shell(mesh: TriMesh, mm_per_unit: float) -> tuple[TriMesh, tuple[str, ...]]:
    volumes, component = component_volumes(mesh)
    if len(volumes) == 1:
        return mesh, ()
    changes: list[str] = []
    cavities = int((volumes < 0).sum())
    if cavities:
        changes.append(f"{_counted(cavities, 'cavity', 'cavities')} inside of it {_was(cavities)} filled.")
    shells = [_as_manifold(TriMesh(mesh.vertices, mesh.faces[component == k])) for k in np.flatnonzero(volumes > 0)]
    pieces = _united(shells)
    large = [piece for piece in pieces if piece.volume() >= CRUMB_SHARE * pieces[0].volume()][: MAX_PINS + 1]
    crumbs = len(pieces) - len(large)
    if crumbs:
        parts = _counted(crumbs, "small loose part", "small loose parts")
        changes.append(f"{parts} {_was(crumbs)} removed.")
    if len(large) > 1:
        low, high = mesh.bounds()
        diameter = PIN_DIAMETER_SHARE * float((high - low).max())
        for _ in range(len(large) - 1):
            if len(large) > 1:  # a pin may meet a third part on its way
                large = _united([*large, _pin_from(large[0], large[1:], diameter)])
        changes.append(f"Parts that touched nothing are joined to it by pins of {diameter * mm_per_unit:.1f} mm.")
    return _as_mesh(large[0]), tuple(changes)


def _with_base(mesh: TriMesh, mm_per_unit: float) -> tuple[TriMesh, tuple[str, ...]]:
    if _base_of(mesh, mm_per_unit)[1]:
        return mesh, ()
    body = _as_manifold(mesh)
    low, high = mesh.bounds()
    height = float(high[1] - low[1])
    longest = float((high - low).max())
    good_mm2 = GOOD_BASE_SHARE * (longest * mm_per_unit) ** 2
    best, best_mm2, best_cut = mesh, 0.0, 0.0
    for cut in (share * height for share in CUTS):
        pieces = _united([body.trim_by_plane((0.0, 1.0, 0.0), float(low[1]) + cut)])
        if len(pieces) > 1:
            break
        trimmed = _as_mesh(pieces[0])
        base_mm2, stands = _base_of(trimmed, mm_per_unit)
        if stands and base_mm2 > best_mm2:
            best, best_mm2, best_cut = trimmed, base_mm2, cut
        if best_mm2 >= good_mm2:
            break
    if best_cut > 0:
        return best, (f"{best_cut * mm_per_unit:.1f} mm were cut off below, so that it stands on a flat base.",)
    x, _, z = centre_of_mass(mesh)
    thickness = DISC_HEIGHT_SHARE * longest
    foot = section(mesh, float(low[1]) + thickness / 2).reshape(-1, 2)
    reach = float(np.linalg.norm(foot - (x, z), axis=1).min()) + thickness if len(foot) else 0.0
    radius = max(DISC_RADIUS_SHARE * longest, reach)
    disc = Manifold.cylinder(thickness, radius, radius, SEGMENTS).rotate((-90.0, 0.0, 0.0))
    whole = _united([body, disc.translate((x, float(low[1]), z))])[0]
    across_mm, high_mm = 2 * radius * mm_per_unit, thickness * mm_per_unit
    return _as_mesh(whole), (f"A disc of {across_mm:.0f} × {high_mm:.1f} mm was added below it as a base.",)


def _base_of(mesh: TriMesh, mm_per_unit: float) -> tuple[float, bool]:
    return base_of(TriMesh(mesh.vertices.astype(np.float64) * mm_per_unit, mesh.faces))


def _united(shells: Sequence[Manifold]) -> list[Manifold]:
    """The separate solids of a union, the largest first, without cavities that the union closes in."""
    pieces = Manifold.batch_boolean(shells, OpType.Add).decompose()
    return sorted((piece for piece in pieces if piece.volume() > 0), key=lambda piece: -piece.volume())


def _pin_from(body: Manifold, others: Sequence[Manifold], diameter: float) -> Manifold:
    """A pin between the vertices of a body and of others that are nearest to each other, a diameter deep in both."""
    points = _vertices(body)
    tree = KDTree(points)
    best, start, end = np.inf, points[0], points[0]
    for other in others:
        ends = _vertices(other)
        distances, places = (np.asarray(found) for found in tree.query(ends))
        nearest = int(np.argmin(distances))
        if distances[nearest] < best:
            best, start, end = distances[nearest], points[places[nearest]], ends[nearest]
    along = end - start
    length = float(np.linalg.norm(along))
    along = along / length if length > 0 else np.array([0.0, 1.0, 0.0])
    pin = Manifold.cylinder(length + 2 * diameter, diameter / 2, diameter / 2, SEGMENTS // 4)
    across = np.cross(np.eye(3)[np.argmin(np.abs(along))], along)
    across /= np.linalg.norm(across)
    axes = np.stack([across, np.cross(along, across), along], axis=1)  # columns; the cylinder stands along the third
    return pin.transform(np.hstack([axes, (start - diameter * along)[:, None]]))


def _vertices(solid: Manifold) -> NDArray[np.float64]:
    return np.asarray(solid.to_mesh().vert_properties, np.float64)[:, :3]


def _as_manifold(mesh: TriMesh) -> Manifold:
    used, faces = np.unique(mesh.faces, return_inverse=True)
    vertices = np.ascontiguousarray(mesh.vertices[used], np.float32)
    solid = Manifold(Mesh(vertices, np.ascontiguousarray(faces.reshape(-1, 3), np.uint32)))
    if solid.status() != Error.NoError:
        raise ValueError(f"the mesh is no closed manifold: {solid.status()}")
    return solid


def _as_mesh(solid: Manifold) -> TriMesh:
    mesh = solid.to_mesh()
    vertices = np.asarray(mesh.vert_properties, np.float32)[:, :3]
    return clean(TriMesh(vertices, np.asarray(mesh.tri_verts, np.int32)))


def _counted(count: int, one: str, many: str) -> str:
    return f"1 {one}" if count == 1 else f"{count} {many}"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
