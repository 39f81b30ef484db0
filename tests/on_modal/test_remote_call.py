"""A call whose connection fails for a while."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from pipeline.on_modal.remote_call import PATIENCE_S, PatientCall, is_in_flight, marked_as_remote

TRANSIENT = (ConnectionError,)
BLIP = ConnectionError("connection reset by peer")


class ScriptedCall:
    """A `RemoteCall` that raises or returns what a list says, then always its last entry."""

    object_id = "fc-1"

    def __init__(self, *results: Any) -> None:
        self.results = list(results)
        self.was_cancelled = False

    def get(self, timeout: float | None = None) -> Any:
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        return result

    def cancel(self) -> None:
        self.was_cancelled = True


class Time:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def patient(call: ScriptedCall, time: Time) -> PatientCall:
    return PatientCall(call, TRANSIENT, clock=lambda: time.now_s, sleep=time.sleep)


def waits(call: PatientCall, *, timeout_s: float, most: int) -> tuple[int, Any]:
    """How often a call was still running, and its result."""
    for number in range(most):
        try:
            return number, call.get(timeout=timeout_s)
        except TimeoutError:
            continue
    raise AssertionError("never finished")


def test_a_connection_that_fails_for_less_than_the_patience_delays_the_result_alone() -> None:
    time = Time()
    call = patient(ScriptedCall(TimeoutError(), *[BLIP] * 119, "result"), time)

    assert waits(call, timeout_s=1.0, most=200) == (120, "result")
    assert time.now_s == 119.0, "each error is followed by the pause that the caller asked for"


def test_a_connection_that_fails_for_longer_is_an_error() -> None:
    time = Time()
    call = patient(ScriptedCall(BLIP), time)

    with pytest.raises(ConnectionError, match="reset by peer"):
        waits(call, timeout_s=1.0, most=200)
    assert time.now_s == PATIENCE_S


def test_patience_begins_again_after_an_answer() -> None:
    time = Time()
    results = [*[BLIP] * 100, TimeoutError(), *[BLIP] * 100, "result"]

    assert waits(patient(ScriptedCall(*results), time), timeout_s=1.0, most=300) == (201, "result")


def test_the_error_of_the_call_itself_is_raised_at_once() -> None:
    call = patient(ScriptedCall(ValueError("a shape")), Time())

    with pytest.raises(ValueError, match="a shape"):
        call.get(timeout=1.0)


class CallIsUnknown(Exception):
    """What the platform answers about a call that it does not know any more."""


@pytest.mark.parametrize(
    ("result", "expected"), [(TimeoutError(), True), (BLIP, True), (CallIsUnknown(), False), (None, False)]
)
def test_an_unreachable_server_says_nothing_about_a_call(result: object, expected: bool) -> None:
    assert is_in_flight(ScriptedCall(result), transient=TRANSIENT, errors=(CallIsUnknown,)) is expected


@pytest.mark.parametrize("error", [TimeoutError("the bucket did not answer"), BLIP])
def test_an_error_inside_a_container_does_not_look_like_one_of_the_clients_connection(error: Exception) -> None:
    with pytest.raises(RuntimeError, match=f"{type(error).__name__}: {error}") as raised, marked_as_remote(TRANSIENT):
        raise error

    assert type(pickle.loads(pickle.dumps(raised.value))) is RuntimeError
