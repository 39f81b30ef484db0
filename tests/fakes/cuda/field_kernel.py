"""The kernel of the radiance-field renderer on the pretended device: a black picture, and what its rays ask of a GPU.

Every frame's rays are followed through its table of cells, a tile of rays out of many: how many entries they cross and
how many samples they take. They are counted as a GPU runs them: all rays of a tile wait for the one with most samples.
No ray ends early, which depends on trained weights: an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from tests.fakes.cuda.tensor import Device, DeviceTensor

TILE = 8
"""Rays along the side of a tile, as the kernel has them."""
TILES_APART = 64
"""One tile out of so many along each side of the image is followed."""
FLOPS_OF_ENTRY = 120
"""Of one step of the walk: the planes of a cell, its samples, and the next entry."""
FLOPS_AROUND_SAMPLE = 40
"""Of one sample beside its ranks: its place, softplus, exponential, three sigmoids and sums."""


def flops_of_sample(rank: int) -> int:
    """Three vectors interpolated and multiplied, then four sums over the ranks: density and colour."""
    return rank * (3 * 3 + 2 + 4 * 2) + FLOPS_AROUND_SAMPLE


class FieldKernel(ModuleType):
    """Stands for `pipeline.render.field_kernel`.

    Attributes:
        rays: of all frames.
        samples: of all rays, as each ray takes them.
        executed: the same where every ray of a tile runs as long as the longest.
    """

    def __init__(self, device: Device) -> None:
        super().__init__("pipeline.render.field_kernel")
        self._device = device
        self.rays = self.samples = self.executed = 0

    def render_rays(
        self,
        *,
        table: Tensor,
        level_bits: int,
        vectors: Tensor,
        density: Tensor,
        colour: Tensor,
        pose: Sequence[float],
        tangents: tuple[float, float],
        box: Sequence[float],
        size: int,
        **rest: object,
    ) -> Tensor:
        """One frame: (6, S, S) zeros, which the host can read."""
        assert isinstance(table, DeviceTensor)
        taken, crossed = samples_of_tiles(
            table.inner, pose=pose, tangents=tangents, box=box, size=size, entries=vectors.shape[2]
        )
        scale = size * size / taken.numel()
        executed = float(taken.amax(dim=1).sum()) * TILE * TILE * scale
        walked = float(crossed.amax(dim=1).sum()) * TILE * TILE * scale
        self.rays += size * size
        self.samples += round(float(taken.sum()) * scale)
        self.executed += round(executed)
        flops = round(executed * flops_of_sample(vectors.shape[3]) + walked * FLOPS_OF_ENTRY)

        def render(grid: Tensor, *others: Tensor) -> Tensor:
            return torch.zeros((6, size, size))

        return self._device.one_kernel("render_rays", render, vectors, table, density, colour, flops=flops)


def samples_of_tiles(
    table: Tensor, *, pose: Sequence[float], tangents: tuple[float, float], box: Sequence[float], size: int,
    entries: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Follow some tiles of rays through a table of cells of one size.

    Args:
        table: (G, G, G) int32, negative where there is no cell.
        pose, tangents, box, size: as the kernel takes them.
        entries: of the vector of a cell; a ray has two samples for each.

    Returns:
        (T, 64) samples in cells that exist, and (T, 64) entries crossed, for T tiles.
    """
    grid = table.shape[0]
    tile = torch.arange(TILES_APART // 2 % max(1, size // TILE), max(1, size // TILE), TILES_APART)
    lane = torch.arange(TILE * TILE)
    left, top = (axis.flatten() * TILE for axis in torch.meshgrid(tile, tile, indexing="ij"))
    at = torch.stack([left[:, None] + lane % TILE, top[:, None] + lane // TILE], dim=-1).double()  # (T, 64, 2)
    uv = (2 * (at + 0.5) / size - 1) * torch.tensor(tangents, dtype=torch.float64)
    towards = torch.cat([uv, torch.ones_like(uv[..., :1])], dim=-1)
    rotation, eye = (torch.tensor(part, dtype=torch.float64) for part in (pose[:9], pose[9:]))
    direction = towards / towards.norm(dim=-1, keepdim=True) @ rotation.view(3, 3)  # (T, 64, 3)
    low, side = (torch.tensor(part, dtype=torch.float64) for part in (box[:3], box[3:]))
    planes = torch.stack([(low - eye) / direction, (low + side - eye) / direction])
    enter, leave = planes.amin(dim=0).amax(dim=-1), planes.amax(dim=0).amin(dim=-1)
    step = float(side[0]) / grid / (2 * entries)
    number = torch.ceil(enter / step - 0.5)[..., None] + torch.arange(int(float(side.norm()) / step) + 2)
    distance = (number + 0.5) * step  # (T, 64, K)
    place = eye + distance[..., None] * direction[:, :, None]
    index = ((place - low) / side * grid).long().clamp(0, grid - 1)
    is_inside = distance < leave[..., None]
    exists = table[index[..., 0], index[..., 1], index[..., 2]] >= 0
    moved = (index[:, :, 1:] - index[:, :, :-1]).abs().sum(dim=-1) * is_inside[:, :, 1:]
    return (exists & is_inside).sum(dim=-1), moved.sum(dim=-1) + is_inside.any(dim=-1)
