"""A texture atlas for a mesh: charts that look along the six axes, packed by xatlas. Knows nothing of colours.

Every face goes to the axis that it faces best; neighbours that share an axis are one chart, projected along it without
distortion worth naming. Where a chart would cover itself, the faces on top go to charts of their own, so no texel has
two owners.
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
# The two directions in which a chart of each axis lies, right-handed seen from outside; v points down.
ACROSS = np.array([[0, 0, -1], [0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0], [-1, 0, 0]], np.float64)
DOWN = np.array([[0, -1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1], [0, -1, 0], [0, -1, 0]], np.float64)
SMOOTHING_ROUNDS = 20
LEAST_COSINE = 0.2
"""A face goes with its neighbours to an axis only while it faces it so much; the inverse is how it is stretched."""
SMALL_CHART = 40
PADDING_TEXELS = 4
UNITS_PER_METRE = 1024.0
"""Charts are handed to the packer in about texels: it takes very small areas for none."""
MAX_ROUNDS = 12
CHECK_SIZE = 3072
"""Side of the raster on which charts are searched for folds before they are packed: finer than they end up."""
FILLED_SHARE = 0.72
"""Share of the texture that charts with their padding fill at the first try."""


@dataclass(frozen=True, eq=False)
class UnwrappedMesh:
    """A mesh whose vertices are split along the seams of its atlas.

    Attributes:
        vertices: (V, 3) float32.
        faces: (F, 3) int32, in the order of the mesh's faces.
        uvs: (V, 2) float32 in [0, 1], the origin at the texture's top left, as glTF has it.
        source_vertices: (V,) int32, the mesh's vertex that each was.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    uvs: NDArray[np.float32]
    source_vertices: NDArray[np.int32]


def unwrap(mesh: TriMesh, *, texture_size: int) -> UnwrappedMesh:
    """Lay a mesh out in a square texture.

    Args:
        texture_size: side of the texture in texels; charts keep about `PADDING_TEXELS` from each other.

    Raises:
        ValueError: the mesh has no face.
    """
    if len(mesh.faces) == 0:
        raise ValueError("a mesh without faces has no atlas")
    neighbours = _face_neighbours(mesh)
    axis = _choose_axes(mesh, neighbours)
    chart = _connected_charts(axis, neighbours)
    flat = _project(mesh, axis)
    for attempt in range(MAX_ROUNDS):
        covering = _covering_faces(flat, chart, CHECK_SIZE)
        if not covering.any():
            break
        chart = _move_out(chart, covering, neighbours, apart=attempt > MAX_ROUNDS // 2)
    unwrapped = _pack(mesh, flat, chart, texture_size)
    for attempt in range(MAX_ROUNDS):
        covering = _covering_faces(unwrapped.uvs[unwrapped.faces].astype(np.float64), None, texture_size)
        if not covering.any():
            break
        chart = _move_out(chart, covering, neighbours, apart=attempt > MAX_ROUNDS // 2)
        unwrapped = _pack(mesh, flat, chart, texture_size)
    return unwrapped


def _face_neighbours(mesh: TriMesh) -> NDArray[np.int64]:
    """Pairs of faces (N, 2) that share an edge."""
    opposite, _ = pair_half_edges(mesh.faces, len(mesh.vertices))
    first = np.flatnonzero(opposite > np.arange(len(opposite)))
    return np.stack([first // 3, opposite[first] // 3], axis=1)


def _choose_axes(mesh: TriMesh, neighbours: NDArray[np.int64]) -> NDArray[np.int64]:
    """The axis (F,) of each face: what it faces best, smoothed over its neighbours, small patches given to theirs."""
    cross = mesh.face_cross_products()
    normals = cross / np.maximum(np.linalg.norm(cross, axis=1), 1e-300)[:, None]
    facing = normals @ AXES.T
    first, second = neighbours.T
    smooth = normals
    for _ in range(SMOOTHING_ROUNDS):
        total = smooth.copy()
        for k in range(3):
            total[:, k] += np.bincount(first, smooth[second, k], len(smooth))
            total[:, k] += np.bincount(second, smooth[first, k], len(smooth))
        smooth = total / np.maximum(np.linalg.norm(total, axis=1), 1e-300)[:, None]
    axis = np.argmax(np.where(facing >= LEAST_COSINE, smooth @ AXES.T, -np.inf), axis=1)
    axis = np.where((facing >= LEAST_COSINE).any(axis=1), axis, np.argmax(facing, axis=1))
    for _ in range(SMOOTHING_ROUNDS):
        chart = _connected_charts(axis, neighbours)
        is_small = np.bincount(chart)[chart] < SMALL_CHART
        votes = np.zeros((len(axis), len(AXES)))
        outside = chart[first] != chart[second]
        np.add.at(votes, (first[outside], axis[second[outside]]), 1)
        np.add.at(votes, (second[outside], axis[first[outside]]), 1)
        # A small patch moves as a whole, and only if all of it faces the new axis well enough.
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
    """The number (F,) of the connected patch of one label that each face belongs to."""
    first, second = neighbours.T
    same = label[first] == label[second]
    count = len(label)
    graph = coo_matrix((np.ones(same.sum(), np.int8), (first[same], second[same])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _project(mesh: TriMesh, axis: NDArray[np.int64]) -> NDArray[np.float64]:
    """Corners (F, 3, 2) as seen along each face's axis, in metres, v downwards."""
    corners = mesh.corners.astype(np.float64)
    across = np.einsum("fki,fi->fk", corners, ACROSS[axis])
    down = np.einsum("fki,fi->fk", corners, DOWN[axis])
    return np.stack([across, down], axis=2)


def _move_out(
    chart: NDArray[np.int64], covering: NDArray[np.bool_], neighbours: NDArray[np.int64], *, apart: bool
) -> NDArray[np.int64]:
    """Give the covering faces charts of their own: connected ones together, or, with `apart`, each alone."""
    label = chart * 2 + covering
    if apart:
        label[covering] = 2 * (chart.max() + 1) + np.arange(covering.sum())
    return _connected_charts(label, neighbours)


def _covering_faces(flat: NDArray[np.float64], chart: NDArray[np.int64] | None, size: int) -> NDArray[np.bool_]:
    """Faces (F,) that cover a texel which an earlier face of their chart owns.

    Args:
        flat: (F, 3, 2) corners; scaled so that all fit when there are charts, else in [0, 1].
        chart: (F,), or None when all share one space.
        size: texels along the side.
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
    covering = np.zeros(len(flat), np.bool_)
    _mark_covering(scaled, number, order, size, covering)
    return covering


@njit(cache=True)
def _mark_covering(flat, chart, order, size, covering):  # type: ignore[no-untyped-def]
    """Rasterise faces chart by chart and mark those that meet an owned texel; see `_covering_faces`."""
    owner = np.full((size, size), -1, np.int32)
    for f in order:
        ax, ay = flat[f, 0, 0], flat[f, 0, 1]
        bx, by = flat[f, 1, 0], flat[f, 1, 1]
        cx, cy = flat[f, 2, 0], flat[f, 2, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0:
            continue
        if area < 0:
            bx, by, cx, cy = cx, cy, bx, by
        left = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        right = min(int(np.floor(max(ax, bx, cx) - 0.5)), size - 1)
        top = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        bottom = min(int(np.floor(max(ay, by, cy) - 0.5)), size - 1)
        free = True
        for write in range(2):
            if write == 1 and not free:
                covering[f] = True
                break
            for y in range(top, bottom + 1):
                for x in range(left, right + 1):
                    px, py = x + 0.5, y + 0.5
                    # Strictly inside: a texel's centre on a shared edge belongs to neither twice.
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
    """Split the vertices by chart and place the charts in the texture."""
    keys = chart[:, None] * np.int64(len(mesh.vertices)) + mesh.faces
    unique, first, corner = np.unique(keys.ravel(), return_index=True, return_inverse=True)
    source = (unique % len(mesh.vertices)).astype(np.int32)
    faces = corner.reshape(-1, 3).astype(np.int32)
    local = flat.reshape(-1, 2)[first]
    places = _place(local, unique // len(mesh.vertices), faces, texture_size)
    return UnwrappedMesh(mesh.vertices[source].astype(np.float32), faces, places, source)


def _place(
    local: NDArray[np.float64], chart: NDArray[np.int64], faces: NDArray[np.int32], texture_size: int
) -> NDArray[np.float32]:
    """Positions (V, 2) in the texture, 0 to 1, of vertices given in their own charts' planes."""
    charts = int(chart.max()) + 1
    low = np.full((charts, 2), np.inf)
    high = np.full((charts, 2), -np.inf)
    np.minimum.at(low, chart, local)
    np.maximum.at(high, chart, local)
    # Side by side, or the packer would weld charts that happen to lie in the same place.
    columns = int(np.ceil(np.sqrt(charts)))
    step = float((high - low).max()) * 1.01 + 1e-3
    cell = np.stack([np.arange(charts) % columns, np.arange(charts) // columns], axis=1) * step
    laid_out = (local - low[chart] + cell[chart]) * UNITS_PER_METRE
    density = _density((high - low) * UNITS_PER_METRE, texture_size)
    packed, size, atlases = _run_packer(laid_out, faces, texture_size, density)
    while atlases > 1 or max(size) > texture_size:
        density *= 0.94
        packed, size, atlases = _run_packer(laid_out, faces, texture_size, density)
    return np.clip(packed / max(texture_size, *size), 0, 1).astype(np.float32)


def _density(sizes: NDArray[np.float64], texture_size: int) -> float:
    """Texels per unit at which boxes (N, 2) with padding around each fill `FILLED_SHARE` of the texture."""
    area, half_border = sizes.prod(axis=1).sum(), sizes.sum() * PADDING_TEXELS
    excess = len(sizes) * PADDING_TEXELS**2 - FILLED_SHARE * texture_size**2
    if excess >= 0:  # more charts than texels for their padding
        return 0.05 * texture_size / max(float(sizes.max()), 1e-9)
    return float((-half_border + np.sqrt(half_border**2 - 4 * area * excess)) / (2 * area))


def _run_packer(
    laid_out: NDArray[np.float64], faces: NDArray[np.int32], texture_size: int, density: float
) -> tuple[NDArray[np.float64], tuple[int, int], int]:
    """Pack once; returns positions in texels, width and height, and into how many textures."""
    atlas = xatlas.Atlas()
    atlas.add_uv_mesh(laid_out.astype(np.float32), faces.astype(np.uint32))
    options = xatlas.PackOptions()
    options.padding = PADDING_TEXELS
    options.resolution = texture_size
    options.bilinear = True
    options.texels_per_unit = density
    atlas.generate(xatlas.ChartOptions(), options)
    sources, _, uvs = atlas.get_mesh(0)
    places = np.zeros((len(laid_out), 2))
    places[sources] = uvs.astype(np.float64) * (atlas.width, atlas.height)
    return places, (atlas.width, atlas.height), atlas.atlas_count
