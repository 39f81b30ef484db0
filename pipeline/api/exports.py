"""The route that makes the files of a finished job anew, in another format or size, from its kept generation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from pipeline.api.body_schema import IDEMPOTENCY_KEY, PREFER, body_schema
from pipeline.api.context import Context, context_of
from pipeline.api.problems import (
    BAD_REQUEST,
    GONE,
    NOT_FOUND,
    TOO_LARGE,
    TOO_MANY,
    UNAUTHORIZED,
    documented,
)
from pipeline.api.requests import read_id
from pipeline.api.routes import DEFAULT_FORMATS, JOB_BODY, V6, accept
from pipeline.api.submissions import Submission, check_formats, check_retention, submission_of
from pipeline.errors import InvalidRequest
from pipeline.jobs.api_keys import is_test_key
from pipeline.jobs.model import ExportSource, Job, JobState
from pipeline.service import generation_gone
from schemas.export import export_schema, parse_export

router = APIRouter(tags=["jobs"])

EXPORT_BODY = body_schema(
    export_schema(),
    example={"key": "…", "output_format": "stl", "target_faces": 20000},
    headers=(IDEMPOTENCY_KEY, PREFER),
)


async def export(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Make the files of a job that succeeded anew, in another format, texture size or number of faces, as a job."""
    body = await context.body(request)
    submission = await context.in_thread(_read_export, request, context, body, call_id)
    return await accept(request, context, submission)


def _read_export(request: Request, context: Context, body: dict[str, Any], call_id: str) -> Submission:
    """Check an export and make it a job to record. Blocks.

    Raises:
        Unauthorized: the key is missing or unknown.
        NotFound: this key has no such job.
        InvalidRequest: a field is malformed or out of bounds, or the job did not succeed.
        GenerationGone: the generation is not kept any more.
    """
    key = context.authenticate(request, body)
    job = context.store.get(read_id(call_id), api_key_id=key.id)
    if job.result is None or job.state is not JobState.SUCCESS:
        raise InvalidRequest(f"Job {job.id} is {job.state}; only a job that succeeded can be exported again.")
    # What the job drew is a parameter of its generation too.
    parameters = {**job.meta.parameters, "seed": job.result.meta.get("seed", 0)}
    parsed = parse_export(body, parameters=parameters, job_id=job.id)
    check_formats(parsed.request, context)
    check_retention(parsed.request, context)
    source = export_source(job)
    if not is_test_key(key) and not context.service.generations.has(source.file_prefix):
        raise generation_gone(job.id, context.service)
    return submission_of(request, parsed, key=key, sent=body, path_decides=f"export of {job.id}", export_of=source)


def export_source(job: Job) -> ExportSource:
    """Where the generation of a finished job is kept: an export has that of the job that it was made from."""
    origin = job.meta.export_of
    return ExportSource(job.id, job.file_prefix if origin is None else origin.file_prefix)


for _prefix in DEFAULT_FORMATS:
    router.add_api_route(
        f"{_prefix}/export/{{call_id}}",
        export,
        methods=["POST"],
        name=f"export{'_v6' if _prefix == V6 else ''}",
        response_model=JOB_BODY,
        responses=documented(BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, GONE, TOO_LARGE, TOO_MANY),
        openapi_extra=EXPORT_BODY,
    )
