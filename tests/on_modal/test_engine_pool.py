"""The engines of a deployment for one call, with threads in place of their containers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions
from pipeline.errors import InvalidRequest, WeightsUnusable
from pipeline.on_modal.control_channel import ControlChannel, Failure
from pipeline.on_modal.engine_pool import EnginePool
from tests.fakes.shared_dict import InMemoryDict
from tests.on_modal.containers import CHANNEL, OPTIONS, VIEW, WAIT_S, ScriptedEngine, ThreadCall, started


class Method:
    """A method of a container; each call of it runs in a thread."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.calls = 0
        self._work = work

    def spawn(self, *arguments: Any) -> ThreadCall:
        self.calls += 1
        return ThreadCall("call", self._work, *arguments)


class Container:
    """A container of one engine that starts when the test allows it; records the order of the calls."""

    def __init__(self, name: str, entries: InMemoryDict, called: list[str]) -> None:
        self.may_start = threading.Event()
        self.may_start.set()
        self.arguments: list[tuple[str, int]] = []
        self.wake = Method(self._wake)
        self.generate = Method(self._generate)
        self._name, self._entries, self._called = name, entries, called
        self._server = started(ScriptedEngine())

    def _wake(self) -> None:
        assert self.may_start.wait(WAIT_S)
        self._called.append(f"{self._name} is ready")

    def _generate(
        self, views: list[ForegroundImage], options: GenerationOptions, channel: str, restarts: int
    ) -> Generation | Failure:
        self._called.append(f"{self._name} generates")
        self.arguments.append((channel, restarts))
        return self._server.answer(views, options, ControlChannel(self._entries, channel), restarts=restarts)


class Deployment:
    """The containers of two engines."""

    def __init__(self) -> None:
        self.entries = InMemoryDict()
        self.called: list[str] = []
        self.containers = {name: Container(name, self.entries, self.called) for name in ("preview", "triposr")}

    def engines(self, *, check: Callable[[str], None] = lambda name: None) -> EnginePool:
        makers = {name: lambda container=container: container for name, container in self.containers.items()}
        return EnginePool(
            makers,
            default="preview",
            weights="tiny",
            entries=self.entries,
            reopen=lambda name: ThreadCall(name, int),
            check=check,
        )


@pytest.fixture
def deployment() -> Deployment:
    return Deployment()


def ignore(share: float) -> None:
    """An `OnStep`."""


@pytest.mark.parametrize("is_created_first", [False, True])
def test_a_generation_waits_for_the_container_that_is_starting(deployment: Deployment, is_created_first: bool) -> None:
    """If it was spawned at once, it would be one more pending input, and one more container would start for it."""
    engines, container = deployment.engines(), deployment.containers["preview"]
    container.may_start.clear()
    generate = engines.client(None, channel=CHANNEL) if is_created_first else None
    engines.wake(None)

    made = (generate or engines.client(None, channel=CHANNEL))([VIEW], OPTIONS, lambda share: container.may_start.set())

    assert made.seed == OPTIONS.seed
    assert deployment.called == ["preview is ready", "preview generates"]


def test_the_engine_that_a_request_names_is_started_and_generates(deployment: Deployment) -> None:
    engines = deployment.engines()

    engines.wake("triposr")
    engines.client("triposr", channel=CHANNEL, restarts_requested=lambda: 3)([VIEW], OPTIONS, ignore)

    assert deployment.called == ["triposr is ready", "triposr generates"]
    assert deployment.containers["triposr"].arguments == [(CHANNEL, 3)]


def test_the_refusal_of_an_unknown_engine_lists_the_deployed_ones(deployment: Deployment) -> None:
    engines = deployment.engines()
    for request in (engines.wake, lambda name: engines.client(name, channel=CHANNEL)([VIEW], OPTIONS, ignore)):
        with pytest.raises(InvalidRequest, match="engine must be one of preview, triposr, got 'trellis'"):
            request("trellis")


def test_no_container_starts_without_weights(deployment: Deployment) -> None:
    def check(name: str) -> None:
        raise WeightsUnusable(f"the weights of {name} are missing")

    with pytest.raises(WeightsUnusable, match="the weights of preview are missing"):
        deployment.engines(check=check).wake(None)

    assert deployment.containers["preview"].wake.calls == 0


def test_no_entry_is_left_after_the_end_of_a_job(deployment: Deployment) -> None:
    engines = deployment.engines()
    engines.client(None, channel=CHANNEL)([VIEW], OPTIONS, ignore)
    assert deployment.entries.get(f"{CHANNEL}/call") is not None

    engines.forget(CHANNEL)

    assert deployment.entries.keys() == ["alive/preview"]
