"""The two sampling stages, from condition tokens to the structured latent. Knows no files, devices or requests.

Source: Xiang et al. 2024, arXiv 2412.01506, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipeline.sampling.flow_euler import flow_times, sample_flow
from pipeline.sampling.guidance import Evaluate, Guidance, MultiImageMode, guided_velocity


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
