"""Exports of finished jobs: run by the job core from the kept generation, with the preview engine."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

pytest.importorskip("numba", reason="needs the extra 'local'")

from pipeline.api.app import create_app
from pipeline.engines.base import Generation
from pipeline.job_handler import JobHandler, folder_of
from pipeline.jobs.model import Job, KeyLimits, LedgerFilter
from pipeline.jobs.worker_loop import QueueWorker, WorkerOptions
from pipeline.service import kept_generations, open_service
from pipeline.settings import Settings
from pipeline.stages.generate import LocalEngines
from tests.api.conftest import Deployment
from tests.fakes.images import disc_as_base64

EXPORT, FETCH = "/api/v6/3d/export/{}", "/api/v6/3d/fetch/{}"
SMALL = {"image": disc_as_base64(), "resolution": 64, "texture_size": 512, "seed": 5}


class Killed(BaseException):
    """Kills a worker at any point."""


class Worker:
    """A worker with the preview engine, driven by the test.

    Attributes:
        generated: how often the engine ran.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.generated = 0
        self._engines = LocalEngines("preview")

    def work(self, *, on_checkpoint: Callable[[], None] = lambda: None) -> None:
        """Run the jobs in the queue."""
        service = self.deployment.service
        handler = JobHandler(service, service.temporary, self._generate_for, on_checkpoint=on_checkpoint)  # type: ignore[arg-type]
        options = WorkerOptions("worker", lease_s=1)
        loop = QueueWorker(service.store, handler, options, on_end=lambda job: shutil.rmtree(self.folder_of(job)))
        while loop.run_one(threading.Event()) is not None:
            pass

    def folder_of(self, job: Job) -> Path:
        return folder_of(job, self.deployment.service.settings.work_dir)

    def _generate_for(self, job: Job, engine: str | None) -> Callable[..., Generation]:
        self.generated += 1
        return partial(self._engines.generate, engine)

    def finished(self, **fields: Any) -> dict[str, Any]:
        """A submit that was run to its end; returns its success body."""
        submitted = self.deployment.submit("/api/v6/3d/image_to_3d", **{**SMALL, **fields})
        self.work()
        return self.fetched(submitted["id"])

    def exported(self, job_id: int, **fields: Any) -> dict[str, Any]:
        """An export that was run to its end; returns its body."""
        answer = self.deployment.post(EXPORT.format(job_id), fields, prefer="wait=0")
        assert answer.status_code == 200 and answer.json()["status"] == "processing", answer.text
        self.work()
        return self.fetched(answer.json()["id"])

    def fetched(self, job_id: int) -> dict[str, Any]:
        return self.deployment.post(FETCH.format(job_id)).json()

    def files(self, body: dict[str, Any]) -> dict[str, bytes]:
        """The content of a job's files by name, each without the job's own prefix."""
        prefix = body["meta"]["file_prefix"]
        contents = {}
        for entry in body["files"]:
            answer = self.deployment.client.get(entry["url"])
            assert answer.status_code == 200 and len(answer.content) == entry["bytes"]
            name = urlsplit(entry["url"]).path.rpartition("/")[2]
            contents[name.replace(prefix, "")] = answer.content.replace(prefix.encode(), b"")
        return contents


@pytest.fixture
def worker(deployment: Deployment) -> Worker:
    return Worker(deployment)


def test_an_export_has_the_bytes_of_a_first_one_with_the_same_parameters_and_runs_no_engine(worker: Worker) -> None:
    changed = {"output_format": "obj", "texture_size": 640, "target_faces": 800}
    first = worker.finished()
    again = worker.exported(first["id"], **changed)
    assert worker.generated == 1
    fresh = worker.finished(**changed)
    assert worker.generated == 2

    assert again["id"] != first["id"] and again["status"] == "success"
    assert [entry["kind"] for entry in again["files"]] == ["model", "material", "texture", "thumbnail"]
    assert 790 <= again["files"][0]["faces"] <= 800
    assert worker.files(again) == worker.files(fresh)
    named = {"file_prefix": 0, "cutout_confidence": 0}  # an export has no intake
    assert again["meta"] | named == fresh["meta"] | named
    assert worker.fetched(first["id"]) == first


def test_an_export_costs_no_gpu_seconds_and_nothing_of_the_months_quota(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(KeyLimits(per_month=1))
    worker = Worker(deployment)
    first = worker.finished()
    timings = deployment.service.store.timings()

    again = worker.exported(first["id"], output_format="stl", track_id="again")
    third = worker.exported(again["id"], output_formats=["ply", "stl"])

    (key, _) = deployment.service.store.list_keys()
    assert deployment.service.store.key_use(key.id).this_month == 1
    rows = deployment.service.store.usage_rows(LedgerFilter(key.id))
    assert [(row.job_id, row.gpu_seconds) for row in rows[1:]] == [(again["id"], 0.0), (third["id"], 0.0)]
    assert deployment.service.store.timings() == timings
    assert again["track_id"] == "again" and again["meta"]["output_formats"] == ["stl"]
    assert [url[-4:] for url in third["output"]] == [".ply", ".stl"] and third["meta"]["mesh"]["texture_size"] is None
    assert deployment.post("/api/v6/3d/image_to_3d", SMALL).status_code == 402


def test_a_killed_export_is_finished_by_the_next_attempt_even_if_the_generation_went(worker: Worker) -> None:
    first = worker.finished()
    answer = worker.deployment.post(EXPORT.format(first["id"]), {"output_format": "stl"}, prefer="wait=0").json()
    killed = []

    def kill() -> None:
        worker.deployment.service.generations.delete(first["meta"]["file_prefix"])
        killed.append(True)
        raise Killed

    with pytest.raises(Killed):
        worker.work(on_checkpoint=kill)
    worker.deployment.service.store.expire_leases("worker")
    worker.work()

    body = worker.fetched(answer["id"])
    assert killed and body["status"] == "success" and body["output"][0].endswith(".stl")


def test_an_export_beyond_the_kept_generation_is_refused_or_fails(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy()
    worker = Worker(deployment)
    first = worker.finished()
    accepted = deployment.post(EXPORT.format(first["id"]), prefer="wait=0").json()
    deployment.service.generations.delete(first["meta"]["file_prefix"])

    refused = deployment.post(EXPORT.format(first["id"]))
    worker.work()

    failed = worker.fetched(accepted["id"])
    assert (refused.status_code, refused.json()["error_code"]) == (410, "generation_gone")
    assert "kept for at most 3600 s" in refused.json()["message"]
    assert "machine" not in refused.json()["message"]
    assert (failed["status"], failed["error_code"], failed["message"]) == (
        "failed",
        "generation_gone",
        refused.json()["message"],
    )


def test_an_export_on_a_machine_that_shares_no_storage_is_refused_with_the_setting_that_shares_it(
    deploy: Callable[..., Deployment], tmp_path: Path
) -> None:
    shared: dict[str, Any] = {
        "database_url": SecretStr(f"sqlite:///{tmp_path / 'shared.sqlite3'}"),
        "secret_keys": (SecretStr("the secret of all machines"),),
    }
    worker = Worker(deploy(**shared))
    first = worker.finished()
    second = open_service(Settings(data_dir=tmp_path / "second machine", **shared))
    other = replace(worker.deployment, client=TestClient(create_app(second.settings, service=second)), service=second)

    refused = other.post(EXPORT.format(first["id"]))
    accepted = worker.deployment.post(EXPORT.format(first["id"]), prefer="wait=0").json()
    Worker(other).work()
    second.close()

    failed = worker.fetched(accepted["id"])
    assert (refused.status_code, refused.json()["error_code"]) == (410, "generation_gone")
    assert "machines share them only where the operator sets OUTPUTS_URL" in refused.json()["message"]
    assert (failed["error_code"], failed["message"]) == ("generation_gone", refused.json()["message"])
    assert worker.exported(first["id"], output_format="stl")["status"] == "success"


def test_deleting_a_job_deletes_its_generation(worker: Worker) -> None:
    first = worker.finished()
    again = worker.exported(first["id"], output_format="stl")
    worker.deployment.post(f"/api/v1/enterprise/3d/delete/{first['id']}")

    assert worker.deployment.post(EXPORT.format(first["id"])).status_code == 404
    assert worker.deployment.post(EXPORT.format(again["id"])).status_code == 410


def test_a_deployment_may_keep_no_generations(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(generation_lifetime_s=0)
    first = Worker(deployment).finished()

    answer = deployment.post(EXPORT.format(first["id"]))

    assert (answer.status_code, answer.json()["message"]) == (
        410,
        "This deployment keeps no generations; submit the image again.",
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"output_format": "fbx"}, "output_format must be one of"),
        ({"target_faces": 1}, "target_faces must be between 100 and 2000000, got 1"),
        ({"render": True}, "render must be false: job "),
        ({"no_texture": False}, "no_texture must be true: job "),
        ({"webhook": "http://169.254.169.254/"}, "169.254.169.254 leads to an address that is not public"),
    ],
)
def test_an_export_that_the_generation_cannot_meet_is_refused(
    deployment: Deployment, fields: dict[str, Any], sentence: str
) -> None:
    job = deployment.finish(deployment.submit(no_texture=True)["id"])
    checkpoint = deployment.folder / "generate.pickle"
    checkpoint.write_bytes(b"a generation")
    kept_generations(deployment.service.settings).keep(job.file_prefix, checkpoint)

    answer = deployment.post(EXPORT.format(job.id), fields)

    assert answer.status_code == 400 and answer.json()["message"].startswith(sentence)


def test_only_a_job_that_succeeded_can_be_exported(deployment: Deployment) -> None:
    job_id = deployment.submit()["id"]

    answer = deployment.post(EXPORT.format(job_id))

    assert (answer.status_code, answer.json()["message"]) == (
        400,
        f"Job {job_id} is queued; only a job that succeeded can be exported again.",
    )


def test_fields_of_the_generation_are_named_as_ignored(deployment: Deployment) -> None:
    job = deployment.finish(deployment.submit()["id"])
    checkpoint = deployment.folder / "generate.pickle"
    checkpoint.write_bytes(b"a generation")
    kept_generations(deployment.service.settings).keep(job.file_prefix, checkpoint)

    body = deployment.post(EXPORT.format(job.id), {"resolution": 512, "seed": 3}, prefer="wait=0").json()

    assert body["warning"] == "Ignored, because an export does not generate again: resolution, seed."
    assert body["meta"]["resolution"] == 256 and body["meta"]["seed"] == 7
