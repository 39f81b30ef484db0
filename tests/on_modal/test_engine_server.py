"""The container's side of a remote generation: what spoils a container, and how failures are answered."""

from __future__ import annotations

import pickle
import time

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
from pipeline.on_modal.shared_dict import InMemoryDict
from tests.on_modal.containers import CHANNEL, OPTIONS, VIEW, WAIT_S, MadeEngine, fails, started, steps_for, steps_until

DEVICE_LOST = RuntimeError("CUDA error: device-side assert triggered")


class HalvedEngine(MadeEngine):
    """One whose `load` has two halves."""

    def load_weights(self) -> None:
        self.loaded.append("weights")

    def to_device(self) -> None:
        self.loaded.append("device")


class HollowEngine(MadeEngine):
    """One whose surface has no face."""

    def generate(self, *arguments: object, **options: object) -> Generation:
        made = super().generate(*arguments, **options)  # type: ignore[arg-type]
        return Generation(TriMesh(made.mesh.vertices, np.zeros((0, 3), np.int32)), made.colour_source, "preview", 7)


@pytest.fixture
def line() -> ControlChannel:
    return ControlChannel(InMemoryDict(), CHANNEL)


def ask(host: EngineServer, line: ControlChannel, *, restarts: int = 0) -> Generation | Failure:
    """The host's answer, as it arrives elsewhere."""
    return pickle.loads(pickle.dumps(host.answer([VIEW], OPTIONS, line, restarts=restarts)))


def failure_of(host: EngineServer, line: ControlChannel, *, restarts: int = 0) -> Failure:
    answer = ask(host, line, restarts=restarts)
    assert isinstance(answer, Failure)
    return answer


def test_a_host_answers_with_the_engines_generation(line: ControlChannel) -> None:
    host = started(MadeEngine(gpu_seconds=1.5))

    answer = ask(host, line)

    assert isinstance(answer, Generation)
    assert (answer.engine, answer.seed, answer.gpu_seconds) == ("preview", OPTIONS.seed, 1.5)
    assert not host.must_recycle


def test_a_registered_engine_is_made_with_its_arguments() -> None:
    with pytest.raises(TypeError, match="takes no arguments"):
        EngineServer("preview", weights="tiny", arguments={"preview": {"colour": "red"}}).load_weights()


def test_an_engine_in_two_halves_is_loaded_in_two_steps() -> None:
    engine = HalvedEngine()
    host = EngineServer("preview", weights="tiny", make=lambda name, **_: engine)

    host.load_weights()
    assert engine.loaded == ["weights"]
    host.to_device()

    assert engine.loaded == ["weights", "device"]
    assert set(host.seconds) == {"imports", "weights", "device"}


def test_an_engine_that_cannot_be_halved_is_loaded_in_the_second_step() -> None:
    engine = MadeEngine()
    host = EngineServer("preview", weights="tiny", make=lambda name, **_: engine)

    host.load_weights()
    assert engine.loaded == []
    host.to_device()

    assert engine.loaded == ["load"]


def test_the_second_step_before_the_first_is_refused() -> None:
    with pytest.raises(RuntimeError, match="load_weights comes first"):
        EngineServer("preview", weights="tiny").to_device()


def caused(error: ImageTo3DError, *, by: Exception) -> ImageTo3DError:
    """An error as `raise … from` makes it."""
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    "error",
    [caused(OutOfMemory("1.0 of 40.0 GB are free"), by=RuntimeError("CUDA out of memory")), MemoryError()],
)
def test_too_little_memory_spends_the_host(line: ControlChannel, error: Exception) -> None:
    host = started(MadeEngine(fails(error)))

    failure = failure_of(host, line)

    assert isinstance(failure.error, OutOfMemory)
    assert not failure.retry_on_other_container  # another container has no more of it
    assert host.must_recycle


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
def test_a_lost_device_spends_the_host_and_is_worth_another(line: ControlChannel, error: Exception) -> None:
    host = started(MadeEngine(fails(error)))

    failure = failure_of(host, line)

    assert isinstance(failure.error, EngineFailed)
    assert "CUDA error" not in str(failure.error) and "STATUS" not in str(failure.error)
    assert failure.retry_on_other_container
    assert host.must_recycle


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("shapes (3,) and (4,)"), r"engine preview failed for an internal reason \(ValueError\)"),
        (EngineFailed("no voxel is occupied"), "no voxel is occupied"),
        (caused(UnreadableImage("no picture"), by=ValueError("GPU, CUDA: a picture of words")), "no picture"),
    ],
)
def test_other_failures_leave_the_host_as_it_was(line: ControlChannel, error: Exception, message: str) -> None:
    host = started(MadeEngine(fails(error)))

    failure = failure_of(host, line)

    with pytest.raises(ImageTo3DError, match=message):
        raise failure.error
    assert not failure.retry_on_other_container
    assert not host.must_recycle
    assert isinstance(ask(host, line), Generation)


def test_a_spent_host_stays_spent(line: ControlChannel) -> None:
    host = started(MadeEngine(fails(DEVICE_LOST), fails(UnreadableImage("an empty picture"))))

    ask(host, line)
    ask(host, line)

    assert host.must_recycle


def test_a_surface_that_cannot_be_exported_is_a_failure(line: ControlChannel) -> None:
    failure = failure_of(started(HollowEngine()), line)

    assert isinstance(failure.error, EngineFailed)
    assert "no surface" in str(failure.error)


def test_a_host_from_before_the_last_restart_is_spent_and_answers_nothing(line: ControlChannel) -> None:
    engine = MadeEngine(fails(ValueError("must not be met")), gpu_seconds=1.0)
    old = started(engine)
    engine.deeds.insert(0, lambda on_step: None)
    assert isinstance(ask(old, line, restarts=3), Generation)

    failure = failure_of(old, line, restarts=4)

    assert failure.retry_on_other_container
    assert old.must_recycle
    assert "starting afresh" in str(failure.error)
    assert failure.gpu_seconds == 0.0
    assert len(engine.deeds) == 1


def test_a_host_from_after_a_restart_answers(line: ControlChannel) -> None:
    host = started(MadeEngine())

    assert isinstance(ask(host, line, restarts=4), Generation)
    assert isinstance(ask(host, line, restarts=4), Generation)
    assert not host.must_recycle


def test_progress_goes_out_and_a_cancel_comes_in_over_the_line(line: ControlChannel) -> None:
    def cancel_when_seen() -> bool:
        if line.progress(None) == 0.5:
            line.cancel()
        return False

    host = started(MadeEngine(steps_until(cancel_when_seen)))

    failure = failure_of(host, line)

    assert isinstance(failure.error, Cancelled)
    assert not host.must_recycle and not failure.retry_on_other_container


@pytest.mark.parametrize(
    ("error", "arrives"),
    [
        (WeightsUnusable("flow.safetensors is truncated"), WeightsUnusable),
        (MissingExtra("the trellis engine", extra="trellis"), StageError),  # its constructor takes something else
    ],
)
def test_an_error_survives_the_way_with_its_words(
    line: ControlChannel, error: ImageTo3DError, arrives: type[ImageTo3DError]
) -> None:
    failure = failure_of(started(MadeEngine(fails(error))), line)

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
def test_a_failure_says_what_it_cost_on_an_accelerator(line: ControlChannel, error: Exception) -> None:
    began_s = time.perf_counter()
    failure = failure_of(started(MadeEngine(fails(error, after_s=0.05), gpu_seconds=1.0)), line)

    assert 0.05 <= failure.gpu_seconds <= time.perf_counter() - began_s


def test_a_cancelled_generation_says_what_it_cost(line: ControlChannel) -> None:
    line.cancel()
    began_s = time.perf_counter()
    failure = failure_of(started(MadeEngine(steps_for(WAIT_S), gpu_seconds=1.0)), line)

    assert isinstance(failure.error, Cancelled)
    assert 0 < failure.gpu_seconds <= time.perf_counter() - began_s


def test_a_failure_on_a_cpu_costs_nothing(line: ControlChannel) -> None:
    failure = failure_of(started(MadeEngine(fails(ValueError("a shape"), after_s=0.02))), line)

    assert failure.gpu_seconds == 0.0
