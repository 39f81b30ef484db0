"""The container's side of a remote generation: one engine, loaded in two steps, answering one call at a time.

Knows no vendor and no HTTP. What goes wrong is answered, not raised; after what spoils the device for later calls, the
host is spent and its container is to take no more of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import structlog

from pipeline.engines.base import Engine, ForegroundImage, Generation, GenerationOptions
from pipeline.errors import EngineFailed, ImageTo3DError, OutOfMemory, StageError
from pipeline.on_modal.control_channel import HEARTBEAT_INTERVAL_S, ControlChannel, Failure, ProgressReporter
from pipeline.stages.generate import configured_engine, run_engine

DEVICE_ERRORS = re.compile(r"CUDA|cuDNN|CUBLAS|NCCL|device-side|GPU")
"""What messages of a framework hold when the device, and with it this process, is of no more use."""

log = structlog.get_logger()


@runtime_checkable
class TwoStepEngine(Engine, Protocol):
    """An engine whose `load` has two halves."""

    def load_weights(self) -> None:
        """Weights to host memory, without asking for an accelerator."""
        ...

    def to_device(self) -> None:
        """Weights to the device, and warm up."""
        ...


class EngineHost:
    """One engine in a container of its own.

    Args:
        weights: the folder of all engines' weights, or "tiny".
        arguments: what else each engine's class is made with, by the engine's name.
        make: makes the engine, not yet loaded.
        heartbeat_interval_s: pause between two looks at a generation's line.

    Attributes:
        must_recycle: this container must answer no further call.
        seconds: what each part of the loading took.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: str,
        arguments: Mapping[str, Mapping[str, Any]] | None = None,
        make: Callable[..., Engine] = configured_engine,
        heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self.name = name
        self.must_recycle = False
        self.seconds: dict[str, float] = {}
        self._weights = weights
        self._arguments = arguments
        self._make = make
        self._beat_s = heartbeat_interval_s
        self._engine: Engine | None = None
        self._restarts: int | None = None

    def load_weights(self) -> None:
        """The first half: imports and weights to host memory. Asks for no accelerator, so it may end in a snapshot.

        Raises:
            WeightsUnusable: a checkpoint is missing or does not fit.
        """
        started_s = time.perf_counter()
        engine = self._make(self.name, weights=self._weights, arguments=self._arguments)
        self.seconds["imports"] = time.perf_counter() - started_s
        started_s = time.perf_counter()
        if isinstance(engine, TwoStepEngine):
            engine.load_weights()
        self.seconds["weights"] = time.perf_counter() - started_s
        self._engine = engine

    def to_device(self) -> None:
        """The second half: to the device, warmed up. Engines that cannot be halved load here."""
        started_s = time.perf_counter()
        engine = self._loaded()
        if isinstance(engine, TwoStepEngine):
            engine.to_device()
        else:
            engine.load()
        self.seconds["device"] = time.perf_counter() - started_s
        log.info("engine is ready", engine=self.name, seconds={k: round(s, 3) for k, s in self.seconds.items()})

    def answer(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, line: ControlChannel, *, restarts: int
    ) -> Generation | Failure:
        """What the engine makes of the views, or why it makes nothing. Raises nothing that a repetition would meet.

        Args:
            restarts: how often the deployment was asked to start afresh; a host from before the last time is spent.
        """
        if self._restarts is not None and restarts > self._restarts:
            self.must_recycle = True
            return Failure(EngineFailed(f"engine {self.name} is starting afresh"), retry_on_other_container=True)
        self._restarts = restarts
        try:
            with ProgressReporter(line, heartbeat_interval_s=self._beat_s) as watch:
                return run_engine(self._loaded(), views, options, on_step=watch.on_step)
        except ImageTo3DError as error:
            is_device_lost = _is_device_lost(error)
            # An engine that has too little memory has tried something smaller itself; what it left is in the way.
            self.must_recycle = self.must_recycle or is_device_lost or isinstance(error, OutOfMemory)
            return Failure(_portable(error), retry_on_other_container=is_device_lost, gpu_seconds=error.gpu_seconds)

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("load_weights comes first")
        return self._engine


def _is_device_lost(error: ImageTo3DError) -> bool:
    """Whether it was the device that failed."""
    cause = error.__cause__
    return isinstance(error, EngineFailed) and bool(DEVICE_ERRORS.search(f"{type(cause).__name__} {cause}"))


def _portable(error: ImageTo3DError) -> ImageTo3DError:
    """The same error where it can be pickled; one with a constructor of its own becomes its plain like."""
    return error if type(error).__init__ is Exception.__init__ else StageError(str(error))
