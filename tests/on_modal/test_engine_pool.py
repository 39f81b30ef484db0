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
from pipeline.on_modal.shared_dict import InMemoryDict
from tests.on_modal.containers import CHANNEL, OPTIONS, VIEW, WAIT_S, MadeEngine, ThreadCall, started


class Method:
    """A method of a container; each call of it is one thread."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.calls = 0
        self._work = work

    def spawn(self, *arguments: Any) -> ThreadCall:
        self.calls += 1
        return ThreadCall("call", self._work, *arguments)


class Container:
    """A container of one engine that starts when a test lets it; keeps the order in which it is called."""

    def __init__(self, name: str, notes: InMemoryDict, called: list[str]) -> None:
        self.may_start = threading.Event()
        self.may_start.set()
        self.told: list[tuple[str, int]] = []
        self.wake = Method(self._wake)
        self.generate = Method(self._generate)
        self._name, self._notes, self._called = name, notes, called
        self._host = started(MadeEngine())

    def _wake(self) -> None:
        assert self.may_start.wait(WAIT_S)
        self._called.append(f"{self._name} is awake")

    def _generate(
        self, views: list[ForegroundImage], options: GenerationOptions, line: str, restarts: int
    ) -> Generation | Failure:
        self._called.append(f"{self._name} generates")
        self.told.append((line, restarts))
        return self._host.answer(views, options, ControlChannel(self._notes, line), restarts=restarts)


class Deployment:
    """The containers of two engines."""

    def __init__(self) -> None:
        self.notes = InMemoryDict()
        self.called: list[str] = []
        self.containers = {name: Container(name, self.notes, self.called) for name in ("preview", "triposr")}

    def engines(self, *, check: Callable[[str], None] = lambda name: None) -> EnginePool:
        makers = {name: lambda container=container: container for name, container in self.containers.items()}
        return EnginePool(
            makers, default="preview", notes=self.notes, reopen=lambda name: ThreadCall(name, int), check=check
        )


@pytest.fixture
def deployment() -> Deployment:
    return Deployment()


def ignore(share: float) -> None:
    """An `OnStep`."""


@pytest.mark.parametrize("is_asked_for_first", [False, True])
def test_a_generation_waits_for_the_container_that_was_woken(deployment: Deployment, is_asked_for_first: bool) -> None:
    """Sent at once, it would be one more call that waits, and one more container would start for it."""
    engines, container = deployment.engines(), deployment.containers["preview"]
    container.may_start.clear()
    generate = engines.generator_for(None, line=CHANNEL) if is_asked_for_first else None
    engines.wake(None)

    made = (generate or engines.generator_for(None, line=CHANNEL))(
        [VIEW], OPTIONS, lambda share: container.may_start.set()
    )

    assert made.seed == OPTIONS.seed
    assert deployment.called == ["preview is awake", "preview generates"]


def test_the_engine_that_a_request_names_is_woken_and_generates(deployment: Deployment) -> None:
    engines = deployment.engines()

    engines.wake("triposr")
    engines.generator_for("triposr", line=CHANNEL, restarts=3)([VIEW], OPTIONS, ignore)

    assert deployment.called == ["triposr is awake", "triposr generates"]
    assert deployment.containers["triposr"].told == [(CHANNEL, 3)]


def test_an_engine_that_is_not_deployed_is_refused_with_those_that_are(deployment: Deployment) -> None:
    engines = deployment.engines()
    for ask in (engines.wake, lambda name: engines.generator_for(name, line=CHANNEL)):
        with pytest.raises(InvalidRequest, match="engine must be one of preview, triposr, got 'trellis'"):
            ask("trellis")


def test_no_container_is_started_in_vain(deployment: Deployment) -> None:
    def check(name: str) -> None:
        raise WeightsUnusable(f"the weights of {name} are missing")

    with pytest.raises(WeightsUnusable, match="the weights of preview are missing"):
        deployment.engines(check=check).wake(None)

    assert deployment.containers["preview"].wake.calls == 0


def test_nothing_is_left_of_a_generation_whose_call_has_ended(deployment: Deployment) -> None:
    engines = deployment.engines()
    engines.generator_for(None, line=CHANNEL)([VIEW], OPTIONS, ignore)
    assert deployment.notes.keys() != []

    engines.forget(CHANNEL)

    assert deployment.notes.keys() == []
