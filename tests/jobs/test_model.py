"""The state diagram of a job."""

from __future__ import annotations

import pytest

from pipeline.jobs.model import FINAL_STATES, TRANSITIONS, Job, JobState, may_follow

QUEUED, RUNNING, SUCCESS, FAILED, CANCELLED = JobState
ARROWS = {
    (QUEUED, RUNNING),
    (QUEUED, CANCELLED),
    (RUNNING, RUNNING),
    (RUNNING, QUEUED),
    (RUNNING, SUCCESS),
    (RUNNING, FAILED),
    (RUNNING, CANCELLED),
}


@pytest.mark.parametrize("before", JobState)
@pytest.mark.parametrize("after", JobState)
def test_the_state_diagram_has_exactly_these_transitions(before: JobState, after: JobState) -> None:
    assert may_follow(before, after) == ((before, after) in ARROWS)


def test_a_final_state_has_no_transition() -> None:
    assert {state for state in JobState if not TRANSITIONS[state]} == FINAL_STATES
    assert [state for state in JobState if state.is_final] == [SUCCESS, FAILED, CANCELLED]


def test_a_job_that_was_never_claimed_has_no_lease() -> None:
    job = Job(1, 1, "key", "prefix", QUEUED, 0.0, "0" * 64)

    with pytest.raises(ValueError, match="job 1 was never claimed"):
        _ = job.lease
