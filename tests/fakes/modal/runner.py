"""The scheduler: queues of inputs per function; starts, reuses, retires and kills containers; records outcomes.

One container takes as many concurrent inputs as its function allows; more containers start while inputs wait, up to a
small limit per function, and up to the limits of the workspace, which all apps share. The inputs of a container that
dies run again whatever the retry policy says, as Modal does after a crash or a preemption. Containers of a deployed app
that crash are started again without end, after pauses that double; an ephemeral app's inputs fail. Knows nothing of
gRPC streams; `launch` knows how a process is started.
"""

import asyncio
import codecs
import contextlib
import os
import shutil
import signal
import time
from dataclasses import dataclass

from modal_proto import api_pb2

from tests.fakes.modal.conditions import FaultCounter
from tests.fakes.modal.launch import Launcher
from tests.fakes.modal.state import App, Attempt, Call, Container, Function, Input, Kill, State, new_id
from tests.fakes.modal.volume_view import session_pids

Result = api_pb2.GenericResult
KILL_POLL_S = 0.005


@dataclass(frozen=True)
class Limits:
    """The workspace's limits, as of Modal's Starter plan, and those that the fake server has lower than Modal.

    Attributes:
        containers, gpus: at one time, over all functions of all apps and environments.
        crons: scheduled functions, over all deployed apps.
        containers_per_function, scaledown_s, stop_grace_s: lower than Modal's.
        crashes: of an ephemeral app: crashed starts in a row before its inputs fail, and crashes of one input.
        backoff_s, max_backoff_s: the pause after the first crash of a deployed app's start, and the longest one. The
            pauses of Modal are not published.
    """

    containers: int = 100
    gpus: int = 10
    crons: int = 5
    containers_per_function: int = 3
    scaledown_s: float = 5.0
    stop_grace_s: float = 5.0
    crashes: int = 3
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0


class Runner:
    """The scheduler of one fake server."""

    def __init__(self, state: State, launcher: Launcher, limits: Limits, faults: FaultCounter) -> None:
        self._state = state
        self._launcher = launcher
        self._limits = limits
        self._faults = faults
        self._tasks: set[asyncio.Task[None]] = set()
        self._kills: list[Kill] = []
        self._is_closing = False

    # Inputs

    def enqueue(self, given: Input, *, is_redelivery: bool = False) -> Attempt:
        """Queues an input for the containers of its function."""
        attempt = Attempt(given, is_redelivery)
        if given.call.is_cancelled or not given.call.function.app.is_live:
            self.settle(attempt, _terminated())
        else:
            given.call.function.queue.append(attempt)
            self.dispatch(given.call.function)
        return attempt

    def dispatch(self, function: Function) -> None:
        """Assigns queued inputs to idle containers and starts more containers where none is idle."""
        definition = function.effective()
        for attempt in list(function.queue):
            for container in function.containers:
                is_waiting = container.waiter is not None and not container.waiter.done()
                is_fit = container.definition is definition and attempt.given.input_id not in container.running
                if is_waiting and is_fit:
                    function.queue.remove(attempt)
                    self._begin(container, attempt)
                    container.waiter.set_result([attempt])
                    break
        self.scale(function)

    def _begin(self, container: Container, attempt: Attempt) -> None:
        attempt.started_at = time.time()
        container.note(f"begin of {attempt.given.input_id}")
        container.running[attempt.given.input_id] = attempt
        timeout_s = container.definition.function.timeout_secs
        if timeout_s:
            attempt.timer = asyncio.get_running_loop().call_later(timeout_s, self._time_out, container, attempt)

    async def next_attempts(self, container: Container) -> list[Attempt] | None:
        """The next input for a container that asks for one; None when it is to end."""
        if not container.is_ready:
            container.is_ready = True
            container.note("ready")
        container.function.crashed_starts = 0
        while not container.is_retiring:
            container.waiter = asyncio.get_running_loop().create_future()
            self.dispatch(container.function)
            await asyncio.wait({container.waiter}, timeout=self._idle_s(container.function))
            waiter, container.waiter = container.waiter, None
            if waiter.done():
                return waiter.result()
            live = [each for each in container.function.containers if not each.is_retiring]
            if not container.running and len(live) > container.function.autoscaler.min_containers:
                container.is_retiring = True
        return None

    def _idle_s(self, function: Function) -> float:
        return min(float(function.autoscaler.scaledown_window or 60), self._limits.scaledown_s)

    def finish(self, container: Container, item: api_pb2.FunctionPutOutputsItem) -> None:
        """Accepts an outcome from a container; the outcome of an input that it no longer runs is dropped.

        That of a container which is killed, or which a planned kill waits for, is lost with it.
        """
        for kill in list(self._kills):
            self._carry_out(kill, container, is_last_moment=True)
        if container.is_killed:
            return
        attempt = container.running.pop(item.input_id, None)
        if attempt is not None:
            container.function.crashes = 0
            container.note(f"end of {item.input_id}")
            self.settle(attempt, item.result, data_format=item.data_format, container=container)

    def settle(
        self, attempt: Attempt, result: Result, *, data_format: int = 0, container: Container | None = None
    ) -> None:
        """Ends an attempt: retries it by the function's policy, or makes its outcome the input's if that has none."""
        if attempt.timer is not None:
            attempt.timer.cancel()
        attempt.status = result.status
        attempt.done.set()
        given, call = attempt.given, attempt.given.call
        if given.output is not None or (attempt.is_redelivery and result.status != Result.GENERIC_STATUS_SUCCESS):
            return
        if result.status == Result.GENERIC_STATUS_TERMINATED and not result.exception:
            result.exception = "Input was cancelled"
        policy = call.function.effective().function.retry_policy
        if (
            result.status in (Result.GENERIC_STATUS_FAILURE, Result.GENERIC_STATUS_TIMEOUT)
            and call.invocation_type == api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC
            and given.retry_count < policy.retries
            and not call.is_cancelled
        ):
            delay_ms = min(policy.initial_delay_ms * policy.backoff_coefficient**given.retry_count, policy.max_delay_ms)
            given.retry_count += 1
            asyncio.get_running_loop().call_later(delay_ms / 1000, self.enqueue, given)
            return
        given.output = api_pb2.FunctionGetOutputsItem(
            result=result,
            idx=given.index,
            input_id=given.input_id,
            data_format=data_format,
            task_id=container.task_id if container else "",
            input_started_at=attempt.started_at,
            output_created_at=time.time(),
            retry_count=given.retry_count,
        )
        call.outputs.append(given.output)
        call.changed.notify()

    def _time_out(self, container: Container, attempt: Attempt) -> None:
        if container.running.pop(attempt.given.input_id, None) is not None:
            timeout_s = container.definition.function.timeout_secs
            container.note(f"timeout of {attempt.given.input_id}")
            message = f"Task's current input {attempt.given.input_id} hit its timeout of {timeout_s}s"
            self.settle(attempt, Result(status=Result.GENERIC_STATUS_TIMEOUT, exception=message), container=container)
            if container.running:
                self._tell_cancelled(container, [attempt.given.input_id])
            else:
                self.kill(container)

    def cancel(self, call: Call, *, terminate_containers: bool) -> None:
        """Cancels a call: queued inputs end at once; running ones are cancelled by their container's next heartbeat."""
        call.is_cancelled = True
        for attempt in [each for each in call.function.queue if each.given.call is call]:
            call.function.queue.remove(attempt)
            self.settle(attempt, _terminated())
        running = set()
        for container in call.function.containers:
            held = [input_id for input_id, attempt in container.running.items() if attempt.given.call is call]
            running.update(held)
            if held and terminate_containers:
                self.kill(container)
            elif held:
                self._tell_cancelled(container, held)
        for given in call.inputs:
            if given.output is None and given.input_id not in running:
                self.settle(Attempt(given), _terminated())

    def _tell_cancelled(self, container: Container, input_ids: list[str]) -> None:
        container.cancellations.extend(input_ids)
        container.cancelled.notify()

    # Containers

    def scale(self, function: Function) -> None:
        """Starts containers for inputs that find none free, and those that `min_containers` keeps warm.

        Starts none while a deployed app's function pauses after a crash, and none beyond the workspace's limits: what
        waits for those is tried again when a container ends.
        """
        if self._is_closing or not function.app.is_live or time.monotonic() < function.paused_until_s:
            return
        live = [each for each in function.containers if not each.is_retiring and not each.is_ended]
        slots = function.effective().function.max_concurrent_inputs or 1
        free = sum(slots - len(each.running) for each in live)
        limit = min(self._limits.containers_per_function, function.autoscaler.max_containers or 1000)
        while len(live) < limit and (free < len(function.queue) or len(live) < function.autoscaler.min_containers):
            if not self._has_room(function):
                break
            live.append(self._start(function))
            free += slots

    def _has_room(self, function: Function) -> bool:
        """Whether the workspace's limits allow one more container of a function."""
        running = [each for each in self._state.containers.values() if not each.is_ended]
        wanted_gpus = function.effective().gpu_count
        gpus = sum(each.definition.gpu_count for each in running) + wanted_gpus
        return len(running) < self._limits.containers and (not wanted_gpus or gpus <= self._limits.gpus)

    def scale_all(self) -> None:
        """Scales every function: room for a container has come free, or a pause has ended."""
        for function in list(self._state.functions.values()):
            if function.containers or function.queue or function.autoscaler.min_containers:
                self.scale(function)

    def _start(self, function: Function) -> Container:
        task_id = new_id("ta")
        folder = self._state.folder / "containers" / task_id
        container = Container(task_id, function, function.effective(), folder)
        self._state.containers[task_id] = container
        function.containers.append(container)
        task = asyncio.get_running_loop().create_task(self._run(container))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return container

    async def _run(self, container: Container) -> None:
        function = container.definition.function
        timer = asyncio.get_running_loop().call_later(function.startup_timeout_secs or 300, self._start_out, container)
        code = None
        try:
            await asyncio.sleep(self._faults.conditions.boot_s)
            container.note("boot")
            container.process = process = await self._launcher.launch(container, self.layout(container.function.app))
            assert process.stdout is not None
            assert process.stderr is not None
            pumps = [
                asyncio.ensure_future(self._pump(container, process.stdout, api_pb2.FILE_DESCRIPTOR_STDOUT)),
                asyncio.ensure_future(self._pump(container, process.stderr, api_pb2.FILE_DESCRIPTOR_STDERR)),
            ]
            if container.is_ended or self._is_closing:
                self.kill(container)
            code = await process.wait()
            _kill_session(process.pid)
            await asyncio.wait(pumps, timeout=2.0)
        except Exception as error:
            container.failure = Result(status=Result.GENERIC_STATUS_INIT_FAILURE, exception=f"not started: {error!r}")
        finally:
            timer.cancel()
            self._ended(container, code)
            shutil.rmtree(container.folder, ignore_errors=True)

    async def _pump(self, container: Container, source: asyncio.StreamReader, descriptor: int) -> None:
        app = container.function.app
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while piece := await source.read(65536):
            text = decoder.decode(piece)
            container.lines.append(text)
            app.logs.append(
                api_pb2.TaskLogsBatch(
                    task_id=container.task_id,
                    function_id=container.function.function_id,
                    entry_id=str(len(app.logs) + 1),
                    items=[api_pb2.TaskLogs(data=text, file_descriptor=descriptor, timestamp=time.time())],
                )
            )
            app.logged.notify()

    def _start_out(self, container: Container) -> None:
        if not container.is_ready:
            container.note("startup timeout")
            self.kill(container)

    def _ended(self, container: Container, code: int | None) -> None:
        """Settles the inputs of a container that has ended."""
        container.is_ended = container.is_retiring = True
        container.note(f"ended with {code}")
        function = container.function
        function.containers.remove(container)
        has_crashed = bool(container.running)
        for attempt in container.running.values():
            self._rerun(attempt)
        container.running.clear()
        if not self._is_closing and function.app.is_live:
            if not container.is_ready:
                self._on_crashed_start(container, code)
            elif has_crashed:
                function.crashes += 1
                self._pause(function, function.crashes - 1)  # the first one may be a preemption: no pause
        self.dispatch(function)
        self.scale_all()
        self._note_done(function.app)
        self._state.changed.notify()

    def _on_crashed_start(self, container: Container, code: int | None) -> None:
        """After a container ended before it took an input: pauses, or fails what waits if the app is ephemeral."""
        function = container.function
        function.crashed_starts += 1
        if function.app.is_deployed:
            self._pause(function, function.crashed_starts)
        elif container.failure is not None or function.crashed_starts >= self._limits.crashes:
            message = f"container exited with {code} while starting"
            failure = container.failure or Result(status=Result.GENERIC_STATUS_INIT_FAILURE, exception=message)
            while function.queue:
                self.settle(function.queue.popleft(), failure, container=container)
            function.crashed_starts = 0

    def _pause(self, function: Function, crashes: int) -> None:
        """Start no container of a deployed app's function for a while after so many crashes in a row."""
        if crashes and function.app.is_deployed:
            pause_s = min(self._limits.backoff_s * 2 ** (crashes - 1), self._limits.max_backoff_s)
            function.paused_until_s = time.monotonic() + pause_s
            asyncio.get_running_loop().call_later(pause_s + 0.01, self.scale, function)

    def _rerun(self, attempt: Attempt) -> None:
        """Reruns an input whose container died, unless it was cancelled; an ephemeral app's may crash too often."""
        given = attempt.given
        if attempt.timer is not None:
            attempt.timer.cancel()
        has_responded = bool(given.call.data_out) and bool(given.call.function.web_port)
        given.crashes += 1
        if given.call.is_cancelled or not given.call.function.app.is_live:
            self.settle(attempt, _terminated())
        elif has_responded or (not given.call.function.app.is_deployed and given.crashes >= self._limits.crashes):
            message = f"container died {given.crashes} times while running the input"
            self.settle(attempt, Result(status=Result.GENERIC_STATUS_INTERNAL_FAILURE, exception=message))
        else:
            attempt.timer = None
            given.call.function.queue.appendleft(attempt)

    def live_containers(self, app: App) -> list[Container]:
        """The containers of an app whose processes have not ended."""
        return [each for each in self._state.containers.values() if each.function.app is app and not each.is_ended]

    def retire(self, container: Container) -> None:
        """Ends a container after the inputs that it runs now."""
        container.is_retiring = True
        if container.waiter is not None and not container.waiter.done():
            container.waiter.set_result(None)

    def retire_outdated(self, app: App) -> None:
        """Retires the containers of former definitions, and starts those that `min_containers` keeps warm."""
        for container in self.live_containers(app):
            if container.definition is not container.function.effective():
                self.retire(container)
        for function_id in app.function_ids.values():
            self.scale(self._state.functions[function_id])

    def plan(self, kill: Kill) -> None:
        """Kills the container that a plan is of once there is one, and at the latest before its outcome counts."""
        self._kills.append(kill)
        self._look_for(kill)

    def call_off(self, kill: Kill) -> None:
        """Forgets a planned kill that was not carried out."""
        if kill in self._kills:
            self._kills.remove(kill)

    def _look_for(self, kill: Kill) -> None:
        for container in self._state.containers.values():
            self._carry_out(kill, container)
        if kill in self._kills and not self._is_closing:
            asyncio.get_running_loop().call_later(KILL_POLL_S, self._look_for, kill)

    def _carry_out(self, kill: Kill, container: Container, *, is_last_moment: bool = False) -> None:
        """Kills a container if the plan is of it, and of now."""
        tag = container.function.tag
        if kill not in self._kills or kill.name not in (tag, tag.removesuffix(".*")) or container.is_ended:
            return
        begins = [
            attempt.started_at
            for attempt in container.running.values()
            if kill.method in ("", attempt.given.payload.method_name)
        ]
        if not begins or not (is_last_moment or time.time() - min(begins) >= kill.after_s):
            return
        if not kill.when({view.mount_path: view.source for view in container.views.values()}):
            return
        (self.preempt if kill.preempt else self.kill)(container)
        self._kills.remove(kill)
        kill.task_id = container.task_id
        kill.done.set()

    def kill(self, container: Container) -> None:
        """Sends SIGKILL to a container's process and everything that it started."""
        container.is_retiring = container.is_killed = True
        if container.process is not None and container.process.returncode is None:
            _kill_session(container.process.pid)

    def preempt(self, container: Container) -> None:
        """Sends SIGINT to a container, as before a preemption, and SIGKILL after the grace period."""
        container.is_retiring = True
        if container.process is not None and container.process.returncode is None:
            container.process.send_signal(signal.SIGINT)
        asyncio.get_running_loop().call_later(self._limits.stop_grace_s, self.kill, container)

    def stop_app(self, app: App) -> None:
        """Ends an app: queued inputs are cancelled, idle containers exit, busy ones are interrupted."""
        app.state, app.stopped_at = api_pb2.APP_STATE_STOPPED, time.time()
        for call in self._state.calls.values():
            if call.function.app is app and not call.is_finished:
                call.is_cancelled = True
        for function in self._state.functions.values():
            while function.app is app and function.queue:
                self.settle(function.queue.popleft(), _terminated())
        for container in self.live_containers(app):
            self.retire(container)
            if container.running:
                self.preempt(container)
            asyncio.get_running_loop().call_later(self._limits.stop_grace_s, self.kill, container)
        self._note_done(app)

    def _note_done(self, app: App) -> None:
        if not app.is_live and not self.live_containers(app):
            app.is_done = True
            app.logged.notify()

    def layout(self, app: App) -> api_pb2.AppLayout:
        """The app's objects, as a container or a second deploy receives them."""
        functions = [self._state.functions[each] for each in app.function_ids.values()]
        return api_pb2.AppLayout(
            objects=[
                *(
                    api_pb2.Object(object_id=each.function_id, function_handle_metadata=each.metadata)
                    for each in functions
                ),
                *(
                    api_pb2.Object(object_id=each, class_handle_metadata=api_pb2.ClassHandleMetadata())
                    for each in app.class_ids.values()
                ),
            ],
            function_ids=app.function_ids,
            class_ids=app.class_ids,
        )

    async def close(self) -> None:
        """Kills every container and waits until all have ended."""
        self._is_closing = True
        for container in self._state.containers.values():
            self.kill(container)
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        self._launcher.close()


def _terminated() -> Result:
    return Result(status=Result.GENERIC_STATUS_TERMINATED)


def _kill_session(leader: int) -> None:
    for pid in session_pids(leader):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
