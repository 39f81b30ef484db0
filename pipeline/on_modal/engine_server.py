"""The container's side of a remote generation: one engine, loaded in two steps, that answers one call at a time.

Knows nothing of Modal and HTTP. Errors are returned, not raised. After an error that leaves the device unusable, the
container must be recycled.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import structlog

from pipeline.engines.base import Engine, ForegroundImage, Generation, GenerationOptions
from pipeline.errors import EngineFailed, ImageTo3DError, OutOfMemory, StageError
from pipeline.on_modal.control_channel import HEARTBEAT_INTERVAL_S, ControlChannel, Failure, ProgressReporter
from pipeline.on_modal.platform_probe import EngineStart
from pipeline.stages.generate import configured_engine, run_engine

DEVICE_ERRORS = re.compile(r"CUDA|cuDNN|CUBLAS|NCCL|device-side|GPU")
"""Words in a framework's messages that mean the device, and with it this process, is unusable."""

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
        make: constructs the engine, not yet loaded.
        heartbeat_interval_s: pause between two heartbeats of a generation's channel.

    Attributes:
        must_recycle: this container must take no further input.
        seconds: duration of each part of the loading.
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
        self._heartbeat_interval_s = heartbeat_interval_s
        self._engine: Engine | None = None
        self._prepared_at = self._snapshot_age_s = 0.0
        self._restarts: int | None = None

    def import_engine(self) -> None:
        """Import the engine's packages and construct it, once. It does not call CUDA, so a snapshot may follow."""
        if self._engine is not None:
            return
        started_s = time.perf_counter()
        self._engine = self._make(self.name, weights=self._weights, arguments=self._arguments)
        self.seconds["imports"] = time.perf_counter() - started_s
        self._prepared_at = time.time()

    def load_weights(self) -> None:
        """The first part: imports, and weights to host memory, once. No call to CUDA, so a snapshot may follow.

        Raises:
            WeightsUnusable: a checkpoint is missing or does not fit.
        """
        self.import_engine()
        engine = self._loaded()
        if "weights" in self.seconds:
            return
        started_s = time.perf_counter()
        if isinstance(engine, TwoStepEngine):
            engine.load_weights()
        self.seconds["weights"] = time.perf_counter() - started_s
        self._prepared_at = time.time()

    def to_device(self) -> None:
        """The second part: to the device, and warm up. An engine whose `load` has one part is loaded here.

        Weights that were not loaded before the snapshot are loaded first.
        """
        engine = self._loaded()
        self._snapshot_age_s = time.time() - self._prepared_at
        self.load_weights()
        started_s = time.perf_counter()
        if isinstance(engine, TwoStepEngine):
            engine.to_device()
        else:
            engine.load()
        self.seconds["device"] = time.perf_counter() - started_s
        log.info("engine is ready", engine=self.name, seconds={k: round(s, 3) for k, s in self.seconds.items()})

    def describe_start(self) -> EngineStart:
        """The device, and how long each part of the start took."""
        torch = sys.modules.get("torch")
        is_on_gpu = torch is not None and self._loaded().is_on_accelerator and torch.cuda.is_available()
        device = torch.cuda.get_device_name() if torch is not None and is_on_gpu else "CPU"
        return EngineStart(self.name, device, dict(self.seconds), self._snapshot_age_s)

    def answer(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, channel: ControlChannel, *, restarts: int
    ) -> Generation | Failure:
        """Generate; errors of the engine are returned as a `Failure`.

        Args:
            restarts: how many restarts have been requested so far; a container that saw fewer must be recycled.
        """
        if self._restarts is not None and restarts > self._restarts:
            self.must_recycle = True
            return Failure(EngineFailed(f"engine {self.name} is restarting"), retry_on_other_container=True)
        self._restarts = restarts
        try:
            with ProgressReporter(channel, heartbeat_interval_s=self._heartbeat_interval_s) as reporter:
                return run_engine(self._loaded(), views, options, on_step=reporter.on_step)
        except ImageTo3DError as error:
            is_device_lost = _is_device_lost(error)
            # The engine itself has retried with less memory; its allocations would be in the way of the next input.
            self.must_recycle = self.must_recycle or is_device_lost or isinstance(error, OutOfMemory)
            return Failure(_portable(error), retry_on_other_container=is_device_lost, gpu_seconds=error.gpu_seconds)

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("import_engine or load_weights must be called first")
        return self._engine


def _is_device_lost(error: ImageTo3DError) -> bool:
    """Whether the device failed."""
    cause = error.__cause__
    return isinstance(error, EngineFailed) and bool(DEVICE_ERRORS.search(f"{type(cause).__name__} {cause}"))


def _portable(error: ImageTo3DError) -> ImageTo3DError:
    """The same error if it can be pickled; one with its own constructor becomes a `StageError` with its message."""
    return error if type(error).__init__ is Exception.__init__ else StageError(str(error))
