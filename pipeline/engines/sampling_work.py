"""How long the sampling of a request takes on a GPU, by its steps, views and detail, and the most that is accepted.

For refusals before a GPU is used, so safe to import in the web container: no numpy, no torch. An upper estimate:
guidance is taken to act in every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import InvalidRequest

MAX_SECONDS = 270.0
"""On an H100. On an A100, the slowest GPU of the engines with such stages, whose dense rate is 0.32 of it, these are
850 s: a generation ends before the 15 minutes after which Modal stops it."""
DETAIL = "detail"
"""The request's field with the side of the decoded grid."""


@dataclass(frozen=True)
class SamplingStage:
    """One sampling stage of an engine.

    Attributes:
        steps: the request's field with its number of steps.
        strength: the request's field with its guidance strength.
        seconds: of one pass of the model on an H100, for the largest subjects.
        by_detail: the same by the request's `detail`, for engines that have it.
        single_pass: strengths that need one pass a step instead of two.
    """

    steps: str
    strength: str
    seconds: float = 0.0
    by_detail: Mapping[int, float] = field(default_factory=dict)
    single_pass: tuple[float, ...] = (0.0,)


def sampling_seconds(stages: Sequence[SamplingStage], request: object, *, views: int, mode: str | None) -> float:
    """Seconds on an H100 that the stages of an engine take at most.

    Args:
        stages: of the engine.
        request: has the fields that the stages name.
        views: of the subject.
        mode: how several views are combined; `multidiffusion` makes a pass for each in every step.
    """
    total = 0.0
    for stage in stages:
        conditioned = views if mode == "multidiffusion" else 1
        passes = conditioned + (getattr(request, stage.strength) not in stage.single_pass)
        seconds = stage.by_detail[getattr(request, DETAIL)] if stage.by_detail else stage.seconds
        total += getattr(request, stage.steps) * passes * seconds
    return total


def check_sampling(stages: Sequence[SamplingStage], request: object, *, views: int, mode: str | None) -> None:
    """Refuse a request that would hold a GPU for too long; the arguments are those of `sampling_seconds`.

    Raises:
        InvalidRequest: the message has the numbers, and what makes them smaller.
    """
    seconds = sampling_seconds(stages, request, views=views, mode=mode)
    if seconds <= MAX_SECONDS:
        return
    asked = [f"{stage.steps} {getattr(request, stage.steps)}" for stage in stages]
    if any(stage.by_detail for stage in stages):
        asked.append(f"{DETAIL} {getattr(request, DETAIL)}")
    remedy = "ask for fewer steps" + (" or less detail" if len(asked) > len(stages) else "")
    if mode == "multidiffusion" and views > 1:
        asked.append(f"{views} views in mode multidiffusion")
        remedy += ", send fewer views, or use multi_image_mode stochastic"
    raise InvalidRequest(
        f"{', '.join(asked)} would take about {seconds:.0f} s of an H100; at most {MAX_SECONDS:.0f} s: {remedy}"
    )
