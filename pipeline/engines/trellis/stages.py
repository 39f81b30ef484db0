"""The two sampling stages, from condition tokens to the structured latent. Knows no files, devices or requests.

Source: Xiang et al. 2024, arXiv 2412.01506, section 3.3.
"""

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

TIME_SCALE = 1000.0  # the models were trained on times in [0, 1000]


@dataclass(frozen=True)
class SamplerSettings:
    """Settings of one sampling stage.

    Attributes:
        steps: number of Euler steps.
        cfg_strength: strength of the guidance, see `Guidance`.
        cfg_interval: first and last time in [0, 1] with guidance.
        rescale_t: time shift, see `flow_times`.
    """

    steps: int
    cfg_strength: float
    cfg_interval: tuple[float, float]
    rescale_t: float


@dataclass(frozen=True, eq=False)
class Contexts:
    """What a generation is conditioned by.

    Attributes:
        tokens: (P, L, E) tokens of P images, or of a text.
        negative: (1, L, E) context of the unguided pass: zeros for the image model, an encoded text for
            the text models.
    """

    tokens: Tensor
    negative: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


def model_time(t: float, like: Tensor) -> Tensor:
    """Return a time in [0, 1] as the models' (1,) float32 input, on the device of `like`."""
    return torch.tensor([TIME_SCALE * t], dtype=torch.float32, device=like.device)


def structure_velocities(flow: SparseStructureFlowModel, contexts: Contexts) -> Evaluate:
    """Return the velocities of the (B, C, R, R, R) dense latent under each context and the negative one, in one batch.

    Args:
        flow: the model.
        contexts: what the passes are conditioned by; keys and values are computed here, once.
    """
    condition = flow.encode_condition(contexts.tokens, negative=contexts.negative)

    def evaluate(x: Tensor, t: float, images: Sequence[int], unguided: bool) -> Tensor:
        passes = len(images) + unguided
        stacked = x.repeat(passes, 1, 1, 1, 1)  # (B, C, R, R, R) -> (passes B, C, R, R, R)
        velocities = flow(stacked, model_time(t, x), condition.select(images, unguided=unguided))
        return velocities.unflatten(0, (passes, len(x)))  # (passes, B, C, R, R, R)

    return evaluate


def latent_velocities(flow: SLatFlowModel, voxels: VoxelSet, contexts: Contexts) -> Evaluate:
    """Return the velocities of the (1, N, C) latents under each context and the negative one, in one batch.

    Args:
        flow: the model.
        voxels: the N voxels; all passes share their neighbour and window tables.
        contexts: what the passes are conditioned by; keys and values are computed here, once.
    """
    condition = flow.encode_condition(contexts.tokens, negative=contexts.negative)

    def evaluate(x: Tensor, t: float, images: Sequence[int], unguided: bool) -> Tensor:
        passes = len(images) + unguided
        stacked = x.expand(passes, -1, -1)  # (1, N, C) -> (passes, N, C)
        # (passes, N, C); the sampler broadcasts their combination, (N, C), against x
        return flow(stacked, voxels, model_time(t, x), condition.select(images, unguided=unguided))

    return evaluate


def one_pass_at_a_time(evaluate: Evaluate) -> Evaluate:
    """Return the same velocities with less memory: each pass is a batch of its own."""

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
    """Sample one stage.

    Args:
        noise: the sample at time 1, of any shape.
        evaluate: from `structure_velocities` or `latent_velocities`.
        settings: of the stage.
        images: number of images that `evaluate` knows.
        mode: how several images are combined, see `guided_velocity`.
        on_step: receives the number of each finished step.

    Returns:
        The sample at time 0, of the shape of `noise`.
    """
    guidance = Guidance(settings.cfg_strength, settings.cfg_interval)
    velocity = guided_velocity(evaluate, guidance, images=images, mode=mode)
    times = flow_times(settings.steps, rescale_t=settings.rescale_t)
    return sample_flow(noise, velocity, times=times, on_step=on_step)
