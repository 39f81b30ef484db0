"""The control channel between the two sides of a generation, and the container's end of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import Cancelled
from pipeline.on_modal.control_channel import ControlChannel, ProgressReporter, SavedCall
from tests.fakes.shared_dict import InMemoryDict
from tests.on_modal.containers import HEARTBEAT_INTERVAL_S, WAIT_S

NEVER_S = 3600.0


class UnreliableDict(InMemoryDict):
    """A dictionary that can be unavailable, and counts the writes."""

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
def entries() -> UnreliableDict:
    return UnreliableDict()


@pytest.fixture
def channel(entries: UnreliableDict) -> ControlChannel:
    return ControlChannel(entries, "job-1")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "timed out"
        time.sleep(0.002)


def is_cancelled(reporter: ProgressReporter) -> bool:
    """Whether the next step raises `Cancelled`."""
    try:
        reporter.on_step(0.5)
    except Cancelled:
        return True
    return False


def test_two_generations_have_separate_entries_and_clear_deletes_all_of_one(
    entries: UnreliableDict, channel: ControlChannel
) -> None:
    other = ControlChannel(entries, "job-2")
    for one, share in ((channel, 0.25), (other, 0.5)):
        one.report(share)
        one.save_call(SavedCall(f"call at {share}"))
    channel.request_cancel()

    assert (channel.progress(0.0), channel.saved_call().call_id, channel.is_cancel_requested()) == (
        0.25,
        "call at 0.25",
        True,
    )
    assert (other.progress(0.0), other.saved_call().call_id, other.is_cancel_requested()) == (0.5, "call at 0.5", False)
    channel.clear()
    channel.clear()
    assert (channel.progress(0.0), channel.saved_call().call_id, channel.is_cancel_requested()) == (0.0, "", False)
    assert len(entries.keys()) == 2


def test_progress_is_written_at_the_next_heartbeat(channel: ControlChannel) -> None:
    with ProgressReporter(channel, heartbeat_interval_s=HEARTBEAT_INTERVAL_S) as reporter:
        for share in (0.25, 0.5):
            reporter.on_step(share)
            wait_until(lambda share=share: channel.progress(None) == share)


def test_a_step_between_two_heartbeats_writes_nothing(entries: UnreliableDict, channel: ControlChannel) -> None:
    with ProgressReporter(channel, heartbeat_interval_s=NEVER_S) as reporter:
        for step in range(1000):
            reporter.on_step(step / 1000)

    assert entries.puts == 0


def test_unchanged_progress_is_written_once(entries: UnreliableDict, channel: ControlChannel) -> None:
    with ProgressReporter(channel, heartbeat_interval_s=HEARTBEAT_INTERVAL_S) as reporter:
        reporter.on_step(0.5)
        wait_until(lambda: channel.progress(None) == 0.5)
        time.sleep(10 * HEARTBEAT_INTERVAL_S)

    assert entries.puts == 1


def test_a_finished_reporter_waits_for_no_heartbeat_and_leaves_no_thread(channel: ControlChannel) -> None:
    before, started_s = threading.enumerate(), time.monotonic()

    with ProgressReporter(channel, heartbeat_interval_s=NEVER_S) as reporter:
        reporter.on_step(0.5)

    assert time.monotonic() - started_s < WAIT_S
    assert set(threading.enumerate()) <= set(before)


def test_a_cancellation_request_takes_effect_at_the_step_after_the_next_heartbeat(channel: ControlChannel) -> None:
    with ProgressReporter(channel, heartbeat_interval_s=HEARTBEAT_INTERVAL_S) as reporter:
        assert not is_cancelled(reporter)
        channel.request_cancel()
        wait_until(lambda: is_cancelled(reporter))

        with pytest.raises(Cancelled, match=r"The job was cancelled\."):
            reporter.on_step(0.5)


def test_a_failing_channel_stops_no_step_and_is_used_again_when_it_recovers(
    entries: UnreliableDict, channel: ControlChannel
) -> None:
    entries.is_down = True
    with ProgressReporter(channel, heartbeat_interval_s=HEARTBEAT_INTERVAL_S) as reporter:
        reporter.on_step(0.5)
        wait_until(lambda: entries.puts >= 3)
        reporter.on_step(0.5)
        entries.is_down = False
        wait_until(lambda: channel.progress(None) == 0.5)
        channel.request_cancel()
        wait_until(lambda: is_cancelled(reporter))


def test_a_cancellation_that_was_seen_stays_in_effect_when_the_channel_fails(
    entries: UnreliableDict, channel: ControlChannel
) -> None:
    channel.request_cancel()
    with ProgressReporter(channel, heartbeat_interval_s=HEARTBEAT_INTERVAL_S) as reporter:
        wait_until(lambda: is_cancelled(reporter))
        entries.is_down = True
        time.sleep(5 * HEARTBEAT_INTERVAL_S)

        assert is_cancelled(reporter)
