"""The engines of a deployment as one job uses them: a container starts during intake, then runs the generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import structlog

from pipeline.engines.registry import find_spec
from pipeline.errors import InvalidRequest
from pipeline.on_modal.control_channel import ControlChannel, SavedCall, best_effort
from pipeline.on_modal.early_start import mark_startable
from pipeline.on_modal.engine_client import ANSWER_PATIENCE_S, Connection, EngineClient, stop_generation
from pipeline.on_modal.remote_call import RemoteCall
from pipeline.on_modal.shared_dict import SharedDict

log = structlog.get_logger()


class RemoteMethod(Protocol):
    """A method of a container; `modal.Function` is one."""

    def spawn(self, *arguments: Any) -> RemoteCall:
        """Start a call of it."""
        ...


class EngineContainer(Protocol):
    """The containers of one engine, as an instance of a `modal.Cls` reaches them."""

    @property
    def wake(self) -> RemoteMethod:
        """`wake()` returns when a container is ready: a `Failure` where its engine could not be started, or None."""
        ...

    @property
    def generate(self) -> RemoteMethod:
        """`generate(views, options, channel_name, restarts, job_id)` returns a `Generation` or a `Failure`."""
        ...


class EnginePool:
    """The engines for one job, which starts a container of one engine and runs its generation there.

    Args:
        containers: by engine name, a factory of `EngineContainer`.
        default: the engine of requests that name none.
        weights: the folder of all engines' weights, or "tiny".
        entries: the shared dictionary in which both sides have their channel.
        reopen: finds a started call by its id.
        transient: as for `PatientCall`.
        patience_s: as for `EngineClient`.
        check: called with the name of the engine to start; raises if a container would start in vain.
    """

    def __init__(
        self,
        containers: Mapping[str, Callable[[], EngineContainer]],
        *,
        default: str,
        weights: str,
        entries: SharedDict,
        reopen: Callable[[str], RemoteCall],
        transient: tuple[type[Exception], ...] = (OSError,),
        patience_s: float = ANSWER_PATIENCE_S,
        check: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._containers = containers
        self._default = default
        self._weights = weights
        self._entries = entries
        self._reopen = reopen
        self._transient = transient
        self._patience_s = patience_s
        self._check = check
        self._starting: dict[str, RemoteCall] = {}

    def wake(self, name: str | None, *, channel: str | None = None, is_first_run: bool = False) -> None:
        """Start a container of the engine that a request names, without waiting for it.

        Args:
            channel: the name of the generation's `ControlChannel`; a container that `EarlyStart` asked for is used.
            is_first_run: nobody can have started the generation.

        Raises:
            InvalidRequest: the deployment does not offer the engine.
            WeightsUnusable: the container would find no weights.
        """
        chosen = self._chosen(name)
        self._check(chosen)
        own = None if channel is None else ControlChannel(self._entries, channel)
        if own is not None and not is_first_run and best_effort(own.saved_call, SavedCall()).call_id:
            return  # an earlier attempt has started the generation
        started = None if own is None else best_effort(own.take_start_id, None)
        if started is None:
            best_effort(partial(mark_startable, self._entries, chosen), None)
        wake = self._containers[chosen]().wake
        self._starting[chosen] = wake.spawn() if started is None else self._reopen(started)

    def client(
        self,
        name: str | None,
        *,
        channel: str,
        restarts_requested: Callable[[], int] = lambda: 0,
        job_id: int = 0,
        announced: str = "",
        is_first_run: bool = False,
    ) -> EngineClient:
        """The `generate` of `run_job` for the engine that a request names; raises nothing before it is called.

        Args:
            channel: the name of the generation's `ControlChannel`.
            restarts_requested: how many restarts of the engines have been requested so far.
            job_id: the job that the container dispatches when it has the answer; 0 for none.
            announced, is_first_run: as for `EngineClient`.
        """

        def connect() -> Connection:
            chosen, restarts = self._chosen(name), restarts_requested()
            generate = self._containers[chosen]().generate

            def spawn(*arguments: Any) -> RemoteCall:
                return generate.spawn(*arguments, job_id)

            return Connection(find_spec(chosen), spawn, self._cancel_starts, restarts, self._weights)

        return EngineClient(
            connect,
            channel=ControlChannel(self._entries, channel),
            reopen=self._reopen,
            announced=announced,
            is_first_run=is_first_run,
            transient=self._transient,
            patience_s=self._patience_s,
        )

    def _cancel_starts(self) -> None:
        """Cancel the starts that still wait for a container: the generation waits for it in their place.

        Before the generation is spawned, not after: for each input that waits, an autoscaler starts a container. One
        that has begun to start goes on.
        """
        for call in self._starting.values():
            best_effort(call.cancel, None)
        self._starting.clear()

    def stop(self, channel: str) -> float:
        """Stop the generation of a job that was cancelled; returns its GPU seconds as far as they are known."""
        return stop_generation(ControlChannel(self._entries, channel), self._reopen, transient=self._transient)

    def forget(self, channel: str, *, was_asked_to_stop: bool = True) -> None:
        """Delete the channel of a generation whose job has ended, and cancel the starts that this process asked for.

        Args:
            was_asked_to_stop: whether there may be a request to cancel the generation.
        """
        self._cancel_starts()
        best_effort(partial(ControlChannel(self._entries, channel).clear, has_request=was_asked_to_stop), None)

    def abandon(self, channel: str) -> None:
        """Cancel the generation of a job that has ended without its result, and the start of a container that it does
        not need any more, then `forget`.
        """
        own = ControlChannel(self._entries, channel)
        early = best_effort(own.take_start_id, None)
        if early is not None:
            best_effort(lambda: self._reopen(early).cancel(), None)
        saved = best_effort(own.saved_call, SavedCall()).call_id
        if saved:
            log.warning("generation of a job that was given up is cancelled", remote_call=saved)
            best_effort(lambda: self._reopen(saved).cancel(), None)
        self.forget(channel)

    def _chosen(self, name: str | None) -> str:
        chosen = name or self._default
        if chosen not in self._containers:
            raise InvalidRequest(f"engine must be one of {', '.join(self._containers)}, got {chosen!r}")
        return chosen
