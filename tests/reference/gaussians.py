"""Reference renderer of 3D Gaussians: splatting with the opacity compensation of a minimal screen-space kernel.

Plain and in float64: one tile after another, all Gaussians of a tile at once. The parity tests compare the Gaussians
of an engine through it.
Source: Kerbl et al. 2023, arXiv 2308.04079; Yu et al. 2024, arXiv 2311.16493, section 5 (the compensation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.render.orbit import Camera

SH_C0 = 0.28209479177387814  # the constant spherical harmonic
NEAR = 0.2
TILE = 16  # pixels; a Gaussian is evaluated on every pixel of the tiles that it touches, and on no other
MAX_ALPHA = float(np.float32(0.99))  # float32 constants: two capped layers end a pixel
MIN_ALPHA = 1 / 255
MIN_TRANSMITTANCE = float(np.float32(1e-4))
SMALLEST_DETERMINANT = 1e-6  # pixels^4
CLAMP = 1.3  # how far outside the view the perspective is still linearised, in tangents of half of it


class SplatParameters(Protocol):
    """Gaussians with their activations applied; shapes as in an engine's own record."""

    @property
    def xyz(self) -> Tensor: ...
    @property
    def scaling(self) -> Tensor: ...
    @property
    def rotation(self) -> Tensor: ...
    @property
    def opacity(self) -> Tensor: ...
    @property
    def features_dc(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class SplatImage:
    """A rendered image of Gaussians.

    Attributes:
        rgb: (3, H, W) float64 with the background, not clamped above.
        alpha: (H, W) float64.
        radii: (G,) int64 pixels, 0 where a Gaussian is not rendered.
    """

    rgb: Tensor
    alpha: Tensor
    radii: Tensor


@dataclass(frozen=True, eq=False)
class _Splats:
    """Gaussians projected to the image.

    Attributes:
        centre: (G, 2) in pixels; pixel centres are integers.
        conic: (G, 3) A, B, C of the inverse covariance.
        opacity: (G,) compensated.
        colour: (G, 3).
        depth: (G,) float32 camera z, by which they are ordered.
        radius: (G,) pixels, 0 where it is not rendered.
        tiles: (G, 4) first column, column after the last, first row, row after the last.
    """

    centre: Tensor
    conic: Tensor
    opacity: Tensor
    colour: Tensor
    depth: Tensor
    radius: Tensor
    tiles: Tensor


def render_gaussians(
    gaussians: SplatParameters,
    camera: Camera,
    *,
    resolution: int,
    background: Sequence[float] = (0.0, 0.0, 0.0),
    kernel_size: float = 0.1,
) -> SplatImage:
    """Render one square image.

    Args:
        kernel_size: variance in square pixels that is added on the screen; a smaller opacity compensates for it, so
            that the integral stays the same.

    Returns:
        The image; zeros without the background if there is no Gaussian, as in the released renderer.
    """
    device = gaussians.xyz.device
    image = torch.zeros((4, resolution, resolution), dtype=torch.float64, device=device)
    if len(gaussians.xyz) == 0:
        return SplatImage(image[:3], image[3], torch.zeros(0, dtype=torch.int64, device=device))
    splats = _project(gaussians, camera, resolution, kernel_size)
    order = torch.argsort(splats.depth, stable=True)
    order = order[splats.radius[order] > 0]
    back = torch.tensor(background, dtype=torch.float64, device=device)
    tiles = -(-resolution // TILE)
    for row in range(tiles):
        for column in range(tiles):
            left, right, top, bottom = splats.tiles[order].unbind(1)
            mine = order[(left <= column) & (column < right) & (top <= row) & (row < bottom)]
            rows = slice(row * TILE, min((row + 1) * TILE, resolution))
            columns = slice(column * TILE, min((column + 1) * TILE, resolution))
            image[:, rows, columns] = _render_tile(splats, mine, rows, columns, back)
    return SplatImage(image[:3], image[3], splats.radius)


def _project(gaussians: SplatParameters, camera: Camera, size: int, kernel_size: float) -> _Splats:
    device = gaussians.xyz.device
    pose = torch.from_numpy(camera.world_to_camera).to(device)
    tan_x, tan_y = camera.tan_half_fov
    view = gaussians.xyz.double() @ pose[:3, :3].T + pose[:3, 3]
    x, y, z = view.unbind(1)
    lens = camera.intrinsics
    w = z + 1e-7
    ndc_x = (2 * lens[0, 0] * x + (2 * lens[0, 2] - 1) * z) / w
    ndc_y = (2 * lens[1, 1] * y + (1 - 2 * lens[1, 2]) * z) / w
    centre = torch.stack([((ndc + 1) * size - 1) / 2 for ndc in (ndc_x, ndc_y)], dim=1)
    covariance = _screen_covariance(gaussians, pose, view, (tan_x, tan_y), size)
    a, b, d = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
    bare = (a * d - b * b).clamp(min=SMALLEST_DETERMINANT)
    a, d = a + kernel_size, d + kernel_size
    determinant = a * d - b * b
    blurred = determinant.clamp(min=SMALLEST_DETERMINANT)
    compensation = (bare / (blurred + 1e-6) + 1e-6).sqrt()
    compensation[(bare <= SMALLEST_DETERMINANT) | (blurred <= SMALLEST_DETERMINANT)] = 0
    middle = (a + d) / 2
    radius = (3 * (middle + (middle**2 - determinant).clamp(min=0.1).sqrt()).sqrt()).ceil()
    bounds = [((centre + sign * radius[:, None] + more) / TILE).trunc() for sign, more in ((-1, 0), (1, TILE - 1))]
    first, behind = (bound.clamp(0, -(-size // TILE)).long() for bound in bounds)
    drawn = (z > NEAR) & (determinant != 0) & ((behind - first) > 0).all(dim=1)
    return _Splats(
        centre=centre,
        conic=torch.stack([d, -b, a], dim=1) / determinant[:, None],
        opacity=gaussians.opacity.double().reshape(-1) * compensation,
        colour=(0.5 + SH_C0 * gaussians.features_dc.double().reshape(-1, 3)).clamp(min=0),
        depth=z.float(),
        radius=torch.where(drawn, radius, 0).long(),
        tiles=torch.stack([first[:, 0], behind[:, 0], first[:, 1], behind[:, 1]], dim=1),
    )


def quaternion_matrices(rotation: Tensor) -> Tensor:
    """Rotation matrices (G, 3, 3) of unit quaternions (G, 4), w first."""
    w, x, y, z = rotation.unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _screen_covariance(
    gaussians: SplatParameters, pose: Tensor, view: Tensor, tangents: tuple[float, float], size: int
) -> Tensor:
    """(G, 2, 2) covariance in square pixels by the perspective's derivative at the centre."""
    axes = quaternion_matrices(gaussians.rotation.double()) * gaussians.scaling.double()[:, None]  # (G, 3, 3)
    z = view[:, 2]
    jacobian = torch.zeros((len(z), 2, 3), dtype=torch.float64, device=z.device)
    for axis, tangent in enumerate(tangents):
        focal = size / (2 * tangent)
        clamped = (view[:, axis] / z).clamp(-CLAMP * tangent, CLAMP * tangent)
        jacobian[:, axis, axis] = focal / z
        jacobian[:, axis, 2] = -focal * clamped / z
    projected = jacobian @ pose[:3, :3] @ axes  # (G, 2, 3)
    return projected @ projected.mT


def _render_tile(splats: _Splats, mine: Tensor, rows: slice, columns: slice, background: Tensor) -> Tensor:
    """(4, h, w) colour with background, and alpha; `mine` are the tile's Gaussians from front to back."""
    device = splats.centre.device
    y, x = torch.meshgrid(
        torch.arange(rows.start, rows.stop, device=device),
        torch.arange(columns.start, columns.stop, device=device),
        indexing="ij",
    )
    dx = splats.centre[mine, 0] - x[..., None]  # (h, w, G)
    dy = splats.centre[mine, 1] - y[..., None]
    a, b, c = splats.conic[mine].unbind(1)
    power = -(a * dx * dx + c * dy * dy) / 2 - b * dx * dy
    alpha = (splats.opacity[mine] * power.exp()).clamp(max=MAX_ALPHA)
    alpha = torch.where((power > 0) | (alpha < MIN_ALPHA), 0.0, alpha)
    after = torch.cumprod(1 - alpha, dim=-1)
    alpha = torch.where(after < MIN_TRANSMITTANCE, 0.0, alpha)  # the Gaussian that would end a pixel is skipped
    after = torch.cumprod(1 - alpha, dim=-1)
    before = torch.cat([torch.ones_like(x[..., None], dtype=torch.float64), after], dim=-1)
    colour = (alpha * before[..., :-1]) @ splats.colour[mine]  # (h, w, 3)
    left_over = before[..., -1:]
    return torch.cat([colour + left_over * background, 1 - left_over], dim=-1).permute(2, 0, 1)
