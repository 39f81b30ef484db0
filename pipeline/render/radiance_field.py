"""Volume rendering of a radiance field of local tensors, each a sum of products of three vectors (Strivec).

On CUDA one kernel renders an image (`pipeline.render.field_kernel`). Elsewhere, and as its reference, plain PyTorch
evaluates the rays in chunks, and the image does not depend on the chunk size: sums run in a fixed order,
and on the CPU transcendental functions go through float64, where vector and scalar code round alike.
Source: Gao et al. 2023, arXiv 2307.13226; the sample lattice and thresholds of JeffreyXiang/diffoctreerast@b09c20b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.ops.kernels.dispatch import KERNELS
from pipeline.render.orbit import Camera

SH_C0 = 0.28209479177387814  # the constant spherical harmonic
NEAR = 0.2  # near plane: a cell is rendered if its centre lies beyond it; the released renderer's value
MAX_ALPHA = float(np.float32(0.999))  # the released kernel's float32 constants; one sample at the cap ends a ray
MIN_TRANSMITTANCE = float(np.float32(0.001))
SAMPLES_PER_ENTRY = 2  # along a cell's side, for each entry of a vector
SMALLEST_CHUNK = 512  # rays; below it, the overhead of the operations exceeds their work
MAX_TABLE_DEPTH = 9  # 512 cells along the side: 537 MB; the released field has 64
LEVEL_BITS = 4  # of an entry of the table; the row is in the others
UNIT_BOX = (-0.5, -0.5, -0.5, 1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class RadianceField:
    """A sparse field of cubic cells with their vectors.

    Attributes:
        position: (N, 3) centres in [0, 1].
        depth: (N,) uint8; a cell's side is 2^-depth of the box.
        trivec: (N, R, 3, D) vectors along x, y, z for each rank.
        density: (N, R) weights of the ranks, before softplus.
        features_dc: (N, R, 3) colour of the ranks, before sigmoid.
        box: lowest corner and size of the box, x y z each.
    """

    position: Tensor
    depth: Tensor
    trivec: Tensor
    density: Tensor
    features_dc: Tensor
    box: Sequence[float] = UNIT_BOX

    @cached_property
    def packed(self) -> PackedField:
        """The field as the kernel reads it, computed once for all frames."""
        return _pack(self)


@dataclass(frozen=True, eq=False)
class PackedField:
    """A field in the layout of `pipeline.render.field_kernel.render_rays`, whose arguments these are."""

    table: Tensor  # (G, G, G) int32
    vectors: Tensor  # (N, 3, D, R) float32
    density: Tensor  # (N, R) float32
    colour: Tensor  # (N, R, 3) float32


@dataclass(frozen=True, eq=False)
class FieldImage:
    """A rendered image of a field.

    Attributes:
        rgb: (3, H, W) with the background, not clamped.
        depth: (H, W) camera z weighted by opacity, not divided by alpha.
        alpha: (H, W).
        percent_depth: (H, W) camera z at which the transmittance falls below a half, 0 where it never does.
    """

    rgb: Tensor
    depth: Tensor
    alpha: Tensor
    percent_depth: Tensor


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells in world space with their extent on the image.

    Attributes:
        low: (N, 3) float64 lowest corner.
        side: (N, 3) float64.
        pixels: (N, 4) int64 first column, last column, first row, last row whose rays may meet the cell.
        vectors: (N * 3 * D, R) float32, the entries of one cell and axis in consecutive rows.
        density: (N, R).
        colour: (N, 3, R).
        entries: D.
    """

    low: Tensor
    side: Tensor
    pixels: Tensor
    vectors: Tensor
    density: Tensor
    colour: Tensor
    entries: int


@dataclass(frozen=True, eq=False)
class _Samples:
    """Samples of some rays, ray by ray from front to back.

    Attributes:
        ray: (S,) int64 number of the ray in its chunk.
        cell: (S,) int64.
        z: (S,) float64 distance from the camera.
        step: (S,) float64 distance between samples.
    """

    ray: Tensor
    cell: Tensor
    z: Tensor
    step: Tensor


def render_field(
    field: RadianceField,
    camera: Camera,
    *,
    resolution: int,
    chunk_size: int,
    background: Sequence[float] = (0.0, 0.0, 0.0),
    jitter: Tensor | None = None,
    density_shift: float = 0.0,
    ssaa: int = 1,
) -> FieldImage:
    """Render one square image.

    Args:
        field: N cells.
        camera: in the frame of `pipeline.render.orbit`.
        resolution: R, pixels along the side.
        chunk_size: rays evaluated at once, at least `SMALLEST_CHUNK`; the image does not depend on it.
        background: red, green and blue behind the field.
        jitter: (ssaa R, ssaa R) offset of each ray's samples in units of a step; 0.5 everywhere by default, so that a
            turntable does not flicker (the released renderer draws random offsets for every frame).
        density_shift: lowers the density and raises its scale; 0 in the released models.
        ssaa: rays along the side of a pixel; the larger image is filtered down.

    Returns:
        The image; zeros without the background if no cell is visible, as in the released renderer.
    """
    size = resolution * ssaa
    image = KERNELS.run(
        "radiance_field",
        [field.trivec, field.density, field.features_dc],
        kernel=lambda: _render_by_kernel(field, camera, size, background, jitter, density_shift),
        reference=lambda: _render_in_chunks(field, camera, size, background, jitter, density_shift, chunk_size),
    )
    if ssaa > 1:
        image = F.interpolate(image[None], (resolution, resolution), mode="bilinear", antialias=True)[0]
    return FieldImage(image[:3], image[3], image[4], image[5])


def turntable_frames(
    field: RadianceField,
    cameras: Sequence[Camera],
    *,
    resolution: int,
    chunk_size: int,
    ssaa: int,
    on_frame: Callable[[int], None] = lambda frame: None,
) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3) uint8 of a field, colours truncated to 8 bits; `on_frame` gets each completed frame's number."""
    for number, camera in enumerate(cameras, start=1):
        image = render_field(field, camera, resolution=resolution, chunk_size=chunk_size, ssaa=ssaa)
        yield (image.rgb * 255).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        on_frame(number)


def _pack(field: RadianceField) -> PackedField:
    """Write the rows of the cells to a dense table of their places, at the resolution of the smallest cells.

    Raises:
        ValueError: the smallest cells are too small for a dense table.
    """
    depth = field.depth.flatten().long()
    smallest, largest = (int(bound) for bound in torch.stack(torch.aminmax(depth)).tolist()[::-1])
    if smallest > MAX_TABLE_DEPTH:
        raise ValueError(f"cells of depth {smallest}: a table of them has room to depth {MAX_TABLE_DEPTH}")
    side = 1 << smallest
    table = torch.full((side, side, side), -1, dtype=torch.int32, device=depth.device)
    row = torch.arange(len(depth), dtype=torch.int32, device=depth.device)
    for level in range(smallest - largest + 1):  # of one level in the released models
        chosen = (depth == smallest - level).nonzero()[:, 0]
        first = (field.position[chosen] * (1 << (smallest - level))).long() << level
        within = torch.arange(1 << level, device=depth.device)
        i, j, k = (first[:, None] + torch.cartesian_prod(within, within, within).view(-1, 3)).unbind(-1)
        table[i, j, k] = (row[chosen] << LEVEL_BITS | level)[:, None].expand_as(i)
    return PackedField(
        table=table,
        vectors=field.trivec.float().permute(0, 2, 3, 1).contiguous(),
        density=field.density.float().contiguous(),
        colour=field.features_dc.float().contiguous(),
    )


def _render_by_kernel(
    field: RadianceField,
    camera: Camera,
    size: int,
    background: Sequence[float],
    jitter: Tensor | None,
    density_shift: float,
) -> Tensor:
    """Render one image (6, size, size) by the kernel."""
    from pipeline.render.field_kernel import render_rays  # imports Triton

    packed = field.packed
    if any(background) and len(_prepare_cells(field, camera, size).low) == 0:  # black needs no such test, nor its wait
        return packed.vectors.new_zeros((6, size, size))
    return render_rays(
        table=packed.table,
        level_bits=LEVEL_BITS,
        vectors=packed.vectors,
        density=packed.density,
        colour=packed.colour,
        pose=(*camera.world_to_camera[:3, :3].flatten().tolist(), *camera.centre.tolist()),
        tangents=camera.tan_half_fov,
        box=tuple(map(float, field.box)),
        near=NEAR,
        size=size,
        offsets=None if jitter is None else jitter.to(packed.vectors),
        background=tuple(map(float, background)),
        density_shift=density_shift,
    )


def _render_in_chunks(
    field: RadianceField,
    camera: Camera,
    size: int,
    background: Sequence[float],
    jitter: Tensor | None,
    density_shift: float,
    chunk_size: int,
) -> Tensor:
    """Render one image (6, size, size), some rays at once: the reference of the kernel."""
    device = field.position.device
    cells = _prepare_cells(field, camera, size)
    if len(cells.low) == 0:
        return torch.zeros((6, size, size), device=device)
    offsets = torch.full((size * size,), 0.5, device=device) if jitter is None else jitter.to(device).reshape(-1)
    chunk = max(chunk_size, SMALLEST_CHUNK)
    parts = [
        _render_rays(cells, camera, range(start, min(start + chunk, size * size)), size, offsets, density_shift)
        for start in range(0, size * size, chunk)
    ]
    image = torch.cat(parts, dim=1).view(6, size, size)
    back = torch.tensor(background, device=device, dtype=image.dtype)[:, None, None]
    image[:3] += (1 - image[4]) * back
    return image


def _exactly(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a transcendental function so that a float32 result does not depend on the value's place in the array.

    On the CPU the last few values of an array take scalar code, which rounds differently from the vector code; in
    float64 both agree in far more digits than float32 keeps. Elementwise, any shape.
    """
    return function(x.double()).float() if x.device.type == "cpu" else function(x)


def _sum_last(x: Tensor) -> Tensor:
    """Pairwise sum over the last axis, (..., K) -> (...): the order does not depend on the number of rows."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        folded = x[..., :half] + x[..., half : 2 * half]
        x = torch.cat([folded, x[..., 2 * half :]], dim=-1) if x.shape[-1] % 2 else folded
    return x[..., 0]


def _prepare_cells(field: RadianceField, camera: Camera, size: int) -> _Cells:
    """Project the cells and drop those outside the view; `size` is the image's side in rays."""
    device = field.position.device
    box = torch.tensor(field.box, dtype=torch.float64, device=device)
    side = torch.exp2(-field.depth.reshape(-1, 1).double()) * box[3:]
    low = field.position.double() * box[3:] + box[:3] - side / 2
    pose = torch.from_numpy(camera.world_to_camera).to(device)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)] * 3)
    points = (low[:, None] + side[:, None] * corners) @ pose[:3, :3].T + pose[:3, 3]  # (N, 8, 3)
    centre_z = points[..., 2].mean(dim=1)
    # A cell with a corner behind the camera has no bounded projection: it may cover the whole image.
    behind = (points[..., 2] < 1e-6).any(dim=1)
    tangents = torch.tensor(camera.tan_half_fov, dtype=torch.float64, device=device)
    at = (points[..., :2] / points[..., 2:].clamp(min=1e-6) / tangents + 1) * (size / 2) - 0.5
    first = torch.where(behind[:, None], 0, at.amin(dim=1).floor().clamp(-1, size)).long()  # rounded outwards
    last = torch.where(behind[:, None], size - 1, at.amax(dim=1).ceil().clamp(-1, size)).long()
    seen = (centre_z > NEAR) & (last >= 0).all(dim=1) & (first < size).all(dim=1)
    first, last = first.clamp(min=0), last.clamp(max=size - 1)
    entries = field.trivec.shape[-1]
    return _Cells(
        low=low[seen],
        side=side[seen],
        pixels=torch.stack([first[:, 0], last[:, 0], first[:, 1], last[:, 1]], dim=1)[seen],
        vectors=field.trivec[seen].float().permute(0, 2, 3, 1).flatten(0, 2).contiguous(),
        density=field.density[seen].float(),
        colour=field.features_dc[seen].float().mT.contiguous(),
        entries=entries,
    )


def _render_rays(
    cells: _Cells, camera: Camera, rays: range, size: int, offsets: Tensor, density_shift: float
) -> Tensor:
    """Render consecutive pixels: (6, rays) red, green, blue, depth, alpha, percent depth, without the background."""
    device = cells.low.device
    pixel = torch.arange(rays.start, rays.stop, device=device)
    directions, shortening = _ray_directions(camera, pixel, size)
    eye = torch.from_numpy(camera.centre).to(device)
    samples = _place_samples(cells, eye, directions, rays, size, offsets[rays.start : rays.stop].double())
    out = torch.zeros((6, len(rays)), dtype=torch.float32, device=device)
    if len(samples.ray) == 0:
        return out
    products = _rank_products(cells, samples, eye, directions)  # (S, R)
    density = _sum_last(products * cells.density[samples.cell]) - 10 * density_shift
    sigma = _exactly(lambda x: F.softplus(x, threshold=10), density) * min(1 / (1 - density_shift), 25.0)
    alpha = _exactly(lambda x: -torch.expm1(-x), sigma * samples.step.float()).clamp(max=MAX_ALPHA)
    # Transmittance before each sample: the exponential of a running sum of logarithms, minus the sum before the ray's
    # first sample. The paper multiplies; sums in float64 vectorise over rays of different length.
    thinning = torch.log1p(-alpha.double())
    first_of_ray = torch.searchsorted(samples.ray, torch.arange(len(rays), device=device))
    before = torch.cumsum(thinning, 0) - thinning
    before = torch.exp(before - before[first_of_ray.clamp(max=len(before) - 1)][samples.ray])
    seen = before >= MIN_TRANSMITTANCE  # the released kernel stops a ray there
    alpha, before, ray, z = alpha[seen].double(), before[seen], samples.ray[seen], samples.z[seen]
    colour = cells.colour[samples.cell[seen]] * products[seen, None]  # (S', 3, R)
    colour = _exactly(torch.sigmoid, SH_C0 * _sum_last(colour)).double()
    weight = alpha * before
    summed = _sums_by_ray(
        torch.cat([weight[:, None] * colour, (weight * z)[:, None], weight[:, None]], 1), ray, len(rays)
    )
    after = before * (1 - alpha)
    half = (before >= 0.5) & (after < 0.5)
    out[:5] = summed.T.float()
    out[5, ray[half]] = z[half].float()
    out[3] *= shortening
    out[5] *= shortening
    return out


def _ray_directions(camera: Camera, pixel: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """World-space unit directions (B, 3) float64, and the camera z of one unit along each, (B,) float32."""
    tan_x, tan_y = camera.tan_half_fov
    u = (2 * (pixel % size + 0.5).double() / size - 1) * tan_x
    v = (2 * (pixel // size + 0.5).double() / size - 1) * tan_y
    towards = torch.stack([u, v, torch.ones_like(u)], dim=1)
    shortening = 1 / towards.norm(dim=1)
    rotation = torch.from_numpy(camera.world_to_camera[:3, :3]).to(pixel.device)
    return towards @ rotation * shortening[:, None], shortening.float()


def _place_samples(cells: _Cells, eye: Tensor, directions: Tensor, rays: range, size: int, offsets: Tensor) -> _Samples:
    """Place samples along the rays in all cells that they cross.

    The lattice starts at the camera and not at the cell's face, so cells of one size share it. (S,) samples.
    """
    ray, cell = _candidate_pairs(cells, rays, size)
    direction = directions[ray]
    # Slab method: the ray is inside the cell while it is between the two planes of every axis.
    inverse = torch.where(direction == 0, 1e10, 1 / direction)
    to_low = (cells.low[cell] - eye) * inverse
    to_high = (cells.low[cell] + cells.side[cell] - eye) * inverse
    enter = torch.minimum(to_low, to_high).amax(dim=1)
    leave = torch.maximum(to_low, to_high).amin(dim=1)
    step = cells.side[cell, 0] / (SAMPLES_PER_ENTRY * cells.entries)
    first = torch.ceil(enter / step - offsets[ray])
    last = torch.floor(leave / step - offsets[ray])
    count = torch.where(leave > enter, last - first + 1, 0).clamp(min=0).long()
    hit = count > 0
    ray, cell, enter, step, first, count = (x[hit] for x in (ray, cell, enter, step, first, count))
    # Sort by ray, then by distance: two stable sorts, the less significant key first.
    order = torch.argsort(enter, stable=True)
    order = order[torch.argsort(ray[order], stable=True)]
    pair = torch.repeat_interleave(order, count[order])
    sorted_count = count[order]
    start = torch.cumsum(sorted_count, 0) - sorted_count
    number = torch.arange(len(pair), device=pair.device) - torch.repeat_interleave(start, sorted_count)
    z = (first[pair] + number + offsets[ray[pair]]) * step[pair]
    return _Samples(ray[pair], cell[pair], z, step[pair])


def _candidate_pairs(cells: _Cells, rays: range, size: int) -> tuple[Tensor, Tensor]:
    """Pairs of a ray (its number in the chunk) and a cell whose pixel rectangle contains it: (P,), (P,)."""
    first_row, last_row = rays.start // size, (rays.stop - 1) // size
    left, right, top, bottom = cells.pixels.unbind(1)
    near = ((top <= last_row) & (bottom >= first_row)).nonzero()[:, 0]
    left, right = left[near], right[near]
    top, bottom = top[near].clamp(min=first_row), bottom[near].clamp(max=last_row)
    width = right - left + 1
    area = width * (bottom - top + 1)
    which = torch.repeat_interleave(torch.arange(len(near), device=near.device), area)
    place = torch.arange(len(which), device=near.device) - (torch.cumsum(area, 0) - area)[which]
    ray = (top[which] + place // width[which]) * size + left[which] + place % width[which] - rays.start
    inside = (ray >= 0) & (ray < len(rays))
    return ray[inside], near[which[inside]]


def _rank_products(cells: _Cells, samples: _Samples, eye: Tensor, directions: Tensor) -> Tensor:
    """Product of the three linearly interpolated vectors at each sample: (S, R).

    Between an outer entry's centre and the cell's face, the outer two entries are extrapolated.
    """
    entries = cells.entries
    point = eye + samples.z[:, None] * directions[samples.ray]
    q = (point - cells.low[samples.cell]) / cells.side[samples.cell] * entries - 0.5  # (S, 3)
    entry = q.long().clamp(0, entries - 2)
    share = (q - entry).float()
    products: Tensor | None = None
    for axis in range(3):
        row = (samples.cell * 3 + axis) * entries + entry[:, axis]
        lower = cells.vectors.index_select(0, row)
        value = lower + (cells.vectors.index_select(0, row + 1) - lower) * share[:, axis, None]
        products = value if products is None else products * value
    assert products is not None
    return products


def _sums_by_ray(values: Tensor, ray: Tensor, count: int) -> Tensor:
    """Sums of float64 rows by ray: (S, C) and ascending ray numbers (S,) -> (count, C)."""
    total = F.pad(torch.cumsum(values, dim=0), (0, 0, 1, 0))
    bounds = torch.searchsorted(ray, torch.arange(count + 1, device=ray.device))
    return total[bounds[1:]] - total[bounds[:-1]]
