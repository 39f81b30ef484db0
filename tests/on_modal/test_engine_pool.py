"""The engines of a deployment for one call, with threads in place of their containers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions
from pipeline.errors import InvalidRequest, WeightsUnusable
from pipeline.jobs.transfer import Transferred
from pipeline.on_modal.control_channel import ControlChannel, Failure
from pipeline.on_modal.engine_pool import EnginePool
from tests.fakes.shared_dict import InMemoryDict
from tests.on_modal.containers import CHANNEL, OPTIONS, VIEW, WAIT_S, ScriptedEngine, ThreadCall, started


class Method:
    """A method of a container; each call of it runs in a thread."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.started: list[ThreadCall] = []
        self._work = work

    def spawn(self, *arguments: Any) -> ThreadCall:
        self.started.append(ThreadCall("call", self._work, *arguments))
        return self.started[-1]


class Container:
    """A container of one engine that starts when the test allows it; records the order of the calls."""

    def __init__(self, name: str, entries: InMemoryDict, called: list[str]) -> None:
        self.may_start = threading.Event()
        self.may_start.set()
        self.arguments: list[tuple[str, int, int]] = []
        self.wake = Method(self._wake)
        self.generate = Method(self._generate)
        self._name, self._entries, self._called = name, entries, called
        self._server = started(ScriptedEngine())

    def _wake(self) -> None:
        assert self.may_start.wait(WAIT_S)
        self._called.append(f"{self._name} is ready")

    def _generate(
        self, views: list[ForegroundImage], options: GenerationOptions, channel: str, restarts: int, job_id: int
    ) -> Generation | Failure:
        self._called.append(f"{self._name} generates")
        self.arguments.append((channel, restarts, job_id))
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


def transfer(engines: EnginePool, engine: str | None, **options: Any) -> Transferred:
    """Run a client that has no answer yet."""
    with pytest.raises(Transferred) as raised:
        engines.client(engine, channel=CHANNEL, **options)([VIEW], OPTIONS, ignore)
    return raised.value


def test_a_generation_takes_the_place_of_the_start_that_still_waits(deployment: Deployment) -> None:
    """If both waited, an autoscaler that counts pending inputs would start one more container."""
    engines, container = deployment.engines(), deployment.containers["preview"]
    container.may_start.clear()
    engines.wake(None)

    transfer(engines, None).start()
    container.may_start.set()

    assert container.wake.started[0].was_cancelled
    container.generate.started[0].join()
    assert "preview generates" in deployment.called


def test_the_engine_that_a_request_names_is_started_and_generates(deployment: Deployment) -> None:
    engines = deployment.engines()

    engines.wake("triposr")
    transfer(engines, "triposr", restarts_requested=lambda: 3, job_id=7).start()
    deployment.containers["triposr"].generate.started[0].join()

    assert set(deployment.called) == {"triposr is ready", "triposr generates"}
    assert deployment.containers["triposr"].arguments == [(CHANNEL, 3, 7)]


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

    assert deployment.containers["preview"].wake.started == []


def test_no_entry_is_left_after_the_end_of_a_job(deployment: Deployment) -> None:
    engines = deployment.engines()
    transfer(engines, None).start()
    deployment.containers["preview"].generate.started[0].join()
    assert deployment.entries.get(f"{CHANNEL}/call") is not None

    engines.forget(CHANNEL)

    assert deployment.entries.keys() == ["alive/preview"]
