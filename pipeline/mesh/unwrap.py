"""Texture atlas by projection along the six axes, packed by xatlas. Knows nothing of colours.

Every face is assigned to the axis closest to its smoothed normal; connected faces with the same axis form a chart, an
orthographic projection along that axis. Faces that overlap others of their chart move to charts of their own, so no
texel has two owners. Compared with xatlas's own charts, this needs no parametrisation and bounds the stretch by
1 / `LEAST_COSINE`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xatlas
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.mesh.topology import pair_half_edges
from pipeline.mesh.tri_mesh import TriMesh

AXES = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float64)
# Directions of u and v for each axis; u x v points inward, so charts are not mirrored when seen from outside.
ACROSS = np.array([[0, 0, -1], [0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0], [-1, 0, 0]], np.float64)
DOWN = np.array([[0, -1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1], [0, -1, 0], [0, -1, 0]], np.float64)
SMOOTHING_ROUNDS = 20
"""Rounds of normal smoothing, each over one ring of neighbours, and the limit on rounds of merging small charts."""
LEAST_COSINE = 0.2
"""Least cosine between a face's normal and its chart's axis; the texture is stretched by at most its inverse."""
SMALL_CHART = 40
"""A chart with fewer faces is merged into a neighbour if the stretch allows it: its padding costs more than it."""
PADDING_TEXELS = 4
"""Distance between charts: covers bilinear filtering (1 texel) and two mipmap levels."""
UNITS_PER_METRE = 1024.0
"""Scale of the charts given to xatlas, about one unit per texel: it discards faces with a very small area."""
MAX_ROUNDS = 12
"""Bounds the search for overlaps; from the seventh round on, each overlapping face gets a chart of its own."""
CHECK_SCALE = 1.5
"""Side of the raster on which charts are checked for overlaps before packing, in sides of the texture. It spans the
mesh and the texture all charts side by side, so it is finer than their final resolution."""
FILLED_SHARE = 0.72
"""Share of the texture that the charts' bounding boxes with padding fill in the first attempt to pack."""
DENSITY_STEP = 0.94
"""Factor of the density after an attempt that did not fit one texture."""


@dataclass(frozen=True, eq=False)
class UnwrappedMesh:
    """A mesh whose vertices are split along the seams of its atlas.

    Attributes:
        vertices: (V, 3) float32.
        faces: (F, 3) int32, in the order of the mesh's faces.
        uvs: (V, 2) float32 in [0, 1], the origin at the texture's top left, as in glTF.
        source_vertices: (V,) int32, the mesh's vertex that each is a copy of.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    uvs: NDArray[np.float32]
    source_vertices: NDArray[np.int32]


def unwrap(mesh: TriMesh, *, texture_size: int) -> UnwrappedMesh:
    """Compute the atlas of a mesh for a square texture.

    Args:
        mesh: (V, 3) vertices and (F, 3) faces.
        texture_size: side of the texture in texels; charts are about `PADDING_TEXELS` apart.

    Raises:
        ValueError: the mesh has no face.
    """
    if len(mesh.faces) == 0:
        raise ValueError("a mesh without faces has no atlas")
    neighbours = _face_neighbours(mesh)
    axis = _choose_axes(mesh, neighbours)
    chart = _connected_charts(axis, neighbours)
    flat = _project(mesh, axis)  # (F, 3, 2)
    # Before packing: charts of a connected patch overlap themselves where the surface folds under the projection.
    for attempt in range(MAX_ROUNDS):
        overlapping = _overlapping_faces(flat, chart, round(CHECK_SCALE * texture_size))
        if not overlapping.any():
            break
        chart = _split_off(chart, overlapping, neighbours, one_by_one=attempt > MAX_ROUNDS // 2)
    unwrapped = _pack(mesh, flat, chart, texture_size)
    # After packing: the same check on the texels themselves, across all charts.
    for attempt in range(MAX_ROUNDS):
        overlapping = _overlapping_faces(unwrapped.uvs[unwrapped.faces].astype(np.float64), None, texture_size)
        if not overlapping.any():
            break
        chart = _split_off(chart, overlapping, neighbours, one_by_one=attempt > MAX_ROUNDS // 2)
        unwrapped = _pack(mesh, flat, chart, texture_size)
    return unwrapped


def _face_neighbours(mesh: TriMesh) -> NDArray[np.int64]:
    """Pairs of faces (N, 2) that share an edge; non-manifold edges give none, so charts are cut there."""
    opposite, _ = pair_half_edges(mesh.faces, len(mesh.vertices))
    first = np.flatnonzero(opposite > np.arange(len(opposite)))
    return np.stack([first // 3, opposite[first] // 3], axis=1)


def _choose_axes(mesh: TriMesh, neighbours: NDArray[np.int64]) -> NDArray[np.int64]:
    """Axis of each face, (F,): the best by smoothed normal, then small charts merged into their neighbours."""
    cross = mesh.face_cross_products()
    normals = cross / np.maximum(np.linalg.norm(cross, axis=1), 1e-300)[:, None]
    facing = normals @ AXES.T  # (F, 6) cosines
    first, second = neighbours.T
    smooth = normals
    # Smoothing removes single faces whose normal differs from their surroundings, so that charts have short boundaries.
    for _ in range(SMOOTHING_ROUNDS):
        total = smooth.copy()
        for k in range(3):
            total[:, k] += np.bincount(first, smooth[second, k], len(smooth))
            total[:, k] += np.bincount(second, smooth[first, k], len(smooth))
        smooth = total / np.maximum(np.linalg.norm(total, axis=1), 1e-300)[:, None]
    # The smoothed normal chooses among the axes that the face itself faces well enough. For a unit normal one cosine is
    # at least 1 / sqrt(3) = 0.58; only a face without area has none.
    axis = np.argmax(np.where(facing >= LEAST_COSINE, smooth @ AXES.T, -np.inf), axis=1)
    axis = np.where((facing >= LEAST_COSINE).any(axis=1), axis, np.argmax(facing, axis=1))
    for _ in range(SMOOTHING_ROUNDS):
        chart = _connected_charts(axis, neighbours)
        is_small = np.bincount(chart)[chart] < SMALL_CHART
        votes = np.zeros((len(axis), len(AXES)))
        outside = chart[first] != chart[second]
        np.add.at(votes, (first[outside], axis[second[outside]]), 1)
        np.add.at(votes, (second[outside], axis[first[outside]]), 1)
        # A small chart takes the axis of most adjacent faces, but only one that all of its own faces face well enough.
        by_chart = np.zeros((chart.max() + 1, len(AXES)))
        np.add.at(by_chart, chart, votes)
        worst = np.full((chart.max() + 1, len(AXES)), np.inf)
        np.minimum.at(worst, chart, facing)
        by_chart[worst < LEAST_COSINE] = 0
        best = np.argmax(by_chart, axis=1)
        moves = is_small & (by_chart[chart, best[chart]] > 0)
        if not moves.any():
            break
        axis = np.where(moves, best[chart], axis)
    return axis


def _connected_charts(label: NDArray[np.int64], neighbours: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the connected set of equally labelled faces that each face is in: (F,), (N, 2) -> (F,)."""
    first, second = neighbours.T
    same = label[first] == label[second]
    count = len(label)
    graph = coo_matrix((np.ones(same.sum(), np.int8), (first[same], second[same])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _project(mesh: TriMesh, axis: NDArray[np.int64]) -> NDArray[np.float64]:
    """Orthographic projection of the corners along each face's axis: (F,) -> (F, 3, 2) in metres, v downwards."""
    corners = mesh.corners.astype(np.float64)
    across = np.einsum("fki,fi->fk", corners, ACROSS[axis])
    down = np.einsum("fki,fi->fk", corners, DOWN[axis])
    return np.stack([across, down], axis=2)


def _split_off(
    chart: NDArray[np.int64], overlapping: NDArray[np.bool_], neighbours: NDArray[np.int64], *, one_by_one: bool
) -> NDArray[np.int64]:
    """Move the overlapping faces (F,) to charts of their own, (F,) -> (F,): connected ones together, or one by one."""
    label = chart * 2 + overlapping
    if one_by_one:  # connected faces may overlap each other; single faces cannot, so the search ends
        label[overlapping] = 2 * (chart.max() + 1) + np.arange(overlapping.sum())
    return _connected_charts(label, neighbours)


def _overlapping_faces(flat: NDArray[np.float64], chart: NDArray[np.int64] | None, size: int) -> NDArray[np.bool_]:
    """Faces (F,) that cover the centre of a texel which an earlier face of the same chart covers.

    Args:
        flat: (F, 3, 2) corners, in any unit with charts and in [0, 1] without.
        chart: (F,) charts, checked one by one in the same raster; None checks all faces against each other.
        size: texels along the raster's side.
    """
    if chart is None:
        order = np.arange(len(flat))
        scaled = flat * size
        number = np.zeros(len(flat), np.int64)
    else:
        order = np.argsort(chart, kind="stable")
        low = flat.reshape(-1, 2).min(axis=0)
        span = max(float((flat.reshape(-1, 2).max(axis=0) - low).max()), 1e-9)
        scaled = (flat - low) * ((size - 1) / span)
        number = chart
    overlapping = np.zeros(len(flat), np.bool_)
    _mark_overlapping(scaled, number, order, size, overlapping)
    return overlapping


# Annotated, without an explicit numba signature; the reason stands in `pipeline.mesh.simplify`.
@njit(cache=True, error_model="numpy")
def _mark_overlapping(
    flat: NDArray[np.float64],  # (F, 3, 2) texels
    chart: NDArray[np.int64],  # (F,)
    order: NDArray[np.int64],  # (F,) faces sorted by chart
    size: int,
    overlapping: NDArray[np.bool_],  # (F,) written
) -> None:
    """Rasterise the faces chart by chart and mark those that meet a texel with an owner; see `_overlapping_faces`."""
    # `owner` holds the chart of the last face that covered a texel. Charts come in turn, so a value from an earlier
    # chart means free and the raster never needs clearing.
    owner = np.full((size, size), -1, np.int32)
    for f in order:
        ax, ay = flat[f, 0, 0], flat[f, 0, 1]
        bx, by = flat[f, 1, 0], flat[f, 1, 1]
        cx, cy = flat[f, 2, 0], flat[f, 2, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0:
            continue
        if area < 0:  # make it counter-clockwise for the edge functions below
            bx, by, cx, cy = cx, cy, bx, by
        left = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        right = min(int(np.floor(max(ax, bx, cx) - 0.5)), size - 1)
        top = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        bottom = min(int(np.floor(max(ay, by, cy) - 0.5)), size - 1)
        # Two passes, so that a face that overlaps owns no texel: it leaves the chart, and must not evict others.
        free = True
        for write in range(2):
            if write == 1 and not free:
                overlapping[f] = True
                break
            for y in range(top, bottom + 1):
                for x in range(left, right + 1):
                    px, py = x + 0.5, y + 0.5
                    # Strictly inside: a centre on the edge of two adjacent faces must not count as an overlap.
                    if (
                        (bx - ax) * (py - ay) - (by - ay) * (px - ax) > 1e-9
                        and (cx - bx) * (py - by) - (cy - by) * (px - bx) > 1e-9
                        and (ax - cx) * (py - cy) - (ay - cy) * (px - cx) > 1e-9
                    ):
                        if write == 1:
                            owner[y, x] = chart[f]
                        elif owner[y, x] == chart[f]:
                            free = False


def _pack(mesh: TriMesh, flat: NDArray[np.float64], chart: NDArray[np.int64], texture_size: int) -> UnwrappedMesh:
    """Duplicate the vertices along chart boundaries and place the charts, (F, 3, 2) and (F,), in the texture."""
    keys = chart[:, None] * np.int64(len(mesh.vertices)) + mesh.faces  # (F, 3): one key per chart and vertex
    unique, first, corner = np.unique(keys.ravel(), return_index=True, return_inverse=True)
    source = (unique % len(mesh.vertices)).astype(np.int32)
    faces = corner.reshape(-1, 3).astype(np.int32)
    local = flat.reshape(-1, 2)[first]  # (V, 2): all corners of a chart at one vertex project to the same point
    places = _place(local, unique // len(mesh.vertices), faces, texture_size)
    return UnwrappedMesh(mesh.vertices[source].astype(np.float32), faces, places, source)


def _place(
    local: NDArray[np.float64], chart: NDArray[np.int64], faces: NDArray[np.int32], texture_size: int
) -> NDArray[np.float32]:
    """Texture coordinates (V, 2) in [0, 1] from positions (V, 2) in each vertex's chart (V,), in metres."""
    charts = int(chart.max()) + 1
    low = np.full((charts, 2), np.inf)
    high = np.full((charts, 2), -np.inf)
    np.minimum.at(low, chart, local)
    np.maximum.at(high, chart, local)
    # Lay the charts out on a grid without contact: xatlas merges charts that share positions.
    columns = int(np.ceil(np.sqrt(charts)))
    step = float((high - low).max()) * 1.01 + 1e-3
    cell = np.stack([np.arange(charts) % columns, np.arange(charts) // columns], axis=1) * step
    laid_out = (local - low[chart] + cell[chart]) * UNITS_PER_METRE
    density = _density((high - low) * UNITS_PER_METRE, texture_size)
    packed, size, atlases = _run_packer(laid_out, faces, texture_size, density)
    while atlases > 1 or max(size) > texture_size:
        density *= DENSITY_STEP
        packed, size, atlases = _run_packer(laid_out, faces, texture_size, density)
    return np.clip(packed / max(texture_size, *size), 0, 1).astype(np.float32)


def _density(sizes: NDArray[np.float64], texture_size: int) -> float:
    """Texels per unit at which bounding boxes (N, 2) with padding fill `FILLED_SHARE` of the texture.

    The positive root d of sum((w d + p)(h d + p)) = `FILLED_SHARE` texture_size^2, where p is the padding.
    """
    area, half_border = sizes.prod(axis=1).sum(), sizes.sum() * PADDING_TEXELS
    excess = len(sizes) * PADDING_TEXELS**2 - FILLED_SHARE * texture_size**2
    if excess >= 0:  # the padding alone fills the texture: start small
        return 0.05 * texture_size / max(float(sizes.max()), 1e-9)
    return float((-half_border + np.sqrt(half_border**2 - 4 * area * excess)) / (2 * area))


def _run_packer(
    laid_out: NDArray[np.float64], faces: NDArray[np.int32], texture_size: int, density: float
) -> tuple[NDArray[np.float64], tuple[int, int], int]:
    """Pack once; returns positions (V, 2) in texels, the width and height, and the number of textures needed."""
    atlas = xatlas.Atlas()
    atlas.add_uv_mesh(laid_out.astype(np.float32), faces.astype(np.uint32))
    options = xatlas.PackOptions()
    options.padding = PADDING_TEXELS
    options.resolution = texture_size
    options.bilinear = True  # keep another texel free at chart boundaries for bilinear filtering
    options.texels_per_unit = density
    atlas.generate(xatlas.ChartOptions(), options)
    sources, _, uvs = atlas.get_mesh(0)
    places = np.zeros((len(laid_out), 2))
    places[sources] = uvs.astype(np.float64) * (atlas.width, atlas.height)
    return places, (atlas.width, atlas.height), atlas.atlas_count
