"""The caller's side of a remote generation: the `generate` of `call.run_job` for an engine in another container."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import structlog

from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions, OnStep
from pipeline.engines.registry import EngineSpec, check_views
from pipeline.errors import Cancelled, EngineFailed, ImageTo3DError
from pipeline.on_modal.control_channel import ControlChannel, Failure, best_effort

POLL_S = 0.5
STOP_GRACE_S = 10.0
"""How long a generation that was asked to stop may go on before it is ended from outside."""
AWAKE_S = 120.0
"""How long a generation is held back for a container that was told to start. Sent at once, it would be one more call
that waits, and a scaler that looks at what waits would start one more container for it."""
MAX_TRIES = 3
"""How many containers may be tried where one is to blame."""

log = structlog.get_logger()


class RemoteCall(Protocol):
    """A call that runs elsewhere, as `modal.FunctionCall` is one."""

    object_id: str

    def get(self, timeout: float | None = None) -> Any:
        """The result, waited for.

        Raises:
            TimeoutError: it is still running; anything else is what ended it.
        """
        ...

    def cancel(self) -> None:
        """End it from outside."""
        ...


Spawn = Callable[[Sequence[ForegroundImage], GenerationOptions], RemoteCall]


class RemoteEngine:
    """An engine in a container of its own, as a `call.Generate`.

    A generation is noted on its line when it starts. Whoever comes to the same line later, because the attempt that
    started it died, waits for that one, or has its answer again, instead of paying for another. So what was made stays
    noted, until `RemoteEngines.forget` when the call has ended. What was spent on failures is part of the
    `gpu_seconds` of the generation, or of the error in its place; what ended without an answer nobody has measured.

    Args:
        spawn: starts a generation.
        reopen: a generation that was started, by its name.
        woken: ends when a container is there that was told to start; None where none was.
        poll_s: pause between two looks at a generation.
        awake_s: as `AWAKE_S`.
        stop_grace_s: as `STOP_GRACE_S`.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        line: ControlChannel,
        spawn: Spawn,
        reopen: Callable[[str], RemoteCall],
        woken: RemoteCall | None = None,
        poll_s: float = POLL_S,
        awake_s: float = AWAKE_S,
        stop_grace_s: float = STOP_GRACE_S,
    ) -> None:
        self._spec = spec
        self._line = line
        self._spawn = spawn
        self._reopen = reopen
        self._woken = woken
        self._poll_s = poll_s
        self._awake_s = awake_s
        self._stop_grace_s = stop_grace_s
        self._gpu_seconds = 0.0

    def __call__(self, views: Sequence[ForegroundImage], options: GenerationOptions, on_step: OnStep) -> Generation:
        """Generate.

        Raises:
            CallerError: the engine cannot use the views.
            StageError: it failed, or gave no answer.
            Cancelled: raised by `on_step`; the container is told to stop.
        """
        check_views(self._spec, len(views))
        self._gpu_seconds = 0.0
        try:
            return replace(self._generation(views, options, on_step), gpu_seconds=self._gpu_seconds)
        except ImageTo3DError as error:
            error.gpu_seconds = self._gpu_seconds
            raise
        except Exception as error:  # whatever the vendor's client raises, or the container died of
            log.exception("generation lost", engine=self._spec.name)
            lost = EngineFailed(f"engine {self._spec.name} gave no answer ({type(error).__name__})")
            lost.gpu_seconds = self._gpu_seconds
            raise lost from error

    def _generation(self, views: Sequence[ForegroundImage], options: GenerationOptions, on_step: OnStep) -> Generation:
        try:
            answer = self._answer(views, options, on_step)
            if isinstance(answer, Failure):
                raise answer.error
            if not isinstance(answer, Generation):
                raise EngineFailed(f"engine {self._spec.name} answered with {type(answer).__name__}")
        except Exception:
            self._clear()
            raise
        best_effort(self._line.clear_messages, None)
        return answer

    def _answer(self, views: Sequence[ForegroundImage], options: GenerationOptions, on_step: OnStep) -> Any:
        """What the last container says that was tried."""
        answer = self._earlier_answer(on_step)
        for _ in range(MAX_TRIES):
            if isinstance(answer, Generation):
                break
            if isinstance(answer, Failure) and not answer.retry_on_other_container:
                break
            self._wait_until_awake(on_step)
            call = self._spawn(views, options)
            best_effort(lambda call=call: self._line.note_call(call.object_id), None)
            answer = self._wait(call, on_step)
        return answer

    def _wait_until_awake(self, on_step: OnStep) -> None:
        """Wait, once, for the container that was told to start; if it cannot, the generation will find out."""
        woken, self._woken = self._woken, None
        deadline_s = time.monotonic() + self._awake_s
        while woken is not None and time.monotonic() < deadline_s:
            try:
                woken.get(timeout=self._poll_s)
            except TimeoutError:
                on_step(0.0)
            except Exception:
                log.warning("container did not wake", exc_info=True)
                return
            else:
                return

    def _earlier_answer(self, on_step: OnStep) -> Any:
        """What a generation brings that an earlier attempt at this call started; None without one."""
        call_id = best_effort(self._line.noted_call, None)
        if call_id is None:
            return None
        log.info("generation taken up again", remote_call=call_id)
        try:
            answer = self._wait(self._reopen(call_id), on_step)
        except Cancelled:
            raise
        except Exception:  # it was ended, or is forgotten: a new one is started
            log.warning("earlier generation is lost", exc_info=True)
            answer = None
        if isinstance(answer, Failure) and isinstance(answer.error, Cancelled):
            answer = None  # it was another attempt that wanted it to stop
        if answer is None:
            self._clear()  # or a wish to stop that was meant for the earlier one ends the new one
        return answer

    def _wait(self, call: RemoteCall, on_step: OnStep) -> Any:
        share = 0.0
        while True:
            try:
                return self._counted(call.get(timeout=self._poll_s))
            except TimeoutError:
                share = best_effort(lambda share=share: self._line.progress(share), share)
            try:
                on_step(share)
            except Cancelled:
                self._stop(call)
                raise

    def _stop(self, call: RemoteCall) -> None:
        """Ask for an end between two steps; end it from outside where that takes too long."""
        best_effort(self._line.cancel, None)
        try:
            self._counted(call.get(timeout=self._stop_grace_s))
        except TimeoutError:
            call.cancel()
        except Exception:
            log.warning("cancelled generation ended badly", exc_info=True)

    def _counted(self, answer: Any) -> Any:
        """An answer as it came; what it cost is added to what this call costs."""
        if isinstance(answer, Generation | Failure):
            self._gpu_seconds += answer.gpu_seconds
        return answer

    def _clear(self) -> None:
        best_effort(self._line.clear, None)
