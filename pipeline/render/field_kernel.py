"""Volume rendering of a radiance field in one kernel: each ray walks the grid of cells from front to back.

A program renders a tile of rays. Each ray steps from cell to cell (Amanatides and Woo 1987), takes the samples of a
cell that exists, and ends where too little light is left; colour and transmittance stay in registers. Neither lists of
rays and cells nor their number reach the host. Arithmetic is float32, as in the released renderer.

Imports Triton: only `pipeline.ops.kernels.dispatch` may run it. The reference is `pipeline.render.radiance_field`,
which states the sources of the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8
"""Rays along the side of a tile: they see nearly the same cells."""
INTERPRETED_TILE = 64
"""The same for the interpreter, which needs the same time for an operation whatever the number of rays."""

MAX_ALPHA: tl.constexpr = tl.constexpr(0.999)  # the released kernel's float32 constants
MIN_LIGHT: tl.constexpr = tl.constexpr(0.001)
SH_C0: tl.constexpr = tl.constexpr(0.28209479177387814)


def render_rays(
    *,
    table: Tensor,
    level_bits: int,
    vectors: Tensor,
    density: Tensor,
    colour: Tensor,
    pose: Sequence[float],
    tangents: tuple[float, float],
    box: Sequence[float],
    near: float,
    size: int,
    offsets: Tensor | None,
    background: Sequence[float],
    density_shift: float,
) -> Tensor:
    """Launch the kernel.

    Args:
        table: (G, G, G) int32 by x, y, z: row of the cell, shifted left by `level_bits`, plus the logarithm of its side
            in units of the table; negative where there is no cell.
        level_bits: see `table`.
        vectors: (N, 3, D, R) float32.
        density: (N, R) float32.
        colour: (N, R, 3) float32.
        pose: twelve numbers: the rotation from world to camera by rows, then the eye.
        tangents: of half the field of view, horizontally and vertically.
        box: lowest corner and size of the field.
        near: cells whose centre is nearer along the camera's axis are not rendered.
        size: S, rays along the side of the image.
        offsets: (S, S) float32 offset of each ray's samples in units of a step; None means a half.
        background: red, green and blue behind the field.
        density_shift: see `pipeline.render.radiance_field.render_field`.

    Returns:
        (6, S, S) float32 red, green, blue, depth, alpha, percent depth.
    """
    image = torch.empty((6, size, size), dtype=torch.float32, device=vectors.device)
    side = TILE if image.is_cuda else min(INTERPRETED_TILE, triton.next_power_of_2(size))
    tiles = triton.cdiv(size, side)
    _render_kernel[tiles, tiles](
        image,
        table,
        vectors,
        density,
        colour,
        image if offsets is None else offsets,
        *pose,
        *tangents,
        *box,
        near,
        *background,
        10 * density_shift,
        min(1 / (1 - density_shift), 25.0),
        size,
        GRID=table.shape[0],
        RANK=vectors.shape[3],
        PADDED_RANK=triton.next_power_of_2(vectors.shape[3]),
        ENTRIES=vectors.shape[2],
        HAS_OFFSETS=offsets is not None,
        SIDE=side,
        BITS=level_bits,
        num_warps=4,  # with 2, a thread needs more registers than it can have
    )
    return image


@triton.jit
def _interpolate(vectors, row, axis: tl.constexpr, q, rank, some, ENTRIES: tl.constexpr, RANK: tl.constexpr):
    """Entries of one axis' vector at the local coordinate q, (T,) -> (T, R); extrapolated at both ends."""
    entry = tl.minimum(tl.maximum(q.to(tl.int32), 0), ENTRIES - 2)
    share = q - entry.to(tl.float32)
    place = vectors + ((row * 3 + axis) * ENTRIES + entry)[:, None] * RANK + rank[None, :]
    lower = tl.load(place, mask=some, other=0.0)
    upper = tl.load(place + RANK, mask=some, other=0.0)
    return lower + (upper - lower) * share[:, None]


@triton.jit
def _inverse(direction):
    return tl.where(direction == 0.0, 1e10, 1.0 / direction)


@triton.jit
def _sigmoid(x):
    """Colour of a sum of harmonics."""
    return 1.0 / (1.0 + tl.exp(x * -SH_C0))


@triton.jit
def _first_index(at, low, unit, GRID: tl.constexpr):
    """Number of the table's entry at a coordinate."""
    return tl.minimum(tl.maximum(tl.floor((at - low) / unit), 0.0), GRID - 1.0).to(tl.int32)


@triton.jit
def _next_index(at, low, unit, origin, side, is_exit, direction):
    """Number of the next entry along an axis: beyond the cell where the ray leaves through it, else within the cell."""
    within = tl.floor((at - low) / unit)
    within = tl.minimum(tl.maximum(within, origin.to(tl.float32)), (origin + side - 1).to(tl.float32)).to(tl.int32)
    return tl.where(is_exit, tl.where(direction > 0.0, origin + side, origin - 1), within)


@triton.jit(do_not_specialize=["size"])
def _render_kernel(
    image, table, vectors, density, colour, offsets,
    r00, r01, r02, r10, r11, r12, r20, r21, r22, eye_x, eye_y, eye_z,
    tan_x, tan_y,
    low_x, low_y, low_z, size_x, size_y, size_z,
    near,
    back_r, back_g, back_b,
    density_offset, density_scale,
    size,
    GRID: tl.constexpr, RANK: tl.constexpr, PADDED_RANK: tl.constexpr, ENTRIES: tl.constexpr,
    HAS_OFFSETS: tl.constexpr, SIDE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, SIDE * SIDE)
    pixel_x, pixel_y = tl.program_id(0) * SIDE + lane % SIDE, tl.program_id(1) * SIDE + lane // SIDE
    in_image = (pixel_x < size) & (pixel_y < size)
    pixel = pixel_y * size + pixel_x
    offset = tl.full((SIDE * SIDE,), 0.5, tl.float32)
    if HAS_OFFSETS:
        offset = tl.load(offsets + pixel, mask=in_image, other=0.5)
    u = (2.0 * (pixel_x.to(tl.float32) + 0.5) / size - 1.0) * tan_x
    v = (2.0 * (pixel_y.to(tl.float32) + 0.5) / size - 1.0) * tan_y
    shortening = 1.0 / tl.sqrt(u * u + v * v + 1.0)
    # Rows of the rotation are the camera's axes in the world.
    x, y, z = (
        (r00 * u + r10 * v + r20) * shortening,
        (r01 * u + r11 * v + r21) * shortening,
        (r02 * u + r12 * v + r22) * shortening,
    )
    inverse_x, inverse_y, inverse_z = _inverse(x), _inverse(y), _inverse(z)

    unit_x, unit_y, unit_z = size_x / GRID, size_y / GRID, size_z / GRID
    to_low, to_high = (low_x - eye_x) * inverse_x, (low_x + size_x - eye_x) * inverse_x
    enter, leave = tl.minimum(to_low, to_high), tl.maximum(to_low, to_high)
    to_low, to_high = (low_y - eye_y) * inverse_y, (low_y + size_y - eye_y) * inverse_y
    enter, leave = tl.maximum(enter, tl.minimum(to_low, to_high)), tl.minimum(leave, tl.maximum(to_low, to_high))
    to_low, to_high = (low_z - eye_z) * inverse_z, (low_z + size_z - eye_z) * inverse_z
    enter, leave = tl.maximum(enter, tl.minimum(to_low, to_high)), tl.minimum(leave, tl.maximum(to_low, to_high))
    is_inside = in_image & (leave > enter)
    i = _first_index(eye_x + enter * x, low_x, unit_x, GRID)
    j = _first_index(eye_y + enter * y, low_y, unit_y, GRID)
    k = _first_index(eye_z + enter * z, low_z, unit_z, GRID)

    rank = tl.arange(0, PADDED_RANK)
    zeros = tl.zeros((SIDE * SIDE,), tl.float32)
    red, green, blue, depth, percent_depth = zeros, zeros, zeros, zeros, zeros
    light = zeros + 1.0  # transmittance
    # The cell in which a ray has samples to take.
    row = tl.zeros((SIDE * SIDE,), tl.int32)
    sample, last = zeros, zeros - 1.0
    step = zeros + 1.0
    from_x, from_y, from_z = zeros, zeros, zeros
    scale_x, scale_y, scale_z = zeros, zeros, zeros

    while tl.max(is_inside.to(tl.int32), axis=0) > 0:
        # Walk until every ray that goes on has samples to take. A ray moves on by a whole number of entries every time,
        # so the walk ends whatever the rounding.
        is_walking = is_inside
        while tl.max(is_walking.to(tl.int32), axis=0) > 0:
            entry = tl.load(table + (i * GRID + j) * GRID + k, mask=is_walking, other=-1)
            exists = entry >= 0
            level = tl.where(exists, entry & ((1 << BITS) - 1), 0)
            side = tl.full((SIDE * SIDE,), 1, tl.int32) << level
            origin_i, origin_j, origin_k = (i >> level) << level, (j >> level) << level, (k >> level) << level
            # Planes are computed from their number alone, so that cells side by side agree where one ends.
            to_low = (low_x + origin_i * unit_x - eye_x) * inverse_x
            to_high = (low_x + (origin_i + side) * unit_x - eye_x) * inverse_x
            cell_enter, leave_x = tl.minimum(to_low, to_high), tl.maximum(to_low, to_high)
            to_low = (low_y + origin_j * unit_y - eye_y) * inverse_y
            to_high = (low_y + (origin_j + side) * unit_y - eye_y) * inverse_y
            cell_enter, leave_y = tl.maximum(cell_enter, tl.minimum(to_low, to_high)), tl.maximum(to_low, to_high)
            to_low = (low_z + origin_k * unit_z - eye_z) * inverse_z
            to_high = (low_z + (origin_k + side) * unit_z - eye_z) * inverse_z
            cell_enter, leave_z = tl.maximum(cell_enter, tl.minimum(to_low, to_high)), tl.maximum(to_low, to_high)
            cell_leave = tl.minimum(leave_x, tl.minimum(leave_y, leave_z))

            half = side * 0.5
            centre_x = low_x + (origin_i + half) * unit_x - eye_x
            centre_y = low_y + (origin_j + half) * unit_y - eye_y
            centre_z = low_z + (origin_k + half) * unit_z - eye_z
            is_seen = exists & (r20 * centre_x + r21 * centre_y + r22 * centre_z > near) & (cell_leave > cell_enter)
            cell_step = side * unit_x / (2 * ENTRIES)
            first = tl.ceil(cell_enter / cell_step - offset)
            final = tl.floor(cell_leave / cell_step - offset)
            found = is_walking & is_seen & (final >= first)
            row = tl.where(found, entry >> BITS, row)
            sample, last = tl.where(found, first, sample), tl.where(found, final, last)
            step = tl.where(found, cell_step, step)
            from_x = tl.where(found, eye_x - (low_x + origin_i * unit_x), from_x)
            from_y = tl.where(found, eye_y - (low_y + origin_j * unit_y), from_y)
            from_z = tl.where(found, eye_z - (low_z + origin_k * unit_z), from_z)
            scale_x = tl.where(found, ENTRIES / (side * unit_x), scale_x)
            scale_y = tl.where(found, ENTRIES / (side * unit_y), scale_y)
            scale_z = tl.where(found, ENTRIES / (side * unit_z), scale_z)

            through_x = (leave_x <= leave_y) & (leave_x <= leave_z)
            through_y = (leave_y <= leave_z) & (through_x == 0)
            through_z = (through_x == 0) & (through_y == 0)
            next_i = _next_index(eye_x + cell_leave * x, low_x, unit_x, origin_i, side, through_x, x)
            next_j = _next_index(eye_y + cell_leave * y, low_y, unit_y, origin_j, side, through_y, y)
            next_k = _next_index(eye_z + cell_leave * z, low_z, unit_z, origin_k, side, through_z, z)
            i, j, k = tl.where(is_walking, next_i, i), tl.where(is_walking, next_j, j), tl.where(is_walking, next_k, k)
            is_inside = is_inside & (i >= 0) & (i < GRID) & (j >= 0) & (j < GRID) & (k >= 0) & (k < GRID)
            is_walking = is_walking & is_inside & (found == 0)

        takes = (sample <= last) & (light >= MIN_LIGHT)
        while tl.max(takes.to(tl.int32), axis=0) > 0:
            at = (sample + offset) * step
            some = takes[:, None] & (rank < RANK)[None, :]
            product = _interpolate(vectors, row, 0, (from_x + at * x) * scale_x - 0.5, rank, some, ENTRIES, RANK)
            product *= _interpolate(vectors, row, 1, (from_y + at * y) * scale_y - 0.5, rank, some, ENTRIES, RANK)
            product *= _interpolate(vectors, row, 2, (from_z + at * z) * scale_z - 0.5, rank, some, ENTRIES, RANK)
            place = row[:, None] * RANK + rank[None, :]
            raw = tl.sum(product * tl.load(density + place, mask=some, other=0.0), axis=1) - density_offset
            # softplus; the threshold is the released renderer's
            sigma = tl.where(raw >= 10.0, raw, tl.log(1.0 + tl.exp(tl.minimum(raw, 10.0)))) * density_scale
            alpha = tl.minimum(1.0 - tl.exp(-sigma * step), MAX_ALPHA)
            alpha = tl.where(takes, alpha, 0.0)
            weight = alpha * light
            place = colour + place * 3
            red += weight * _sigmoid(tl.sum(product * tl.load(place, mask=some, other=0.0), axis=1))
            green += weight * _sigmoid(tl.sum(product * tl.load(place + 1, mask=some, other=0.0), axis=1))
            blue += weight * _sigmoid(tl.sum(product * tl.load(place + 2, mask=some, other=0.0), axis=1))
            depth += weight * at
            left = light * (1.0 - alpha)
            percent_depth = tl.where(takes & (light >= 0.5) & (left < 0.5), at, percent_depth)
            light = left
            sample += 1.0
            takes = (sample <= last) & (light >= MIN_LIGHT)
        last = zeros - 1.0
        sample = zeros
        is_inside = is_inside & (light >= MIN_LIGHT)

    pixels = size * size  # of one channel
    tl.store(image + pixel, red + light * back_r, mask=in_image)
    tl.store(image + pixels + pixel, green + light * back_g, mask=in_image)
    tl.store(image + 2 * pixels + pixel, blue + light * back_b, mask=in_image)
    tl.store(image + 3 * pixels + pixel, depth * shortening, mask=in_image)
    tl.store(image + 4 * pixels + pixel, 1.0 - light, mask=in_image)
    tl.store(image + 5 * pixels + pixel, percent_depth * shortening, mask=in_image)
