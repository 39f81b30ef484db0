"""From the mesh decoder's channels to a surface: average corners that cubes share, then extract.

Memory grows with the surface: vertices are kept sorted by key, and nothing is as large as the grid.

Another resolution than the decoder's own sees the same field: the values at the decoder's grid vertices, interpolated
trilinearly (absent vertices being outside), are sampled at the vertices of the wanted grid. Displacements are sampled
alike, so the deformed grid keeps its shape; below the decoder's resolution details thinner than a cube are lost, above
it every cube is subdivided and the surface becomes smoother, not more detailed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.ops.flexicubes import (
    CORNERS,
    CornerTable,
    CubeWeights,
    DualMesh,
    extract_dual_mesh,
    find_sorted,
    linear_cube_key,
)
from pipeline.ops.groups import Groups

CHANNELS = {"sdf": 8, "deform": 24, "weights": 21, "colour": 48}  # in channel order; colour may be absent
OUTSIDE = 1.0  # signed distance where there is no data
DEFORM_REACH = 1 - 1e-8  # a vertex moves less than half a cube
ROWS_AT_ONCE = 1 << 17  # of a table that is gathered, so that temporaries stay small beside it


@dataclass(frozen=True, eq=False)
class VertexField:
    """The decoder's values on its own grid.

    Attributes:
        keys: (V,) ascending keys of the grid vertices that have data.
        table: their values and one last row for vertices without.
        cube_keys: (N,) ascending keys of the cubes that have weights.
        weights: (N + 1, 21) raw weights in that order, zeros last.
        resolution: cubes along the grid's side.
    """

    keys: Tensor
    table: CornerTable
    cube_keys: Tensor
    weights: Tensor
    resolution: int


def corner_offsets(device: torch.device) -> Tensor:
    """(8, 3) int64 corners of a cube."""
    return torch.tensor(CORNERS, dtype=torch.int64, device=device)


def corner_key_steps(device: torch.device, resolution: int) -> Tensor:
    """(8,) int64 what the keys of a cube's corners are above its own."""
    origin = torch.zeros(3, dtype=torch.int64, device=device)
    return linear_cube_key(corner_offsets(device), resolution) - linear_cube_key(origin, resolution)


def gather_field(coords: Tensor, channels: Tensor, *, resolution: int, use_color: bool) -> VertexField:
    """Average the corner values of all cubes that share a grid vertex.

    Args:
        coords: (N, 3) cubes.
        channels: (N, 101) or (N, 53) the decoder's output, any float type.
    """
    corner_keys = linear_cube_key(coords, resolution)[:, None] + corner_key_steps(coords.device, resolution)  # (N, 8)
    if (resolution + 3) ** 3 < 1 << 31:
        corner_keys = corner_keys.to(torch.int32)
    corner_keys, order = torch.sort(corner_keys.flatten(), stable=True)
    keys, counts = torch.unique_consecutive(corner_keys, return_counts=True)
    del corner_keys
    means = _corner_means(channels, Groups(order, torch.cumsum(counts, 0) - counts, counts), resolution, use_color)
    del order
    distance, offset = means[:, 0], DEFORM_REACH / (2 * resolution) * means[:, 1:4].contiguous().tanh()
    table = CornerTable(
        sdf=torch.cat([distance, distance.new_full((1,), OUTSIDE)]),
        offset=torch.cat([offset, offset.new_zeros((1, 3))]),
        attributes=_colours(means[:, 4:]) if use_color else None,
    )
    del means
    cube_keys, order = torch.sort(linear_cube_key(coords, resolution))
    first = CHANNELS["sdf"] + CHANNELS["deform"]
    raw = channels[:, first : first + CHANNELS["weights"]]
    weights = raw.new_zeros((len(raw) + 1, raw.shape[1]), dtype=torch.float32)
    for start in range(0, len(raw), ROWS_AT_ONCE):
        weights[start : start + ROWS_AT_ONCE][: len(raw) - start] = raw[order[start : start + ROWS_AT_ONCE]]
    return VertexField(keys.long(), table, cube_keys, weights, resolution)


def _corner_means(channels: Tensor, groups: Groups, resolution: int, has_colour: bool) -> Tensor:
    """(V, 4) or (V, 10) means of distance, displacement and colour over the cubes at each vertex.

    Args:
        groups: the vertices' corners, numbered 8 * cube + corner.
    """
    columns = _corner_columns(channels.device, has_colour)  # (8, 4) or (8, 10)
    total = channels.new_zeros((len(groups.counts), columns.shape[1]), dtype=torch.float32)
    flat = channels.reshape(-1)
    for start in range(0, len(total), ROWS_AT_ONCE):
        counts, starts = (x[start : start + ROWS_AT_ONCE] for x in (groups.counts, groups.starts))
        part = total[start : start + ROWS_AT_ONCE]
        for place in range(int(counts.max())):  # one by one, so that the order of a sum is fixed
            has = (counts > place).nonzero()[:, 0]
            row = groups.order[starts[has] + place]
            values = flat[(row // 8 * channels.shape[1])[:, None] + columns[row % 8]].float()
            values[:, 0] -= 1 / resolution
            part[has] += values
        part /= counts[:, None]
    return total


def _corner_columns(device: torch.device, has_colour: bool) -> Tensor:
    """The channels of each corner: one of distance, three of displacement, six of colour and normal."""
    columns, first = [], 0
    for name, width in CHANNELS.items():
        if name != "weights" and (name != "colour" or has_colour):
            columns.append(torch.arange(first, first + width, device=device).view(8, -1))
        first += width
    return torch.cat(columns, dim=1)


def _colours(logits: Tensor) -> Tensor:
    """(V, 6) logits of rgb and normal to (V + 1, 6) in (0, 1)."""
    return torch.cat([logits, logits.new_zeros((1, 6))]).sigmoid()


def surface_cubes(field: VertexField) -> tuple[Tensor, Tensor]:
    """Cubes with corners inside and outside, and their rows in the field's table.

    Returns:
        (S, 3) int64 cubes ascending by (x, y, z), and (S, 8) int64 rows.
    """
    inside = field.keys[field.table.sdf[:-1] < 0]
    vertices = split_keys(inside, field.resolution)
    touching: list[Tensor] = []
    for corner in corner_offsets(inside.device):
        around = vertices - corner  # cubes that touch an inside vertex
        around = around[((around >= 0) & (around < field.resolution)).all(dim=1)]
        touching.append(linear_cube_key(around, field.resolution))
    keys = torch.unique(torch.cat(touching))
    del touching, vertices
    steps = corner_key_steps(keys.device, field.resolution)
    corners = torch.stack([find_sorted(field.keys, keys + step) for step in steps], dim=1)
    cubes = split_keys(keys, field.resolution)
    crossed = ~(field.table.sdf[corners] < 0).all(dim=1)
    return cubes[crossed], corners[crossed]


def split_keys(keys: Tensor, resolution: int) -> Tensor:
    """The inverse of `linear_cube_key`: (N,) -> (N, 3)."""
    side = resolution + 3
    return torch.stack([keys // side**2, keys // side % side, keys % side], dim=1) - 1


def cube_weights(field: VertexField, cubes: Tensor) -> CubeWeights:
    """Weights of cubes of the field's own grid; neutral ones where there is no data."""
    return CubeWeights.from_raw(field.weights[find_sorted(field.cube_keys, linear_cube_key(cubes, field.resolution))])


def extract_mesh(field: VertexField, *, resolution: int | None = None, chunk_size: int = 1 << 20) -> DualMesh:
    """The surface of a field.

    Args:
        resolution: cubes along the side of the grid to extract on; the field's own by default.
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
    cubes = _overlapping_cubes(surface, field.resolution, resolution)
    corner_keys = linear_cube_key(cubes[:, None] + corner_offsets(cubes.device), resolution)
    keys, corners = torch.unique(corner_keys, return_inverse=True)
    table = _sample_table(field, split_keys(keys, resolution), resolution, chunk_size)
    inside = table.sdf[corners] < 0
    crossed = inside.any(dim=1) & ~inside.all(dim=1)
    cubes, corners = cubes[crossed], corners[crossed]
    centre = (2 * cubes + 1) * field.resolution // (2 * resolution)
    return extract_dual_mesh(
        cubes, corners, table, cube_weights(field, centre), resolution=resolution, chunk_size=chunk_size
    )


def _overlapping_cubes(cubes: Tensor, resolution: int, wanted: int) -> Tensor:
    """Cubes of the wanted grid that share volume with the given ones: (M, 3), ascending."""
    low = cubes * wanted // resolution
    high = ((cubes + 1) * wanted - 1) // resolution  # both ends included
    reach = -(-wanted // resolution) + 1
    steps = torch.cartesian_prod(*[torch.arange(reach, device=cubes.device)] * 3).reshape(-1, 3)
    keys = [linear_cube_key(low + step, wanted)[((low + step) <= high).all(dim=1)] for step in steps]
    return split_keys(torch.unique(torch.cat(keys)), wanted)


def _sample_table(field: VertexField, vertices: Tensor, wanted: int, chunk_size: int) -> CornerTable:
    """Trilinear values at the vertices of another grid, which all have data; (M, 3) -> M rows."""
    parts: list[list[Tensor]] = []
    table = field.table
    for start in range(0, len(vertices), chunk_size):
        scaled = vertices[start : start + chunk_size] * field.resolution
        cell = torch.div(scaled, wanted, rounding_mode="floor").clamp(max=field.resolution - 1)
        share = (scaled - cell * wanted).to(table.sdf.dtype) / wanted  # (B, 3) in [0, 1]
        totals: list[Tensor] = []
        for corner in corner_offsets(vertices.device):
            row = find_sorted(field.keys, linear_cube_key(cell + corner, field.resolution))
            x, y, z = torch.where(corner == 1, share, 1 - share).unbind(1)
            weight = (x * y * z)[:, None]
            values = [table.sdf[row, None], table.offset[row]]
            values += [] if table.attributes is None else [table.attributes[row]]
            new = [value * weight for value in values]
            totals = [total + value for total, value in zip(totals, new, strict=True)] if totals else new
        parts.append(totals)
    if not parts:
        return CornerTable(*(None if v is None else v[:0] for v in (table.sdf, table.offset, table.attributes)))  # pyright: ignore[reportArgumentType]
    sdf, offset, *attributes = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return CornerTable(sdf[:, 0], offset, attributes[0] if attributes else None)
