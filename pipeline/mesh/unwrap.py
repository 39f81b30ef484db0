"""Texture atlas by projection along the six axes, packed as rectangles. Knows nothing of colours.

Every face is assigned to the axis closest to its smoothed normal; connected faces with the same axis form a chart, an
orthographic projection along that axis. Faces that overlap others of their chart move to charts of their own, so no
texel has two owners. Compared with xatlas's own charts, this needs no parametrisation and bounds the stretch by
1 / `LEAST_COSINE`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d
from scipy.sparse import coo_matrix, identity
from scipy.sparse.csgraph import connected_components

from pipeline.mesh.kernels import kernel, pixel_range
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
CELLS, FINER_CELLS = 64, 128
"""Cells along each side of the texture in which charts are packed, each in the middle of a box of whole cells with half
a cell free on every side at least. What bilinear filtering reads of a mipmap level is then of one box alone while a
texel of that level is no larger than a cell: of 1024 texels, down to level 4 (texels of 16 x 16), or down to level 3
with the finer cells."""
LEAST_DENSITY = 0.97
"""Texels along a metre with the coarser cells, relative to the finer ones; with fewer, the finer cells are used."""
ESTIMATE_ERROR = 0.03
"""By how much the estimate of that ratio was too low or too high on seven meshes of 6 to 391 charts, where it was near
the least one: the coarser cells are not tried where it is lower by more."""
MAX_ROUNDS = 12
"""Bounds the search for overlaps; from the seventh round on, each overlapping face gets a chart of its own."""
DENSITY_STEP, BISECTIONS = 0.98, 4
"""Factor of the density after an attempt to pack that did not fit the texture, and further attempts between the first
that fits and the one before: the density is then found to 0.13 %, if all smaller ones fit."""
MOST_PADDING = 0.5
"""Share of the texture that the smallest boxes, of four cells, may take; with more charts, the cells are halved."""


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
        texture_size: side of the texture in texels, in which overlaps are looked for.

    Raises:
        ValueError: the mesh has no face.
    """
    if len(mesh.faces) == 0:
        raise ValueError("a mesh without faces has no atlas")
    neighbours = _face_neighbours(mesh)
    axis = _choose_axes(mesh, neighbours)
    chart = _connected_charts(axis, neighbours)
    flat = _project(mesh, axis)  # (F, 3, 2)
    unwrapped = _pack(mesh, flat, chart)
    # A chart overlaps itself where the surface folds under its projection.
    for attempt in range(MAX_ROUNDS):
        overlapping = _overlapping_faces(unwrapped, texture_size)
        if not overlapping.any():
            break
        chart = _split_off(chart, overlapping, neighbours, one_by_one=attempt > MAX_ROUNDS // 2)
        unwrapped = _pack(mesh, flat, chart)
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
    # A row for each face, with a one for itself and for each neighbour: the product sums up over one ring.
    ends = np.concatenate([first, second]), np.concatenate([second, first])
    ring = coo_matrix((np.ones(len(ends[0])), ends), shape=(len(normals), len(normals))).tocsr() + identity(
        len(normals)
    )
    smooth = normals
    # Smoothing removes single faces whose normal differs from their surroundings, so that charts have short boundaries.
    for _ in range(SMOOTHING_ROUNDS):
        total = ring @ smooth
        smooth = total / np.maximum(np.sqrt((total**2).sum(axis=1)), 1e-300)[:, None]
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


def _overlapping_faces(unwrapped: UnwrappedMesh, size: int) -> NDArray[np.bool_]:
    """Faces (F,) that cover the centre of a texel which an earlier face covers; the texture has `size` x `size`."""
    overlapping = np.zeros(len(unwrapped.faces), np.bool_)
    corners = unwrapped.uvs.astype(np.float64).take(unwrapped.faces, axis=0) * size
    _mark_overlapping(corners, np.zeros((size, size), np.bool_), overlapping)
    return overlapping


@kernel
def _mark_overlapping(
    corners: NDArray[np.float64],  # (F, 3, 2) texels
    is_owned: NDArray[np.bool_],  # (S, S) False; written
    overlapping: NDArray[np.bool_],  # (F,) False; written
) -> None:
    """Rasterise the faces and mark those that meet a texel with an owner; see `_overlapping_faces`."""
    size = len(is_owned)
    for f in range(len(corners)):
        ax, ay = corners[f, 0, 0], corners[f, 0, 1]
        bx, by = corners[f, 1, 0], corners[f, 1, 1]
        cx, cy = corners[f, 2, 0], corners[f, 2, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0:
            continue
        if area < 0:  # make it counter-clockwise for the edge functions below
            bx, by, cx, cy = cx, cy, bx, by
        left, right = pixel_range(ax, bx, cx, 0.0, size)
        top, bottom = pixel_range(ay, by, cy, 0.0, size)
        # Two passes, so that a face that overlaps owns no texel: it leaves the chart, and must not evict others.
        for write in range(2):
            if overlapping[f]:
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
                            is_owned[y, x] = True
                        elif is_owned[y, x]:
                            overlapping[f] = True


def _pack(mesh: TriMesh, flat: NDArray[np.float64], chart: NDArray[np.int64]) -> UnwrappedMesh:
    """Duplicate the vertices along chart boundaries and place the charts, (F, 3, 2) and (F,), in the texture."""
    keys = chart[:, None] * np.int64(len(mesh.vertices)) + mesh.faces  # (F, 3): one key per chart and vertex
    unique, first, corner = np.unique(keys.ravel(), return_index=True, return_inverse=True)
    source = (unique % len(mesh.vertices)).astype(np.int32)
    faces = corner.reshape(-1, 3).astype(np.int32)
    local = flat.reshape(-1, 2)[first]  # (V, 2): all corners of a chart at one vertex project to the same point
    places = _place(local, unique // len(mesh.vertices))
    return UnwrappedMesh(mesh.vertices[source].astype(np.float32), faces, places, source)


@dataclass(frozen=True, eq=False)
class _Packing:
    """Places of the charts' boxes, in cells.

    Attributes:
        side: cells along the texture's side.
        density: cells per metre.
        corner: (N, 2) left and top of each box.
        is_turned: (N,) whether a chart is turned by a right angle.
    """

    side: int
    density: float
    corner: NDArray[np.int64]
    is_turned: NDArray[np.bool_]


def _place(local: NDArray[np.float64], chart: NDArray[np.int64]) -> NDArray[np.float32]:
    """Texture coordinates (V, 2) in [0, 1] from positions (V, 2) in each vertex's chart (V,), in metres.

    The charts are packed as their bounding boxes, all at the same density: the largest that is found to fit.
    """
    charts = int(chart.max()) + 1
    low, high = np.full((charts, 2), np.inf), np.full((charts, 2), -np.inf)
    np.minimum.at(low, chart, local)
    np.maximum.at(high, chart, local)
    sizes = high - low
    packing = _choose_packing(sizes)
    sizes, inside, is_turned = sizes * packing.density, (local - low[chart]) * packing.density, packing.is_turned
    # A turn by a right angle, which mirrors nothing.
    turned = np.stack([inside[:, 1], sizes[chart, 0] - inside[:, 0]], axis=1)
    inside = np.where(is_turned[chart, None], turned, inside)
    # What rounding to whole cells left over is shared by both sides: all of it on one side would be filled with the
    # colours of the next chart, where that is nearer, within cells that this chart's edge reads.
    boxes = _in_cells(sizes)
    margin = np.where(is_turned[:, None], (boxes - sizes)[:, ::-1], boxes - sizes) / 2
    return np.clip(((packing.corner + margin)[chart] + inside) / packing.side, 0, 1).astype(np.float32)


def _in_cells(sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Boxes of charts, both (N, 2) in cells: half a cell is free on every side."""
    return np.ceil(sizes + 1 - 1e-9).astype(np.int64)  # a chart of a whole number of cells may be larger by rounding


def _choose_packing(sizes: NDArray[np.float64]) -> _Packing:
    """Pack charts (N, 2), in metres, in coarse cells if that costs few texels of their surface, else in finer ones."""
    least = CELLS
    while 4 * len(sizes) > MOST_PADDING * least**2:
        least *= 2
    if least >= FINER_CELLS:
        return _pack_densely(sizes, least)
    fine = _pack_densely(sizes, FINER_CELLS)
    estimate = (_most_density(sizes, least) / least) / (_most_density(sizes, FINER_CELLS) / FINER_CELLS)
    if estimate < LEAST_DENSITY - ESTIMATE_ERROR:
        return fine
    coarse = _pack_densely(sizes, least)
    return coarse if coarse.density / coarse.side >= LEAST_DENSITY * fine.density / fine.side else fine


def _pack_densely(sizes: NDArray[np.float64], side: int) -> _Packing:
    """Pack charts (N, 2), in metres, into side x side cells at the largest density that is found to fit."""
    density, too_dense = _most_density(sizes, side), None
    while (packed := _pack_boxes(_in_cells(sizes * density), side)) is None:
        too_dense = density
        density *= DENSITY_STEP
    if too_dense is not None:
        for _ in range(BISECTIONS):
            middle = (density + too_dense) / 2
            found = _pack_boxes(_in_cells(sizes * middle), side)
            if found is None:
                too_dense = middle
            else:
                density, packed = middle, found
    return _Packing(side, density, *packed)


def _most_density(sizes: NDArray[np.float64], side: int) -> float:
    """Cells per metre at which charts (N, 2), in metres, would fill side x side cells without a gap.

    The positive root d of sum((w d + p)(h d + p)) = side^2, where p is what is free and what rounding adds on average;
    at most what lets the largest chart fit.
    """
    area, half_border = max(float(sizes.prod(axis=1).sum()), 1e-12), 1.5 * float(sizes.sum())
    excess = 1.5**2 * len(sizes) - side**2
    root = (-half_border + np.sqrt(max(half_border**2 - 4 * area * excess, 0))) / (2 * area)
    return float(min(root, (side - 1) / max(float(sizes.max()), 1e-9)))


def _pack_boxes(boxes: NDArray[np.int64], side: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
    """Pack boxes, widths and heights (N, 2), into a square without overlap, from the widest to the narrowest.

    Each is placed, upright or turned, below all that was placed before it, where it leaves the least area unused; of
    such places, where its bottom comes lowest, then the leftmost. Source: Jylanki, "A thousand ways to pack the bin",
    2010 (skyline, minimum waste fit).

    Returns:
        Left and top of each, (N, 2), and whether its sides are exchanged, (N,); None if they do not fit.
    """
    corner, is_turned = np.zeros_like(boxes), np.zeros(len(boxes), np.bool_)
    skyline = np.zeros(side, np.int64)  # how far down each column is filled
    most = side**3  # above any cost of a place
    for number in np.lexsort((boxes.max(axis=1), boxes.min(axis=1)))[::-1]:
        best = None
        area = np.concatenate([[0], np.cumsum(skyline)])
        for turned in (False, True):
            width, height = boxes[number, ::-1] if turned else boxes[number]
            if width > side:
                continue
            top = maximum_filter1d(skyline, width, origin=-(width // 2))[: side - width + 1]  # of a box at each column
            unused = top * width - (area[width:] - area[:-width])
            cost = np.where(top + height <= side, unused * side + top, most)
            left = int(np.argmin(cost))
            place = (int(unused[left]), int(top[left]) + height, left, turned, width, height)
            if cost[left] < most and (best is None or place < best):
                best = place
        if best is None:
            return None
        _, bottom, left, is_turned[number], width, height = best
        corner[number] = left, bottom - height
        skyline[left : left + width] = bottom
    return corner, is_turned
