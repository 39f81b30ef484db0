"""The stages of a generation, from image tokens to fields and attributes on voxels. Knows no files and no requests.

Structure: the occupied voxels. Shape: their latents, at 512 in one go, above in a cascade: latents on a coarse grid say
where the fine one has voxels. Texture: latents beside the shape's. Then both are decoded.

Source: microsoft/TRELLIS.2@5565d24, trellis2/pipelines/trellis2_image_to_3d.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.engines.trellis2.flow import SLatFlowModel, SparseStructureFlowModel
from pipeline.engines.trellis2.unet import Decoded, SparseUnetVaeDecoder
from pipeline.nn.condition import Condition
from pipeline.ops.constants import constant
from pipeline.ops.dual_grid import dual_grid_mesh, dual_grid_of
from pipeline.ops.transfer import to_device
from pipeline.ops.voxels import VoxelSet
from pipeline.sampling.contexts import Contexts, latent_velocities, one_pass_at_a_time, structure_velocities
from pipeline.sampling.flow_euler import flow_times, sample_flow
from pipeline.sampling.guidance import Evaluate, MultiImageMode, RescaledGuidance, guided_velocity

COARSE_RESOLUTION = 512
"""The grid that the first flow of a cascade was trained on."""
LATENT_FACTOR = 16
"""Voxels of the decoded grid along a voxel of the latents."""
LEAST_FINE_RESOLUTION, RESOLUTION_STEP = 1024, 128
"""A cascade with too many voxels is repeated on a coarser grid, down to this one."""

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class StageSettings:
    """Settings of one sampling stage.

    Attributes:
        steps: number of Euler steps.
        strength: see `RescaledGuidance`.
        rescale: see `RescaledGuidance`.
        interval: first and last time in [0, 1] with guidance.
        rescale_t: time shift, see `flow_times`.
    """

    steps: int
    strength: float
    rescale: float
    interval: tuple[float, float]
    rescale_t: float


@dataclass(frozen=True)
class Sampling:
    """How every stage samples.

    Attributes:
        generator: of all noise, on the CPU, so that every device gets the same.
        device: where the models are.
        mode: how several images are combined.
        one_by_one: passes run one after the other, with less memory.
    """

    generator: torch.Generator
    device: torch.device
    mode: MultiImageMode = "stochastic"
    one_by_one: bool = False

    def noise(self, *shape: int) -> Tensor:
        """Normally distributed, in the order of the calls."""
        return to_device(torch.randn(shape, generator=self.generator), self.device)

    def run(
        self,
        noise: Tensor,
        evaluate: Evaluate,
        settings: StageSettings,
        *,
        images: int,
        is_sparse: bool,
        on_step: OnStep,
    ) -> Tensor:
        """Sample one stage: a tensor of the shape of the noise."""
        guidance = RescaledGuidance(
            settings.strength,
            settings.interval,
            settings.rescale,
            segments=(slice(None),) if is_sparse else None,
        )
        velocity = guided_velocity(
            one_pass_at_a_time(evaluate) if self.one_by_one else evaluate, guidance, images=images, mode=self.mode
        )
        times = flow_times(settings.steps, rescale_t=settings.rescale_t)
        return sample_flow(noise, velocity, times=times, on_step=on_step)


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel of a latent; the models sample it normalised."""

    mean: Sequence[float]
    std: Sequence[float]

    def restore(self, latent: Tensor) -> Tensor:
        """From normalised to the decoder's scale: (N, C) -> (N, C)."""
        mean, std = self._tensors(latent)
        return latent * std + mean

    def apply(self, latent: Tensor) -> Tensor:
        """From the decoder's scale to normalised: (N, C) -> (N, C)."""
        mean, std = self._tensors(latent)
        return (latent - mean) / std

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (constant(tuple(values), like.device, dtype=like.dtype) for values in self)
        return mean, std


def sample_structure(
    flow: SparseStructureFlowModel,
    contexts: Contexts,
    settings: StageSettings,
    sampling: Sampling,
    *,
    on_step: OnStep = lambda step: None,
) -> Tensor:
    """Sample the latent of the structure decoder, (1, C, R, R, R); `coarsened_occupancy` reads what it decodes to."""
    noise = sampling.noise(1, flow.in_channels, *[flow.resolution] * 3)
    evaluate = structure_velocities(flow, contexts)
    return sampling.run(noise, evaluate, settings, images=len(contexts), is_sparse=False, on_step=on_step)


def sample_latents(
    flow: SLatFlowModel,
    voxels: VoxelSet,
    contexts: Contexts,
    settings: StageSettings,
    sampling: Sampling,
    *,
    beside: Tensor | None = None,
    on_step: OnStep = lambda step: None,
) -> Tensor:
    """Sample normalised latents on voxels: (N, D).

    Args:
        beside: (N, E) normalised latents that are appended to the channels.
    """
    noise = sampling.noise(len(voxels), flow.out_channels)
    evaluate = latent_velocities(_Beside(flow, beside), voxels, contexts)
    return sampling.run(noise[None], evaluate, settings, images=len(contexts), is_sparse=True, on_step=on_step)[0]


@dataclass(frozen=True, eq=False)
class _Beside:
    """A flow model whose passes all have the same latents appended to their channels."""

    flow: SLatFlowModel
    beside: Tensor | None

    def encode_condition(self, tokens: Tensor, *, negative: Tensor | None = None) -> Condition:
        return self.flow.encode_condition(tokens, negative=negative)

    def __call__(self, feats: Tensor, voxels: VoxelSet, t: Tensor, condition: Condition, /) -> Tensor:
        return self.flow(feats, voxels, t, condition, self.beside)


def finer_voxels(upsampled: Tensor, *, resolution: int) -> Tensor:
    """Voxels of a cascade's second flow, from those that the shape decoder predicts.

    Args:
        upsampled: (M, 4) `[batch, x, y, z]` on the grid of `COARSE_RESOLUTION`.
        resolution: of the grid that will be decoded.

    Returns:
        (N, 4) int32 on the grid of `resolution / LATENT_FACTOR`, distinct and sorted.
    """
    scaled = (upsampled[:, 1:].float() + 0.5) / COARSE_RESOLUTION * (resolution // LATENT_FACTOR)
    return torch.unique(torch.cat([upsampled[:, :1].int(), scaled.int()], dim=1), dim=0)


def cascade_voxels(upsampled: Tensor, *, resolution: int, max_voxels: int) -> tuple[Tensor, int]:
    """The voxels of a cascade's second flow and the resolution that they belong to.

    Args:
        upsampled: see `finer_voxels`.
        resolution: the wanted one, 1024 or 1536.
        max_voxels: the grid gets coarser until there are fewer, or until `LEAST_FINE_RESOLUTION`.
    """
    while True:
        coords = finer_voxels(upsampled, resolution=resolution)
        if len(coords) < max_voxels or resolution <= LEAST_FINE_RESOLUTION:
            return coords, resolution
        resolution -= RESOLUTION_STEP


def surface_of(shape: Decoded, *, resolution: int) -> tuple[Tensor, Tensor]:
    """Vertices (N, 3) and faces (F, 3) of a decoded shape with one batch element."""
    return dual_grid_mesh(shape.voxels.coords[:, 1:], dual_grid_of(shape.channels), resolution=resolution)


def decode_attributes(
    decoder: SparseUnetVaeDecoder, latents: Tensor, voxels: VoxelSet, *, shape: Decoded
) -> tuple[Tensor, VoxelSet]:
    """Decode (N, C) texture latents on the voxels of a decoded shape: (M, 6), not clamped, and the voxels."""
    decoded = decoder(latents, voxels, subdivisions=shape.subdivisions)
    return decoded.channels * 0.5 + 0.5, decoded.voxels
