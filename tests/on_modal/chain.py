"""The jobs of a deployment on a platform in this process: its functions, real but for the work inside the stages.

Real: `functions.run_job` with the worker loop, the key-value store, the pool and the client of the engines, the engine
server, the control channel, the dispatcher and the watch over waiting jobs. In place of the platform's containers stand
calls, whose arguments and answers are pickled; a call whose container is killed runs again, as on Modal.

Each operation on the shared dictionary, on the store's map and on a call is a step, before which a hook is called.
"""

from __future__ import annotations

import itertools
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.engines.base import ForegroundImage
from pipeline.errors import EngineFailed, StoreUnavailable
from pipeline.job_handler import folder_of
from pipeline.jobs.api_keys import key_record
from pipeline.jobs.model import Job, JobResult, KeyLimits, LedgerFilter
from pipeline.jobs.stores.kv.store import KvStore
from pipeline.jobs.worker_loop import LeaseKeeper
from pipeline.on_modal import functions
from pipeline.on_modal.control_channel import ControlChannel
from pipeline.on_modal.deployment import Deployment
from pipeline.on_modal.dispatch import Dispatcher
from pipeline.on_modal.engine_pool import EnginePool
from pipeline.on_modal.engine_server import EngineServer
from pipeline.on_modal.waiting_jobs import WaitingJobs
from pipeline.run_job import Generate, run_job
from pipeline.settings import Settings
from pipeline.stages.deliver import Delivery
from pipeline.stages.intake import LoadedViews
from schemas.request import GenerationRequest, ImageTo3DRequest
from tests.fakes.key_values import MemoryKeyValues
from tests.fakes.shared_dict import InMemoryDict
from tests.jobs.store_fixtures import new_job
from tests.on_modal.containers import VIEW, ScriptedEngine

REQUEST = ImageTo3DRequest(image=("none",), output_format="stl", no_texture=True, resolution=64)
MASTER_KEY = b"a-master-key-of-this-test"
OF_JOBS, OF_ENGINES = "run_job", "generate"

Hook = Callable[[str], None]


class Killed(BaseException):
    """Kills a container at any point."""


class CallEnded(Exception):
    """What the platform answers about a call that was cancelled."""


class Call:
    """A `RemoteCall` of the platform.

    Attributes:
        runs: how often a container has begun it.
        waits_since, began_at, ended_at: seconds of a monotonic clock.
    """

    def __init__(self, object_id: str, function: str, arguments: tuple[Any, ...], hook: Hook) -> None:
        self.object_id = object_id
        self.function = function
        self.pickled = pickle.dumps(arguments)
        self.is_ended = threading.Event()
        self.was_cancelled = False
        self.runs = 0
        self.waits_since = time.monotonic()
        self.began_at = self.ended_at = 0.0
        self._hook = hook
        self._answer = b""
        self._error: Exception | None = None

    def get(self, timeout: float | None = None) -> Any:
        self._hook("FunctionGetOutputs")
        if not self.is_ended.wait(timeout):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return pickle.loads(self._answer)

    def cancel(self) -> None:
        self._hook("FunctionCallCancel")
        self.was_cancelled = True
        if not self.began_at:
            self.end(error=CallEnded(self.object_id))

    def end(self, answer: Any = None, error: Exception | None = None) -> None:
        """Set the outcome, unless there is one."""
        if not self.is_ended.is_set():
            self._answer, self._error, self.ended_at = pickle.dumps(answer), error, time.monotonic()
            self.is_ended.set()


class HookedDict(InMemoryDict):
    """A shared dictionary whose operations are steps."""

    def __init__(self, hook: Hook) -> None:
        super().__init__()
        self._hook = hook

    def get(self, key: str, default: Any = None) -> Any:
        self._hook("DictGet")
        return super().get(key, default)

    def put(self, key: str, value: Any) -> None:
        self._hook("DictUpdate")
        super().put(key, value)

    def pop(self, key: str, default: Any = None) -> Any:
        self._hook("DictPop")
        return super().pop(key, default)


class HookedKeyValues(MemoryKeyValues):
    """The store's map, whose operations are steps; errors of the hook become those of the map."""

    def __init__(self, hook: Hook) -> None:
        super().__init__()
        self._given_hook = hook

    def _hook(self, step: str) -> None:
        try:
            self._given_hook(step)
        except OSError as error:
            raise StoreUnavailable(str(error)) from error

    def get(self, key: str) -> bytes | None:
        self._hook("DictGet")
        return super().get(key)

    def put(self, key: str, value: bytes) -> None:
        self._hook("DictUpdate")
        super().put(key, value)

    def create(self, key: str, value: bytes) -> bool:
        self._hook("DictUpdate")
        return super().create(key, value)

    def delete(self, key: str) -> None:
        self._hook("DictPop")
        super().delete(key)


class Chain:
    """A deployment on the platform.

    Args:
        folder: of its Volumes.
        hook: called before each step with the name of what Modal's client would ask for.
        engine: makes the engine of a container.
        enqueue: called with each new call.

    Attributes:
        clock_offset_s: added to the clock of the store and of the watch.
        webhooks: by job, how often a sender of its webhook was started.
    """

    def __init__(
        self,
        folder: Path,
        *,
        hook: Hook = lambda step: None,
        engine: Callable[[], ScriptedEngine] = lambda: ScriptedEngine(gpu_seconds=1.0),
        enqueue: Callable[[Call], None] = lambda call: None,
        patience_s: float = 0.02,
        lease_s: float = 1.0,
    ) -> None:
        self.hook = hook
        self.clock_offset_s = 0.0
        self.calls: dict[str, Call] = {}
        self.webhooks: Counter[int] = Counter()
        self.entries = HookedDict(self._step)
        self._map = HookedKeyValues(self._step)
        self.store = KvStore(self._map, clock=self._now)
        self._numbers = itertools.count(1)
        self._engine = engine
        self._enqueue = enqueue
        self._patience_s = patience_s
        self.dispatch = Dispatcher(
            lambda job_id, call_id: self.spawn(OF_JOBS, job_id, call_id).object_id,
            is_in_flight=self.is_in_flight,
            entries=self.entries,
            clock=self._now,
        )
        self.waiting = WaitingJobs(
            self.dispatch,
            find_call=self.find_call,
            is_in_flight=self.is_in_flight,
            entries=self.entries,
            default="preview",
            clock=self._now,
        )
        self.settings = Settings(
            data_dir=folder, database_url=None, lease_s=lease_s, engine="preview", engines=(), weights="tiny"
        )
        self.deployment = Deployment(
            self.settings,
            [MASTER_KEY],
            self.store,
            self.dispatch,
            self.waiting,
            lambda: self._step("VolumeCommit"),
            lambda: self._step("VolumeCommit"),
        )
        self.key = self.store.add_key(key_record("an-api-key-of-this-test", name="shop", limits=KeyLimits()))

    def _now(self) -> float:
        return time.time() + self.clock_offset_s

    def _step(self, what: str) -> None:
        self.hook(what)

    # What the platform does

    def spawn(self, function: str, *arguments: Any) -> Call:
        self._step("FunctionMap")
        call = Call(f"fc-{next(self._numbers)}", function, arguments, self._step)
        self.calls[call.object_id] = call
        self._enqueue(call)
        return call

    def find_call(self, call_id: str) -> Call:
        return self.calls[call_id]

    def is_in_flight(self, call_id: str) -> bool:
        self._step("FunctionGetOutputs")
        return not self.calls[call_id].is_ended.is_set()

    def run(self, call: Call, server: EngineServer | None = None, store: KvStore | None = None) -> bool:
        """Run a call in a container; False where the container was killed, and the call runs again.

        Args:
            server: of a container of the engine that is up; a new one by default.
            store: of a container of jobs that is up; a new one by default.
        """
        call.runs += 1
        call.began_at = call.began_at or time.monotonic()
        arguments = pickle.loads(call.pickled)
        try:
            if call.function == OF_JOBS:
                answer = self._run_job(call.object_id, store or self.open_store(), *arguments)
            elif call.function == OF_ENGINES:
                answer = self._generate(call.object_id, server or self.start_server(), *arguments)
            else:
                answer = None
            self._step("the outcome is returned")
        except Killed:
            return False
        except Exception as error:
            call.end(error=error)
        else:
            call.end(answer)
        return True

    # What the containers do, as modal_app.py wires it

    def start_server(self, engine: ScriptedEngine | None = None) -> EngineServer:
        engine = engine or self._engine()
        server = EngineServer("preview", weights="tiny", make=lambda name, **_: engine, heartbeat_interval_s=1.0)
        server.load_weights()
        server.to_device()
        return server

    def _generate(
        self, call_id: str, server: EngineServer, views: Any, options: Any, channel: str, restarts: int, job_id: int
    ) -> Any:
        self._step("a container takes the generation")
        own = ControlChannel(self.entries, channel)
        answer = server.answer(views, options, own, restarts=restarts, call_id=call_id)
        self._step("the generation has ended")
        self.dispatch(job_id, call_id)
        return answer

    def containers(self) -> _Container:
        """The containers of the engine, as other containers reach them."""
        return _Container(self)

    def open_store(self) -> KvStore:
        """The store of one more container."""
        return KvStore(self._map, clock=self._now)

    def _run_job(self, worker_id: str, store: KvStore, job_id: int, announced: str) -> None:
        functions.run_job(
            job_id,
            replace(self.deployment, store=store),
            announced=announced,
            worker_id=worker_id,
            engines=EnginePool(
                {"preview": self.containers},
                default="preview",
                weights="tiny",
                entries=self.entries,
                reopen=self.find_call,
                patience_s=self._patience_s,
            ),
            send_webhooks=self._send_webhook,
        )

    def _send_webhook(self, job_id: int) -> None:
        self.webhooks[job_id] += 1

    # What customers and schedules do

    def submit(self) -> Job:
        return self.store.submit(new_job(self.key, webhook_url="http://127.0.0.1/hook")).job

    def on_schedule(self) -> int:
        """What the scheduled functions do about lost jobs."""
        return self.waiting.watch(self.store) + self.dispatch.dispatch_waiting(self.store)

    def read_quietly(self, job_ids: Sequence[int]) -> list[Job]:
        """The jobs as they are, without a step."""
        quiet = MemoryKeyValues()
        quiet._entries = self._map._entries
        return KvStore(quiet, clock=self._now).get_many(job_ids)

    def rows(self, job_id: int) -> int:
        """How many rows of the ledger a job has."""
        return sum(row.job_id == job_id for row in self.store.usage_rows(LedgerFilter(None)))

    def webhook_ids(self, job_id: int) -> list[str]:
        return [task.id for task in self.store.tasks_of(job_id) if task.kind == "webhook"]


class _Container:
    """The containers of the engine, as `EnginePool` reaches them."""

    def __init__(self, chain: Chain) -> None:
        self.generate = _Method(chain, OF_ENGINES)
        self.wake = _Method(chain, "wake")


class _Method:
    def __init__(self, chain: Chain, name: str) -> None:
        self._chain = chain
        self._name = name

    def spawn(self, *arguments: Any) -> Call:
        return self._chain.spawn(self._name, *arguments)


class LightHandler:
    """In place of `JobHandler`: the same run with the same hooks, of views that are there and files that stay here.

    Attributes:
        intake_s, deliver_s: how long these stages take.
    """

    intake_s = deliver_s = 0.0

    def __init__(
        self,
        service: Any,
        outputs: Any,
        generate_for: Callable[[Job, str | None], Generate],
        *,
        prepare: Callable[[Job, str | None], None],
        **hooks: Any,
    ) -> None:
        self._work_dir = service.settings.work_dir
        self._generate_for = generate_for
        self._prepare = prepare

    def __call__(self, job: Job, lease: LeaseKeeper) -> JobResult:
        def load_views(request: GenerationRequest) -> list[ForegroundImage]:
            self._prepare(job, None)
            time.sleep(self.intake_s)
            return LoadedViews([VIEW])

        def deliver(files: Sequence[Any]) -> Delivery:
            if not files:
                raise EngineFailed("nothing to deliver")
            time.sleep(self.deliver_s)
            return Delivery(())

        return run_job(
            REQUEST,
            file_prefix=job.file_prefix,
            work_dir=folder_of(job, self._work_dir),
            load_views=load_views,
            generate=self._generate_for(job, None),
            deliver=deliver,
            on_progress=lease.report,
            is_cancelled=lease.is_cancelled,
        )
