"""Commits and reloads of the containers of a deployment."""

from __future__ import annotations

import pytest

from pipeline.on_modal.deployment import PAUSES_S, retry


class Operation:
    """Fails a number of times, then succeeds."""

    def __init__(self, failures: int) -> None:
        self.left = failures
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise RuntimeError("the volume did not answer")


def test_a_commit_that_fails_twice_is_made() -> None:
    operation, pauses = Operation(2), []

    retry(operation, sleep=pauses.append)

    assert (operation.calls, tuple(pauses)) == (3, PAUSES_S)


def test_a_commit_that_always_fails_is_an_error() -> None:
    operation = Operation(99)

    with pytest.raises(RuntimeError, match="the volume did not answer"):
        retry(operation, sleep=lambda seconds: None)

    assert operation.calls == 1 + len(PAUSES_S)
