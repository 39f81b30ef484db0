"""Classifier-free guidance inside an interval of time, for one image or several. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pipeline.errors import InvalidRequest
from pipeline.sampling.flow_euler import Velocity

Evaluate = Callable[[Tensor, float, Sequence[int], bool], Tensor]
"""Velocities under several conditions: (x, t, images, unguided) -> (len(images) + unguided, *x.shape).

`images` are indices of conditions; the unguided velocity, if requested, comes last."""

MultiImageMode = Literal["stochastic", "multidiffusion"]
MULTI_IMAGE_MODES: tuple[MultiImageMode, ...] = get_args(MultiImageMode)


def multi_image_mode_of(name: str) -> MultiImageMode:
    """Return the mode of that name.

    Raises:
        InvalidRequest: no mode has it.
    """
    for known in MULTI_IMAGE_MODES:
        if name == known:
            return known
    raise InvalidRequest(f"multi_image_mode must be one of {', '.join(MULTI_IMAGE_MODES)}, got {name!r}")


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

    @property
    def uses_guided(self) -> bool:
        """Whether a velocity under the condition is needed."""
        return True

    def combine(self, x: Tensor, t: float, guided: Tensor, unguided: Tensor) -> Tensor:
        """Combine the velocities of a sample at a time, all of one shape."""
        return (1 + self.cfg_strength) * guided - self.cfg_strength * unguided


@dataclass(frozen=True)
class RescaledGuidance:
    """Classifier-free guidance whose denoised sample is brought back to the spread of the guided one.

    Attributes:
        strength: w in w guided + (1 - w) unguided; 1 needs no unguided pass, and 0 no guided one.
        interval: first and last time with guidance, both included.
        rescale: share, 0 to 1, of the sample with the spread of the guided one in the result.
        sigma_min: noise that is left at time 0.
        segments: rows, on the last axis but one, of each batch element; None where the first axis is the batch.

    Source: Lin et al. 2023, arXiv 2305.08891, eq. 14 to 16; microsoft/TRELLIS.2@5565d24, guidance rescale.
    """

    strength: float
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    sigma_min: float = 1e-5
    segments: tuple[slice, ...] | None = None

    @property
    def uses_guided(self) -> bool:
        """Whether a velocity under the condition is needed."""
        return self.strength != 0

    def acts_at(self, t: float) -> bool:
        """Return whether guidance changes the velocity at time `t`."""
        return self.strength != 1 and self.interval[0] <= t <= self.interval[1]

    def combine(self, x: Tensor, t: float, guided: Tensor, unguided: Tensor) -> Tensor:
        """Combine the velocities of a sample at a time, all of one shape."""
        if not self.uses_guided:
            return unguided
        velocity = self.strength * guided + (1 - self.strength) * unguided
        if self.rescale == 0:
            return velocity
        level = self.sigma_min + (1 - self.sigma_min) * t
        start = (1 - self.sigma_min) * x
        wanted, found = start - level * guided, start - level * velocity  # denoised samples
        rescaled = found * (self._spread(wanted) / self._spread(found))
        return (start - (self.rescale * rescaled + (1 - self.rescale) * found)) / level

    def _spread(self, values: Tensor) -> Tensor:
        """The standard deviation of each batch element, broadcastable to the values."""
        if self.segments is None:
            return values.flatten(1).std(dim=1).reshape(-1, *[1] * (values.ndim - 1))
        parts = [values[..., rows, :].std().expand(values[..., rows, :1].shape) for rows in self.segments]
        return torch.cat(parts, dim=-2)


def guided_velocity(
    evaluate: Evaluate,
    guidance: Guidance | RescaledGuidance | None,
    *,
    images: int = 1,
    mode: MultiImageMode = "stochastic",
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
        if not guidance.uses_guided:
            return evaluate(x, t, [], True)[0]
        passes = evaluate(x, t, chosen, True)  # (I + 1, *x.shape)
        return guidance.combine(x, t, passes[:-1].mean(dim=0), passes[-1])

    return velocity
