"""A job from request to result: its stages, its checkpoints, and what an exception in each stage becomes."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.run_job
from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions, OnStep
from pipeline.errors import GenerationGone, ImageTo3DError, StoreUnavailable
from pipeline.imaging.background_removal import Cutout
from pipeline.jobs.model import JobResult, JobState
from pipeline.jobs.stages import STAGES
from pipeline.mesh import packing
from pipeline.run_job import load_generation, run_job
from pipeline.stages.deliver import Delivery
from pipeline.stages.intake import LoadedViews
from pipeline.storage.base import OutputFile
from schemas.request import ImageTo3DRequest
from tests.on_modal.containers import TETRAHEDRON, VIEW, Grey

REQUEST = ImageTo3DRequest(image=("none",), texture_size=512, no_texture=True, output_format="stl")

GENERATION = Generation(TETRAHEDRON, Grey(), engine="grey", seed=1, gpu_seconds=2.5, warnings=("grey",))


@dataclass
class Job:
    """A job whose stages count their runs; one of them can be made to raise."""

    work_dir: Path
    raises: dict[str, Exception] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    progress: list[tuple[str, int]] = field(default_factory=list)
    errors: list[ImageTo3DError] = field(default_factory=list)
    is_cancelled: Callable[[], bool] = lambda: False
    generation: Generation = GENERATION

    def run(self) -> JobResult:
        return run_job(
            REQUEST,
            file_prefix="model",
            work_dir=self.work_dir,
            load_views=self._load_views,
            generate=self._generate,
            deliver=self._deliver,
            on_progress=lambda stage, percent: self.progress.append((stage, percent)),
            is_cancelled=self.is_cancelled,
            on_error=self.errors.append,
        )

    def _start(self, stage: str) -> None:
        self.runs.append(stage)
        if stage in self.raises:
            raise self.raises[stage]

    def _load_views(self, request: ImageTo3DRequest) -> list[ForegroundImage]:
        self._start("intake")
        return [VIEW]

    def _generate(self, views: Sequence[ForegroundImage], options: GenerationOptions, on_step: OnStep) -> Generation:
        self._start("generate")
        return replace(self.generation, seed=options.seed)

    def _deliver(self, files: Sequence[OutputFile]) -> Delivery:
        self._start("deliver")
        return Delivery((), warnings=("slow",), upload_warning="later")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "work")


def test_the_four_stages_run_in_a_row_and_leave_one_result(job: Job) -> None:
    result = job.run()

    assert (result.state, result.error_code, result.message) == (JobState.SUCCESS, "", "")
    assert job.runs == ["intake", "generate", "deliver"] and tuple(result.stage_seconds) == STAGES
    assert (result.engine, result.gpu_seconds) == ("grey", 2.5)
    assert (result.warnings, result.upload_warning) == (("grey", "slow"), "later")
    assert result.meta["seed"] > 0 and result.meta["file_prefix"] == "model"
    assert (result.meta["draft"], result.meta["draft_notice"]) == (False, "")
    percents = [percent for _, percent in job.progress]
    assert percents == sorted(percents) and job.progress[-1] == ("deliver", 100)


def test_what_the_engine_invented_and_guessed_is_in_the_warnings_and_in_meta(job: Job) -> None:
    job.generation = replace(job.generation, draft="This is a draft.", depth=0.25)

    result = job.run()

    assert result.warnings == ("This is a draft.", "grey", "slow")
    assert {"draft": True, "draft_notice": "This is a draft.", "depth": 0.25}.items() <= result.meta.items()


@pytest.mark.parametrize(
    ("stage", "code", "is_retryable"),
    [
        ("intake", "intake_failed", False),
        ("generate", "engine_failed", True),
        ("export", "export_failed", False),
        ("deliver", "delivery_failed", True),
    ],
)
def test_an_exception_in_a_stage_has_the_error_code_of_the_stage(
    job: Job, stage: str, code: str, is_retryable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ValueError("an inside")
    if stage == "export":

        def fail(*args: Any, **kwargs: Any) -> list[OutputFile]:
            raise error

        monkeypatch.setattr(pipeline.run_job, "export", fail)
    job.raises[stage] = error

    result = job.run()

    assert (result.state, result.error_code, result.retryable) == (JobState.FAILED, code, is_retryable)
    assert result.message == f"{stage} failed for an internal reason (ValueError)"
    assert result.gpu_seconds == (2.5 if stage in ("export", "deliver") else 0.0)
    assert [one.__cause__ for one in job.errors] == [error]


@pytest.mark.parametrize("stage", ["intake", "generate", "deliver"])
@pytest.mark.parametrize(
    ("error", "code"), [(MemoryError(), "out_of_memory"), (OSError(errno.ENOSPC, "full"), "disk_full")]
)
def test_memory_and_disk_space_have_the_same_code_in_every_stage(
    job: Job, stage: str, error: Exception, code: str
) -> None:
    job.raises[stage] = error

    assert job.run().error_code == code


@pytest.mark.parametrize("stage", ["intake", "generate", "deliver"])
def test_an_unavailable_store_leaves_the_job_without_a_result(job: Job, stage: str) -> None:
    job.raises[stage] = StoreUnavailable("the database is locked")

    with pytest.raises(StoreUnavailable, match="the database is locked"):
        job.run()


def test_a_later_attempt_resumes_after_the_last_checkpoint(job: Job) -> None:
    job.raises["deliver"] = ConnectionError()
    first = job.run()
    job.raises.clear()

    second = job.run()

    assert (first.state, second.state) == (JobState.FAILED, JobState.SUCCESS)
    assert job.runs == ["intake", "generate", "deliver", "deliver"]
    assert first.meta == second.meta and second.gpu_seconds == 2.5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\x80\x05cpipeline.generate\nNoSuchClass\n.",  # a class of a module that an earlier version had
        b"\x80\x05cpipeline.errors\nNoSuchClass\n.",  # a class that a module of this version does not have
    ],
)
def test_a_checkpoint_that_cannot_be_read_makes_its_stage_run_again(job: Job, content: bytes) -> None:
    job.raises["deliver"] = ConnectionError()
    job.run()
    job.raises.clear()
    for name in STAGES[:3]:
        (job.work_dir / f"{name}.pickle").write_bytes(content)

    result = job.run()

    assert result.state is JobState.SUCCESS
    assert job.runs == ["intake", "generate", "deliver"] * 2


def test_a_job_that_is_cancelled_after_its_generation_pays_for_it(job: Job) -> None:
    job.is_cancelled = lambda: "generate" in job.runs

    result = job.run()

    assert (result.state, result.error_code) == (JobState.CANCELLED, "cancelled")
    assert result.message == "The job was cancelled."
    assert result.gpu_seconds == 2.5 and job.runs == ["intake", "generate"]


def test_the_result_tells_how_far_a_removed_background_can_be_trusted(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((16, 16, 4), np.uint8)
    image[4:12, 4:12] = 255
    views = LoadedViews([VIEW], cutouts=[Cutout(image, was_removed=True, confidence=0.2)])
    monkeypatch.setattr(Job, "_load_views", lambda self, request: views)

    first, resumed = job.run(), job.run()  # the second from the first one's checkpoints

    for result in (first, resumed):
        assert result.meta["cutout_confidence"] == [0.2]
        assert "confidence of 0.20" in result.warnings[0] and result.warnings[1:] == ("grey", "slow")
    assert (job.work_dir / "files" / "model_cutout.png").exists()


def test_a_checkpoint_of_views_without_cut_outs_is_resumed(job: Job) -> None:
    job.run()  # the fake's views are a plain list, as version 0.1.0 stored them
    job.runs.clear()

    result = job.run()

    assert result.state is JobState.SUCCESS and "intake" not in job.runs
    assert "cutout_confidence" not in result.meta


def test_a_kept_generation_is_read_and_one_of_another_format_is_refused_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.pickle"
    path.write_bytes(pickle.dumps(Generation(TETRAHEDRON, Grey(), engine="", seed=7)))
    kept = load_generation(path)

    assert kept.mesh.vertices.tobytes() == TETRAHEDRON.vertices.tobytes() and kept.seed == 7
    monkeypatch.setattr(packing, "VERSION", packing.VERSION + 1)
    with pytest.raises(GenerationGone, match="cannot be read; submit the image again"):
        load_generation(path)
