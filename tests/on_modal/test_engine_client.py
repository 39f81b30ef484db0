"""The client side of a remote generation, with real engine servers on the other side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pipeline.engines.base import Generation, OnStep
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.engines.registry import find_spec
from pipeline.errors import (
    Cancelled,
    EngineFailed,
    ImageTo3DError,
    InvalidRequest,
    OutOfMemory,
    UnreadableImage,
    WeightsUnusable,
)
from pipeline.on_modal.control_channel import ControlChannel, Failure
from pipeline.on_modal.engine_client import MAX_TRIES, Connection, EngineClient, Spawn
from pipeline.on_modal.remote_call import RemoteCall
from tests.fakes.images import draw_figure
from tests.fakes.shared_dict import InMemoryDict
from tests.on_modal.containers import (
    CHANNEL,
    OPTIONS,
    VIEW,
    WAIT_S,
    Containers,
    ScriptedEngine,
    ThreadCall,
    fails,
    never,
    steps_for,
    steps_until,
)

DEVICE_LOST = RuntimeError("CUDA error: an illegal memory access was encountered")


class Killed(BaseException):
    """Kills a process at any point."""


class Steps:
    """An `OnStep` that records its calls; raises at a given call, and after `WAIT_S`."""

    def __init__(self, *, raises: BaseException | None = None, at: int = 3) -> None:
        self.shares: list[float] = []
        self._raises = raises
        self._at = at
        self._deadline_s = time.monotonic() + WAIT_S

    def __call__(self, share: float) -> None:
        self.shares.append(share)
        if self._raises is not None and len(self.shares) >= self._at:
            raise self._raises
        assert time.monotonic() < self._deadline_s, "timed out"


class UnavailableDict(InMemoryDict):
    """A dictionary that cannot be reached."""

    def get(self, key: str, default: Any = None) -> Any:
        raise ConnectionError("no route")

    def put(self, key: str, value: Any) -> None:
        raise ConnectionError("no route")

    def pop(self, key: str, default: Any = None) -> Any:
        raise ConnectionError("no route")


@pytest.fixture
def entries() -> InMemoryDict:
    return InMemoryDict()


@pytest.fixture
def channel(entries: InMemoryDict) -> ControlChannel:
    return ControlChannel(entries, CHANNEL)


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Ends what would otherwise keep running after its test."""
    event = threading.Event()
    yield event
    event.set()


def remote(
    containers: Containers,
    channel: ControlChannel,
    *,
    spawn: Spawn | None = None,
    starting: RemoteCall | None = None,
    start_timeout_s: float = WAIT_S,
    stop_grace_s: float = WAIT_S,
) -> EngineClient:
    return EngineClient(
        lambda: Connection(find_spec("preview"), spawn or containers.spawn, starting),
        channel=channel,
        reopen=containers.reopen,
        poll_s=0.005,
        start_timeout_s=start_timeout_s,
        stop_grace_s=stop_grace_s,
    )


def generate(engine: EngineClient, on_step: OnStep | None = None) -> Generation:
    return engine([VIEW], OPTIONS, on_step or Steps())


def left_of(entries: InMemoryDict) -> list[str]:
    """The entries of generations; when a container of an engine was last seen concerns them all."""
    return [key for key in entries.keys() if key != "alive/preview"]  # noqa: SIM118  # not a dict


def ends_with(event: threading.Event) -> Callable[[], bool]:
    """The work of a call that returns when an event is set."""
    return lambda: event.wait(WAIT_S)


def is_running(channel: ControlChannel) -> bool:
    """Whether the container has reported progress."""
    return channel.progress(None) is not None


def wait_until_running(channel: ControlChannel) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_running(channel):
        assert time.monotonic() < deadline_s, "timed out"
        time.sleep(0.002)


def test_a_remote_generation_equals_a_local_one(entries: InMemoryDict, channel: ControlChannel) -> None:
    views = [draw_figure(64)]

    remote_generation = remote(Containers(PreviewEngine(), entries=entries), channel)(views, OPTIONS, Steps())

    local = PreviewEngine().generate(views, OPTIONS)
    assert np.array_equal(remote_generation.mesh.vertices, local.mesh.vertices)
    assert np.array_equal(remote_generation.mesh.faces, local.mesh.faces)
    normals = remote_generation.mesh.vertex_normals()
    colours = remote_generation.attribute_source.attributes_at(remote_generation.mesh.vertices, normals).base_colour
    assert np.array_equal(colours, local.attribute_source.attributes_at(local.mesh.vertices, normals).base_colour)
    assert (remote_generation.engine, remote_generation.seed, remote_generation.gpu_seconds) == (
        "preview",
        OPTIONS.seed,
        0.0,
    )


def test_a_generation_starts_only_when_the_container_is_ready(entries: InMemoryDict, channel: ControlChannel) -> None:
    containers, is_ready, calls_before = Containers(ScriptedEngine(), entries=entries), threading.Event(), []

    def on_step(share: float) -> None:
        calls_before.append(len(containers.calls))
        if len(calls_before) == 3:
            is_ready.set()

    generation = generate(remote(containers, channel, starting=ThreadCall("wake", ends_with(is_ready))), on_step)

    assert generation.seed == OPTIONS.seed
    assert calls_before[:3] == [0, 0, 0]
    assert len(containers.calls) == 1


def test_a_container_that_starts_too_slowly_is_not_waited_for_any_longer(
    entries: InMemoryDict, channel: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)
    starting = ThreadCall("wake", ends_with(released))
    started_s = time.monotonic()

    generate(remote(containers, channel, starting=starting, start_timeout_s=0.05))

    assert len(containers.calls) == 1
    assert 0.05 <= time.monotonic() - started_s < WAIT_S / 2


def test_a_container_that_fails_to_start_does_not_stop_the_generation(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)

    def fail() -> None:
        raise RuntimeError("no accelerator is free")

    generate(remote(containers, channel, starting=ThreadCall("wake", fail)))

    assert len(containers.calls) == 1


def test_a_container_whose_engine_cannot_be_started_is_one_of_the_tries(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)
    failure = Failure(EngineFailed("engine preview found no accelerator"), retry_on_other_container=True)

    generate(remote(containers, channel, starting=ThreadCall("wake", lambda: failure)))

    assert len(containers.calls) == 1


def test_an_engine_that_no_container_can_start_fails_without_a_generation(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)
    failure = Failure(WeightsUnusable("flow.safetensors is truncated"))

    with pytest.raises(WeightsUnusable, match=r"flow\.safetensors is truncated"):
        generate(remote(containers, channel, starting=ThreadCall("wake", lambda: failure)))
    assert containers.calls == {}


class FlakyCall:
    """A call whose connection fails at every second look, until the call has ended."""

    def __init__(self, call: ThreadCall) -> None:
        self.object_id = call.object_id
        self.errors = 0
        self._call = call
        self._looks = 0

    def get(self, timeout: float | None = None) -> Any:
        self._looks += 1
        if self._looks % 2:
            self.errors += 1
            raise ConnectionError("connection reset by peer")
        return self._call.get(timeout)

    def cancel(self) -> None:
        self._call.cancel()


def test_a_connection_that_fails_while_the_client_waits_does_not_fail_the_generation(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(steps_for(0.1), gpu_seconds=3.0), entries=entries)
    calls: list[FlakyCall] = []

    def spawn(*arguments: Any) -> FlakyCall:
        calls.append(FlakyCall(containers.spawn(*arguments)))
        return calls[-1]

    generation = generate(remote(containers, channel, spawn=spawn))

    assert generation.gpu_seconds == 3.0
    assert calls[0].errors > 1 and len(calls) == 1


class PendingCall:
    """A call for which no container comes."""

    object_id = "pending"

    def __init__(self) -> None:
        self.was_cancelled = False

    def get(self, timeout: float | None = None) -> Any:
        time.sleep(timeout or 0.0)
        raise TimeoutError

    def cancel(self) -> None:
        self.was_cancelled = True


def impatient(call: PendingCall, entries: InMemoryDict) -> EngineClient:
    """A client that gives up after 0.05 s without a sign of life."""
    return EngineClient(
        lambda: Connection(find_spec("preview"), lambda *_: call),
        channel=ControlChannel(entries, CHANNEL),
        reopen=lambda call_id: call,
        poll_s=0.005,
        first_sign_timeout_s=0.05,
    )


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_generation_that_no_container_takes_is_cancelled_and_fails_with_the_reason(
    entries: InMemoryDict, channel: ControlChannel, is_resumed: bool
) -> None:
    call = PendingCall()
    if is_resumed:
        channel.save_call_id(call.object_id)

    with pytest.raises(EngineFailed, match=r"no container of engine preview started within 0\.05 s") as raised:
        generate(impatient(call, entries))

    assert call.was_cancelled and raised.value.retryable
    assert left_of(entries) == []


def test_a_generation_waits_while_containers_of_its_engine_work_on_others(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    call, shares = PendingCall(), []

    def on_step(share: float) -> None:
        shares.append(share)
        channel.report_alive("preview")
        if len(shares) == 40:  # four times as long as without a sign of life
            raise Cancelled("stop")

    client = impatient(call, entries)
    client._stop_grace_s = 0.0
    with pytest.raises(Cancelled):
        generate(client, on_step)

    assert len(shares) == 40


def test_views_travel_as_the_model_reads_them(entries: InMemoryDict, channel: ControlChannel) -> None:
    sent: list[Any] = []

    def spawn(views: Any, *arguments: Any) -> ThreadCall:
        sent.extend(views)
        return ThreadCall("call", lambda: Failure(EngineFailed("enough")))

    client = EngineClient(
        lambda: Connection(find_spec("trellis"), spawn), channel=channel, reopen=lambda _: ThreadCall("", int)
    )
    with pytest.raises(EngineFailed, match="enough"):
        client([draw_figure(600)], OPTIONS, Steps())

    assert [view.shape for view in sent] == [(112, 112, 3)]


def test_a_cancel_before_the_container_is_ready_starts_nothing(
    entries: InMemoryDict, channel: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)
    engine = remote(containers, channel, starting=ThreadCall("wake", ends_with(released)))

    with pytest.raises(Cancelled):
        generate(engine, Steps(raises=Cancelled("stop")))
    assert containers.calls == {}
    assert left_of(entries) == []


def test_progress_reaches_the_client(entries: InMemoryDict, channel: ControlChannel) -> None:
    steps = Steps()

    def work(on_step: OnStep) -> None:
        for share in (0.25, 0.75):
            on_step(share)
            while share not in steps.shares:
                time.sleep(0.002)

    generate(remote(Containers(ScriptedEngine(work), entries=entries), channel), steps)

    assert [share for share in dict.fromkeys(steps.shares) if share] == [0.25, 0.75]


def test_a_generation_that_a_killed_attempt_started_is_resumed_and_not_started_again(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    may_finish = threading.Event()
    containers = Containers(ScriptedEngine(steps_until(may_finish.is_set)), entries=entries)
    with pytest.raises(Killed):
        generate(remote(containers, channel), Steps(raises=Killed()))

    may_finish.set()
    generation = generate(remote(containers, channel))

    assert generation.seed == OPTIONS.seed
    assert list(containers.calls) == ["call-1"]


def test_a_finished_generation_is_returned_again_to_the_next_attempt_and_counted_once(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(gpu_seconds=2.0), entries=entries)
    generate(remote(containers, channel))

    again = generate(remote(containers, channel))

    assert again.gpu_seconds == 2.0
    assert list(containers.calls) == ["call-1"]


def test_a_lost_generation_of_an_earlier_attempt_is_started_again(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(steps_for(0.1)), entries=entries)
    channel.save_call_id("forgotten")
    channel.request_cancel()  # meant for the lost one

    generate(remote(containers, channel))

    assert len(containers.calls) == 1


def test_a_generation_that_another_attempt_cancelled_is_started_again(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(steps_until(never), steps_for(0.1), gpu_seconds=2.0), entries=entries)
    channel.save_call_id(containers.spawn([VIEW], OPTIONS).object_id)
    wait_until_running(channel)
    channel.request_cancel()

    generation = generate(remote(containers, channel))

    assert list(containers.calls) == ["call-1", "call-2"]
    assert 2.0 < generation.gpu_seconds < 2.0 + WAIT_S  # includes that of the cancelled one


def test_a_container_failure_of_an_earlier_attempt_is_retried_on_another_container(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(fails(DEVICE_LOST)), ScriptedEngine(), entries=entries)
    channel.save_call_id(containers.spawn([VIEW], OPTIONS).object_id)

    generate(remote(containers, channel))

    assert len(containers.calls) == 2


def test_an_engine_failure_of_an_earlier_attempt_is_the_answer(entries: InMemoryDict, channel: ControlChannel) -> None:
    containers = Containers(ScriptedEngine(fails(UnreadableImage("an empty image"))), entries=entries)
    channel.save_call_id(containers.spawn([VIEW], OPTIONS).object_id)

    with pytest.raises(UnreadableImage, match="an empty image"):
        generate(remote(containers, channel))
    assert len(containers.calls) == 1


def test_a_generation_whose_device_is_lost_is_retried_on_another_container(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    broken = ScriptedEngine(fails(DEVICE_LOST, after_s=0.05), gpu_seconds=1.0)
    containers = Containers(broken, ScriptedEngine(gpu_seconds=2.0), entries=entries)

    generation = generate(remote(containers, channel))

    assert len(containers.calls) == 2
    assert 2.05 <= generation.gpu_seconds < 2.05 + WAIT_S  # the sum of both


def test_at_most_max_tries_containers_are_tried(entries: InMemoryDict, channel: ControlChannel) -> None:
    broken = [ScriptedEngine(fails(DEVICE_LOST, after_s=0.03), gpu_seconds=1.0) for _ in range(MAX_TRIES + 1)]
    containers = Containers(*broken, entries=entries)

    with pytest.raises(EngineFailed, match=r"engine preview failed for an internal reason \(RuntimeError\)") as raised:
        generate(remote(containers, channel))
    assert len(containers.calls) == MAX_TRIES
    assert MAX_TRIES * 0.03 <= raised.value.gpu_seconds < WAIT_S


@pytest.mark.parametrize(
    ("failure", "type_", "message"),
    [
        (EngineFailed("no voxel is occupied"), EngineFailed, "no voxel is occupied"),
        (UnreadableImage("an empty image"), UnreadableImage, "an empty image"),
        (OutOfMemory("1.0 of 40.0 GB are free"), OutOfMemory, "1.0 of 40.0 GB are free"),
        (ValueError("a shape"), EngineFailed, r"failed for an internal reason \(ValueError\)"),
    ],
)
def test_a_failure_that_another_container_cannot_avoid_is_raised_at_once(
    entries: InMemoryDict, channel: ControlChannel, failure: Exception, type_: type[ImageTo3DError], message: str
) -> None:
    containers = Containers(ScriptedEngine(fails(failure)), ScriptedEngine(), entries=entries)

    with pytest.raises(type_, match=message) as raised:
        generate(remote(containers, channel))
    assert len(containers.calls) == 1
    assert raised.value.gpu_seconds == 0.0  # it ran on a CPU


def test_a_cancel_asks_the_container_to_stop(entries: InMemoryDict, channel: ControlChannel) -> None:
    containers = Containers(ScriptedEngine(steps_for(0.05), steps_until(never), gpu_seconds=1.0), entries=entries)
    generate(remote(containers, channel))
    channel.clear()

    with pytest.raises(Cancelled) as raised:
        generate(remote(containers, channel), Steps(raises=Cancelled("stop")))

    cancelled = containers.calls["call-2"]
    assert not cancelled.was_cancelled
    assert isinstance(cancelled.get(timeout=WAIT_S).error, Cancelled)
    assert raised.value.gpu_seconds == cancelled.get(timeout=WAIT_S).gpu_seconds > 0
    assert left_of(entries) == []


def test_a_call_that_does_not_stop_in_time_is_cancelled(
    entries: InMemoryDict, channel: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(ScriptedEngine(lambda on_step: released.wait(WAIT_S)), entries=entries)
    started_s = time.monotonic()

    with pytest.raises(Cancelled):
        generate(remote(containers, channel, stop_grace_s=0.1), Steps(raises=Cancelled("stop")))

    assert containers.calls["call-1"].was_cancelled
    assert 0.1 <= time.monotonic() - started_s < WAIT_S / 2
    assert left_of(entries) == []


def test_a_generation_that_finishes_during_the_cancel_is_counted(
    entries: InMemoryDict, channel: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(ScriptedEngine(lambda on_step: released.wait(WAIT_S), gpu_seconds=3.0), entries=entries)

    def on_step(share: float) -> None:
        released.set()
        raise Cancelled("stop")

    with pytest.raises(Cancelled) as raised:
        generate(remote(containers, channel), on_step)
    assert raised.value.gpu_seconds == 3.0


def test_a_client_that_is_used_twice_counts_each_generation_once(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    engine = remote(Containers(ScriptedEngine(gpu_seconds=2.0), entries=entries), channel)

    assert [generate(engine).gpu_seconds for _ in range(2)] == [2.0, 2.0]


@pytest.mark.parametrize("is_tried_before", [False, True])
def test_a_lost_container_fails_the_generation_with_a_message(
    entries: InMemoryDict, channel: ControlChannel, is_tried_before: bool
) -> None:
    broken = ScriptedEngine(fails(DEVICE_LOST, after_s=0.05), gpu_seconds=1.0)
    containers = Containers(*([broken] if is_tried_before else []), entries=entries)

    with pytest.raises(EngineFailed, match=r"engine preview gave no answer \(NoContainer\)") as raised:
        generate(remote(containers, channel))
    assert (raised.value.gpu_seconds >= 0.05) is is_tried_before
    assert left_of(entries) == []


def test_an_unexpected_answer_fails_the_generation_with_a_message(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(entries=entries)

    with pytest.raises(EngineFailed, match="engine preview answered with int"):
        generate(remote(containers, channel, spawn=lambda *_: ThreadCall("call", lambda: 42)))
    assert left_of(entries) == []


@pytest.mark.parametrize("failure", [None, UnreadableImage("an empty image"), DEVICE_LOST])
def test_only_the_call_id_of_a_successful_generation_stays_in_the_channel(
    entries: InMemoryDict, channel: ControlChannel, failure: Exception | None
) -> None:
    actions = [steps_for(0.05)] if failure is None else [fails(failure)]
    containers = Containers(*(ScriptedEngine(*actions) for _ in range(MAX_TRIES)), entries=entries)
    steps = Steps()

    try:
        generate(remote(containers, channel), steps)
    except ImageTo3DError:
        assert failure is not None
    assert containers.calls
    assert left_of(entries) == ([f"{CHANNEL}/call"] if failure is None else [])


def test_without_the_channel_a_generation_succeeds_without_progress() -> None:
    entries, steps = UnavailableDict(), Steps()

    generation = generate(
        remote(Containers(ScriptedEngine(steps_for(0.1)), entries=entries), ControlChannel(entries, CHANNEL)), steps
    )

    assert generation.seed == OPTIONS.seed
    assert set(steps.shares) == {0.0}


def test_without_the_channel_a_cancel_cancels_the_remote_call(released: threading.Event) -> None:
    entries = UnavailableDict()
    containers = Containers(ScriptedEngine(steps_until(released.is_set)), entries=entries)

    with pytest.raises(Cancelled):
        generate(
            remote(containers, ControlChannel(entries, CHANNEL), stop_grace_s=0.05), Steps(raises=Cancelled("stop"))
        )
    assert containers.calls["call-1"].was_cancelled
    released.set()
    containers.calls["call-1"].join()


def test_too_many_views_are_refused_before_anything_is_spawned(entries: InMemoryDict, channel: ControlChannel) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)

    with pytest.raises(InvalidRequest, match="engine preview takes at most 8 views, got 9"):
        remote(containers, channel)([VIEW] * 9, OPTIONS, Steps())
    assert containers.calls == {}
