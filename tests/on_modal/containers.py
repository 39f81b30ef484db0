"""Engine containers as threads; arguments and answers are pickled, as between machines."""

from __future__ import annotations

import itertools
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import (
    ColourSource,
    Engine,
    ForegroundImage,
    Generation,
    GenerationOptions,
    OnStep,
    ignore_steps,
)
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.on_modal.control_channel import ControlChannel
from pipeline.on_modal.engine_server import EngineServer
from pipeline.on_modal.shared_dict import SharedDict

CHANNEL = "job-1"
HEARTBEAT_INTERVAL_S = 0.01
WAIT_S = 10.0  # far longer than anything takes here; only a failing test waits this long

VIEW: ForegroundImage = np.full((4, 4, 4), 255, np.uint8)
OPTIONS = GenerationOptions(seed=7)
TETRAHEDRON = TriMesh(
    np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]], np.float32),
    np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32),
)

Action = Callable[[OnStep], object]


@dataclass(frozen=True)
class Grey(ColourSource):
    """One colour everywhere."""

    def colours_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full((len(points), 3), 0.5, np.float32)


class ScriptedEngine:
    """An engine that runs one action of a list per generation, and returns a tetrahedron if the action raises nothing.

    Args:
        gpu_seconds: those of a tetrahedron; None puts the engine on the CPU.
    """

    name = "preview"

    def __init__(self, *actions: Action, gpu_seconds: float | None = None) -> None:
        self.actions = list(actions)
        self.is_on_accelerator = gpu_seconds is not None
        self.gpu_seconds = gpu_seconds or 0.0
        self.loaded: list[str] = []

    def load(self) -> None:
        self.loaded.append("load")

    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
    ) -> Generation:
        if self.actions:
            self.actions.pop(0)(on_step)
        return Generation(TETRAHEDRON, Grey(), engine=self.name, seed=options.seed, gpu_seconds=self.gpu_seconds)


def fails(error: Exception, *, after_s: float = 0.0) -> Action:
    """A generation that raises."""

    def fail(on_step: OnStep) -> None:
        time.sleep(after_s)
        raise error

    return fail


def steps_until(condition: Callable[[], bool]) -> Action:
    """A generation that takes steps until a condition holds."""

    def step(on_step: OnStep) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not condition() and time.monotonic() < deadline_s:
            on_step(0.5)
            time.sleep(0.002)

    return step


def steps_for(seconds: float) -> Action:
    """A generation that takes steps for some time."""

    def step(on_step: OnStep) -> None:
        deadline_s = time.monotonic() + seconds
        steps_until(lambda: time.monotonic() >= deadline_s)(on_step)

    return step


def never() -> bool:
    """A condition for `steps_until`: only a cancel ends the generation."""
    return False


class NoContainer(Exception):
    """Raised by a call for which there is no container."""


class CallCancelled(Exception):
    """Raised by a call that was cancelled."""


class ThreadCall:
    """A `RemoteCall` in a thread; arguments and answer are pickled, as between machines."""

    def __init__(self, object_id: str, work: Callable[..., Any], *arguments: Any) -> None:
        self.object_id = object_id
        self.was_cancelled = False
        self._answer = b""
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(work, pickle.dumps(arguments)), daemon=True)
        self._thread.start()

    def get(self, timeout: float | None = None) -> Any:
        self._thread.join(timeout)
        if self.was_cancelled:
            raise CallCancelled(self.object_id)
        if self._thread.is_alive():
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return pickle.loads(self._answer)

    def cancel(self) -> None:
        self.was_cancelled = True

    def join(self) -> None:
        """Wait until its thread has ended."""
        self._thread.join(WAIT_S)

    def _run(self, work: Callable[..., Any], arguments: bytes) -> None:
        try:
            self._answer = pickle.dumps(work(*pickle.loads(arguments)))
        except Exception as error:
            self._error = error


class Containers:
    """The containers of one engine: one that must be recycled is replaced by the next.

    Args:
        engines: one for each container, in the order of their start.
        entries: the dictionary that the containers share.
    """

    def __init__(self, *engines: Engine, entries: SharedDict) -> None:
        self.calls: dict[str, ThreadCall] = {}
        self._engines = list(engines)
        self._entries = entries
        self._server: EngineServer | None = None
        self._numbers = itertools.count(1)

    def spawn(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, channel: str = CHANNEL, restarts: int = 0
    ) -> ThreadCall:
        """Start a generation."""
        call_id = f"call-{next(self._numbers)}"
        call = ThreadCall(call_id, self._generate, views, options, channel, restarts, call_id)
        self.calls[call.object_id] = call
        return call

    def reopen(self, call_id: str) -> ThreadCall:
        """A generation that was started; KeyError for an unknown id."""
        return self.calls[call_id]

    def _generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, channel: str, restarts: int, call_id: str
    ) -> Any:
        if (self._server is None or self._server.must_recycle) and not self._engines:
            raise NoContainer
        if self._server is None or self._server.must_recycle:
            self._server = started(self._engines.pop(0))
        own = ControlChannel(self._entries, channel)
        return self._server.answer(views, options, own, restarts=restarts, call_id=call_id)


def started(engine: Engine) -> EngineServer:
    """A server that has loaded the test's engine."""
    server = EngineServer(
        engine.name, weights="tiny", make=lambda name, **_: engine, heartbeat_interval_s=HEARTBEAT_INTERVAL_S
    )
    server.load_weights()
    server.to_device()
    return server
