"""The line between the two sides of a generation, and the container's end of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import Cancelled
from pipeline.on_modal.control_channel import ControlChannel, ProgressReporter
from pipeline.on_modal.shared_dict import InMemoryDict
from tests.on_modal.containers import HEARTBEAT_INTERVAL_S, WAIT_S

NEVER_S = 3600.0


class FrailNotes(InMemoryDict):
    """A map that can be down, and counts how often it is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_down = False
        self.puts = 0

    def get(self, key: str, default: Any = None) -> Any:
        if self.is_down:
            raise ConnectionError("no route")
        return super().get(key, default)

    def put(self, key: str, value: Any) -> None:
        self.puts += 1
        if self.is_down:
            raise ConnectionError("no route")
        super().put(key, value)


@pytest.fixture
def notes() -> FrailNotes:
    return FrailNotes()


@pytest.fixture
def line(notes: FrailNotes) -> ControlChannel:
    return ControlChannel(notes, "job-1")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.002)


def is_heard(watch: ProgressReporter) -> bool:
    """Whether the next step ends in a cancel."""
    try:
        watch.on_step(0.5)
    except Cancelled:
        return True
    return False


def test_entries_of_two_generations_are_apart_and_go_together(notes: FrailNotes, line: ControlChannel) -> None:
    other = ControlChannel(notes, "job-2")
    for one, share in ((line, 0.25), (other, 0.5)):
        one.say(share)
        one.note_call(f"call at {share}")
    line.cancel()

    assert (line.progress(0.0), line.noted_call(), line.is_cancelled()) == (0.25, "call at 0.25", True)
    assert (other.progress(0.0), other.noted_call(), other.is_cancelled()) == (0.5, "call at 0.5", False)
    line.clear()
    line.clear()
    assert (line.progress(0.0), line.noted_call(), line.is_cancelled()) == (0.0, None, False)
    assert len(notes.keys()) == 2


def test_progress_is_written_at_the_next_beat(line: ControlChannel) -> None:
    with ProgressReporter(line, heartbeat_interval_s=HEARTBEAT_INTERVAL_S) as watch:
        for share in (0.25, 0.5):
            watch.on_step(share)
            wait_until(lambda share=share: line.progress(None) == share)


def test_a_step_between_two_beats_writes_nothing(notes: FrailNotes, line: ControlChannel) -> None:
    with ProgressReporter(line, heartbeat_interval_s=NEVER_S) as watch:
        for step in range(1000):
            watch.on_step(step / 1000)

    assert notes.puts == 0


def test_progress_that_stands_still_is_written_once(notes: FrailNotes, line: ControlChannel) -> None:
    with ProgressReporter(line, heartbeat_interval_s=HEARTBEAT_INTERVAL_S) as watch:
        watch.on_step(0.5)
        wait_until(lambda: line.progress(None) == 0.5)
        time.sleep(10 * HEARTBEAT_INTERVAL_S)

    assert notes.puts == 1


def test_a_watch_that_is_over_waits_for_no_beat_and_leaves_no_thread(line: ControlChannel) -> None:
    before, started_s = threading.enumerate(), time.monotonic()

    with ProgressReporter(line, heartbeat_interval_s=NEVER_S) as watch:
        watch.on_step(0.5)

    assert time.monotonic() - started_s < WAIT_S
    assert set(threading.enumerate()) <= set(before)


def test_a_cancel_is_heard_at_the_step_after_the_next_beat(line: ControlChannel) -> None:
    with ProgressReporter(line, heartbeat_interval_s=HEARTBEAT_INTERVAL_S) as watch:
        assert not is_heard(watch)
        line.cancel()
        wait_until(lambda: is_heard(watch))

        with pytest.raises(Cancelled, match=r"The call was cancelled\."):
            watch.on_step(0.5)


def test_a_line_that_is_down_stops_no_step_and_is_used_when_it_is_back(notes: FrailNotes, line: ControlChannel) -> None:
    notes.is_down = True
    with ProgressReporter(line, heartbeat_interval_s=HEARTBEAT_INTERVAL_S) as watch:
        watch.on_step(0.5)
        wait_until(lambda: notes.puts >= 3)
        watch.on_step(0.5)
        notes.is_down = False
        wait_until(lambda: line.progress(None) == 0.5)
        line.cancel()
        wait_until(lambda: is_heard(watch))


def test_a_cancel_that_was_heard_stays_heard_when_the_line_goes_down(notes: FrailNotes, line: ControlChannel) -> None:
    line.cancel()
    with ProgressReporter(line, heartbeat_interval_s=HEARTBEAT_INTERVAL_S) as watch:
        wait_until(lambda: is_heard(watch))
        notes.is_down = True
        time.sleep(5 * HEARTBEAT_INTERVAL_S)

        assert is_heard(watch)
