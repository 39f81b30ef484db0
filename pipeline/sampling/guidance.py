"""Classifier-free guidance inside an interval of time, over one image or several. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from pipeline.sampling.flow_euler import Velocity

Evaluate = Callable[[Tensor, float, Sequence[int], bool], Tensor]
"""Velocities under several conditions at once: (x, t, images, unguided) -> (len(images) [+ 1], ...), the unguided
one last where it is asked for."""

MultiImageMode = Literal["stochastic", "multidiffusion"]
MULTI_IMAGE_MODES: tuple[MultiImageMode, ...] = get_args(MultiImageMode)


@dataclass(frozen=True)
class Guidance:
    """How strongly, and when, the sample is pushed away from what it would be without a image.

    Attributes:
        cfg_strength: w in (1 + w) guided - w unguided.
        cfg_interval: first and last time at which it acts, both included; none if the first is above the last.
    """

    cfg_strength: float
    cfg_interval: tuple[float, float] = (0.0, 1.0)

    def acts_at(self, t: float) -> bool:
        return self.cfg_interval[0] <= t <= self.cfg_interval[1]


def guided_velocity(
    evaluate: Evaluate, guidance: Guidance | None, *, images: int = 1, mode: MultiImageMode = "stochastic"
) -> Velocity:
    """A velocity that follows the images.

    Args:
        guidance: None leaves the unguided pass out at every time.
        images: number of images that `evaluate` knows.
        mode: `stochastic` looks at image k mod n in step k; `multidiffusion` averages over all images in each step.

    Source: Ho and Salimans 2022, arXiv 2207.12598, eq. 6; the interval: Kynkäänniemi et al. 2024, arXiv 2404.07724.
    """

    def velocity(x: Tensor, t: float, step: int) -> Tensor:
        chosen = [step % images] if mode == "stochastic" else list(range(images))
        if guidance is None or not guidance.acts_at(t):
            return evaluate(x, t, chosen, False).mean(dim=0)
        passes = evaluate(x, t, chosen, True)
        w = guidance.cfg_strength
        return (1 + w) * passes[:-1].mean(dim=0) - w * passes[-1]

    return velocity
