"""Engines in containers as a platform runs them, with threads in place of machines; what goes between is pickled."""

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

from pipeline.engines.base import Engine, ForegroundImage, Generation, GenerationOptions, OnStep, ignore_steps
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.on_modal.control_channel import ControlChannel
from pipeline.on_modal.engine_server import EngineServer
from pipeline.on_modal.shared_dict import SharedDict

CHANNEL = "job-1"
HEARTBEAT_INTERVAL_S = 0.01
WAIT_S = 10.0  # far longer than anything takes here; only a failing test waits so long

VIEW: ForegroundImage = np.full((4, 4, 4), 255, np.uint8)
OPTIONS = GenerationOptions(seed=7)
TETRAHEDRON = TriMesh(
    np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]], np.float32),
    np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32),
)

Deed = Callable[[OnStep], object]


@dataclass(frozen=True)
class Grey:
    """A `ColourSource` of one colour."""

    def colours_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full((len(points), 3), 0.5, np.float32)


class MadeEngine:
    """An engine that does one deed of a list at each generation, and makes a tetrahedron when the deed raises nothing.

    Args:
        gpu_seconds: what a tetrahedron costs; None puts the engine on the CPU.
    """

    name = "preview"

    def __init__(self, *deeds: Deed, gpu_seconds: float | None = None) -> None:
        self.deeds = list(deeds)
        self.is_on_accelerator = gpu_seconds is not None
        self.gpu_seconds = gpu_seconds or 0.0
        self.loaded: list[str] = []

    def load(self) -> None:
        self.loaded.append("load")

    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
    ) -> Generation:
        if self.deeds:
            self.deeds.pop(0)(on_step)
        return Generation(TETRAHEDRON, Grey(), engine=self.name, seed=options.seed, gpu_seconds=self.gpu_seconds)


def fails(error: Exception, *, after_s: float = 0.0) -> Deed:
    """A generation that raises."""

    def fail(on_step: OnStep) -> None:
        time.sleep(after_s)
        raise error

    return fail


def steps_until(condition: Callable[[], bool]) -> Deed:
    """A generation that goes from step to step as long as it is not told otherwise."""

    def step(on_step: OnStep) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not condition() and time.monotonic() < deadline_s:
            on_step(0.5)
            time.sleep(0.002)

    return step


def steps_for(seconds: float) -> Deed:
    """The same by the clock."""

    def step(on_step: OnStep) -> None:
        deadline_s = time.monotonic() + seconds
        steps_until(lambda: time.monotonic() >= deadline_s)(on_step)

    return step


def never() -> bool:
    """A condition of `steps_until`: only a cancel ends it."""
    return False


class NoContainer(Exception):
    """What a call raises that no container takes."""


class Ended(Exception):
    """What a call raises that was ended from outside."""


class ThreadCall:
    """A `RemoteCall`: arguments and answer are pickled, as on their way to another machine."""

    def __init__(self, object_id: str, work: Callable[..., Any], *arguments: Any) -> None:
        self.object_id = object_id
        self.was_ended = False
        self._answer = b""
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(work, pickle.dumps(arguments)), daemon=True)
        self._thread.start()

    def get(self, timeout: float | None = None) -> Any:
        self._thread.join(timeout)
        if self.was_ended:
            raise Ended(self.object_id)
        if self._thread.is_alive():
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return pickle.loads(self._answer)

    def cancel(self) -> None:
        self.was_ended = True

    def join(self) -> None:
        """Wait until its thread is gone."""
        self._thread.join(WAIT_S)

    def _run(self, work: Callable[..., Any], sent: bytes) -> None:
        try:
            self._answer = pickle.dumps(work(*pickle.loads(sent)))
        except Exception as error:
            self._error = error


class Containers:
    """The containers of one engine: a spent one takes no further call, and the next one is started.

    Args:
        engines: one for each container, in the order of their starts.
        notes: the map that the containers reach.
    """

    def __init__(self, *engines: Engine, notes: SharedDict) -> None:
        self.calls: dict[str, ThreadCall] = {}
        self._engines = list(engines)
        self._notes = notes
        self._host: EngineServer | None = None
        self._numbers = itertools.count(1)

    def spawn(self, views: Sequence[ForegroundImage], options: GenerationOptions) -> ThreadCall:
        """Start a generation."""
        call = ThreadCall(f"call-{next(self._numbers)}", self._generate, views, options)
        self.calls[call.object_id] = call
        return call

    def reopen(self, call_id: str) -> ThreadCall:
        """A generation that was started; KeyError where it is forgotten."""
        return self.calls[call_id]

    def _generate(self, views: Sequence[ForegroundImage], options: GenerationOptions) -> Any:
        if (self._host is None or self._host.must_recycle) and not self._engines:
            raise NoContainer
        if self._host is None or self._host.must_recycle:
            self._host = started(self._engines.pop(0))
        return self._host.answer(views, options, ControlChannel(self._notes, CHANNEL), restarts=0)


def started(engine: Engine) -> EngineServer:
    """A host that is ready, with an engine of the test's own."""
    host = EngineServer(
        engine.name, weights="tiny", make=lambda name, **_: engine, heartbeat_interval_s=HEARTBEAT_INTERVAL_S
    )
    host.load_weights()
    host.to_device()
    return host
