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
    StoreUnavailable,
    UnreadableImage,
)
from pipeline.jobs.transfer import Transferred
from pipeline.on_modal.control_channel import ControlChannel, Failure, SavedCall
from pipeline.on_modal.engine_client import MAX_TRIES, Connection, EngineClient, Spawn, stop_generation
from pipeline.on_modal.remote_call import RemoteCall
from tests.fakes.images import draw_figure
from tests.fakes.shared_dict import InMemoryDict
from tests.on_modal.containers import (
    CHANNEL,
    OPTIONS,
    VIEW,
    WAIT_S,
    CallCancelled,
    Containers,
    ScriptedEngine,
    ThreadCall,
    fails,
    never,
    steps_until,
)

DEVICE_LOST = RuntimeError("CUDA error: an illegal memory access was encountered")


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


def ignore(share: float) -> None:
    """An `OnStep`."""


def client(
    containers: Containers,
    channel: ControlChannel,
    *,
    announced: str = "",
    spawn: Spawn | None = None,
    before_spawn: Callable[[], None] = lambda: None,
    reopen: Callable[[str], RemoteCall] | None = None,
    patience_s: float = WAIT_S,
) -> EngineClient:
    return EngineClient(
        lambda: Connection(find_spec("preview"), spawn or containers.spawn, before_spawn),
        channel=channel,
        reopen=reopen or containers.reopen,
        announced=announced,
        poll_s=0.005,
        patience_s=patience_s,
    )


def transfer(engine: EngineClient, on_step: OnStep = ignore) -> Transferred:
    """Run the client where there is no answer yet."""
    with pytest.raises(Transferred) as raised:
        engine([VIEW], OPTIONS, on_step)
    return raised.value


def generate(containers: Containers, channel: ControlChannel, *, views: Any = (VIEW,)) -> Generation:
    """Run the client as the processes of a job do, one after another, up to the last try's end."""
    announced = ""
    for _ in range(MAX_TRIES + 1):
        try:
            return client(containers, channel, announced=announced)(views, OPTIONS, ignore)
        except Transferred as transferred:
            transferred.start()
            announced = channel.saved_call().call_id
            containers.calls[announced].join()
    raise AssertionError("more tries than allowed")


def wait_until_running(channel: ControlChannel) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while channel.progress(None) is None:
        assert time.monotonic() < deadline_s, "timed out"
        time.sleep(0.002)


def test_a_remote_generation_equals_a_local_one(entries: InMemoryDict, channel: ControlChannel) -> None:
    views = [draw_figure(64)]

    remote_generation = generate(Containers(PreviewEngine(), entries=entries), channel, views=views)

    local = PreviewEngine().generate(views, OPTIONS)
    assert np.array_equal(remote_generation.mesh.vertices, local.mesh.vertices)
    assert np.array_equal(remote_generation.mesh.faces, local.mesh.faces)
    normals = remote_generation.mesh.vertex_normals()
    colours = remote_generation.attribute_source.attributes_at(remote_generation.mesh.vertices, normals).base_colour
    assert np.array_equal(colours, local.attribute_source.attributes_at(local.mesh.vertices, normals).base_colour)
    assert (remote_generation.engine, remote_generation.seed) == ("preview", OPTIONS.seed)
    assert remote_generation.gpu_seconds == 0.0 < remote_generation.elsewhere_s


def test_nothing_is_started_before_the_job_is_transferred(entries: InMemoryDict, channel: ControlChannel) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)

    handed = transfer(client(containers, channel))
    assert containers.calls == {} and channel.saved_call() == SavedCall()
    handed.start()

    assert handed.worker_id == f"generation-{CHANNEL}"
    assert list(containers.calls) == [channel.saved_call().call_id] and channel.saved_call().tries == 1


def test_the_start_of_a_container_is_cancelled_before_the_generation_takes_its_place(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    """Two inputs that wait at once would start two containers."""
    containers, order = Containers(ScriptedEngine(), entries=entries), []

    def spawn(*arguments: Any) -> ThreadCall:
        order.append("spawn")
        return containers.spawn(*arguments)

    transfer(client(containers, channel, spawn=spawn, before_spawn=lambda: order.append("cancel"))).start()

    assert order == ["cancel", "spawn"]


def test_a_generation_that_waits_or_runs_is_not_started_again(
    entries: InMemoryDict, channel: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(ScriptedEngine(steps_until(released.is_set)), entries=entries)
    transfer(client(containers, channel)).start()

    for announced in ("", "call-1"):
        transfer(client(containers, channel, announced=announced, patience_s=0.02)).start()

    assert list(containers.calls) == ["call-1"] and channel.saved_call().tries == 1


def test_an_announced_answer_is_waited_for_until_it_has_arrived(entries: InMemoryDict, channel: ControlChannel) -> None:
    may_arrive = threading.Event()
    containers = Containers(ScriptedEngine(steps_until(may_arrive.is_set)), entries=entries)
    transfer(client(containers, channel)).start()
    looks = []

    def on_step(share: float) -> None:
        looks.append(share)
        if len(looks) == 3:
            may_arrive.set()

    generation = client(containers, channel, announced="call-1")([VIEW], OPTIONS, on_step)

    assert generation.seed == OPTIONS.seed and len(looks) >= 3


def test_the_answer_of_the_call_that_announced_it_is_used_where_the_record_names_another(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(gpu_seconds=2.0), entries=entries)
    containers.spawn([VIEW], OPTIONS)
    channel.save_call(SavedCall("another", tries=1, gpu_seconds=1.0))

    generation = client(containers, channel, announced="call-1")([VIEW], OPTIONS, ignore)

    assert generation.gpu_seconds == 3.0


def test_a_finished_generation_is_returned_again_to_the_next_attempt_and_counted_once(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(gpu_seconds=2.0), entries=entries)
    first = generate(containers, channel)

    again = client(containers, channel)([VIEW], OPTIONS, ignore)

    assert (first.gpu_seconds, again.gpu_seconds) == (2.0, 2.0)
    assert list(containers.calls) == ["call-1"]


class FlakyCall:
    """A call whose connection fails at every second look."""

    def __init__(self, call: ThreadCall) -> None:
        self.object_id = call.object_id
        self._call = call
        self._looks = 0

    def get(self, timeout: float | None = None) -> Any:
        self._looks += 1
        if self._looks % 2:
            raise ConnectionError("connection reset by peer")
        return self._call.get(timeout)

    def cancel(self) -> None:
        self._call.cancel()


def test_a_connection_that_fails_does_not_fail_the_generation(entries: InMemoryDict, channel: ControlChannel) -> None:
    containers = Containers(ScriptedEngine(gpu_seconds=3.0), entries=entries)
    call = FlakyCall(containers.spawn([VIEW], OPTIONS))
    channel.save_call(SavedCall("call-1", tries=1))

    transfer(client(containers, channel, reopen=lambda _: call))  # nothing is known of the call
    generation = client(containers, channel, announced="call-1", reopen=lambda _: call)([VIEW], OPTIONS, ignore)

    assert generation.gpu_seconds == 3.0 and len(containers.calls) == 1


def test_a_lost_generation_is_started_again(entries: InMemoryDict, channel: ControlChannel) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)
    channel.save_call(SavedCall("forgotten", tries=1))
    channel.request_cancel()  # meant for the lost one
    channel.report(0.9)

    transfer(client(containers, channel)).start()

    assert not channel.is_cancel_requested() and channel.progress(None) != 0.9
    assert (channel.saved_call().call_id, channel.saved_call().tries) == ("call-1", 2)


def test_a_generation_that_was_given_up_fails_with_the_reason(entries: InMemoryDict, channel: ControlChannel) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)
    channel.save_call(SavedCall("cancelled", tries=1, gpu_seconds=1.5, failure="no container started"))

    with pytest.raises(EngineFailed, match="no container started") as raised:
        client(containers, channel)([VIEW], OPTIONS, ignore)

    assert raised.value.retryable and raised.value.gpu_seconds == 1.5


def test_a_generation_whose_device_is_lost_is_retried_on_another_container(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    broken = ScriptedEngine(fails(DEVICE_LOST, after_s=0.05), gpu_seconds=1.0)
    containers = Containers(broken, ScriptedEngine(gpu_seconds=2.0), entries=entries)

    generation = generate(containers, channel)

    assert len(containers.calls) == 2
    assert 2.05 <= generation.gpu_seconds < 2.05 + WAIT_S  # the sum of both


def test_at_most_max_tries_containers_are_tried(entries: InMemoryDict, channel: ControlChannel) -> None:
    broken = [ScriptedEngine(fails(DEVICE_LOST, after_s=0.03), gpu_seconds=1.0) for _ in range(MAX_TRIES + 1)]
    containers = Containers(*broken, entries=entries)

    with pytest.raises(EngineFailed, match=r"engine preview failed for an internal reason \(RuntimeError\)") as raised:
        generate(containers, channel)

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
        generate(containers, channel)
    assert len(containers.calls) == 1
    assert raised.value.gpu_seconds == 0.0  # it ran on a CPU


def test_containers_that_give_no_answer_fail_the_generation_after_max_tries(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(entries=entries)

    with pytest.raises(EngineFailed, match="engine preview gave no answer"):
        generate(containers, channel)

    assert len(containers.calls) == MAX_TRIES


def test_a_generation_that_was_cancelled_for_another_attempt_is_started_again(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(steps_until(never), gpu_seconds=2.0), entries=entries)
    transfer(client(containers, channel)).start()
    wait_until_running(channel)
    channel.request_cancel()
    containers.calls["call-1"].join()

    generation = generate(containers, channel)

    assert list(containers.calls) == ["call-1", "call-2"]
    cancelled, finished = (call.get() for call in containers.calls.values())
    assert isinstance(cancelled, Failure) and cancelled.gpu_seconds > 0
    assert generation.gpu_seconds == cancelled.gpu_seconds + finished.gpu_seconds


def test_the_record_of_the_version_before_is_read(entries: InMemoryDict, channel: ControlChannel) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)
    entries.put(f"{CHANNEL}/call", containers.spawn([VIEW], OPTIONS).object_id)
    containers.calls["call-1"].join()

    assert client(containers, channel)([VIEW], OPTIONS, ignore).seed == OPTIONS.seed


def test_a_channel_that_cannot_be_read_starts_nothing(entries: InMemoryDict) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)

    with pytest.raises(StoreUnavailable):
        client(containers, ControlChannel(UnavailableDict(), CHANNEL))([VIEW], OPTIONS, ignore)

    assert containers.calls == {}


def test_a_container_shows_up_with_its_call_where_the_process_that_started_it_died(
    entries: InMemoryDict, channel: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(ScriptedEngine(steps_until(released.is_set)), entries=entries)
    channel.save_call(SavedCall("failed", tries=1, gpu_seconds=4.0))

    containers.spawn([VIEW], OPTIONS)  # and not saved
    wait_until_running(channel)

    assert (channel.saved_call().call_id, channel.saved_call().gpu_seconds) == ("call-1", 4.0)


def test_views_travel_as_the_model_reads_them(entries: InMemoryDict, channel: ControlChannel) -> None:
    sent: list[Any] = []

    def spawn(views: Any, *arguments: Any) -> ThreadCall:
        sent.extend(views)
        return ThreadCall("call", lambda: Failure(EngineFailed("enough")))

    engine = EngineClient(
        lambda: Connection(find_spec("trellis"), spawn), channel=channel, reopen=lambda _: ThreadCall("", int)
    )
    with pytest.raises(Transferred) as raised:
        engine([draw_figure(600)], OPTIONS, ignore)
    raised.value.start()

    assert [view.shape for view in sent] == [(112, 112, 3)]


def test_too_many_views_are_refused_before_anything_is_spawned(entries: InMemoryDict, channel: ControlChannel) -> None:
    containers = Containers(ScriptedEngine(), entries=entries)

    with pytest.raises(InvalidRequest, match="engine preview takes at most 8 views, got 9"):
        client(containers, channel)([VIEW] * 9, OPTIONS, ignore)
    assert containers.calls == {}


def test_a_cancellation_is_seen_before_and_while_an_answer_arrives(
    entries: InMemoryDict, channel: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(ScriptedEngine(steps_until(released.is_set)), entries=entries)
    transfer(client(containers, channel)).start()
    looks = []

    def on_step(share: float) -> None:
        looks.append(share)
        if len(looks) == 3:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        client(containers, channel, announced="call-1")([VIEW], OPTIONS, on_step)


def test_a_running_generation_is_asked_to_stop_and_its_gpu_seconds_count(
    entries: InMemoryDict, channel: ControlChannel
) -> None:
    containers = Containers(ScriptedEngine(steps_until(never), gpu_seconds=1.0), entries=entries)
    transfer(client(containers, channel)).start()
    channel.save_call(SavedCall("call-1", tries=2, gpu_seconds=5.0))
    wait_until_running(channel)

    gpu_seconds = stop_generation(channel, containers.reopen, grace_s=WAIT_S)

    cancelled = containers.calls["call-1"]
    assert not cancelled.was_cancelled
    assert isinstance(cancelled.get(timeout=WAIT_S).error, Cancelled)
    assert gpu_seconds == 5.0 + cancelled.get(timeout=WAIT_S).gpu_seconds > 5.0


def test_a_generation_that_no_container_has_begun_is_cancelled_at_once(channel: ControlChannel) -> None:
    call = ThreadCall("call-1", lambda: time.sleep(0.01))
    channel.save_call(SavedCall("call-1", tries=1))

    assert stop_generation(channel, lambda _: call, grace_s=WAIT_S) == 0.0
    with pytest.raises(CallCancelled):
        call.get()


def test_a_call_that_does_not_stop_in_time_is_cancelled(
    entries: InMemoryDict, channel: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(ScriptedEngine(lambda on_step: released.wait(WAIT_S)), entries=entries)
    transfer(client(containers, channel)).start()
    wait_until_running(channel)

    assert stop_generation(channel, containers.reopen, grace_s=0.05) == 0.0
    assert containers.calls["call-1"].was_cancelled


def test_a_generation_that_finishes_during_the_cancel_is_counted(
    entries: InMemoryDict, channel: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(ScriptedEngine(lambda on_step: released.wait(WAIT_S), gpu_seconds=3.0), entries=entries)
    transfer(client(containers, channel)).start()
    wait_until_running(channel)
    released.set()

    assert stop_generation(channel, containers.reopen, grace_s=WAIT_S) == 3.0


def test_nothing_is_stopped_where_no_generation_was_started(channel: ControlChannel) -> None:
    assert stop_generation(channel, lambda _: ThreadCall("", int)) == 0.0
