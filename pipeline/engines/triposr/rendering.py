"""Volume rendering of the field, and the turntable.

Source: Mildenhall et al. 2020 (NeRF), arXiv 2003.08934, eq. 3;
VAST-AI-Research/TripoSR@d26e331, tsr/models/nerf_renderer.py and tsr/utils.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.triposr.field import TriplaneField
from pipeline.render.orbit import level_orbit, pixel_rays

BOX_SHRINK = 1e-3  # fraction of the radius, so that no sample lies on the border
MIN_DIRECTION = 1e-6  # replaces smaller direction components, so that the slab test does not divide by zero
MIN_RAY_LENGTH = 0.01  # shortest path through the box, in units of the model's frame
PRODUCT_FLOOR = 1e-10  # added to each factor of the transmittance, as in the release
SLAB = 8  # samples of each ray between two tests of which rays continue

ELEVATION_DEG, DISTANCE, FOVY_DEG = 0.0, 1.9, 40.0  # camera path of the release's render command
MIN_TRANSMITTANCE = 1e-3  # rays below end: the rest contributes a quarter of an 8-bit level
MIN_DENSITY = 0.004  # over the whole unit path, 1 - exp(-0.004) is about one 8-bit level
OCCUPANCY_CELLS = 64  # along the side of the box


def rays_intersect_bbox(
    origins: Tensor, directions: Tensor, *, radius: float, near: float = 0.0, valid_thresh: float = MIN_RAY_LENGTH
) -> tuple[Tensor, Tensor, Tensor]:
    """Intersect rays with the box by the slab method.

    Args:
        origins: (R, 3).
        directions: (R, 3).
        radius: half the side of the box, before it is shrunk.
        near: smallest distance from the origin.
        valid_thresh: paths shorter than this count as a miss.

    Returns:
        (R, 1) distance of entry, (R, 1) distance of exit, (R,) bool hit; both distances are 0 for a miss.

    Source: Kay and Kajiya 1986, "Ray tracing complex scenes".
    """
    # As in the release, small negative components become positive too; the slab distances stay finite either way.
    directions = torch.where(directions.abs() < MIN_DIRECTION, MIN_DIRECTION, directions)
    reach = radius * (1 - BOX_SHRINK)
    first, second = (-reach - origins) / directions, (reach - origins) / directions  # (R, 3) each
    enter = torch.minimum(first, second).amax(dim=1, keepdim=True).clamp(min=near)
    leave = torch.maximum(first, second).amin(dim=1, keepdim=True)
    inside = leave - enter > valid_thresh
    return torch.where(inside, enter, 0), torch.where(inside, leave, 0), inside[:, 0]


class Occupancy:
    """Which cells of a coarse grid may hold visible density. Not in the release: it evaluates every sample."""

    def __init__(self, field: TriplaneField, *, chunk_size: int, cells: int = OCCUPANCY_CELLS) -> None:
        """Evaluate the field at G = `cells` + 4 points per axis and dilate by two points.

        The dilation covers density that lies between the points.

        Args:
            field: the field.
            chunk_size: points evaluated at once.
            cells: cells along the side of the box, a multiple of 4.
        """
        side = 4  # points along the side of a brick
        layers = torch.linspace(-1, 1, cells + side, device=field.table.device).view(-1, side)  # (G/4, 4)
        bricks = torch.cartesian_prod(*[torch.arange(len(layers), device=layers.device)] * 3)  # (M, 3), M = (G/4)^3
        values = field.on_bricks(layers[bricks], chunk_size=chunk_size)  # (M, 3, 4) -> (M, 4, 4, 4)
        grid = values.view(*[len(layers)] * 3, side, side, side).permute(
            0, 3, 1, 4, 2, 5
        )  # interleave bricks and points
        grid = grid.reshape(1, 1, *[cells + side] * 3)  # (1, 1, G, G, G)
        grid = torch.nn.functional.max_pool3d(grid, kernel_size=5, stride=1, padding=2)
        self._may_show = grid[0, 0] > MIN_DENSITY
        self._points = cells + side

    def holds(self, coords: Tensor) -> Tensor:
        """Return which points may be visible: (N, 3) coordinates in units of the radius -> (N,) bool."""
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
    """Render rays in front of white; a ray that misses the box is white.

    Departs from NeRF: the distance between samples is that of the unit interval, not of the path through the box. The
    released density was trained with that.

    Args:
        field: the field.
        origins: (R, 3).
        directions: (R, 3) unit vectors.
        chunk_size: samples evaluated at once; the result does not depend on it.
        occupancy: skips samples in empty cells; None evaluates all samples.
        min_transmittance: rays below this transmittance end; 0 evaluates all samples.

    Returns:
        (R, 3) sRGB, not clamped.
    """
    count = field.renderer.num_samples_per_ray
    enter, leave, inside = rays_intersect_bbox(origins, directions, radius=field.renderer.radius)
    rgb = origins.new_zeros((len(origins), 3))
    opacity = origins.new_zeros((len(origins), 1))
    transmittance = origins.new_ones(len(origins))
    bounds = torch.linspace(0, 1, count + 1, device=origins.device)
    middle, delta = (bounds[:-1] + bounds[1:]) / 2, bounds[1:] - bounds[:-1]
    rays = inside.nonzero()[:, 0]
    for start in range(0, count, SLAB):
        rays = rays[transmittance[rays] > min_transmittance] if min_transmittance else rays  # (A,) active rays
        fraction = middle[start : start + SLAB]  # (S,)
        z = enter[rays] * (1 - fraction) + leave[rays] * fraction  # (A, S)
        points = (origins[rays, None] + z[..., None] * directions[rays, None]).flatten(0, 1)  # (A, S, 3) -> (A S, 3)
        density, colour = _sample(field, points, chunk_size, occupancy)
        alpha = 1 - torch.exp(-delta[start : start + SLAB] * density.view(z.shape))  # (A, S)
        for number in range(len(fraction)):  # front to back, so that the order of the sum is fixed
            weight = (alpha[:, number] * transmittance[rays])[:, None]  # (A, 1)
            rgb[rays] += weight * colour.view(*z.shape, 3)[:, number]
            opacity[rays] += weight
            transmittance[rays] *= 1 - alpha[:, number] + PRODUCT_FLOOR
    return rgb + (1 - opacity)


def _sample(
    field: TriplaneField, points: Tensor, chunk_size: int, occupancy: Occupancy | None
) -> tuple[Tensor, Tensor]:
    """Return (N,) density and (N, 3) colour at (N, 3) points; zeros where the occupancy excludes a point."""
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
    """Render one turn around the subject, beginning at the front.

    Args:
        field: the field.
        frames: number of frames.
        size: side of a frame in pixels.
        chunk_size: samples evaluated at once; the result does not depend on it.
        on_frame: receives the number of each finished frame.

    Yields:
        (size, size, 3) uint8 sRGB.
    """
    occupancy = Occupancy(field, chunk_size=chunk_size)
    cameras = level_orbit(
        frames, elevation_deg=ELEVATION_DEG, distance=DISTANCE, fovy_deg=FOVY_DEG, height=size, width=size
    )
    for number, camera in enumerate(cameras, start=1):
        rays = (  # (size, size, 3) -> (R, 3), twice
            torch.from_numpy(part.astype(np.float32)).view(-1, 3).to(field.table.device)
            for part in pixel_rays(camera, height=size, width=size)
        )
        rgb = render_rays(field, *rays, chunk_size=chunk_size, occupancy=occupancy, min_transmittance=MIN_TRANSMITTANCE)
        yield (rgb * 255).round().clamp(0, 255).to(torch.uint8).view(size, size, 3).cpu().numpy()
        on_frame(number)
