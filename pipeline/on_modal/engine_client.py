"""The client side of a remote generation: the `generate` of `run_job` for an engine in another container."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions, OnStep
from pipeline.engines.registry import TINY_WEIGHTS, EngineSpec, check_views, prepare_views
from pipeline.errors import Cancelled, EngineFailed, ImageTo3DError
from pipeline.on_modal.control_channel import ControlChannel, Failure, best_effort
from pipeline.on_modal.remote_call import PatientCall, RemoteCall

POLL_S = 1.0
"""As often as a container publishes progress."""
STOP_GRACE_S = 10.0
"""How long a generation may continue after a cancellation request before its remote call is cancelled."""
START_TIMEOUT_S = 120.0
"""How long a generation waits for a container that was asked to start. If it were spawned at once, it would be one more
pending input, and an autoscaler that counts pending inputs would start one more container for it."""
FIRST_SIGN_TIMEOUT_S = 960.0
"""How long a generation may show no sign of life while no container of its engine works. A deployed class whose
containers crash at their start is started without end: without this bound its generations would wait as long. Longer
than a generation may take, since a container shows itself when it begins one."""
MAX_TRIES = 3
"""How many containers are tried if the container causes the failure."""

log = structlog.get_logger()


Spawn = Callable[[Sequence[ForegroundImage], GenerationOptions, str, int], RemoteCall]
"""Starts a generation: views, options, the channel's name, and the number of restarts requested so far."""


@dataclass(frozen=True)
class Connection:
    """What a client needs for one generation.

    Attributes:
        spawn: starts a generation.
        starting: the call that ends when the container that was asked to start is ready; None if none was.
        restarts: how many restarts of the engines have been requested; a container that saw fewer is replaced.
        weights: the folder of all engines' weights, or "tiny".
    """

    spec: EngineSpec
    spawn: Spawn
    starting: RemoteCall | None = None
    restarts: int = 0
    weights: str = TINY_WEIGHTS


class EngineClient:
    """An engine in another container, as a `run_job.Generate`.

    The id of the remote call is saved in the channel when a generation starts. If an attempt at the job dies, the next
    attempt opens the same channel and waits for that call, or gets its answer, instead of paying for another one. So
    the id stays saved until `EnginePool.forget` at the end of the job. The GPU seconds of failed tries are added to the
    `gpu_seconds` of the generation or of the error; those of a call that ends without an answer are unknown.

    Args:
        connect: called at the start of each generation; its errors are those of the generation.
        channel: of this generation.
        reopen: finds a started call by its id.
        transient: as for `PatientCall`.
        poll_s: pause between two checks of a generation.
        start_timeout_s: as `START_TIMEOUT_S`.
        stop_grace_s: as `STOP_GRACE_S`.
        first_sign_timeout_s: as `FIRST_SIGN_TIMEOUT_S`.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        channel: ControlChannel,
        reopen: Callable[[str], RemoteCall],
        transient: tuple[type[Exception], ...] = (OSError,),
        poll_s: float = POLL_S,
        start_timeout_s: float = START_TIMEOUT_S,
        stop_grace_s: float = STOP_GRACE_S,
        first_sign_timeout_s: float = FIRST_SIGN_TIMEOUT_S,
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._reopen = reopen
        self._transient = transient
        self._poll_s = poll_s
        self._start_timeout_s = start_timeout_s
        self._stop_grace_s = stop_grace_s
        self._first_sign_timeout_s = first_sign_timeout_s
        self._gpu_seconds = 0.0

    def __call__(self, views: Sequence[ForegroundImage], options: GenerationOptions, on_step: OnStep) -> Generation:
        """Generate.

        Raises:
            CallerError: the engine is not offered, or cannot use the views.
            StoreUnavailable: `connect` could not reach the store.
            StageError: the engine failed or gave no answer.
            Cancelled: raised by `on_step`; the container is asked to stop.
        """
        connection = self._connect()
        name, starting = connection.spec.name, connection.starting
        check_views(connection.spec, len(views))
        self._gpu_seconds = 0.0
        try:
            answer = self._answer_of_earlier_attempt(name, on_step)
            small: Sequence[ForegroundImage] | None = None
            for _ in range(MAX_TRIES):
                if not _needs_another_try(answer):
                    break
                not_started, starting = self._wait_for_start(starting, on_step), None
                if not_started is not None:
                    answer = not_started
                    continue
                if small is None:
                    small = prepare_views(connection.spec, views, options, weights=connection.weights)
                call = connection.spawn(small, options, self._channel.name, connection.restarts)
                best_effort(partial(self._channel.save_call_id, call.object_id), None)
                answer = self._wait(call, name, on_step)
            generation = _generation_of(answer, name)
        except ImageTo3DError as error:
            self._clear()
            error.gpu_seconds = self._gpu_seconds
            raise
        except Exception as error:  # any error of Modal's client or of the container
            self._clear()
            log.exception("generation lost", engine=name)
            lost = EngineFailed(f"engine {name} gave no answer ({type(error).__name__})")
            lost.gpu_seconds = self._gpu_seconds
            raise lost from error
        best_effort(self._channel.clear_messages, None)
        return replace(generation, gpu_seconds=self._gpu_seconds)

    def _wait_for_start(self, starting: RemoteCall | None, on_step: OnStep) -> Failure | None:
        """Wait for the container that was asked to start.

        Returns:
            Why its engine could not be started; None where it is ready, or where the generation will show it.
        """
        deadline_s = time.monotonic() + self._start_timeout_s
        patient = None if starting is None else PatientCall(starting, self._transient)
        while patient is not None and time.monotonic() < deadline_s:
            try:
                answer = patient.get(timeout=self._poll_s)
            except TimeoutError:
                on_step(0.0)
            except Exception:
                log.warning("engine container did not start", exc_info=True)
                return None
            else:
                return answer if isinstance(answer, Failure) else None
        return None

    def _answer_of_earlier_attempt(self, engine: str, on_step: OnStep) -> Any:
        """The answer to the call that an earlier attempt at this job started; None without one."""
        call_id = best_effort(self._channel.saved_call_id, None)
        if call_id is None:
            return None
        log.info("resuming the generation of an earlier attempt", remote_call=call_id)
        try:
            answer = self._wait(self._reopen(call_id), engine, on_step)
        except ImageTo3DError:
            raise
        except Exception:  # it was cancelled or has expired: start a new one
            log.warning("generation of an earlier attempt is lost", exc_info=True)
            answer = None
        if isinstance(answer, Failure) and isinstance(answer.error, Cancelled):
            answer = None  # the earlier attempt asked it to stop
        if answer is None:
            self._clear()  # otherwise a cancellation request for the earlier call would stop the new one
        return answer

    def _wait(self, spawned: RemoteCall, engine: str, on_step: OnStep) -> Any:
        call = PatientCall(spawned, self._transient)
        share: float | None = None
        waiting_since_s = time.monotonic()
        while True:
            try:
                return self._counted(call.get(timeout=self._poll_s))
            except TimeoutError:
                share = best_effort(partial(self._channel.progress, share), share)
            try:
                on_step(share or 0.0)
            except Cancelled:
                self._stop(call)
                raise
            if share is None and time.monotonic() - waiting_since_s > self._first_sign_timeout_s:
                self._check_alive(call, engine)

    def _check_alive(self, call: RemoteCall, engine: str) -> None:
        """Give a generation up whose engine shows no sign of life; while its containers work, it waits for one.

        Raises:
            EngineFailed: it was given up, and its call is cancelled.
        """
        silent_s = best_effort(partial(self._channel.seconds_since_alive, engine), 0.0)
        if silent_s > self._first_sign_timeout_s:
            best_effort(call.cancel, None)
            raise EngineFailed(f"no container of engine {engine} started within {self._first_sign_timeout_s:g} s")

    def _stop(self, call: RemoteCall) -> None:
        """Ask the container to stop between two steps; cancel the remote call if that takes too long."""
        best_effort(self._channel.request_cancel, None)
        try:
            self._counted(call.get(timeout=self._stop_grace_s))
        except TimeoutError:
            best_effort(call.cancel, None)
        except Exception:
            log.warning("cancelled generation raised an error", exc_info=True)

    def _counted(self, answer: Any) -> Any:
        """The unchanged answer; its GPU seconds are added to those of this generation."""
        if isinstance(answer, Generation | Failure):
            self._gpu_seconds += answer.gpu_seconds
        return answer

    def _clear(self) -> None:
        best_effort(self._channel.clear, None)


def _needs_another_try(answer: Any) -> bool:
    """Whether to spawn a generation: there is no usable answer yet, or another container may give one."""
    return answer.retry_on_other_container if isinstance(answer, Failure) else not isinstance(answer, Generation)


def _generation_of(answer: Any, engine: str) -> Generation:
    if isinstance(answer, Failure):
        raise answer.error
    if not isinstance(answer, Generation):
        raise EngineFailed(f"engine {engine} answered with {type(answer).__name__}")
    return answer
