"""The server's state: apps, functions, calls, inputs, containers, and the named objects they use.

Plain records and look-ups; only the server's event loop touches them. Knows nothing of gRPC
streams, processes or HTTP.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modal_proto import api_pb2

DEFAULT_ENVIRONMENT = "main"


def new_id(prefix: str) -> str:
    """An id in Modal's form: a two-letter prefix and 22 characters."""
    return f"{prefix}-{secrets.token_hex(11)}"


class Signal:
    """Wakes the tasks that wait for a change. One event loop: no change comes between the check and the wait."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, holds: Callable[[], Any], timeout_s: float | None = None) -> bool:
        """Waits until `holds()` is true; returns whether it is."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not holds():
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait({waiter}, timeout=remaining)
            finally:
                self._waiters.discard(waiter)
        return True


@dataclass
class App:
    """An app, deployed under a name or ephemeral; `versions` are what was published, oldest first."""

    app_id: str
    name: str
    environment: str
    state: int
    created_at: float = field(default_factory=time.time)
    stopped_at: float = 0.0
    tags: dict[str, str] = field(default_factory=dict)
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)
    versions: list["Version"] = field(default_factory=list)
    logs: list[api_pb2.TaskLogsBatch] = field(default_factory=list)
    logged: Signal = field(default_factory=Signal)
    is_done: bool = False

    @property
    def is_deployed(self) -> bool:
        return self.state == api_pb2.APP_STATE_DEPLOYED

    @property
    def is_live(self) -> bool:
        return self.state not in (api_pb2.APP_STATE_STOPPED, api_pb2.APP_STATE_STOPPING)


@dataclass(frozen=True)
class Version:
    """One publication of an app: which object has which tag, and the definition each function had."""

    number: int
    deployed_at: float
    function_ids: dict[str, str]
    class_ids: dict[str, str]
    definitions: dict[str, "Definition"]
    tag: str = ""
    rollback_of: int = 0


@dataclass(frozen=True)
class Definition:
    """A function as the client defined it. `ranked` has one entry per GPU of the fallback order, else one entry."""

    ranked: tuple[api_pb2.Function, ...]
    data: api_pb2.FunctionData

    @property
    def function(self) -> api_pb2.Function:
        return self.ranked[0]

    @property
    def gpu_count(self) -> int:
        return self.function.resources.gpu_config.count


@dataclass
class Function:
    """A function, a class's service function, or either of them bound to parameters and options."""

    function_id: str
    app: App
    tag: str
    metadata: api_pb2.FunctionHandleMetadata
    draft: Definition | None = None
    definition: Definition | None = None
    base: "Function | None" = None
    serialized_params: bytes = b""
    options: api_pb2.FunctionOptions | None = None
    autoscaler: api_pb2.AutoscalerSettings = field(default_factory=api_pb2.AutoscalerSettings)
    queue: deque["Attempt"] = field(default_factory=deque)
    containers: list["Container"] = field(default_factory=list)
    crashed_starts: int = 0
    crashes: int = 0
    paused_until_s: float = 0.0
    web_port: int = 0
    bound: tuple[Definition, Definition] | None = None

    def effective(self) -> Definition:
        """The definition that containers run: its own, or that of the function it was bound from with its options."""
        if self.base is not None:
            source = self.base.effective()
            if self.bound is None or self.bound[0] is not source:
                self.bound = (source, with_options(source, self.options))
            return self.bound[1]
        definition = self.definition or self.draft
        assert definition is not None, f"function {self.tag} was never created"
        return definition


def with_options(source: Definition, options: api_pb2.FunctionOptions | None) -> Definition:
    """A definition with what `with_options`, `with_concurrency` and `with_batching` override."""
    if options is None or options == api_pb2.FunctionOptions():
        return source
    ranked = tuple(api_pb2.Function.FromString(function.SerializeToString()) for function in source.ranked)
    for function in ranked:
        for name in ("timeout_secs", "max_concurrent_inputs", "target_concurrent_inputs", "batch_max_size"):
            if options.HasField(name):
                setattr(function, name, getattr(options, name))
        for name in ("resources", "retry_policy"):
            if options.HasField(name):
                getattr(function, name).CopyFrom(getattr(options, name))
        for name, is_replaced in (
            ("secret_ids", options.replace_secret_ids),
            ("volume_mounts", options.replace_volume_mounts),
        ):
            if is_replaced:
                function.ClearField(name)
            getattr(function, name).extend(getattr(options, name))
    return Definition(ranked, source.data)


@dataclass
class Call:
    """One function call with its inputs and, for generators and web requests, its two data streams."""

    call_id: str
    function: Function
    invocation_type: int
    parent_input_id: str = ""
    created_at: float = field(default_factory=time.time)
    inputs: list["Input"] = field(default_factory=list)
    outputs: list[api_pb2.FunctionGetOutputsItem] = field(default_factory=list)
    data_in: list[api_pb2.DataChunk] = field(default_factory=list)
    data_out: list[api_pb2.DataChunk] = field(default_factory=list)
    is_cancelled: bool = False
    changed: Signal = field(default_factory=Signal)

    @property
    def is_finished(self) -> bool:
        return bool(self.inputs) and all(given.output is not None for given in self.inputs)


async def stream(call: Call, chunks: list[api_pb2.DataChunk], last_index: int = 0) -> AsyncIterator[api_pb2.DataChunk]:
    """The chunks of one of a call's streams after `last_index`, as they come, until the call has finished."""
    position = last_index
    while True:
        await call.changed.until(lambda seen=position: len(chunks) > seen or call.is_finished)
        if len(chunks) <= position:
            return
        yield chunks[position]
        position += 1


def put_chunk(call: Call, chunks: list[api_pb2.DataChunk], chunk: api_pb2.DataChunk) -> None:
    """Appends a chunk; one whose index came before (an input run again) is dropped."""
    if chunk.index > len(chunks):
        chunks.append(chunk)
        call.changed.notify()


@dataclass
class Input:
    """One input of a call. `output` is the first final outcome; nothing later replaces it."""

    input_id: str
    call: Call
    index: int
    payload: api_pb2.FunctionInput
    retry_count: int = 0
    crashes: int = 0
    output: api_pb2.FunctionGetOutputsItem | None = None


@dataclass(eq=False)
class Attempt:
    """One delivery of an input to a container; a redelivered input has several."""

    given: Input
    is_redelivery: bool = False
    started_at: float = 0.0
    status: int = 0
    timer: asyncio.TimerHandle | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class Container:
    """One container process and what it runs."""

    task_id: str
    function: Function
    definition: Definition
    folder: Path
    created_at: float = field(default_factory=time.time)
    process: asyncio.subprocess.Process | None = None
    views: dict[str, Any] = field(default_factory=dict)
    running: dict[str, Attempt] = field(default_factory=dict)
    waiter: asyncio.Future[list[Attempt] | None] | None = None
    cancellations: list[str] = field(default_factory=list)
    cancelled: Signal = field(default_factory=Signal)
    events: list[tuple[float, str]] = field(default_factory=list)
    is_ready: bool = False
    is_retiring: bool = False
    is_killed: bool = False
    is_ended: bool = False
    failure: api_pb2.GenericResult | None = None
    lines: list[str] = field(default_factory=list)

    def note(self, event: str) -> None:
        """Record an event and its time."""
        self.events.append((time.time(), event))


@dataclass(eq=False)
class Kill:
    """A kill that a test plans: of the container that runs an input of a function at the given moment.

    Attributes:
        name: the function, or the class.
        method: of a class, the method; empty for all.
        after_s: how long the container runs the input first. If that ends earlier, its outcome is lost with it.
        when: given the container's Volumes' folders on this machine by mount path, whether to kill it now.
        preempt: interrupt it (SIGINT) and kill it only after the grace period, as a preemption does.
        task_id: of the container that was killed.
        done: set once it was killed.
    """

    name: str
    method: str
    after_s: float
    when: Callable[[Mapping[str, Path]], bool]
    preempt: bool
    task_id: str = ""
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Secret:
    """A secret's variables; `name` is empty for one made inline."""

    secret_id: str
    name: str
    environment: str
    values: dict[str, str]
    created_at: float = field(default_factory=time.time)


@dataclass
class Image:
    """An image definition, which is never built; `environment` collects its ENV lines and those of its bases."""

    image_id: str
    definition: api_pb2.Image
    environment: dict[str, str]


class State:
    """Every record of one server, by id, and the names of those that have one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.apps: dict[str, App] = {}
        self.functions: dict[str, Function] = {}
        self.classes: dict[str, str] = {}
        self.calls: dict[str, Call] = {}
        self.inputs: dict[str, Input] = {}
        self.containers: dict[str, Container] = {}
        self.secrets: dict[str, Secret] = {}
        self.images: dict[str, Image] = {}
        self.mounts: dict[str, list[api_pb2.MountFile]] = {}
        self.environments: dict[str, str] = {}
        self.changed = Signal()
        self.clock_offset_s = 0.0

    def now(self) -> float:
        """Seconds since 1970 by the clock that tests advance; entries of Dicts expire by it."""
        return time.time() + self.clock_offset_s

    def content(self, sha256_hex: str) -> Path:
        """Where a content-addressed file lies."""
        return self.folder / "content" / sha256_hex

    def deployed_app(self, name: str, environment: str) -> App | None:
        """The live deployed app of that name, if there is one."""
        environment = environment or DEFAULT_ENVIRONMENT
        for app in reversed(self.apps.values()):
            if (app.name, app.environment, app.state) == (name, environment, api_pb2.APP_STATE_DEPLOYED):
                return app
        return None

    def function_named(self, app: App, tag: str) -> Function | None:
        """The function that an app publishes under a tag (`Class.*` for a class's service function)."""
        function_id = app.function_ids.get(tag)
        return self.functions[function_id] if function_id else None
