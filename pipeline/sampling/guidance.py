"""Classifier-free guidance inside an interval of time, for one image or several. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from pipeline.sampling.flow_euler import Velocity

Evaluate = Callable[[Tensor, float, Sequence[int], bool], Tensor]
"""Velocities under several conditions: (x, t, images, unguided) -> (len(images) + unguided, *x.shape).

`images` are indices of conditions; the unguided velocity, if requested, comes last."""

MultiImageMode = Literal["stochastic", "multidiffusion"]
MULTI_IMAGE_MODES: tuple[MultiImageMode, ...] = get_args(MultiImageMode)


@dataclass(frozen=True)
class Guidance:
    """Strength and interval of classifier-free guidance.

    Attributes:
        cfg_strength: w in (1 + w) guided - w unguided.
        cfg_interval: first and last time with guidance, both included; there is none if the first is above the last.
    """

    cfg_strength: float
    cfg_interval: tuple[float, float] = (0.0, 1.0)

    def acts_at(self, t: float) -> bool:
        """Return whether guidance is applied at time `t`."""
        return self.cfg_interval[0] <= t <= self.cfg_interval[1]


def guided_velocity(
    evaluate: Evaluate, guidance: Guidance | None, *, images: int = 1, mode: MultiImageMode = "stochastic"
) -> Velocity:
    """Combine the velocities under all images, and without one, into one velocity.

    Args:
        evaluate: see `Evaluate`.
        guidance: None omits the unguided pass at every time.
        images: number of images that `evaluate` knows.
        mode: `stochastic` uses image k mod n in step k; `multidiffusion` averages over all images in each step.

    Source: Ho and Salimans 2022, arXiv 2207.12598, eq. 6; the interval: Kynkäänniemi et al. 2024, arXiv 2404.07724; the
        multi-image modes: microsoft/TRELLIS@6b0d647, inject_sampler_multi_image.
    """

    def velocity(x: Tensor, t: float, step: int) -> Tensor:
        chosen = [step % images] if mode == "stochastic" else list(range(images))
        if guidance is None or not guidance.acts_at(t):
            return evaluate(x, t, chosen, False).mean(dim=0)  # (I, *x.shape) -> x.shape
        passes = evaluate(x, t, chosen, True)  # (I + 1, *x.shape)
        w = guidance.cfg_strength
        return (1 + w) * passes[:-1].mean(dim=0) - w * passes[-1]

    return velocity
