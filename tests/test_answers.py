"""Bodies about jobs: what each file is called, and in which list it stands."""

from __future__ import annotations

import pytest

from pipeline.answers import final_body, iso_time
from pipeline.jobs.model import Job, JobResult, JobState
from pipeline.storage.base import Artifact, content_type_of, output_names

URL = "https://3d.example/"


def body_of(names: list[tuple[str, str]], *, expires_at: float | None = None, record_ends_at: float = 5e8) -> dict:
    artifacts = tuple(
        Artifact(name, kind, URL + name, 5, content_type_of(name), "", None, expires_at)  # type: ignore[arg-type]
        for name, kind in names
    )
    result = JobResult(JobState.SUCCESS, artifacts=artifacts)
    job = Job(1, 1, "key", "p", JobState.SUCCESS, 1e8, "", finished_at=2e8, expires_at=record_ends_at, result=result)
    return final_body(job)


def test_every_file_of_a_job_has_a_kind_and_stands_in_one_list() -> None:
    names = output_names(["obj"], file_prefix="p", render=True, extra_endings=("splat.ply", "cutout.png", "other.bin"))
    body = body_of(names)  # type: ignore[arg-type]

    kinds = {entry["url"].removeprefix(URL): entry["kind"] for entry in body["files"]}
    assert kinds == {
        "p.obj": "model",
        "p.mtl": "material",
        "p_texture.png": "texture",
        "p.mp4": "turntable",
        "p.splat.ply": "splat",
        "p.cutout.png": "cutout",
        "p.other.bin": "extra",
        "p_thumbnail.png": "thumbnail",
    }
    assert body["output"] == [f"{URL}{name}" for name in ("p.obj", "p.mtl", "p_texture.png", "p.mp4")]
    assert sorted([*body["output"], *body["extra_assets"]]) == sorted(entry["url"] for entry in body["files"])


@pytest.mark.parametrize(("files_end_at", "stated"), [(3e8, 3e8), (6e8, 5e8), (None, 5e8)])
def test_a_job_expires_with_its_record_or_its_files(files_end_at: float | None, stated: float) -> None:
    assert body_of([("p.glb", "model")], expires_at=files_end_at)["expires_at"] == iso_time(stated)


def test_a_time_is_stated_in_utc() -> None:
    assert iso_time(1769860800.25) == "2026-01-31T12:00:00.250Z"
    assert iso_time(None) is None
