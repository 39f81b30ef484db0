"""Containers that start when a job is submitted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import WeightsUnusable
from pipeline.jobs.model import ExportSource, Job, JobMeta, JobState
from pipeline.on_modal.control_channel import ControlChannel, SavedCall
from pipeline.on_modal.early_start import EarlyStart
from pipeline.on_modal.engine_pool import EnginePool
from tests.fakes.shared_dict import InMemoryDict
from tests.on_modal.test_remote_call import ScriptedCall

JOB = Job(id=1, seq=1, api_key_id="key", file_prefix="prefix", state=JobState.QUEUED, created_at=0.0, request_sha256="")


class Container:
    """A container of one engine, as both sides reach it; `wake` never ends."""

    def __init__(self) -> None:
        self.calls: list[ScriptedCall] = []

    @property
    def wake(self) -> Any:
        return self

    @property
    def generate(self) -> Any:
        return self

    def spawn(self, *arguments: Any) -> ScriptedCall:
        call = ScriptedCall(TimeoutError())
        call.object_id = f"fc-{len(self.calls)}"
        self.calls.append(call)
        return call


class Deployment:
    """One engine, and the entries that its containers share."""

    def __init__(self) -> None:
        self.entries = InMemoryDict()
        self.container = Container()
        containers = {"preview": lambda: self.container}
        self.start_early = EarlyStart(containers, default="preview", entries=self.entries)
        self.has_weights = True
        self.pool = EnginePool(
            containers,
            default="preview",
            weights="tiny",
            entries=self.entries,
            reopen=lambda call_id: self.container.calls[int(call_id.removeprefix("fc-"))],
            check=self._check,
        )

    def _check(self, engine: str) -> None:
        if not self.has_weights:
            raise WeightsUnusable("the weights are missing")


@pytest.fixture
def deployment() -> Deployment:
    """A deployment that has run a job before."""
    deployment = Deployment()
    deployment.pool.wake(None)
    deployment.pool.forget("an earlier job")
    deployment.container.calls.clear()
    return deployment


def test_the_container_of_a_submit_is_the_one_that_its_job_waits_for(deployment: Deployment) -> None:
    deployment.start_early(JOB)
    deployment.pool.wake(None, channel=JOB.file_prefix)

    assert len(deployment.container.calls) == 1


def test_a_job_whose_generation_an_earlier_attempt_started_starts_no_container(deployment: Deployment) -> None:
    ControlChannel(deployment.entries, JOB.file_prefix).save_call(SavedCall("fc-of-the-earlier-attempt", tries=1))

    deployment.pool.wake(None, channel=JOB.file_prefix)

    assert deployment.container.calls == []


def test_no_container_starts_early_before_a_job_found_the_weights() -> None:
    deployment = Deployment()
    deployment.has_weights = False
    deployment.start_early(JOB)
    with pytest.raises(WeightsUnusable):
        deployment.pool.wake(None, channel=JOB.file_prefix)
    deployment.start_early(JOB)

    assert deployment.container.calls == []


@pytest.mark.parametrize(
    "job", [replace(JOB, engine="another"), replace(JOB, meta=JobMeta(export_of=ExportSource(2, "other")))]
)
def test_a_job_that_needs_no_container_starts_none(deployment: Deployment, job: Job) -> None:
    deployment.start_early(job)

    assert deployment.container.calls == []


def test_a_dictionary_that_does_not_answer_does_not_fail_a_submit(deployment: Deployment) -> None:
    class Unreachable(InMemoryDict):
        def get(self, key: str, default: Any = None) -> Any:
            raise ConnectionError("no route")

    EarlyStart({"preview": lambda: deployment.container}, default="preview", entries=Unreachable())(JOB)

    assert deployment.container.calls == []


@pytest.mark.parametrize("is_taken", [False, True])
def test_the_end_of_a_job_cancels_a_start_that_it_did_not_use(deployment: Deployment, is_taken: bool) -> None:
    deployment.start_early(JOB)
    if is_taken:  # and the image was refused afterwards
        deployment.pool.wake(None, channel=JOB.file_prefix)

    deployment.pool.abandon(JOB.file_prefix)

    assert deployment.container.calls[0].was_cancelled
    assert deployment.entries.keys() == ["startable/preview"]


def test_the_generation_of_a_job_that_is_given_up_is_cancelled(deployment: Deployment) -> None:
    running = deployment.container.spawn()
    ControlChannel(deployment.entries, JOB.file_prefix).save_call(SavedCall(running.object_id, tries=1))

    deployment.pool.abandon(JOB.file_prefix)

    assert running.was_cancelled
    assert deployment.entries.keys() == ["startable/preview"]
