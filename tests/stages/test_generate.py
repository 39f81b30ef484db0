"""Running an engine: its result, the errors of its failures, and their cost."""

from __future__ import annotations

import errno
import logging
import time

import pytest

from pipeline.errors import DiskFull, EngineFailed, ImageTo3DError, OutOfMemory, UnreadableImage
from pipeline.stages.generate import LocalEngines, run_engine
from tests.on_modal.containers import OPTIONS, VIEW, ScriptedEngine, fails


@pytest.mark.parametrize(
    ("error", "becomes", "message"),
    [
        (
            ValueError("shapes (3,) and (4,)"),
            EngineFailed,
            r"engine preview failed for an internal reason \(ValueError\)",
        ),
        (MemoryError(), OutOfMemory, "engine preview failed: out of memory"),
        (OSError(errno.ENOSPC, "full"), DiskFull, "engine preview failed: no space left on the device"),
        (OSError(errno.EACCES, "refused"), EngineFailed, "engine preview failed: Permission denied"),
    ],
)
def test_an_exception_of_an_engine_becomes_an_error_of_the_tree(
    error: Exception, becomes: type[ImageTo3DError], message: str
) -> None:
    with pytest.raises(becomes, match=message) as raised:
        run_engine(ScriptedEngine(fails(error)), [VIEW], OPTIONS)

    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("a shape"), EngineFailed("no voxel is occupied")])
def test_a_failure_has_the_seconds_that_were_used_on_an_accelerator(error: Exception) -> None:
    began_s = time.perf_counter()
    with pytest.raises(EngineFailed) as raised:
        run_engine(ScriptedEngine(fails(error, after_s=0.05), gpu_seconds=1.0), [VIEW], OPTIONS)

    assert 0.05 <= raised.value.gpu_seconds <= time.perf_counter() - began_s


def test_a_failure_on_a_cpu_has_no_gpu_seconds() -> None:
    with pytest.raises(EngineFailed) as raised:
        run_engine(ScriptedEngine(fails(ValueError("a shape"), after_s=0.01)), [VIEW], OPTIONS)

    assert raised.value.gpu_seconds == 0.0


def test_an_image_without_a_subject_is_the_senders_error_and_costs_nothing() -> None:
    engines = LocalEngines("preview")

    with pytest.raises(UnreadableImage) as raised:
        engines.generate(None, [0 * VIEW], OPTIONS)

    assert raised.value.gpu_seconds == 0.0


def test_the_device_of_an_engine_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    engines = LocalEngines("preview")

    with caplog.at_level(logging.INFO, logger="pipeline.stages.generate"):
        for _ in range(2):
            engines.generate("preview", [VIEW], OPTIONS)

    assert [record.message for record in caplog.records] == ["engine preview computes on CPU"]
