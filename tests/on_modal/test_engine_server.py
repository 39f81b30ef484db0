"""The container's side of a remote generation: when it must be recycled, and how failures are returned."""

from __future__ import annotations

import pickle
import time
from typing import Any

import numpy as np
import pytest

from pipeline.engines.base import Generation
from pipeline.errors import (
    Cancelled,
    EngineFailed,
    ImageTo3DError,
    MissingExtra,
    OutOfMemory,
    StageError,
    UnreadableImage,
    WeightsUnusable,
)
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.on_modal.control_channel import ControlChannel, Failure
from pipeline.on_modal.engine_server import EngineServer
from tests.fakes.shared_dict import InMemoryDict
from tests.on_modal.containers import (
    CHANNEL,
    OPTIONS,
    VIEW,
    WAIT_S,
    ScriptedEngine,
    fails,
    started,
    steps_for,
    steps_until,
)

DEVICE_LOST = RuntimeError("CUDA error: device-side assert triggered")


class TwoStepTestEngine(ScriptedEngine):
    """An engine whose `load` has two parts."""

    def load_weights(self) -> None:
        self.loaded.append("weights")

    def to_device(self) -> None:
        self.loaded.append("device")


class EmptyEngine(ScriptedEngine):
    """An engine whose surface has no face."""

    def generate(self, *arguments: Any, **options: Any) -> Generation:
        whole = super().generate(*arguments, **options)
        return Generation(
            TriMesh(whole.mesh.vertices, np.zeros((0, 3), np.int32)), whole.attribute_source, "preview", 7
        )


@pytest.fixture
def channel() -> ControlChannel:
    return ControlChannel(InMemoryDict(), CHANNEL)


def answer_of(server: EngineServer, channel: ControlChannel, *, restarts: int = 0) -> Generation | Failure:
    """The server's answer, as it arrives in another process."""
    return pickle.loads(pickle.dumps(server.answer([VIEW], OPTIONS, channel, restarts=restarts)))


def failure_of(server: EngineServer, channel: ControlChannel, *, restarts: int = 0) -> Failure:
    answer = answer_of(server, channel, restarts=restarts)
    assert isinstance(answer, Failure)
    return answer


def test_a_server_answers_with_the_engines_generation(channel: ControlChannel) -> None:
    server = started(ScriptedEngine(gpu_seconds=1.5))

    answer = answer_of(server, channel)

    assert isinstance(answer, Generation)
    assert (answer.engine, answer.seed, answer.gpu_seconds) == ("preview", OPTIONS.seed, 1.5)
    assert not server.must_recycle


def test_a_registered_engine_is_constructed_with_its_arguments(channel: ControlChannel) -> None:
    server = EngineServer("preview", weights="tiny", arguments={"preview": {"colour": "red"}})
    server.load_weights()
    server.to_device()

    assert server.start_failure is not None
    assert "takes no arguments" in str(server.start_failure.error.__cause__)
    assert (
        str(failure_of(server, channel).error)
        == "the start of engine preview failed for an internal reason (TypeError)"
    )


def test_an_engine_whose_load_has_two_parts_is_loaded_in_two_steps() -> None:
    engine = TwoStepTestEngine()
    server = EngineServer("preview", weights="tiny", make=lambda name, **_: engine)

    server.load_weights()
    assert engine.loaded == ["weights"]
    server.to_device()

    assert engine.loaded == ["weights", "device"]
    assert set(server.seconds) == {"imports", "weights", "device"}


def test_weights_that_are_left_out_of_the_snapshot_are_loaded_after_it() -> None:
    engine = TwoStepTestEngine([])
    server = EngineServer("preview", weights="", make=lambda *_, **__: engine)

    server.import_engine()
    before = list(engine.loaded)
    server.to_device()

    assert (before, engine.loaded) == ([], ["weights", "device"])
    assert list(server.seconds) == ["imports", "weights", "device"]


def test_an_engine_whose_load_has_one_part_is_loaded_in_the_second_step() -> None:
    engine = ScriptedEngine()
    server = EngineServer("preview", weights="tiny", make=lambda name, **_: engine)

    server.load_weights()
    assert engine.loaded == []
    server.to_device()

    assert engine.loaded == ["load"]


def test_the_second_step_loads_what_the_first_did_not(channel: ControlChannel) -> None:
    engine = TwoStepTestEngine()
    server = EngineServer("preview", weights="tiny", make=lambda name, **_: engine)

    server.to_device()

    assert engine.loaded == ["weights", "device"]
    assert isinstance(answer_of(server, channel), Generation)


def test_a_snapshot_that_includes_the_device_is_taken_after_the_second_step() -> None:
    engine = TwoStepTestEngine()
    server = EngineServer("preview", weights="tiny", make=lambda name, **_: engine)

    server.load_weights(with_device=True)
    before_snapshot = list(engine.loaded)
    server.to_device()

    assert before_snapshot == engine.loaded == ["weights", "device"]


class EngineOfBrokenContainer(TwoStepTestEngine):
    """An engine whose load fails at some calls.

    Args:
        errors: by the name of the part, what its calls raise, one after the other.
    """

    def __init__(self, **errors: list[Exception]) -> None:
        super().__init__()
        self.errors = errors

    def load_weights(self) -> None:
        self._fail("weights")
        super().load_weights()

    def to_device(self) -> None:
        self._fail("device")
        super().to_device()

    def _fail(self, part: str) -> None:
        if self.errors.get(part):
            raise self.errors[part].pop(0)


@pytest.mark.parametrize("with_device", [False, True])
def test_a_failure_before_the_snapshot_is_not_kept_in_it(channel: ControlChannel, with_device: bool) -> None:
    part = "device" if with_device else "weights"
    engine = EngineOfBrokenContainer(**{part: [OSError("the volume is not mounted yet")]})
    server = EngineServer("preview", weights="tiny", make=lambda name, **_: engine)

    server.load_weights(with_device=with_device)
    server.to_device()  # in the container that the snapshot was restored to

    assert server.start_failure is None and not server.must_recycle
    assert isinstance(answer_of(server, channel), Generation)


@pytest.mark.parametrize(
    ("error", "is_retried_elsewhere"),
    [(DEVICE_LOST, True), (WeightsUnusable("flow.safetensors is truncated"), False), (MemoryError(), False)],
)
@pytest.mark.parametrize("part", ["weights", "device"])
def test_an_engine_that_cannot_be_started_answers_with_the_reason_and_is_recycled(
    channel: ControlChannel, part: str, error: Exception, is_retried_elsewhere: bool
) -> None:
    engine = EngineOfBrokenContainer(**{part: [error, error]})
    server = EngineServer("preview", weights="tiny", make=lambda name, **_: engine)

    server.load_weights()
    server.to_device()
    failure = failure_of(server, channel)

    assert server.must_recycle and server.start_failure is not None
    assert failure.retry_on_other_container is is_retried_elsewhere
    assert isinstance(failure.error, StageError) and failure.gpu_seconds == 0.0
    assert str(failure.error) == (str(error) if isinstance(error, WeightsUnusable) else str(server.start_failure.error))


@pytest.mark.parametrize("is_found", [False, True])
def test_an_engine_that_needs_an_accelerator_never_runs_without_one(channel: ControlChannel, is_found: bool) -> None:
    engine = ScriptedEngine(gpu_seconds=1.0 if is_found else None)
    server = EngineServer("preview", weights="tiny", needs_accelerator=True, make=lambda name, **_: engine)
    server.load_weights()
    server.to_device()

    answer = answer_of(server, channel)

    assert server.must_recycle is not is_found
    if is_found:
        assert isinstance(answer, Generation)
    else:
        assert isinstance(answer, Failure) and answer.retry_on_other_container
        assert "engine preview found no accelerator" in str(answer.error)


def caused(error: ImageTo3DError, *, by: Exception) -> ImageTo3DError:
    """An error as `raise … from` creates it."""
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    "error",
    [caused(OutOfMemory("1.0 of 40.0 GB are free"), by=RuntimeError("CUDA out of memory")), MemoryError()],
)
def test_after_too_little_memory_the_container_must_be_recycled(channel: ControlChannel, error: Exception) -> None:
    server = started(ScriptedEngine(fails(error)))

    failure = failure_of(server, channel)

    assert isinstance(failure.error, OutOfMemory)
    assert not failure.retry_on_other_container  # another container has no more of it
    assert server.must_recycle


@pytest.mark.parametrize(
    "error",
    [
        DEVICE_LOST,
        caused(EngineFailed("no surface can be read back"), by=DEVICE_LOST),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED"),
        type("CUDAError", (Exception,), {})("unknown"),
    ],
)
def test_after_a_lost_device_the_container_must_be_recycled_and_another_one_is_tried(
    channel: ControlChannel, error: Exception
) -> None:
    server = started(ScriptedEngine(fails(error)))

    failure = failure_of(server, channel)

    assert isinstance(failure.error, EngineFailed)
    assert "CUDA error" not in str(failure.error) and "STATUS" not in str(failure.error)
    assert failure.retry_on_other_container
    assert server.must_recycle


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("shapes (3,) and (4,)"), r"engine preview failed for an internal reason \(ValueError\)"),
        (EngineFailed("no voxel is occupied"), "no voxel is occupied"),
        (caused(UnreadableImage("no image"), by=ValueError("GPU, CUDA: an image of words")), "no image"),
    ],
)
def test_after_other_failures_the_container_continues(channel: ControlChannel, error: Exception, message: str) -> None:
    server = started(ScriptedEngine(fails(error)))

    failure = failure_of(server, channel)

    with pytest.raises(ImageTo3DError, match=message):
        raise failure.error
    assert not failure.retry_on_other_container
    assert not server.must_recycle
    assert isinstance(answer_of(server, channel), Generation)


def test_a_container_that_must_be_recycled_stays_so(channel: ControlChannel) -> None:
    server = started(ScriptedEngine(fails(DEVICE_LOST), fails(UnreadableImage("an empty image"))))

    answer_of(server, channel)
    answer_of(server, channel)

    assert server.must_recycle


def test_a_surface_without_faces_is_a_failure(channel: ControlChannel) -> None:
    failure = failure_of(started(EmptyEngine()), channel)

    assert isinstance(failure.error, EngineFailed)
    assert "no surface" in str(failure.error)


def test_a_container_from_before_the_last_restart_must_be_recycled_and_generates_nothing(
    channel: ControlChannel,
) -> None:
    engine = ScriptedEngine(fails(ValueError("must not run")), gpu_seconds=1.0)
    old = started(engine)
    engine.actions.insert(0, lambda on_step: None)
    assert isinstance(answer_of(old, channel, restarts=3), Generation)

    failure = failure_of(old, channel, restarts=4)

    assert failure.retry_on_other_container
    assert old.must_recycle
    assert "is restarting" in str(failure.error)
    assert failure.gpu_seconds == 0.0
    assert len(engine.actions) == 1


def test_a_container_from_after_a_restart_generates(channel: ControlChannel) -> None:
    server = started(ScriptedEngine())

    assert isinstance(answer_of(server, channel, restarts=4), Generation)
    assert isinstance(answer_of(server, channel, restarts=4), Generation)
    assert not server.must_recycle


def test_progress_and_a_cancellation_request_travel_over_the_channel(channel: ControlChannel) -> None:
    def cancel_when_seen() -> bool:
        if channel.progress(None) == 0.5:
            channel.request_cancel()
        return False

    server = started(ScriptedEngine(steps_until(cancel_when_seen)))

    failure = failure_of(server, channel)

    assert isinstance(failure.error, Cancelled)
    assert not server.must_recycle and not failure.retry_on_other_container


@pytest.mark.parametrize(
    ("error", "arrives"),
    [
        (WeightsUnusable("flow.safetensors is truncated"), WeightsUnusable),
        (MissingExtra("the trellis engine", extra="trellis"), StageError),  # its constructor takes other arguments
    ],
)
def test_an_error_keeps_its_message_when_it_is_pickled(
    channel: ControlChannel, error: ImageTo3DError, arrives: type[ImageTo3DError]
) -> None:
    failure = failure_of(started(ScriptedEngine(fails(error))), channel)

    assert type(failure.error) is arrives
    assert str(failure.error) == str(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a shape"),
        DEVICE_LOST,
        MemoryError(),
        EngineFailed("no voxel is occupied"),
        MissingExtra("x", extra="y"),
    ],
)
def test_a_failure_on_a_gpu_contains_its_gpu_seconds(channel: ControlChannel, error: Exception) -> None:
    started_s = time.perf_counter()
    failure = failure_of(started(ScriptedEngine(fails(error, after_s=0.05), gpu_seconds=1.0)), channel)

    assert 0.05 <= failure.gpu_seconds <= time.perf_counter() - started_s


def test_a_cancelled_generation_contains_its_gpu_seconds(channel: ControlChannel) -> None:
    channel.request_cancel()
    started_s = time.perf_counter()
    failure = failure_of(started(ScriptedEngine(steps_for(WAIT_S), gpu_seconds=1.0)), channel)

    assert isinstance(failure.error, Cancelled)
    assert 0 < failure.gpu_seconds <= time.perf_counter() - started_s


def test_a_failure_on_a_cpu_has_no_gpu_seconds(channel: ControlChannel) -> None:
    failure = failure_of(started(ScriptedEngine(fails(ValueError("a shape"), after_s=0.02))), channel)

    assert failure.gpu_seconds == 0.0
