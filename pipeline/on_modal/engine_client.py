"""The client side of a remote generation: the `generate` of `run_job` for an engine in another container.

It never waits for a container: it takes the answer that is there, or starts the generation and transfers the job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions, OnStep
from pipeline.engines.registry import TINY_WEIGHTS, EngineSpec, check_views, prepare_views
from pipeline.errors import Cancelled, EngineFailed, ImageTo3DError, StoreUnavailable
from pipeline.jobs.transfer import Transferred
from pipeline.jobs.transitions import passive_holder
from pipeline.on_modal.control_channel import ControlChannel, Failure, SavedCall, best_effort
from pipeline.on_modal.remote_call import PatientCall, RemoteCall
from pipeline.on_modal.waiting_jobs import ask_to_stop

POLL_S = 1.0
"""Pause between two looks at whether the job was cancelled, while an answer that was announced arrives."""
ANSWER_PATIENCE_S = 30.0
"""How long an announced answer may take to arrive: its container announces it before it is uploaded."""
STOP_GRACE_S = 10.0
"""How long a generation may continue after a cancellation request before its remote call is cancelled."""
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
        before_spawn: called right before.
        restarts: how many restarts of the engines have been requested; a container that saw fewer is replaced.
        weights: the folder of all engines' weights, or "tiny".
    """

    spec: EngineSpec
    spawn: Spawn
    before_spawn: Callable[[], None] = lambda: None
    restarts: int = 0
    weights: str = TINY_WEIGHTS


class EngineClient:
    """An engine in another container, as a `run_job.Generate`.

    The record of the remote call is in the channel from its start to `EnginePool.forget` at the end of the job, so that
    every process that runs the job finds the same call. The GPU seconds of failed tries are added to the `gpu_seconds`
    of the generation or of the error; those of a call that ends without an answer are unknown.

    Args:
        connect: called at the start of each generation; its errors are those of the generation.
        channel: of this generation.
        reopen: finds a started call by its id.
        announced: the id of a call whose container has announced its answer; "" if none has.
        is_first_run: nobody can have started the generation, so that the channel is not asked.
        transient: as for `PatientCall`.
        poll_s: as `POLL_S`.
        patience_s: as `ANSWER_PATIENCE_S`.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        channel: ControlChannel,
        reopen: Callable[[str], RemoteCall],
        announced: str = "",
        is_first_run: bool = False,
        transient: tuple[type[Exception], ...] = (OSError,),
        poll_s: float = POLL_S,
        patience_s: float = ANSWER_PATIENCE_S,
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._reopen = reopen
        self._announced = announced
        self._is_first_run = is_first_run
        self._transient = transient
        self._poll_s = poll_s
        self._patience_s = patience_s

    def __call__(self, views: Sequence[ForegroundImage], options: GenerationOptions, on_step: OnStep) -> Generation:
        """Return the generation, if it is there.

        Raises:
            Transferred: it is not; its `start` starts it, unless it was started before.
            CallerError: the engine is not offered, or cannot use the views.
            StoreUnavailable: the store or the channel could not be reached.
            StageError: the engine failed or gave no answer.
            Cancelled: raised by `on_step`.
        """
        connection = self._connect()
        check_views(connection.spec, len(views))
        saved = SavedCall() if self._is_first_run else self._saved_call()
        answer: Any = None
        if call_id := self._announced or saved.call_id:
            answer = self._answer_of(call_id, saved, on_step)
        if isinstance(answer, Generation | Failure):
            saved = replace(saved, gpu_seconds=saved.gpu_seconds + answer.gpu_seconds)
        try:
            if isinstance(answer, Generation):
                return replace(answer, gpu_seconds=saved.gpu_seconds)
            if saved.failure:
                raise EngineFailed(saved.failure)
            if isinstance(answer, Failure) and not _may_be_repeated(answer):
                raise answer.error
            if saved.tries >= MAX_TRIES:
                raise _error_of(answer, connection.spec.name)
        except ImageTo3DError as error:
            error.gpu_seconds = saved.gpu_seconds
            raise
        small = prepare_views(connection.spec, views, options, weights=connection.weights)
        raise self._transferred(partial(self._start, connection, small, options, saved))

    def _saved_call(self) -> SavedCall:
        """The record of the remote call.

        Raises:
            StoreUnavailable: without it, a generation would be paid for twice.
        """
        try:
            return self._channel.saved_call()
        except Exception as error:
            raise StoreUnavailable("the shared dictionary of generations does not answer") from error

    def _answer_of(self, call_id: str, saved: SavedCall, on_step: OnStep) -> Any:
        """The answer to a call; None where it ended without one.

        Raises:
            Transferred: the call waits or runs.
            Cancelled: raised by `on_step`.
        """
        try:
            call = PatientCall(self._reopen(call_id), self._transient)
        except Exception:  # any error of Modal's client: the id is not known any more
            log.warning("generation not found", remote_call=call_id, exc_info=True)
            return None
        deadline_s = time.monotonic() + (self._patience_s if self._announced else 0.0)
        while True:
            on_step(0.0)
            left_s = deadline_s - time.monotonic()
            try:
                return call.get(timeout=min(self._poll_s, max(0.0, left_s)))
            except TimeoutError:
                if left_s <= 0:
                    raise self._transferred() from None
            except Exception:  # any error of Modal's client or of the container, which was cancelled, or has expired
                log.warning("generation lost", remote_call=call_id, tries=saved.tries, exc_info=True)
                return None

    def _transferred(self, start: Callable[[], None] = lambda: None) -> Transferred:
        return Transferred(passive_holder(self._channel.name), start)

    def _start(
        self, connection: Connection, views: Sequence[ForegroundImage], options: GenerationOptions, before: SavedCall
    ) -> None:
        """Start a try, and save its call; the container that runs it saves the call too."""
        if before.tries:  # a cancellation request for the earlier call would stop the new one
            best_effort(self._channel.clear_messages, None)
        connection.before_spawn()
        call = connection.spawn(views, options, self._channel.name, connection.restarts)
        started = replace(before, call_id=call.object_id, tries=before.tries + 1, started_at=time.time())
        best_effort(partial(self._channel.save_call, started), None)


def stop_generation(
    channel: ControlChannel,
    reopen: Callable[[str], RemoteCall],
    *,
    transient: tuple[type[Exception], ...] = (OSError,),
    grace_s: float = STOP_GRACE_S,
) -> float:
    """Ask the container of a generation to stop between two steps; cancel the remote call if that takes too long.

    Returns:
        The GPU seconds of all tries that are known.
    """
    saved = ask_to_stop(channel, reopen)
    if not saved.call_id:
        return saved.gpu_seconds
    try:
        answer = PatientCall(reopen(saved.call_id), transient).get(timeout=grace_s)
    except TimeoutError:
        best_effort(lambda: reopen(saved.call_id).cancel(), None)
    except Exception:  # noqa: BLE001  # it was cancelled before it began, or its container failed: nothing is known
        log.info("cancelled generation gave no answer", remote_call=saved.call_id)
    else:
        return saved.gpu_seconds + (answer.gpu_seconds if isinstance(answer, Generation | Failure) else 0.0)
    return saved.gpu_seconds


def _may_be_repeated(failure: Failure) -> bool:
    """Whether another try may succeed; a cancelled one was stopped for a cancellation that is not this job's."""
    return failure.retry_on_other_container or isinstance(failure.error, Cancelled)


def _error_of(answer: Any, engine: str) -> ImageTo3DError:
    """The error of a generation whose last try gave no generation."""
    if isinstance(answer, Failure):
        return answer.error
    return EngineFailed(f"engine {engine} gave no answer")
