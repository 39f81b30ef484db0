"""Images of the field by volume rendering.

Source: VAST-AI-Research/TripoSR@d26e331, tsr/models/nerf_renderer.py and tsr/utils.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.triposr.field import TriplaneField
from pipeline.render.orbit import level_orbit, pixel_rays

BOX_SHRINK = 1e-3  # of the radius, so that no sample lies on the border
MIN_DIRECTION = 1e-6  # a component of a direction that is smaller counts as this much
MIN_RAY_LENGTH = 0.01  # of a ray in the box, in metres of the model's frame
PRODUCT_FLOOR = 1e-10
SLAB = 8  # samples of each ray between two looks at which rays still go on

ELEVATION_DEG, DISTANCE, FOVY_DEG = 0.0, 1.9, 40.0  # the release's own round
MIN_TRANSMITTANCE = 1e-3  # a ray that lets less through ends: a quarter of a step of 8 bits
MIN_DENSITY = 0.004  # a ray that meets only thinner density loses less than a step of 8 bits
OCCUPANCY_CELLS = 64


def rays_intersect_bbox(
    origins: Tensor, directions: Tensor, *, radius: float, near: float = 0.0, valid_thresh: float = MIN_RAY_LENGTH
) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays are inside the box.

    Args:
        origins, directions: (R, 3).
        radius: half of the box's side, before it is shrunk.
        near: what lies nearer to the origin does not count.
        valid_thresh: length below which a ray counts as outside.

    Returns:
        (R, 1) distance at which each enters, (R, 1) at which it leaves, (R,) bool whether it is inside at all; where
        it is not, both distances are 0.
    """
    directions = torch.where(directions.abs() < MIN_DIRECTION, MIN_DIRECTION, directions)
    reach = radius * (1 - BOX_SHRINK)
    first, second = (-reach - origins) / directions, (reach - origins) / directions
    enter = torch.minimum(first, second).amax(dim=1, keepdim=True).clamp(min=near)
    leave = torch.maximum(first, second).amin(dim=1, keepdim=True)
    inside = leave - enter > valid_thresh
    return torch.where(inside, enter, 0), torch.where(inside, leave, 0), inside[:, 0]


class Occupancy:
    """Which cells of a coarse grid may hold density that shows."""

    def __init__(self, field: TriplaneField, *, chunk_size: int, cells: int = OCCUPANCY_CELLS) -> None:
        """Look at the field at the corners of cells; a cell counts where its neighbours do."""
        side = 4
        line = torch.linspace(-1, 1, cells + side, device=field.table.device).view(-1, side)
        bricks = torch.cartesian_prod(*[torch.arange(len(line), device=line.device)] * 3)
        values = field.on_bricks(line[bricks], chunk_size=chunk_size)
        grid = (
            values.view(*[len(line)] * 3, side, side, side).permute(0, 3, 1, 4, 2, 5).reshape(1, 1, *[cells + side] * 3)
        )
        grid = torch.nn.functional.max_pool3d(grid, kernel_size=5, stride=1, padding=2)
        self._may_show = grid[0, 0] > MIN_DENSITY
        self._points = cells + side

    def holds(self, coords: Tensor) -> Tensor:
        """(N, 3) coordinates in units of the radius -> (N,) bool."""
        index = ((coords + 1) / 2 * (self._points - 1)).round().long().clamp(0, self._points - 1)
        return self._may_show[index[:, 0], index[:, 1], index[:, 2]]


def render_rays(
    field: TriplaneField,
    origins: Tensor,
    directions: Tensor,
    *,
    chunk_size: int,
    occupancy: Occupancy | None = None,
    min_transmittance: float = 0.0,
) -> Tensor:
    """Colours of rays, white behind the field; a ray that misses the box is white.

    Distances between samples are those of the unit interval, not metres, as the release has them.

    Args:
        origins, directions: (R, 3), unit directions.
        chunk_size: samples evaluated at once; the image does not depend on it.
        occupancy: where samples can be left out; all count by default.
        min_transmittance: a ray that lets less light through ends.

    Returns:
        (R, 3) sRGB, not clamped.
    """
    count = field.renderer.num_samples_per_ray
    enter, leave, inside = rays_intersect_bbox(origins, directions, radius=field.renderer.radius)
    rgb = origins.new_zeros((len(origins), 3))
    opacity = origins.new_zeros((len(origins), 1))
    passed = origins.new_ones(len(origins))
    bounds = torch.linspace(0, 1, count + 1, device=origins.device)
    middle, delta = (bounds[:-1] + bounds[1:]) / 2, bounds[1:] - bounds[:-1]
    rays = inside.nonzero()[:, 0]
    for start in range(0, count, SLAB):
        rays = rays[passed[rays] > min_transmittance] if min_transmittance else rays
        share = middle[start : start + SLAB]
        z = enter[rays] * (1 - share) + leave[rays] * share  # (A, slab)
        points = (origins[rays, None] + z[..., None] * directions[rays, None]).flatten(0, 1)
        density, colour = _sample(field, points, chunk_size, occupancy)
        alpha = 1 - torch.exp(-delta[start : start + SLAB] * density.view(z.shape))
        for number in range(len(share)):
            weight = (alpha[:, number] * passed[rays])[:, None]
            rgb[rays] += weight * colour.view(*z.shape, 3)[:, number]
            opacity[rays] += weight
            passed[rays] *= 1 - alpha[:, number] + PRODUCT_FLOOR
    return rgb + (1 - opacity)


def _sample(
    field: TriplaneField, points: Tensor, chunk_size: int, occupancy: Occupancy | None
) -> tuple[Tensor, Tensor]:
    """(N,) density and (N, 3) colour; zeros where nothing shows."""
    if occupancy is None:
        samples = field.at(points, chunk_size=chunk_size)
        return samples.density_act[:, 0], samples.color
    density, colour = points.new_zeros(len(points)), points.new_zeros((len(points), 3))
    chosen = occupancy.holds(points / field.renderer.radius).nonzero()[:, 0]
    samples = field.at(points[chosen], chunk_size=chunk_size)
    density[chosen], colour[chosen] = samples.density_act[:, 0], samples.color
    return density, colour


def turntable_frames(
    field: TriplaneField,
    *,
    frames: int,
    size: int,
    chunk_size: int,
    on_frame: Callable[[int], None] = lambda frame: None,
) -> Iterator[NDArray[np.uint8]]:
    """Frames (size, size, 3) uint8 of one round that begins at the front; `on_frame` gets the number of each done."""
    occupancy = Occupancy(field, chunk_size=chunk_size)
    cameras = level_orbit(
        frames, elevation_deg=ELEVATION_DEG, distance=DISTANCE, fovy_deg=FOVY_DEG, height=size, width=size
    )
    for number, camera in enumerate(cameras, start=1):
        rays = (
            torch.from_numpy(part.astype(np.float32)).view(-1, 3).to(field.table.device)
            for part in pixel_rays(camera, height=size, width=size)
        )
        rgb = render_rays(field, *rays, chunk_size=chunk_size, occupancy=occupancy, min_transmittance=MIN_TRANSMITTANCE)
        yield (rgb * 255).round().clamp(0, 255).to(torch.uint8).view(size, size, 3).cpu().numpy()
        on_frame(number)
