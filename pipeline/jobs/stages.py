"""The stages of a job, and how much of it each is: what progress is counted in. The web process imports it."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.jobs.transitions import EXPORT_STAGE

STAGE_ENDS_AT: Mapping[str, int] = {"intake": 5, "generate": 50, "export": 90, "deliver": 100}
"""Progress at the end of each stage, in percent of the whole job; the shares are those of a warm job on an H100."""
EXPORT_STAGE_ENDS_AT: Mapping[str, int] = {EXPORT_STAGE: 10, "export": 80, "deliver": 100}
"""The same of an export of an earlier generation."""
STAGES = tuple(STAGE_ENDS_AT)


def percent_of(stage: str, share: float, *, stage_ends_at: Mapping[str, int] = STAGE_ENDS_AT) -> int:
    """The percent of the whole job where a share of a stage, 0 to 1, is done."""
    stages = tuple(stage_ends_at)
    index = stages.index(stage)
    starts_at = stage_ends_at[stages[index - 1]] if index else 0
    return round(starts_at + (stage_ends_at[stage] - starts_at) * min(max(share, 0.0), 1.0))
