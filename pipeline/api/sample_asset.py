"""The fixed asset that test keys are answered with: packaged files, made by `scripts.assets.draw_test_asset`."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipeline.api.problems import NOT_FOUND, NOT_MODIFIED, OK, documented
from pipeline.errors import NotFound
from pipeline.jobs.model import JobResult, JobState, NewJob
from pipeline.storage.base import Artifact, content_type_of, output_names
from schemas.request import formats_of

router = APIRouter(tags=["files"])

PREFIX = "sample"
"""What the names of the files begin with."""
SEED = 7
"""The seed of the asset."""


@router.get(
    "/sample/{name}",
    responses={
        **documented(NOT_FOUND),
        OK: {"content": {"application/octet-stream": {}}, "description": "The file."},
        NOT_MODIFIED: {"description": "The caller's copy is current."},
    },
    response_class=Response,
)
def read_sample(name: str, request: Request) -> Response:
    """A file of the fixed asset that test keys get."""
    if name not in _names():
        raise NotFound("there is no such file")
    content = _content(name)
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"etag": etag, "cache-control": "no-cache", "access-control-allow-origin": "*"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=NOT_MODIFIED, headers=headers)
    return Response(content, media_type=content_type_of(name), headers=headers)


def sample_result(new: NewJob, *, engine: str, base_url: str) -> JobResult:
    """The result of a job of a test key: the asset in the formats that its request names. Blocks."""
    parameters = new.meta.parameters
    names = output_names(formats_of(parameters), file_prefix=PREFIX, render=bool(parameters.get("render")))
    artifacts = tuple(
        Artifact(
            name=name,
            kind=kind,
            url=f"{base_url}/sample/{name}",
            size_bytes=len(_content(name)),
            content_type=content_type_of(name),
            sha256=hashlib.sha256(_content(name)).hexdigest(),
            faces=json.loads(_content("faces.json"))[PurePath(name).suffix[1:]] if kind == "model" else None,
        )
        for name, kind in names
    )
    meta = {**parameters, "seed": SEED, "engine": parameters.get("engine") or engine, "file_prefix": PREFIX}
    warning = "This is a fixed asset: the request was sent with a test key."
    return JobResult(JobState.SUCCESS, artifacts=artifacts, warnings=(warning,), meta={**meta, "test": True})


@cache
def _content(name: str) -> bytes:
    return files("pipeline.api").joinpath(PREFIX, name).read_bytes()


@cache
def _names() -> frozenset[str]:
    return frozenset(entry.name for entry in files("pipeline.api").joinpath(PREFIX).iterdir())
