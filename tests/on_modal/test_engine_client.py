"""The caller's side of a remote generation, with real hosts on the other side."""

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
from pipeline.errors import Cancelled, EngineFailed, ImageTo3DError, InvalidRequest, OutOfMemory, UnreadableImage
from pipeline.on_modal.control_channel import ControlChannel
from pipeline.on_modal.engine_client import MAX_TRIES, RemoteCall, EngineClient, Spawn
from pipeline.on_modal.shared_dict import InMemoryDict
from tests.fakes.images import draw_figure
from tests.on_modal.containers import (
    CHANNEL,
    OPTIONS,
    VIEW,
    WAIT_S,
    Containers,
    MadeEngine,
    ThreadCall,
    fails,
    never,
    steps_for,
    steps_until,
)

DEVICE_LOST = RuntimeError("CUDA error: an illegal memory access was encountered")


class Killed(BaseException):
    """Ends a process wherever it stands."""


class Steps:
    """An `OnStep` that remembers what it heard; raises when it is told to, and when it hears too much."""

    def __init__(self, *, raises: BaseException | None = None, at: int = 3) -> None:
        self.heard: list[float] = []
        self._raises = raises
        self._at = at
        self._deadline_s = time.monotonic() + WAIT_S

    def __call__(self, share: float) -> None:
        self.heard.append(share)
        if self._raises is not None and len(self.heard) >= self._at:
            raise self._raises
        assert time.monotonic() < self._deadline_s, "waited in vain"


class DownNotes(InMemoryDict):
    """A map that nobody reaches."""

    def get(self, key: str, default: Any = None) -> Any:
        raise ConnectionError("no route")

    def put(self, key: str, value: Any) -> None:
        raise ConnectionError("no route")

    def pop(self, key: str, default: Any = None) -> Any:
        raise ConnectionError("no route")


@pytest.fixture
def notes() -> InMemoryDict:
    return InMemoryDict()


@pytest.fixture
def line(notes: InMemoryDict) -> ControlChannel:
    return ControlChannel(notes, CHANNEL)


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Ends what would otherwise run on after its test."""
    event = threading.Event()
    yield event
    event.set()


def remote(
    containers: Containers,
    line: ControlChannel,
    *,
    spawn: Spawn | None = None,
    woken: RemoteCall | None = None,
    awake_s: float = WAIT_S,
    stop_grace_s: float = WAIT_S,
) -> EngineClient:
    return EngineClient(
        find_spec("preview"),
        line=line,
        spawn=spawn or containers.spawn,
        reopen=containers.reopen,
        woken=woken,
        poll_s=0.005,
        awake_s=awake_s,
        stop_grace_s=stop_grace_s,
    )


def generate(engine: EngineClient, on_step: OnStep | None = None) -> Generation:
    return engine([VIEW], OPTIONS, on_step or Steps())


def ends_with(event: threading.Event) -> Callable[[], bool]:
    """The work of a call that ends when something has happened."""
    return lambda: event.wait(WAIT_S)


def is_running(line: ControlChannel) -> bool:
    """Whether the container has said something."""
    return line.progress(None) is not None


def wait_until_running(line: ControlChannel) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_running(line):
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.002)


def test_a_generation_from_a_container_equals_one_made_here(notes: InMemoryDict, line: ControlChannel) -> None:
    views = [draw_figure(64)]

    there = remote(Containers(PreviewEngine(), notes=notes), line)(views, OPTIONS, Steps())

    here = PreviewEngine().generate(views, OPTIONS)
    assert np.array_equal(there.mesh.vertices, here.mesh.vertices)
    assert np.array_equal(there.mesh.faces, here.mesh.faces)
    normals = there.mesh.vertex_normals()
    colours = there.colour_source.colours_at(there.mesh.vertices, normals)
    assert np.array_equal(colours, here.colour_source.colours_at(here.mesh.vertices, normals))
    assert (there.engine, there.seed, there.gpu_seconds) == ("preview", OPTIONS.seed, 0.0)


def test_a_generation_is_held_back_until_the_container_is_there(notes: InMemoryDict, line: ControlChannel) -> None:
    containers, is_awake, calls_before = Containers(MadeEngine(), notes=notes), threading.Event(), []

    def on_step(share: float) -> None:
        calls_before.append(len(containers.calls))
        if len(calls_before) == 3:
            is_awake.set()

    generation = generate(remote(containers, line, woken=ThreadCall("wake", ends_with(is_awake))), on_step)

    assert generation.seed == OPTIONS.seed
    assert calls_before[:3] == [0, 0, 0]
    assert len(containers.calls) == 1


def test_a_container_that_takes_too_long_to_wake_is_waited_for_no_longer(
    notes: InMemoryDict, line: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(MadeEngine(), notes=notes)
    woken = ThreadCall("wake", ends_with(released))
    started_s = time.monotonic()

    generate(remote(containers, line, woken=woken, awake_s=0.05))

    assert len(containers.calls) == 1
    assert 0.05 <= time.monotonic() - started_s < WAIT_S / 2


def test_a_container_that_cannot_wake_does_not_stop_the_generation(notes: InMemoryDict, line: ControlChannel) -> None:
    containers = Containers(MadeEngine(), notes=notes)

    def cannot() -> None:
        raise ConnectionError("no accelerator is free")

    generate(remote(containers, line, woken=ThreadCall("wake", cannot)))

    assert len(containers.calls) == 1


def test_a_cancel_before_the_container_is_there_starts_nothing(
    notes: InMemoryDict, line: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(MadeEngine(), notes=notes)
    engine = remote(containers, line, woken=ThreadCall("wake", ends_with(released)))

    with pytest.raises(Cancelled):
        generate(engine, Steps(raises=Cancelled("stop")))
    assert containers.calls == {}
    assert notes.keys() == []


def test_progress_is_passed_on(notes: InMemoryDict, line: ControlChannel) -> None:
    steps = Steps()

    def work(on_step: OnStep) -> None:
        for share in (0.25, 0.75):
            on_step(share)
            while share not in steps.heard:
                time.sleep(0.002)

    generate(remote(Containers(MadeEngine(work), notes=notes), line), steps)

    assert [share for share in dict.fromkeys(steps.heard) if share] == [0.25, 0.75]


def test_a_generation_that_a_killed_attempt_started_is_taken_up_and_not_paid_for_twice(
    notes: InMemoryDict, line: ControlChannel
) -> None:
    goes_on = threading.Event()
    containers = Containers(MadeEngine(steps_until(goes_on.is_set)), notes=notes)
    with pytest.raises(Killed):
        generate(remote(containers, line), Steps(raises=Killed()))

    goes_on.set()
    generation = generate(remote(containers, line))

    assert generation.seed == OPTIONS.seed
    assert list(containers.calls) == ["call-1"]


def test_what_a_killed_attempt_had_but_did_not_keep_is_had_again_and_paid_for_once(
    notes: InMemoryDict, line: ControlChannel
) -> None:
    containers = Containers(MadeEngine(gpu_seconds=2.0), notes=notes)
    generate(remote(containers, line))

    again = generate(remote(containers, line))

    assert again.gpu_seconds == 2.0
    assert list(containers.calls) == ["call-1"]


def test_a_lost_generation_of_an_earlier_attempt_is_started_anew(notes: InMemoryDict, line: ControlChannel) -> None:
    containers = Containers(MadeEngine(steps_for(0.1)), notes=notes)
    line.note_call("forgotten")
    line.cancel()  # was meant for the one that is lost

    generate(remote(containers, line))

    assert len(containers.calls) == 1


def test_a_generation_that_another_attempt_cancelled_is_started_anew(notes: InMemoryDict, line: ControlChannel) -> None:
    containers = Containers(MadeEngine(steps_until(never), steps_for(0.1), gpu_seconds=2.0), notes=notes)
    line.note_call(containers.spawn([VIEW], OPTIONS).object_id)
    wait_until_running(line)
    line.cancel()

    generation = generate(remote(containers, line))

    assert list(containers.calls) == ["call-1", "call-2"]
    assert 2.0 < generation.gpu_seconds < 2.0 + WAIT_S  # that of the cancelled one is paid for as well


def test_an_earlier_attempts_failure_is_tried_elsewhere_where_its_container_is_to_blame(
    notes: InMemoryDict, line: ControlChannel
) -> None:
    containers = Containers(MadeEngine(fails(DEVICE_LOST)), MadeEngine(), notes=notes)
    line.note_call(containers.spawn([VIEW], OPTIONS).object_id)

    generate(remote(containers, line))

    assert len(containers.calls) == 2


def test_an_earlier_attempts_failure_is_the_answer_where_its_container_is_not_to_blame(
    notes: InMemoryDict, line: ControlChannel
) -> None:
    containers = Containers(MadeEngine(fails(UnreadableImage("an empty picture"))), notes=notes)
    line.note_call(containers.spawn([VIEW], OPTIONS).object_id)

    with pytest.raises(UnreadableImage, match="an empty picture"):
        generate(remote(containers, line))
    assert len(containers.calls) == 1


def test_a_generation_whose_device_is_lost_is_made_by_another_container(
    notes: InMemoryDict, line: ControlChannel
) -> None:
    broken = MadeEngine(fails(DEVICE_LOST, after_s=0.05), gpu_seconds=1.0)
    containers = Containers(broken, MadeEngine(gpu_seconds=2.0), notes=notes)

    generation = generate(remote(containers, line))

    assert len(containers.calls) == 2
    assert 2.05 <= generation.gpu_seconds < 2.05 + WAIT_S  # both are paid for


def test_containers_are_tried_a_few_times_and_no_more(notes: InMemoryDict, line: ControlChannel) -> None:
    broken = [MadeEngine(fails(DEVICE_LOST, after_s=0.03), gpu_seconds=1.0) for _ in range(MAX_TRIES + 1)]
    containers = Containers(*broken, notes=notes)

    with pytest.raises(EngineFailed, match=r"engine preview failed for an internal reason \(RuntimeError\)") as raised:
        generate(remote(containers, line))
    assert len(containers.calls) == MAX_TRIES
    assert MAX_TRIES * 0.03 <= raised.value.gpu_seconds < WAIT_S


@pytest.mark.parametrize(
    ("failure", "type_", "message"),
    [
        (EngineFailed("no voxel is occupied"), EngineFailed, "no voxel is occupied"),
        (UnreadableImage("an empty picture"), UnreadableImage, "an empty picture"),
        (OutOfMemory("1.0 of 40.0 GB are free"), OutOfMemory, "1.0 of 40.0 GB are free"),
        (ValueError("a shape"), EngineFailed, r"failed for an internal reason \(ValueError\)"),
    ],
)
def test_a_failure_that_no_other_container_would_mend_is_raised_at_once(
    notes: InMemoryDict, line: ControlChannel, failure: Exception, type_: type[ImageTo3DError], message: str
) -> None:
    containers = Containers(MadeEngine(fails(failure)), MadeEngine(), notes=notes)

    with pytest.raises(type_, match=message) as raised:
        generate(remote(containers, line))
    assert len(containers.calls) == 1
    assert raised.value.gpu_seconds == 0.0  # it ran on a CPU


def test_a_cancel_asks_the_container_to_stop(notes: InMemoryDict, line: ControlChannel) -> None:
    containers = Containers(MadeEngine(steps_for(0.05), steps_until(never), gpu_seconds=1.0), notes=notes)
    generate(remote(containers, line))
    line.clear()

    with pytest.raises(Cancelled) as raised:
        generate(remote(containers, line), Steps(raises=Cancelled("stop")))

    cancelled = containers.calls["call-2"]
    assert not cancelled.was_ended
    assert isinstance(cancelled.get(timeout=WAIT_S).error, Cancelled)
    assert raised.value.gpu_seconds == cancelled.get(timeout=WAIT_S).gpu_seconds > 0
    assert notes.keys() == []


def test_a_container_that_does_not_stop_is_ended_from_outside(
    notes: InMemoryDict, line: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(MadeEngine(lambda on_step: released.wait(WAIT_S)), notes=notes)
    started_s = time.monotonic()

    with pytest.raises(Cancelled):
        generate(remote(containers, line, stop_grace_s=0.1), Steps(raises=Cancelled("stop")))

    assert containers.calls["call-1"].was_ended
    assert 0.1 <= time.monotonic() - started_s < WAIT_S / 2
    assert notes.keys() == []


def test_a_generation_that_is_done_when_the_cancel_comes_is_paid_for(
    notes: InMemoryDict, line: ControlChannel, released: threading.Event
) -> None:
    containers = Containers(MadeEngine(lambda on_step: released.wait(WAIT_S), gpu_seconds=3.0), notes=notes)

    def on_step(share: float) -> None:
        released.set()
        raise Cancelled("stop")

    with pytest.raises(Cancelled) as raised:
        generate(remote(containers, line), on_step)
    assert raised.value.gpu_seconds == 3.0


def test_a_generation_is_paid_for_once_by_an_engine_that_is_asked_again(
    notes: InMemoryDict, line: ControlChannel
) -> None:
    engine = remote(Containers(MadeEngine(gpu_seconds=2.0), notes=notes), line)

    assert [generate(engine).gpu_seconds for _ in range(2)] == [2.0, 2.0]


@pytest.mark.parametrize("is_tried_before", [False, True])
def test_a_container_that_is_lost_ends_the_call_in_words(
    notes: InMemoryDict, line: ControlChannel, is_tried_before: bool
) -> None:
    broken = MadeEngine(fails(DEVICE_LOST, after_s=0.05), gpu_seconds=1.0)
    containers = Containers(*([broken] if is_tried_before else []), notes=notes)

    with pytest.raises(EngineFailed, match=r"engine preview gave no answer \(NoContainer\)") as raised:
        generate(remote(containers, line))
    assert (raised.value.gpu_seconds >= 0.05) is is_tried_before
    assert notes.keys() == []


def test_an_answer_that_is_none_fails_in_words(notes: InMemoryDict, line: ControlChannel) -> None:
    containers = Containers(notes=notes)

    with pytest.raises(EngineFailed, match="engine preview answered with int"):
        generate(remote(containers, line, spawn=lambda views, options: ThreadCall("call", lambda: 42)))
    assert notes.keys() == []


@pytest.mark.parametrize("failure", [None, UnreadableImage("an empty picture"), DEVICE_LOST])
def test_of_a_generation_only_its_name_stays_and_of_a_failure_nothing(
    notes: InMemoryDict, line: ControlChannel, failure: Exception | None
) -> None:
    deeds = [steps_for(0.05)] if failure is None else [fails(failure)]
    containers = Containers(*(MadeEngine(*deeds) for _ in range(MAX_TRIES)), notes=notes)
    heard = Steps()

    try:
        generate(remote(containers, line), heard)
    except ImageTo3DError:
        assert failure is not None
    assert containers.calls
    assert notes.keys() == ([f"{CHANNEL}/call"] if failure is None else [])


def test_a_line_that_is_down_costs_progress_and_not_the_generation() -> None:
    notes, steps = DownNotes(), Steps()

    generation = generate(
        remote(Containers(MadeEngine(steps_for(0.1)), notes=notes), ControlChannel(notes, CHANNEL)), steps
    )

    assert generation.seed == OPTIONS.seed
    assert set(steps.heard) == {0.0}


def test_a_cancel_over_a_line_that_is_down_ends_the_generation_from_outside(released: threading.Event) -> None:
    notes = DownNotes()
    containers = Containers(MadeEngine(steps_until(released.is_set)), notes=notes)

    with pytest.raises(Cancelled):
        generate(remote(containers, ControlChannel(notes, CHANNEL), stop_grace_s=0.05), Steps(raises=Cancelled("stop")))
    assert containers.calls["call-1"].was_ended
    released.set()
    containers.calls["call-1"].join()


def test_more_views_than_the_engine_takes_are_refused_before_anything_is_paid_for(
    notes: InMemoryDict, line: ControlChannel
) -> None:
    containers = Containers(MadeEngine(), notes=notes)

    with pytest.raises(InvalidRequest, match="engine preview takes at most 8 views, got 9"):
        remote(containers, line)([VIEW] * 9, OPTIONS, Steps())
    assert containers.calls == {}
