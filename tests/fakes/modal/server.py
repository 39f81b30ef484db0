"""The fake Modal server: its parts on an event loop in a thread of their own, and the methods that tests call."""

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar
from unittest.mock import patch

import modal
from grpclib.server import Server
from modal._serialization import serialize_data_format
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto import api_pb2

from tests.fakes.modal.calls import CallHandlers, ContainerHandlers, add_input, new_call
from tests.fakes.modal.conditions import Conditions, FaultCounter
from tests.fakes.modal.definitions import AppHandlers, FunctionHandlers
from tests.fakes.modal.facts import (
    CallFacts,
    ContainerFacts,
    FunctionFacts,
    call_facts,
    container_facts,
    function_facts,
    status_name,
    traces,
)
from tests.fakes.modal.grpc_service import Service
from tests.fakes.modal.launch import Launcher
from tests.fakes.modal.materials import FileHandlers
from tests.fakes.modal.runner import Limits, Runner
from tests.fakes.modal.state import (
    DEFAULT_ENVIRONMENT,
    App,
    Attempt,
    Call,
    Container,
    Function,
    Kill,
    Secret,
    State,
    new_id,
)
from tests.fakes.modal.storage import DictHandlers, QueueHandlers
from tests.fakes.modal.volumes import VolumeHandlers
from tests.fakes.modal.web import BlobHandlers, WebServer

T = TypeVar("T")
TOKEN = ("ak-fake", "as-fake")
PROXY_TOKEN = ("wk-fake", "ws-fake")


class FakeModal:
    """A fake Modal server on loopback for one test module.

    Args:
        folder: An empty folder for files, Volumes and containers; the caller removes it.
        limits: Of the workspace, and where the server has lower limits than Modal.
        conditions: How slow and how unreliable the server is from its start; `conditions` can be set later.
        web_timeout_s: After how long an unanswered web request is redirected; 150 s on Modal.
        container_environment: Further variables for every container, such as the paths of caches.
        port: The gRPC port; 0 takes a free one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limits: Limits | None = None,
        conditions: Conditions | None = None,
        web_timeout_s: float = 150.0,
        container_environment: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        self._folder = folder
        self._limits = limits or Limits()
        self._faults = FaultCounter(conditions or Conditions())
        self._web_timeout_s = web_timeout_s
        self._container_environment = container_environment or {}
        self._port = port
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fake-modal", daemon=True)

    # Life

    def start(self) -> Self:
        """Opens every listener; returns once the server answers."""
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """Kills every container, closes every listener, and returns once all have ended."""
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._failure = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._state = State(self._folder)
        self._web = WebServer(self._state, timeout_s=self._web_timeout_s, proxy_token=PROXY_TOKEN, faults=self._faults)
        self._volumes = VolumeHandlers(self._state, self._web, self._faults)
        launcher = Launcher(self._state, self._volumes, self._container_environment)
        self._runner = Runner(self._state, launcher, self._limits, self._faults)
        self._web.enqueue = self._begin_web_call
        handlers: list[object] = [
            AppHandlers(self._state, self._runner, max_crons=self._limits.crons),
            FileHandlers(self._state, self._web),
            FunctionHandlers(self._state, self._runner, self._web),
            DictHandlers(self._state.now),
            QueueHandlers(),
            self._volumes,
            BlobHandlers(self._web),
            CallHandlers(self._state, self._runner),
            ContainerHandlers(self._state, self._runner, self._faults),
        ]
        self._service = Service(self._state, handlers, token=TOKEN, faults=self._faults)
        await self._web.open()
        server, of_isolated = (Server([self._service], status_details_codec=custom_detail_codec) for _ in range(2))
        await server.start("127.0.0.1", self._port)
        assert server._server is not None
        assert server._server.sockets is not None
        launcher.server_url = self.url = f"http://127.0.0.1:{server._server.sockets[0].getsockname()[1]}"
        # In a short folder of its own: the path of a Unix socket has at most 107 bytes.
        with tempfile.TemporaryDirectory(prefix="fake-modal-") as sockets:
            await of_isolated.start(path=f"{sockets}/grpc")
            launcher.socket_url = f"unix://{sockets}/grpc"
            self._started.set()
            try:
                await self._stopping.wait()
            finally:
                await self._runner.close()
                await self._web.close()
                for each in (server, of_isolated):
                    each.close()
                    await each.wait_closed()

    def _begin_web_call(self, function: Function, scope: dict[str, Any]) -> Call:
        return self._begin_call(function, api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC, scope)

    def _begin_call(self, function: Function, invocation_type: int, *arguments: object) -> Call:
        call = new_call(self._state, function, invocation_type)
        pickled = serialize_data_format((arguments, {}), api_pb2.DATA_FORMAT_PICKLE)
        payload = api_pb2.FunctionInput(args=pickled, data_format=api_pb2.DATA_FORMAT_PICKLE)
        self._runner.enqueue(add_input(self._state, call, payload))
        return call

    # For the CLI and the client

    def environment(self) -> dict[str, str]:
        """The variables that make Modal's CLI and client talk to this server, and to no account of the developer's."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": TOKEN[0],
            "MODAL_TOKEN_SECRET": TOKEN[1],
            "MODAL_CONFIG_PATH": str(self._folder / "no-modal.toml"),
            "MODAL_ENVIRONMENT": DEFAULT_ENVIRONMENT,
        }

    def proxy_headers(self) -> dict[str, str]:
        """The headers that a web function with `requires_proxy_auth` lets through."""
        return {"Modal-Key": PROXY_TOKEN[0], "Modal-Secret": PROXY_TOKEN[1]}

    def client(self) -> modal.Client:
        """A client of this server for this process, to pass as `client=`; the caller closes it."""
        with patch.dict(os.environ, self.environment()):
            return modal.Client.from_credentials(*TOKEN)

    def create_secret(self, name: str, values: Mapping[str, str]) -> None:
        """Does what `modal secret create --force NAME KEY=VALUE …` does."""

        def create() -> None:
            for known in self._state.secrets.values():
                if (known.name, known.environment) == (name, DEFAULT_ENVIRONMENT):
                    known.values = dict(values)
                    return
            secret = Secret(new_id("st"), name, DEFAULT_ENVIRONMENT, dict(values))
            self._state.secrets[secret.secret_id] = secret

        self._look(create)

    # What a test reads

    def apps(self) -> list[App]:
        """Every app, oldest first."""
        return self._look(lambda: list(self._state.apps.values()))

    def function(self, name: str, *, app: str = "") -> FunctionFacts:
        """A function (or class) as deployed last."""
        return self._look(lambda: self._facts_of(self._function(name, app)))

    def functions(self, *, app: str = "") -> list[FunctionFacts]:
        """Every function and class of the live apps, or of one of them."""
        return self._look(
            lambda: [
                self._facts_of(self._state.functions[each])
                for owner in self._state.apps.values()
                if owner.is_live and app in ("", owner.name)
                for each in owner.function_ids.values()
            ]
        )

    def web_url(self, name: str) -> str:
        """Where a web function answers."""
        return self.function(name).web_url

    def containers(self, name: str = "") -> list[ContainerFacts]:
        """The running and ended containers, of one function or of all, oldest first."""
        return self._look(lambda: [container_facts(each) for each in self._containers(name)])

    def logs(self, name: str = "") -> str:
        """The output of those containers."""
        return "".join(each.output for each in self.containers(name))

    def calls(self, name: str = "") -> list[CallFacts]:
        """The calls to one function or to all, oldest first."""
        return self._look(lambda: [call_facts(each) for each in self._calls(name)])

    def volume_folder(self, name: str) -> Path:
        """The committed files of a Volume."""
        volume = self._look(lambda: self._volumes.named(name))
        assert volume is not None, f"no volume {name}"
        return volume.committed

    def traces_of(self, text: str) -> list[str]:
        """Where a text (a secret's value) occurs in images, definitions, files, arguments and logs, but not secrets."""
        return self._look(lambda: traces(self._state, text))

    def asked(self, method: str) -> int:
        """How often a method of Modal's service was called."""
        return self._service.calls[method]

    @property
    def unanswered(self) -> dict[str, int]:
        """Methods that were called and are not implemented, with the number of calls."""
        return dict(self._service.unanswered)

    @property
    def failures(self) -> list[str]:
        """Tracebacks of the server's own failures; a test should find none."""
        return list(self._service.failures)

    @property
    def faults(self) -> dict[tuple[str, str], int]:
        """How many faults of each kind each method has met, by method and kind."""
        return dict(self._faults.faults)

    # What a test makes happen

    @property
    def conditions(self) -> Conditions:
        """How slow and how unreliable the server is now; a test may set others."""
        return self._faults.conditions

    @conditions.setter
    def conditions(self, conditions: Conditions) -> None:
        self._look(lambda: self._faults.set(conditions))

    def advance_clock(self, seconds: float) -> None:
        """Move the clock by which entries of Dicts expire. Containers and this process keep theirs."""

        def advance() -> None:
            self._state.clock_offset_s += seconds

        self._look(advance)

    def plan_kill(
        self,
        name: str,
        *,
        method: str = "",
        after_s: float = 0.0,
        when: Callable[[Mapping[str, Path]], bool] = lambda _: True,
        preempt: bool = False,
    ) -> Kill:
        """SIGKILLs the next container of the function that runs an input, which the server then runs again.

        Planned before the input exists, the kill comes at the latest when the container gives its outcome, which is
        then lost, however short the input is.

        Args:
            name: The function, or the class.
            method: Of a class, the method; empty for all.
            after_s: How long the container runs its input first.
            when: Given its Volumes' folders on this machine by mount path, says whether to kill it now.
            preempt: Interrupt it (SIGINT) and kill it only after the grace period, as a preemption does.
        """
        kill = Kill(name, method, after_s, when, preempt)
        self._look(lambda: self._runner.plan(kill))
        return kill

    def wait_for_kill(self, kill: Kill, *, timeout_s: float = 60.0) -> str:
        """Waits until a planned kill was carried out; returns the killed container's task id.

        Raises:
            TimeoutError: No container ran an input at the planned moment for that long; none is killed later.
        """
        try:
            self._await(kill.done.wait, timeout_s)
        except TimeoutError:
            self._look(lambda: self._runner.call_off(kill))
            raise
        return kill.task_id

    def kill_container_of(self, name: str, *, preempt: bool = False) -> str:
        """SIGKILLs a container that runs an input of the function now; returns its task id."""
        return self.wait_for_kill(self.plan_kill(name, preempt=preempt))

    def redeliver(self, call_id: str, *, timeout_s: float = 60.0) -> list[str]:
        """Runs a call's inputs once more, as at-least-once delivery may; the first outcome stands.

        Returns:
            The status that each further run ended with.
        """

        async def run() -> list[Attempt]:
            given = self._state.calls[call_id].inputs
            attempts = [self._runner.enqueue(each, is_redelivery=True) for each in given]
            for attempt in attempts:
                await attempt.done.wait()
            return attempts

        return [status_name(attempt.status) for attempt in self._await(run, timeout_s)]

    def fire_schedule(self, name: str) -> str:
        """Starts a scheduled function as its Cron would; returns the call's id."""

        def fire() -> str:
            function = self._function(name)
            schedule = function.effective().function.schedule
            assert schedule.WhichOneof("schedule_oneof"), f"{name} has no schedule"
            return self._begin_call(function, api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC).call_id

        return self._look(fire)

    def wait_for(self, call_id: str, *, timeout_s: float = 60.0) -> CallFacts:
        """Waits until a call has finished."""

        async def wait() -> CallFacts:
            call = self._state.calls[call_id]
            await call.changed.until(lambda: call.is_finished)
            return call_facts(call)

        return self._await(wait, timeout_s)

    def wait_until(self, holds: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
        """Polls until a condition holds.

        Raises:
            TimeoutError: It did not hold in that time.
        """
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"did not hold within {timeout_s} s")
            time.sleep(0.05)

    # Inside

    def _await(self, work: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(work(), timeout_s)

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()

    def _look(self, work: Callable[[], T]) -> T:
        """Reads or changes the state on its loop; once the server has stopped, nothing else touches it."""
        if not self._thread.is_alive():
            return work()

        async def run() -> T:
            return work()

        return self._await(run, 10.0)

    def _function(self, name: str, app: str = "") -> Function:
        for owner in reversed(self._state.apps.values()):
            if owner.is_live and app in ("", owner.name):
                for tag in (name, f"{name}.*"):
                    found = self._state.function_named(owner, tag)
                    if found is not None:
                        return found
        raise LookupError(f"no live app has a function {name}")

    def _facts_of(self, function: Function) -> FunctionFacts:
        return function_facts(function, self._state, self._volumes.volumes)

    def _containers(self, name: str) -> list[Container]:
        return [each for each in self._state.containers.values() if name in ("", *_names(each.function))]

    def _calls(self, name: str) -> list[Call]:
        return [each for each in self._state.calls.values() if name in ("", *_names(each.function))]


def _names(function: Function) -> tuple[str, str]:
    return function.tag, function.tag.removesuffix(".*")
