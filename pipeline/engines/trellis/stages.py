"""The two sampling stages, from the image's tokens to the structured latent. Knows no files, devices or requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.engines.trellis.latent_flow import SLatFlowModel
from pipeline.engines.trellis.structure_flow import SparseStructureFlowModel
from pipeline.ops.voxels import VoxelSet
from pipeline.sampling.flow_euler import flow_times, sample_flow
from pipeline.sampling.guidance import Evaluate, Guidance, MultiImageMode, guided_velocity

TIME_SCALE = 1000.0  # the models were trained on times from 0 to 1000


@dataclass(frozen=True)
class SamplerSettings:
    """How one stage is sampled.

    Attributes:
        steps: Euler steps.
        cfg_strength: weight of the guidance.
        cfg_interval: first and last time in [0, 1] at which it acts.
        rescale_t: bends the times towards 1.
    """

    steps: int
    cfg_strength: float
    cfg_interval: tuple[float, float]
    rescale_t: float


def model_time(t: float, like: Tensor) -> Tensor:
    """(1,) float32 time as the models take it."""
    return torch.tensor([TIME_SCALE * t], dtype=torch.float32, device=like.device)


def structure_velocities(flow: SparseStructureFlowModel, tokens: Tensor) -> Evaluate:
    """Velocities of the dense latent under each image and without one, all passes in one batch.

    Args:
        tokens: (P, L, C) of P images; their keys and values are computed here, once.
    """
    condition = flow.encode_condition(tokens, unguided=True)

    def evaluate(x: Tensor, t: float, images: Sequence[int], unguided: bool) -> Tensor:
        passes = len(images) + unguided
        stacked = x.repeat(passes, 1, 1, 1, 1)
        velocities = flow(stacked, model_time(t, x), condition.select(images, unguided=unguided))
        return velocities.unflatten(0, (passes, len(x)))

    return evaluate


def latent_velocities(flow: SLatFlowModel, voxels: VoxelSet, tokens: Tensor) -> Evaluate:
    """Velocities of the latents on their voxels under each image and without one; all passes share the tables."""
    condition = flow.encode_condition(tokens, unguided=True)

    def evaluate(x: Tensor, t: float, images: Sequence[int], unguided: bool) -> Tensor:
        passes = len(images) + unguided
        stacked = x.expand(passes, -1, -1)
        return flow(stacked, voxels, model_time(t, x), condition.select(images, unguided=unguided))

    return evaluate


def one_pass_at_a_time(evaluate: Evaluate) -> Evaluate:
    """The same velocities with less memory: no two passes in one batch."""

    def separately(x: Tensor, t: float, images: Sequence[int], unguided: bool) -> Tensor:
        passes = [evaluate(x, t, [image], False) for image in images]
        return torch.cat([*passes, *([evaluate(x, t, [], True)] if unguided else [])])

    return separately


def run_sampler(
    noise: Tensor,
    evaluate: Evaluate,
    settings: SamplerSettings,
    *,
    images: int = 1,
    mode: MultiImageMode = "stochastic",
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Sample one stage from its noise; `on_step` gets the number of each finished step."""
    guidance = Guidance(settings.cfg_strength, settings.cfg_interval)
    velocity = guided_velocity(evaluate, guidance, images=images, mode=mode)
    times = flow_times(settings.steps, rescale_t=settings.rescale_t)
    return sample_flow(noise, velocity, times=times, on_step=on_step)
