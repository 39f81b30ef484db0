"""Whether a mesh can be printed, measured: shells, cavities, base, walls, overhangs. Changes nothing.

Walls: from `SAMPLES` points spread evenly over the surface, a ray leads inward along the face's normal to where it
leaves the solid. Its length is the wall there if it leaves through a face that looks the other way; at the foot of a
slope it does not, and there is an edge but no wall. (The shape diameter of Shapira et al. 2008, with one ray.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from pipeline.mesh.measure import label_components, measure
from pipeline.mesh.rays import exits, ray_tree, windings
from pipeline.mesh.tri_mesh import TriMesh

SAMPLES = 20_000
"""Points at which walls are measured; it bounds the time and finds a part of 1/2000 of the surface ten times."""
LEAST_SHARE = 1 / 2000
"""Of the surface: a smaller thin part is a tip or an edge, which every body has."""
OPPOSITE_COSINE = 0.5
"""Two faces are the two sides of a wall if they look away from each other to within 60 degrees."""
FLAT_MM = 0.05
"""The base is the section at this height above the lowest point: a ball has no base, a foot of little bumps has one."""
FIRST_LAYER_MM = 0.2
"""What looks downward within this height lies on the bed."""
LEAST_BASE_SHARE = 0.005
"""Least area of a base relative to the square of the longest side: a disc of 8 mm under a body of 100 mm."""
OVERHANG_COSINE = 2**-0.5
"""Faces that look downward by more than 45 degrees need support."""


@dataclass(frozen=True)
class Walls:
    """What is thinner than the least wall.

    Attributes:
        thinnest_mm: the thickness that walls of `LEAST_SHARE` of the surface are below; None where the two sides of no
            such part look away from each other.
        thin_share: share of the surface whose wall is too thin.
        from_mm, to_mm: heights between which nine tenths of it lie, above the lowest point; 0 where there is none.
        buried_share: share of the surface inside of the body, where shells or parts of one overlap.
    """

    thinnest_mm: float | None
    thin_share: float
    from_mm: float
    to_mm: float
    buried_share: float


@dataclass(frozen=True)
class PrintReport:
    """What a printer needs to know of a body.

    Attributes:
        is_closed: every edge has two faces, which run along it in opposite directions. Where it is false, nothing is
            known of the attributes after `size_mm`, and they are 0 or None.
        shells: closed surfaces that enclose material; they may overlap.
        cavities: closed surfaces that enclose air inside of a shell.
        size_mm: width, depth and height.
        volume_mm3: of the material; where shells overlap, counted once for each.
        base_mm2: area of the flat base, the section `FLAT_MM` above the lowest point.
        is_standing: the base is large enough and the centre of mass lies above it.
        walls: what is thinner than the least wall.
        overhang_share: share of the surface that needs support.
    """

    is_closed: bool
    shells: int
    cavities: int
    size_mm: tuple[float, float, float]
    volume_mm3: float = 0.0
    base_mm2: float = 0.0
    is_standing: bool = False
    walls: Walls | None = None
    overhang_share: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values of JSON, rounded, without what is not known."""
        found: dict[str, Any] = {"closed": self.is_closed, "size_mm": [round(side, 2) for side in self.size_mm]}
        if self.walls is None:
            return found
        thinnest_mm = self.walls.thinnest_mm
        return {
            **found,
            "shells": self.shells,
            "cavities": self.cavities,
            "volume_mm3": round(self.volume_mm3, 1),
            "base_mm2": round(self.base_mm2, 1),
            "stands": self.is_standing,
            "thinnest_wall_mm": None if thinnest_mm is None else round(thinnest_mm, 3),
            "thin_wall_share": round(self.walls.thin_share, 4),
            "thin_walls_from_mm": round(self.walls.from_mm, 1),
            "thin_walls_to_mm": round(self.walls.to_mm, 1),
            "overlap_share": round(self.walls.buried_share, 4),
            "overhang_share": round(self.overhang_share, 4),
        }


def wall_warning(report: PrintReport, *, min_wall_mm: float) -> tuple[str, ...]:
    """A sentence about walls that are too thin, if they are more than tips and edges."""
    walls = report.walls
    if walls is None or walls.thinnest_mm is None or walls.thin_share <= LEAST_SHARE:
        return ()
    place = f"between {walls.from_mm:.0f} and {walls.to_mm:.0f} mm above its base"
    return (
        f"{walls.thin_share:.1%} of the surface belongs to walls thinner than {min_wall_mm:g} mm, most of it {place}; "
        f"the thinnest is {walls.thinnest_mm:.2f} mm. In a print of {max(report.size_mm):.0f} mm they may break or be "
        "left out: print it larger (`size`), or with a finer nozzle (`min_wall_mm`).",
    )


def check_print(mesh: TriMesh, *, mm_per_unit: float, min_wall_mm: float) -> PrintReport:
    """Measure a mesh, +Y up.

    Args:
        mm_per_unit: millimetres of the print for a unit of the mesh.
        min_wall_mm: thinner walls are reported.
    """
    scaled = TriMesh(mesh.vertices.astype(np.float64) * mm_per_unit, mesh.faces)
    report = measure(scaled)
    width, height, depth = (b - a for a, b in zip(report.lowest, report.highest, strict=True))
    size_mm = (width, depth, height)
    if not (report.is_watertight and report.is_winding_consistent):
        return PrintReport(False, 0, 0, size_mm)
    volumes = component_volumes(scaled)[0]
    base_mm2, is_standing = base_of(scaled)
    return PrintReport(
        True,
        int((volumes > 0).sum()),
        int((volumes < 0).sum()),
        size_mm,
        float(volumes.sum()),
        base_mm2,
        is_standing,
        measure_walls(scaled, min_wall_mm=min_wall_mm),
        _overhang_share(scaled),
    )


def component_volumes(mesh: TriMesh) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The signed volume of each connected component, (C,), and the component of each face, (F,)."""
    _, component = np.unique(label_components(mesh)[mesh.faces[:, 0]], return_inverse=True)
    component = component.reshape(-1)
    return np.bincount(component, weights=_tetrahedra(mesh)[0]).astype(np.float64), component.astype(np.int64)


def base_of(mesh: TriMesh) -> tuple[float, bool]:
    """The area of a closed mesh's flat base in mm², and whether it stands on it; the mesh is in millimetres, +Y up."""
    low, high = mesh.bounds()
    segments = section(mesh, float(low[1]) + FLAT_MM)
    (ax, az), (bx, bz) = segments[:, 0].T, segments[:, 1].T
    area = max(0.0, float((az * bx - ax * bz).sum()) / 2)
    if area < LEAST_BASE_SHARE * float((high - low).max()) ** 2:
        return area, False
    return area, _is_above(segments.reshape(-1, 2), centre_of_mass(mesh)[[0, 2]])


def section(mesh: TriMesh, height: float) -> NDArray[np.float64]:
    """The section of a closed mesh at a height: (S, 2 ends, x and z), wound so that the inside has a positive area."""
    corners = mesh.corners.astype(np.float64)
    is_above = corners[:, :, 1] > height
    crosses = is_above.any(axis=1) & ~is_above.all(axis=1)
    corners, is_above = corners[crosses], is_above[crosses]
    # Turned so that the first corner is alone on its side; the section runs between the two edges at it.
    alone = np.where(is_above.sum(axis=1) == 1, is_above.argmax(axis=1), is_above.argmin(axis=1))
    turned = (alone[:, None] + np.arange(3)) % 3
    corners = np.take_along_axis(corners, turned[:, :, None], axis=1)
    first_above = np.take_along_axis(is_above, alone[:, None], axis=1)[:, 0]
    share = (height - corners[:, :1, 1]) / (corners[:, 1:, 1] - corners[:, :1, 1])  # (S, 2)
    ends = corners[:, :1] + share[:, :, None] * (corners[:, 1:] - corners[:, :1])
    ends[~first_above] = ends[~first_above][:, ::-1]
    return ends[:, :, [0, 2]]


def centre_of_mass(mesh: TriMesh) -> NDArray[np.float64]:
    """Centre of mass of a closed mesh of one density: (3,)."""
    volumes, middles = _tetrahedra(mesh)
    return (volumes[:, None] * middles).sum(axis=0) / max(float(volumes.sum()), 1e-30)


def _tetrahedra(mesh: TriMesh) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Signed volumes (F,) and centres (F, 3) of the tetrahedra between the faces and the middle of the mesh."""
    corners = mesh.corners.astype(np.float64)
    origin = mesh.bounds().mean(axis=0)  # near the faces, so that little is lost to rounding
    a, b, c = (corners[:, k] - origin for k in range(3))
    return np.einsum("fi,fi->f", a, np.cross(b, c)) / 6, origin + (a + b + c) / 4


def _is_above(points: NDArray[np.float64], centre: NDArray[np.float64]) -> bool:
    """Whether a point lies within the convex hull of others: (P, 2), (2,)."""
    try:
        hull = ConvexHull(points)
    except QhullError:  # all on a line
        return False
    return bool((hull.equations[:, :2] @ centre + hull.equations[:, 2] <= 0).all())


def measure_walls(mesh: TriMesh, *, min_wall_mm: float) -> Walls:
    """Measure the walls of a closed mesh in millimetres, +Y up."""
    points, normals = _samples(mesh)
    tree = ray_tree(mesh)
    low, high = mesh.bounds()
    skip = 1e-7 * float((high - low).max())
    is_buried = windings(tree, points, normals, skip=skip) > 0
    points, inward = points[~is_buried], -normals[~is_buried]
    lengths, cosines = exits(tree, points, inward, skip=skip)
    is_wall = np.isfinite(lengths) & (cosines >= OPPOSITE_COSINE)
    is_thin = is_wall & (lengths < 0.99 * min_wall_mm)  # rounding makes no wall of just the least width too thin
    heights = points[is_thin, 1] - low[1]
    first, last = (float(np.quantile(heights, share)) if len(heights) else 0.0 for share in (0.05, 0.95))
    ordered, rank = np.sort(lengths[is_wall]), int(LEAST_SHARE * len(lengths))
    return Walls(
        float(ordered[rank]) if len(ordered) > rank else None,
        float(is_thin.mean()) if len(is_thin) else 0.0,
        first,
        last,
        float(is_buried.mean()),
    )


def _samples(mesh: TriMesh) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points spread evenly over the surface, the same every time, and their normals: (N, 3) each."""
    cross = mesh.face_cross_products()
    length = np.linalg.norm(cross, axis=1)
    reached = np.cumsum(length)
    number = np.arange(SAMPLES)
    face = np.searchsorted(reached, (number + 0.5) / SAMPLES * reached[-1])
    # The additive recurrence R2, whose points are spread evenly in the unit square (Roberts 2018).
    u, v = (number * 0.7548776662466927 + 0.5) % 1, (number * 0.5698402909980532 + 0.5) % 1
    outside = u + v > 1
    u[outside], v[outside] = 1 - u[outside], 1 - v[outside]
    a, b, c = (mesh.corners[face, k].astype(np.float64) for k in range(3))
    return a + u[:, None] * (b - a) + v[:, None] * (c - a), cross[face] / length[face, None]


def _overhang_share(mesh: TriMesh) -> float:
    """Share of the surface that looks downward by more than 45 degrees, above the first layer."""
    cross = mesh.face_cross_products()
    area = np.linalg.norm(cross, axis=1)
    is_low = mesh.corners[:, :, 1].max(axis=1) <= mesh.bounds()[0, 1] + FIRST_LAYER_MM
    hangs = (-cross[:, 1] > OVERHANG_COSINE * area) & ~is_low
    return float(area[hangs].sum() / max(float(area.sum()), 1e-30))
