"""The container's side of a remote generation: one engine, loaded in two steps, that answers one call at a time.

Knows nothing of Modal and HTTP. Errors are returned, not raised. After an error that leaves the device unusable, the
container must be recycled.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import structlog

from pipeline.engines.base import Engine, ForegroundImage, Generation, GenerationOptions
from pipeline.errors import EngineFailed, ImageTo3DError, OutOfMemory, StageError, translate
from pipeline.on_modal.control_channel import (
    HEARTBEAT_INTERVAL_S,
    ControlChannel,
    Failure,
    ProgressReporter,
)
from pipeline.on_modal.platform_probe import EngineStart
from pipeline.stages.generate import configured_engine, device_name, log_device, run_engine

DEVICE_ERRORS = re.compile(r"CUDA|cuDNN|CUBLAS|NCCL|device-side|GPU")
"""Words in a framework's messages that mean the device, and with it this process, is unusable."""

SHOW_UP_INTERVAL_S = 30.0
"""How often a container shows that one of its engine works, at the beginning of a generation."""

log = structlog.get_logger()


@runtime_checkable
class TwoStepEngine(Engine, Protocol):
    """An engine whose `load` has two parts."""

    def load_weights(self) -> None:
        """Load the weights to host memory, without any call to CUDA."""
        ...

    def to_device(self) -> None:
        """Move the weights to the device, and warm up."""
        ...


class EngineServer:
    """One engine in a container of its own.

    Args:
        weights: the folder of all engines' weights, or "tiny".
        arguments: further constructor arguments of each engine's class, by the engine's name.
        needs_accelerator: the container was given one: an engine that does not find it must not run on the CPU.
        make: constructs the engine, not yet loaded.
        heartbeat_interval_s: pause between two heartbeats of a generation's channel.

    Attributes:
        start_failure: why the engine could not be started, which is the answer of every call; None if it could.
        must_recycle: this container must take no further input.
        seconds: duration of each part of the loading.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: str,
        arguments: Mapping[str, Mapping[str, Any]] | None = None,
        needs_accelerator: bool = False,
        make: Callable[..., Engine] = configured_engine,
        heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self.name = name
        self.must_recycle = False
        self.start_failure: Failure | None = None
        self.seconds: dict[str, float] = {}
        self._weights = weights
        self._arguments = arguments
        self._needs_accelerator = needs_accelerator
        self._make = make
        self._heartbeat_interval_s = heartbeat_interval_s
        self._engine: Engine | None = None
        self._has_weights = self._is_on_device = False
        self._prepared_at = self._snapshot_age_s = 0.0
        self._shown_at_s = float("-inf")
        self._restarts: int | None = None

    def import_engine(self) -> None:
        """The imports of the first part alone, for a snapshot without the weights; fails as `load_weights` does."""
        self._before_snapshot(self._import)

    def load_weights(self, *, with_device: bool = False) -> None:
        """The first part: imports, and weights to host memory. It does not call CUDA, so a snapshot may follow.

        A failure is only logged and leaves nothing behind, since a snapshot would keep it for every later container:
        `to_device` loads the weights again.

        Args:
            with_device: also the second part, for a snapshot that includes the memory of the device.
        """
        self._before_snapshot(self._move_to_device if with_device else self._load_weights)

    def to_device(self) -> None:
        """The second part: to the device, and warm up. An engine whose `load` has one part is loaded here.

        What the first part did not load is loaded first. A failure becomes the answer of every call: if it was raised,
        Modal would start the container again and again.
        """
        self._snapshot_age_s = time.time() - self._prepared_at if self._prepared_at else 0.0
        try:
            self._move_to_device()
            if self._needs_accelerator and not self._loaded().is_on_accelerator:
                raise EngineFailed(f"engine {self.name} found no accelerator in its container")
        except Exception as error:
            log.exception("engine not started", engine=self.name)
            self.must_recycle = True
            self.start_failure = _start_failure(self.name, error)
        else:
            log.info("engine is ready", engine=self.name, seconds={k: round(s, 3) for k, s in self.seconds.items()})

    def _before_snapshot(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            log.exception("engine not loaded before the snapshot", engine=self.name)
            self._engine, self._has_weights, self._is_on_device = None, False, False
        self._prepared_at = time.time()

    # Each of these does nothing where it has been done.

    def _import(self) -> None:
        if self._engine is None:
            with self._timed("imports"):
                self._engine = self._make(self.name, weights=self._weights, arguments=self._arguments)

    def _load_weights(self) -> None:
        self._import()
        if not self._has_weights:
            engine = self._loaded()
            with self._timed("weights"):
                if isinstance(engine, TwoStepEngine):
                    engine.load_weights()
            self._has_weights = True

    def _move_to_device(self) -> None:
        self._load_weights()
        if not self._is_on_device:
            engine = self._loaded()
            with self._timed("device"):
                if isinstance(engine, TwoStepEngine):
                    engine.to_device()
                else:
                    engine.load()
            log_device(self.name, engine)
            self._is_on_device = True

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started_s = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - started_s

    def describe_start(self) -> EngineStart:
        """The device, and how long each part of the start took."""
        return EngineStart(self.name, device_name(self._loaded()), dict(self.seconds), self._snapshot_age_s)

    def answer(
        self,
        views: Sequence[ForegroundImage],
        options: GenerationOptions,
        channel: ControlChannel,
        *,
        restarts: int,
        call_id: str = "",
    ) -> Generation | Failure:
        """Generate; errors of the engine are returned as a `Failure`.

        Args:
            restarts: how many restarts have been requested so far; a container that saw fewer must be recycled.
            call_id: of the call that this is the answer to; saved in the channel if it is not there yet.
        """
        if self.start_failure is not None:
            return self.start_failure
        if self._restarts is not None and restarts > self._restarts:
            self.must_recycle = True
            return Failure(EngineFailed(f"engine {self.name} is restarting"), retry_on_other_container=True)
        self._restarts = restarts

        def show_up() -> None:
            if call_id:
                channel.claim_call(call_id)
            now_s = time.monotonic()
            if now_s - self._shown_at_s >= SHOW_UP_INTERVAL_S:
                channel.report_alive(self.name)
                self._shown_at_s = now_s

        started_s = time.perf_counter()
        try:
            with ProgressReporter(
                channel, heartbeat_interval_s=self._heartbeat_interval_s, at_start=show_up
            ) as reporter:
                reporter.report(0.0)  # others see that a container has taken the generation
                generation = run_engine(self._loaded(), views, options, on_step=reporter.on_step)
            return replace(generation, elsewhere_s=time.perf_counter() - started_s)
        except ImageTo3DError as error:
            is_device_lost = _is_device_lost(error)
            # The engine itself has retried with less memory; its allocations would be in the way of the next input.
            self.must_recycle = self.must_recycle or is_device_lost or isinstance(error, OutOfMemory)
            return Failure(_portable(error), retry_on_other_container=is_device_lost, gpu_seconds=error.gpu_seconds)

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("import_engine or load_weights must be called first")
        return self._engine


def _start_failure(engine: str, error: Exception) -> Failure:
    """What an engine that could not be started answers. Other weights or packages are in no other container."""
    ours = translate(error, where=f"the start of engine {engine}", otherwise=EngineFailed)
    return Failure(_portable(ours), retry_on_other_container=isinstance(ours, EngineFailed))


def _is_device_lost(error: ImageTo3DError) -> bool:
    """Whether the device failed."""
    cause = error.__cause__
    return isinstance(error, EngineFailed) and bool(DEVICE_ERRORS.search(f"{type(cause).__name__} {cause}"))


def _portable(error: ImageTo3DError) -> ImageTo3DError:
    """The same error if it can be pickled; one with its own constructor becomes a `StageError` with its message."""
    return error if type(error).__init__ is Exception.__init__ else StageError(str(error))
