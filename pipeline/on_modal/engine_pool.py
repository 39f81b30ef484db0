"""The engines of a deployment as a call uses them: woken while its picture is read, then asked for the generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions, OnStep, ignore_steps
from pipeline.engines.registry import find_spec
from pipeline.errors import InvalidRequest
from pipeline.on_modal.control_channel import ControlChannel, best_effort
from pipeline.on_modal.engine_client import RemoteCall, RemoteEngine
from pipeline.on_modal.shared_dict import SharedDict


class RemoteMethod(Protocol):
    """A method of a container, as `modal.Function` is one."""

    def spawn(self, *arguments: Any) -> RemoteCall:
        """Start a call of it."""
        ...


class EngineContainer(Protocol):
    """What reaches the containers of one engine, as an instance of a `modal.Cls` does."""

    wake: RemoteMethod
    """`wake()` ends when a container is there."""
    generate: RemoteMethod
    """`generate(views, options, line, restarts)` gives a `Generation` or a `Failure`."""


class RemoteEngines:
    """The engines for one call, which wakes one of them and has it generate.

    Args:
        containers: by an engine's name, what makes an `EngineContainer`.
        default: the engine for requests that name none.
        notes: the map that both sides have their line in.
        reopen: a generation that was started, by its name.
        check: told the name of the engine to wake; raises where a container would start in vain.
    """

    def __init__(
        self,
        containers: Mapping[str, Callable[[], EngineContainer]],
        *,
        default: str,
        notes: SharedDict,
        reopen: Callable[[str], RemoteCall],
        check: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._containers = containers
        self._default = default
        self._notes = notes
        self._reopen = reopen
        self._check = check
        self._woken: dict[str, RemoteCall] = {}

    def wake(self, name: str | None) -> None:
        """Let a container of the engine that a request names start, and do not wait for it.

        Raises:
            InvalidRequest: the deployment does not offer the engine.
            WeightsUnusable: it would find no weights.
        """
        chosen, container = self._find(name)
        self._check(chosen)
        self._woken[chosen] = container().wake.spawn()

    def generator_for(
        self, name: str | None, *, line: str, restarts: int = 0
    ) -> Callable[[Sequence[ForegroundImage], GenerationOptions, OnStep], Generation]:
        """The `generate` callable of `call.run_job` for the engine that a request names.

        Args:
            line: the name of the generation's `ControlChannel`.
            restarts: how often a restart of the engines was asked for: an older container is told to go.

        Raises:
            InvalidRequest: the deployment does not offer the engine.
        """
        chosen, container = self._find(name)

        def generate(
            views: Sequence[ForegroundImage], options: GenerationOptions, on_step: OnStep = ignore_steps
        ) -> Generation:
            engine = RemoteEngine(
                find_spec(chosen),
                line=ControlChannel(self._notes, line),
                spawn=lambda views, options: container().generate.spawn(views, options, line, restarts),
                reopen=self._reopen,
                woken=self._woken.pop(chosen, None),
            )
            return engine(views, options, on_step)

        return generate

    def forget(self, line: str) -> None:
        """Drop what was noted of a generation, once its call has ended or its result is kept elsewhere."""
        best_effort(ControlChannel(self._notes, line).clear, None)

    def _find(self, name: str | None) -> tuple[str, Callable[[], EngineContainer]]:
        chosen = name or self._default
        if chosen not in self._containers:
            raise InvalidRequest(f"engine must be one of {', '.join(self._containers)}, got {chosen!r}")
        return chosen, self._containers[chosen]
