"""A deployment for the API's tests: the real store and storage in a folder, and a worker that a test drives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline.api.app import create_app
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import Job, JobResult, JobState, KeyLimits
from pipeline.service import Service, open_service
from pipeline.settings import Settings
from pipeline.storage.base import Artifact, OutputFile, content_type_of

SUBMIT = "/api/v1/enterprise/3d/image_to_3d"
METRICS_TOKEN = "a-token-for-monitoring"
IMAGE = "data:image/png;base64,iVBORw0KGgo="


@dataclass
class Deployment:
    """A client of the app, the parts behind it, and two callers' keys."""

    client: TestClient
    service: Service
    key: str
    other_key: str
    folder: Path

    def post(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
        """POST as the first caller unless the body names a key; returns the response."""
        content = json.dumps({"key": self.key, **(body or {})})  # in ASCII: a lone surrogate can be sent too
        return self.client.post(path, content=content, headers={"content-type": "application/json", **headers})

    def submit(self, path: str = SUBMIT, **fields: Any) -> dict[str, Any]:
        """Submit without waiting; returns the body."""
        answer = self.post(path, {"image": IMAGE, **fields}, prefer="wait=0")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def finish(self, job_id: int, *, state: JobState = JobState.SUCCESS, message: str = "") -> Job:
        """Do what a worker does with the job: claim it, store files, complete it."""
        store = self.service.store
        job = store.claim("worker", lease_s=60, job_id=job_id)
        assert job is not None
        artifacts: tuple[Artifact, ...] = ()
        if state is JobState.SUCCESS:
            files = []
            for name, kind in ((f"{job.file_prefix}.glb", "model"), (f"{job.file_prefix}_thumbnail.png", "thumbnail")):
                path = self.folder / name
                path.write_bytes(b"0123456789" * 10)
                faces = 12 if kind == "model" else None
                files.append(OutputFile(path, kind, content_type_of(name), faces))  # type: ignore[arg-type]
            lifetime_s = job.meta.parameters.get("retention_s")
            storage = self.service.temporary.for_job(created_at=job.created_at, lifetime_s=lifetime_s)
            stored = storage.store(files, file_prefix=job.file_prefix)
            artifacts = tuple(stored)
        result = JobResult(
            state, message=message, artifacts=artifacts, stage_seconds={"generate": 1.25}, meta={"seed": 7}, engine="x"
        )
        return store.complete(job.lease, result)


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    """Makes a deployment with the test's own settings."""
    opened: list[Service] = []

    def make(
        limits: KeyLimits | None = None, *, peer: tuple[str, int] = ("192.0.2.7", 50000), **settings: Any
    ) -> Deployment:
        given = {"submit_wait_s": 0, "fetch_wait_s": 0, "public_url": "http://testserver", "database_url": None}
        given["metrics_token"] = METRICS_TOKEN
        service = open_service(Settings(data_dir=tmp_path / "data", **{**given, **settings}))
        opened.append(service)
        keys = [make_key(name, limits=limits or KeyLimits()) for name in ("first", "second")]
        for _, record in keys:
            service.store.add_key(record)
        app = create_app(service.settings, service=service)
        client = TestClient(app, raise_server_exceptions=False, client=peer)
        return Deployment(client, service, keys[0][0], keys[1][0], tmp_path)

    yield make
    for service in opened:
        service.close()


@pytest.fixture
def deployment(deploy: Callable[..., Deployment]) -> Deployment:
    return deploy()
