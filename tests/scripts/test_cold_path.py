"""The parts of the cold path, from the events of containers."""

from __future__ import annotations

import pytest

from scripts.benchmarks.cold_path import BEFORE_SNAPSHOT, Part, covered_s, parts_of, report
from tests.fakes.modal import ContainerFacts

EVENTS = {
    "boot": 101.0,
    "snapshot": 105.0,
    "restored": 106.0,
    "ready": 106.5,
    "begin of in-1": 107.0,
    "end of in-1": 109.0,
    "ended with 0": 170.0,
}
CONTAINER = ContainerFacts(
    task_id="ta-1",
    function="Generator.*",
    pid=1,
    is_ready=True,
    is_ended=True,
    events=tuple(EVENTS),
    event_times=tuple(EVENTS.values()),
    created_at=100.5,
    output="",
)


def test_a_containers_time_is_divided_from_its_start_to_the_end_of_its_last_input() -> None:
    parts = parts_of(CONTAINER, submitted_at=100.0)

    assert [(part.what, part.at_s, part.seconds) for part in parts] == [
        ("queue and boot", 0.5, 0.5),
        (BEFORE_SNAPSHOT, 1.0, 4.0),
        ("restore", 5.0, 1.0),
        ("after the restore", 6.0, 0.5),
        ("waits for an input", 6.5, 0.5),
        ("input", 7.0, 2.0),
    ]
    assert {part.container for part in parts} == {"Generator"}


def test_what_snapshots_save_counts_time_that_two_containers_share_once() -> None:
    parts = [
        Part("web", BEFORE_SNAPSHOT, 1.0, 2.0),
        Part("Generator", BEFORE_SNAPSHOT, 2.0, 4.0),
        Part("web", "input", 6.0, 1.0),
    ]

    assert covered_s(parts[:2]) == pytest.approx(5.0)
    assert covered_s([]) == 0
    assert report(parts, 9.0).splitlines()[-1].endswith("from their snapshots: 4.00 s or more")
