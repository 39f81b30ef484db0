"""Surface extraction from the mesh decoder's channels: average the corners that cubes share, then run FlexiCubes.

Memory grows with the surface, not with the grid: vertices are stored sorted by key, where the release scatters into
dense arrays of (resolution + 1)^3 entries.

Another resolution than the decoder's samples the same field: the values at the decoder's grid vertices are interpolated
trilinearly (absent vertices count as outside) at the vertices of the target grid. Displacements are interpolated too,
so the deformed grid keeps its shape. Below the decoder's resolution, details thinner than a cube are lost; above it,
every cube is subdivided and the surface becomes smoother, not more detailed.

Source: Shen et al. 2023 (FlexiCubes), arXiv 2308.05371; microsoft/TRELLIS@6b0d647,
trellis/representations/mesh/cube2mesh.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.ops.blocks import DEFAULT_CHUNK_SIZE, rows_at_once
from pipeline.ops.constants import constant
from pipeline.ops.flexicubes import (
    CORNERS,
    CornerTable,
    CubeWeights,
    DualMesh,
    corner_key_steps,
    extract_dual_mesh,
    find_sorted,
    linear_cube_key,
)
from pipeline.ops.groups import Groups

CHANNELS = {"sdf": 8, "deform": 24, "weights": 21, "colour": 48}  # in channel order; colour may be absent
OUTSIDE = 1.0  # signed distance of vertices without data; positive is outside
DEFORM_REACH = 1 - 1e-8  # a vertex moves by less than half a cube, as in the release
ROWS_AT_ONCE = 1 << 17  # rows gathered at once on a CPU, so that temporaries stay small beside the table
BYTES_OF_ROW = 10 * 24  # ten values of a vertex, with the numbers of their channels and a copy
CUBES_OF_VERTEX = 8  # at most


@dataclass(frozen=True, eq=False)
class VertexField:
    """The decoder's values on its own grid.

    Attributes:
        keys: (V,) int64 ascending keys of the grid vertices with data, see `linear_cube_key`.
        table: V rows of values, and a last row for vertices without data.
        cube_keys: (N,) int64 ascending keys of the cubes with weights.
        weights: (N + 1, 21) float32 raw FlexiCubes weights in that order; the last row is zero.
        resolution: cubes along the side of the grid.
    """

    keys: Tensor  # (V,)
    table: CornerTable  # V + 1 rows
    cube_keys: Tensor  # (N,)
    weights: Tensor  # (N + 1, 21)
    resolution: int


def corner_offsets(device: torch.device) -> Tensor:
    """Return the (8, 3) int64 corners of the unit cube, in the order of the decoder's channels."""
    return constant(CORNERS, device)


def gather_field(coords: Tensor, channels: Tensor, *, resolution: int, use_color: bool) -> VertexField:
    """Average the corner values of all cubes that share a grid vertex.

    Args:
        coords: (N, 3) integer cubes.
        channels: (N, 101), or (N, 53) without colour: the decoder's output, any float type.
        resolution: cubes along the side of the grid.
        use_color: whether `channels` contain colour.
    """
    # (N,) -> (N, 8): each cube has eight corners, and neighbouring cubes share them.
    corner_keys = linear_cube_key(coords, resolution)[:, None] + corner_key_steps(coords.device, resolution)
    if (resolution + 3) ** 3 < 1 << 31:  # sorting 32-bit keys takes half the memory
        corner_keys = corner_keys.to(torch.int32)
    # A stable sort keeps the cubes of a vertex in their input order, which fixes the order of the sum below.
    corner_keys, order = torch.sort(corner_keys.flatten(), stable=True)
    keys, counts = torch.unique_consecutive(corner_keys, return_counts=True)  # (8N,) -> (V,) each
    del corner_keys
    groups = Groups(order, torch.cumsum(counts, 0) - counts, counts, most=CUBES_OF_VERTEX)
    del order
    if channels.device.type == "cpu":
        means = _corner_means(channels, groups, resolution, use_color)
    else:
        means = _corner_means_at_once(channels, groups, resolution, use_color)
    del groups
    # tanh after the mean, as in the release: a shared vertex has one displacement, bounded by half a cube.
    distance, offset = means[:, 0], DEFORM_REACH / (2 * resolution) * means[:, 1:4].contiguous().tanh()
    table = CornerTable(
        sdf=torch.cat([distance, distance.new_full((1,), OUTSIDE)]),
        offset=torch.cat([offset, offset.new_zeros((1, 3))]),
        attributes=_colours(means[:, 4:]) if use_color else None,
    )
    del means
    # The last row is what `find_sorted` returns for a missing key: zero weights are FlexiCubes' neutral ones.
    cube_keys, order = torch.sort(linear_cube_key(coords, resolution))
    first = CHANNELS["sdf"] + CHANNELS["deform"]
    raw = channels[:, first : first + CHANNELS["weights"]]
    weights = raw.new_zeros((len(raw) + 1, raw.shape[1]), dtype=torch.float32)
    at_once = _rows_at_once(raw.device)
    for start in range(0, len(raw), at_once):
        weights[start : start + at_once][: len(raw) - start] = raw[order[start : start + at_once]]
    return VertexField(keys.long(), table, cube_keys, weights, resolution)


def _corner_means(channels: Tensor, groups: Groups, resolution: int, has_colour: bool) -> Tensor:
    """Average distance, displacement and colour over the cubes at each vertex: (V, 10), or (V, 4) without colour.

    For a CPU: some vertices at a time, so that temporaries stay small.

    Args:
        channels: (N, 101) or (N, 53).
        groups: for each vertex its corners, numbered 8 * cube + corner.
        resolution: cubes along the side of the grid.
        has_colour: whether `channels` contain colour.
    """
    columns = _corner_columns(channels.device, has_colour)  # (8, 4) or (8, 10)
    total = channels.new_zeros((len(groups.counts), columns.shape[1]), dtype=torch.float32)
    flat = channels.reshape(-1)
    at_once = _rows_at_once(channels.device)
    for start in range(0, len(total), at_once):
        counts, starts = (x[start : start + at_once] for x in (groups.counts, groups.starts))
        part = total[start : start + at_once]

        def values_of(corner: Tensor) -> Tensor:
            values = flat[(corner // 8 * channels.shape[1])[:, None] + columns[corner % 8]].float()  # (M, 4 or 10)
            values[:, 0] -= 1 / resolution  # bias of the release: zero is slightly inside
            return values

        # A loop over at most eight cubes instead of a scatter: atomic additions on a GPU have no fixed order, and the
        # last bits of the sum would differ from run to run.
        for rank in range(int(counts.max())):
            present = (counts > rank).nonzero()[:, 0]  # (M,) vertices with more than `rank` cubes
            part[present] += values_of(groups.order[starts[present] + rank])
        part /= counts[:, None]
    return total


def _corner_means_at_once(channels: Tensor, groups: Groups, resolution: int, has_colour: bool) -> Tensor:
    """The same in few kernels and with more memory, without waiting for how many cubes a vertex has."""
    columns, first = [], 0
    for name, width in CHANNELS.items():
        if name != "weights" and (name != "colour" or has_colour):
            columns.append(channels[:, first : first + width].unflatten(1, (8, -1)))  # (N, 8, 1, 3 or 6)
        first += width
    columns[0] = columns[0].float() - 1 / resolution  # bias of the release: zero is slightly inside
    values = torch.cat(columns, dim=-1).flatten(0, 1)  # (N, 8, 4 or 10) -> (8 N, 4 or 10)
    return groups.sum(values).div_(groups.counts[:, None])


def _rows_at_once(device: torch.device) -> int:
    if device.type == "cpu":
        return ROWS_AT_ONCE
    return rows_at_once(device, chunk_size=DEFAULT_CHUNK_SIZE, bytes_each=BYTES_OF_ROW)


def _corner_columns(device: torch.device, has_colour: bool) -> Tensor:
    """Return the channels of each corner: one distance, three displacements, six of colour and normal: (8, 4 or 10)."""
    columns, first = [], 0
    for name, width in CHANNELS.items():
        if name != "weights" and (name != "colour" or has_colour):
            columns.append(torch.arange(first, first + width, device=device).view(8, -1))
        first += width
    return torch.cat(columns, dim=1)


def _colours(logits: Tensor) -> Tensor:
    """Activate logits of rgb and normal, and append the row of vertices without data: (V, 6) -> (V + 1, 6)."""
    return torch.cat([logits, logits.new_zeros((1, 6))]).sigmoid()


def surface_cubes(field: VertexField) -> tuple[Tensor, Tensor]:
    """Find the cubes that the surface crosses, and the rows of their corners in the field's table.

    A crossed cube touches an inside vertex, so only those cubes are tested, and memory grows with the body.

    Returns:
        (S, 3) int64 cubes ascending by (x, y, z), and (S, 8) int64 rows.
    """
    inside = field.keys[field.table.sdf[:-1] < 0]  # (V',)
    steps = corner_key_steps(inside.device, field.resolution)
    keys = torch.unique(inside[:, None] - steps)  # (V', 8) the cubes of which a vertex is a corner -> (S',)
    cubes = split_keys(keys, field.resolution)
    corners = find_sorted(field.keys, keys[:, None] + steps)  # (S', 8)
    crossed = ~(field.table.sdf[corners] < 0).all(dim=1)  # at least one corner is inside by construction
    crossed &= ((cubes >= 0) & (cubes < field.resolution)).all(dim=1)  # vertices of the border have cubes outside
    found = crossed.nonzero()[:, 0]
    return cubes[found], corners[found]


def split_keys(keys: Tensor, resolution: int) -> Tensor:
    """Invert `linear_cube_key`: (N,) -> (N, 3)."""
    side = resolution + 3  # vertices 0 to resolution, and one of margin on each side
    return torch.stack([keys // side**2, keys // side % side, keys % side], dim=1) - 1


def cube_weights(field: VertexField, cubes: Tensor) -> CubeWeights:
    """Return the FlexiCubes weights of (S, 3) cubes of the field's grid; neutral weights for cubes without data."""
    return CubeWeights.from_raw(field.weights[find_sorted(field.cube_keys, linear_cube_key(cubes, field.resolution))])


def extract_mesh(field: VertexField, *, resolution: int | None = None, chunk_size: int = 1 << 20) -> DualMesh:
    """Extract the surface of a field.

    Args:
        field: from `gather_field`.
        resolution: cubes along the side of the grid for the extraction; the field's own by default.
        chunk_size: cubes evaluated at once; the result does not depend on it.
    """
    cubes, corners = surface_cubes(field)
    if resolution is None or resolution == field.resolution:
        return extract_dual_mesh(
            cubes,
            corners,
            field.table,
            cube_weights(field, cubes),
            resolution=field.resolution,
            chunk_size=chunk_size,
        )
    return _extract_resampled(field, cubes, resolution, chunk_size)


def _extract_resampled(field: VertexField, surface: Tensor, resolution: int, chunk_size: int) -> DualMesh:
    """Extract on another grid; `surface` (S, 3) are the crossed cubes of the field's grid."""
    cubes = _overlapping_cubes(surface, field.resolution, resolution)
    corner_keys = linear_cube_key(cubes[:, None] + corner_offsets(cubes.device), resolution)  # (M, 8)
    keys, corners = torch.unique(corner_keys, return_inverse=True)  # (V',), (M, 8) rows
    table = _sample_table(field, split_keys(keys, resolution), resolution, chunk_size)
    inside = table.sdf[corners] < 0
    crossed = (inside.any(dim=1) & ~inside.all(dim=1)).nonzero()[:, 0]
    cubes, corners = cubes[crossed], corners[crossed]
    # A target cube takes the weights of the source cube that contains its centre: weights are per cube, and there is
    # nothing to interpolate between.
    centre = (2 * cubes + 1) * field.resolution // (2 * resolution)
    return extract_dual_mesh(
        cubes, corners, table, cube_weights(field, centre), resolution=resolution, chunk_size=chunk_size
    )


def _overlapping_cubes(cubes: Tensor, resolution: int, wanted: int) -> Tensor:
    """Return the cubes of the target grid that overlap the given ones: (S, 3) -> (M, 3), ascending.

    Args:
        cubes: (S, 3) cubes of the source grid.
        resolution: cubes along the side of the source grid.
        wanted: cubes along the side of the target grid.
    """
    low = cubes * wanted // resolution
    high = ((cubes + 1) * wanted - 1) // resolution  # inclusive
    reach = -(-wanted // resolution) + 1  # a source cube overlaps at most this many target cubes per axis
    steps = torch.cartesian_prod(*[torch.arange(reach, device=cubes.device)] * 3).reshape(-1, 3)
    keys = [linear_cube_key(low + step, wanted)[((low + step) <= high).all(dim=1)] for step in steps]
    return split_keys(torch.unique(torch.cat(keys)), wanted)


def _sample_table(field: VertexField, vertices: Tensor, wanted: int, chunk_size: int) -> CornerTable:
    """Interpolate the field trilinearly at (M, 3) vertices of a grid of `wanted` cubes per side: M rows.

    Unlike the field's own table, the result has no row for missing vertices: every vertex is computed.
    """
    parts: list[list[Tensor]] = []
    table = field.table
    for start in range(0, len(vertices), chunk_size):
        scaled = vertices[start : start + chunk_size] * field.resolution
        # Integer arithmetic up to here, so that a vertex on a source vertex gets weights of exactly 0 and 1. The last
        # vertex belongs to the last cell.
        cell = torch.div(scaled, wanted, rounding_mode="floor").clamp(max=field.resolution - 1)
        fraction = (scaled - cell * wanted).to(table.sdf.dtype) / wanted  # (B, 3) in [0, 1]
        totals: list[Tensor] = []
        for corner in corner_offsets(vertices.device):
            row = find_sorted(field.keys, linear_cube_key(cell + corner, field.resolution))
            x, y, z = torch.where(corner == 1, fraction, 1 - fraction).unbind(1)  # (B,) each
            weight = (x * y * z)[:, None]  # (B, 1)
            values = [table.sdf[row, None], table.offset[row]]  # (B, 1), (B, 3)
            values += [] if table.attributes is None else [table.attributes[row]]  # (B, 6)
            terms = [value * weight for value in values]
            totals = [total + term for total, term in zip(totals, terms, strict=True)] if totals else terms
        parts.append(totals)
    if not parts:
        none = None if table.attributes is None else table.attributes[:0]
        return CornerTable(table.sdf[:0], table.offset[:0], none)
    sdf, offset, *attributes = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return CornerTable(sdf[:, 0], offset, attributes[0] if attributes else None)
