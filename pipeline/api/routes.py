"""Routes about jobs: submit, fetch, cancel, list, delete, redeliver."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from pipeline.api.body_schema import IDEMPOTENCY_KEY, PREFER, body_schema
from pipeline.api.browser_tokens import Caller
from pipeline.api.context import Context, context_of
from pipeline.api.problems import BAD_REQUEST, NOT_FOUND, QUOTA_SPENT, TOO_LARGE, TOO_MANY, UNAUTHORIZED, documented
from pipeline.api.requests import read_bounded_int, read_id, read_track_id, read_word, requested_wait_s
from pipeline.api.sample_asset import sample_result
from pipeline.api.submissions import Submission, check_urls, read_submission
from pipeline.jobs.model import Job, JobFilter, JobState, NewJob, Submitted
from pipeline.telemetry import note_on_span
from schemas.contract import given_fields
from schemas.formats import OutputFormat
from schemas.request import ImageTo3DRequest
from schemas.responses import FailedBody, ListBody, ProcessingBody, ServerActionBody, SuccessBody
from schemas.text import TextTo3DRequest

ENTERPRISE, V6 = "/api/v1/enterprise/3d", "/api/v6/3d"
"""The prefixes of the two versions of ModelsLab's API."""
DEFAULT_FORMATS: dict[str, OutputFormat] = {ENTERPRISE: "obj", V6: "glb"}
"""What a submit without `output_format` gets, by the version's prefix."""
MAX_PAGE = 200
MAX_SEQ = 2**53

EXAMPLE = {
    "key": "enterprise_api_key",
    "image": "https://example.com/subject.png",
    "ss_sampling_steps": 50,
    "slat_sampling_steps": 50,
    "output_format": "glb",
    "webhook": None,
    "track_id": None,
    "temp": "no",
}
BALL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgAQMAAABJtOi3AAAABlBMVEUAAADENC5UPXlrAAAAAXRSTl"
    "MAQObYZgAAAE1JREFUeNptzbEJhEAABdHn50BDS7AT7UxLsxRLMDSQ3QuOA1EnGJhoeKPdMJ5iCmqVhiVhyoch8FNHf8mbDvZLnm"
    "wprNSKuYi1/JdPvocIESj+oapHAAAAAElFTkSuQmCC"
)
"""A red ball on a transparent background, 32 x 32 pixels: an image that needs no network."""
WORKING_EXAMPLE = {"image": BALL, "output_format": "glb", "resolution": 64, "texture_size": 512}
"""A submit that succeeds without any change."""
REFUSALS = documented(BAD_REQUEST, UNAUTHORIZED, QUOTA_SPENT, TOO_LARGE, TOO_MANY)
JOB_REFUSALS = documented(BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, TOO_LARGE)
JOB_BODY = SuccessBody | ProcessingBody | FailedBody

router = APIRouter(tags=["jobs"])


KEY_SCHEMA: dict[str, Any] = {"type": "object", "properties": {"key": {"type": "string", "description": "API key"}}}
KEY_BODY = body_schema(KEY_SCHEMA, example={"key": "…"})
FETCH_BODY = body_schema(KEY_SCHEMA, example={"key": "…"}, headers=(PREFER,))
FETCH_BY_BODY = body_schema(
    {
        "type": "object",
        "properties": {**KEY_SCHEMA["properties"], "request_id": {"type": "string", "description": "id of the job"}},
        "required": ["request_id"],
    },
    example={"key": "…", "request_id": "1207959551"},
    headers=(PREFER,),
)
LIST_BODY = body_schema(
    {
        "type": "object",
        "properties": {
            **KEY_SCHEMA["properties"],
            "status": {
                "type": "string",
                "enum": [state.value for state in JobState],
                "description": "only jobs in this state",
            },
            "track_id": {"type": "string", "description": "only jobs with this `track_id`"},
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_PAGE,
                "description": "jobs on a page, default 50",
            },
            "before": {"type": "integer", "description": "`next` of the previous page"},
        },
    },
    example={"key": "…", "status": "success", "limit": 20},
)
TEXT_EXAMPLE = {
    "key": "enterprise_api_key",
    "prompt": "a ghost wearing white bedsheet",
    "num_inference_steps": 30,
    "guidance_scale": 3,
    "resolution": 512,
    "output_format": "glb",
    "seed": 0,
    "temp": "no",
    "webhook": None,
    "track_id": None,
}
TEXT_BODY = body_schema(TextTo3DRequest.model_json_schema(), example=TEXT_EXAMPLE, headers=(PREFER, IDEMPOTENCY_KEY))
SUBMIT_BODY = body_schema(
    ImageTo3DRequest.model_json_schema(),
    example=EXAMPLE,
    working_example=WORKING_EXAMPLE,
    headers=(PREFER, IDEMPOTENCY_KEY),
)


def prefix_of(request: Request) -> str:
    """The prefix of the version that a request was made to."""
    return V6 if request.scope["route"].path.startswith(V6) else ENTERPRISE


async def submit_text(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Submit a text. The response is the result if it is ready within the wait, else where to fetch it."""
    body = await context.body(request)
    path_format = DEFAULT_FORMATS[prefix_of(request)]
    submission = await context.in_thread(partial(read_submission, is_text=True), request, context, body, path_format)
    return await accept(request, context, submission)


async def submit(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Submit an image. The response is the result if it is ready within the wait, else where to fetch it."""
    body = await context.body(request)
    submission = await context.in_thread(read_submission, request, context, body, DEFAULT_FORMATS[prefix_of(request)])
    del body  # its images are in the submission's request now, once
    return await accept(request, context, submission)


async def accept(request: Request, context: Context, submission: Submission) -> JSONResponse:
    """Record a submission as a job and answer with its result, if that is ready within the wait.

    Raises:
        BlockedAddress: a URL leads to an address that this deployment does not connect to.
        RateLimited: the key's queue is full, or its minute is.
        QuotaSpent: the key's monthly quota is used up.
    """
    base_url, wait_s = context.base_url(request), requested_wait_s(request, context.settings.submit_wait_s)
    fetch_path = f"{prefix_of(request)}/fetch"
    await check_urls(submission, context)

    def record() -> tuple[Submitted, dict[str, Any] | None]:
        def submit_one(new: NewJob) -> Submitted:
            if not submission.is_test:
                return context.store.submit(new)
            result = sample_result(new, engine=context.settings.engine, base_url=base_url)
            return Submitted(context.store.record(new, result), is_new=False, queue_position=0)

        token = submission.token
        submitted = submit_one(submission.job) if token is None else token.submit(submit_one, submission.job)
        if submitted.is_new:
            context.service.dispatch(submitted.job)
        job, position = submitted.job, submitted.queue_position
        if wait_s > 0 and not job.state.is_final:
            return submitted, None
        return submitted, context.job_body(job, fetch_path=fetch_path, base_url=base_url, queue_position=position)

    submitted, answer = await context.in_thread(record)
    note_on_span({"job.id": submitted.job.id})
    if answer is None:
        answer = await _wait_for_body(context, submitted.job, wait_s=wait_s, fetch_path=fetch_path, base_url=base_url)
    replayed = {} if submitted.is_new else {"idempotent-replayed": "true"}
    return JSONResponse(answer, headers={**_rate_headers(submitted), **replayed})


async def _wait_for_body(context: Context, job: Job, *, wait_s: float, fetch_path: str, base_url: str) -> Any:
    """The body about a job: its result if that comes within the wait, else its progress."""
    waited = await context.completions.wait(job, wait_s)

    def read() -> dict[str, Any]:
        latest = (
            waited if waited.state.is_final or wait_s <= 0 else context.store.get(job.id, api_key_id=job.api_key_id)
        )
        latest = context.service.with_progress(latest)
        return context.job_body(latest, fetch_path=fetch_path, base_url=base_url)

    return await context.in_thread(read)


def _rate_headers(submitted: Submitted) -> dict[str, str]:
    rate = submitted.rate
    if rate is None:
        return {}
    return {
        "x-ratelimit-limit": str(rate.limit),
        "x-ratelimit-remaining": str(rate.remaining),
        "x-ratelimit-reset": str(math.ceil(rate.reset_at)),
    }


async def fetch(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """The state of a job or its result; waits a while for the result."""
    caller, _ = await context.user(request)
    return await _fetch(request, context, caller, job_id=call_id)


async def fetch_by_body(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """The state or the result of the job that the body's `request_id` names; waits a while for the result."""
    caller, body = await context.user(request)
    given = given_fields(body)
    return await _fetch(request, context, caller, job_id=given.get("request_id", given.get("id")))


async def _fetch(request: Request, context: Context, caller: Caller, *, job_id: object) -> JSONResponse:
    job = await context.in_thread(context.job_of, caller, read_id(job_id))
    wait_s = requested_wait_s(request, context.settings.fetch_wait_s)
    base_url, fetch_path = context.base_url(request), f"{prefix_of(request)}/fetch"
    return JSONResponse(await _wait_for_body(context, job, wait_s=wait_s, fetch_path=fetch_path, base_url=base_url))


for _prefix, _format in DEFAULT_FORMATS.items():
    _suffix = "_v6" if _prefix == V6 else ""  # of the operation ids
    router.add_api_route(
        f"{_prefix}/image_to_3d",
        submit,
        methods=["POST"],
        name=f"submit{_suffix}",
        description=f"{submit.__doc__} The default `output_format` is {_format}.",
        response_model=JOB_BODY,
        responses=REFUSALS,
        openapi_extra=SUBMIT_BODY,
    )
    router.add_api_route(
        f"{_prefix}/text_to_3d",
        submit_text,
        methods=["POST"],
        name=f"submit_text{_suffix}",
        description=f"{submit_text.__doc__} The default `output_format` is {_format}.",
        response_model=JOB_BODY,
        responses=REFUSALS,
        openapi_extra=TEXT_BODY,
    )
    router.add_api_route(
        f"{_prefix}/fetch/{{call_id}}",
        fetch,
        methods=["POST"],
        name=f"fetch{_suffix}",
        response_model=JOB_BODY,
        responses=JOB_REFUSALS,
        openapi_extra=FETCH_BODY,
    )
    router.add_api_route(
        f"{_prefix}/fetch",
        fetch_by_body,
        methods=["POST"],
        name=f"fetch_by_body{_suffix}",
        response_model=JOB_BODY,
        responses=JOB_REFUSALS,
        openapi_extra=FETCH_BY_BODY,
    )


@router.post(
    f"{ENTERPRISE}/cancel/{{call_id}}", response_model=JOB_BODY, responses=JOB_REFUSALS, openapi_extra=KEY_BODY
)
async def cancel(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Cancel a queued job at once and ask a running one to stop; a job that has ended stays as it is."""
    caller, _ = await context.user(request)
    found = await context.in_thread(context.job_of, caller, read_id(call_id))
    job = await context.in_thread(context.store.request_cancel, found.id, api_key_id=caller.key.id)
    await context.in_thread(context.service.after_cancel, job)
    base_url = context.base_url(request)
    return JSONResponse(
        await context.in_thread(context.job_body, job, fetch_path=f"{ENTERPRISE}/fetch", base_url=base_url)
    )


@router.post(
    f"{ENTERPRISE}/delete/{{call_id}}", response_model=ServerActionBody, responses=JOB_REFUSALS, openapi_extra=KEY_BODY
)
async def delete(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Delete a job that has ended: its record and its temporary outputs."""
    key, _ = await context.caller(request)
    job = await context.in_thread(context.store.delete, read_id(call_id), api_key_id=key.id)
    await context.in_thread(context.service.temporary.delete, job.file_prefix)
    await context.in_thread(context.service.generations.delete, job.file_prefix)
    return JSONResponse(ServerActionBody(message=f"Job {job.id} and its temporary outputs are deleted.").to_json())


@router.post(
    f"{ENTERPRISE}/redeliver/{{call_id}}",
    response_model=ServerActionBody,
    responses={**JOB_REFUSALS, **documented(TOO_MANY)},
    openapi_extra=KEY_BODY,
)
async def redeliver(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Send the webhook of a job that has ended again, under its original id."""
    key, _ = await context.caller(request)
    job = await context.in_thread(context.store.get, read_id(call_id), api_key_id=key.id)
    context.redeliveries_of_job.count(job.id)
    context.redeliveries_of_key.count(key.id)
    task = await context.in_thread(context.store.redeliver, job.id, api_key_id=key.id)
    return JSONResponse(ServerActionBody(message=f"The webhook of job {task.job_id} is sent again.").to_json())


@router.post(
    f"{ENTERPRISE}/list",
    response_model=ListBody,
    responses=documented(BAD_REQUEST, UNAUTHORIZED, TOO_LARGE),
    openapi_extra=LIST_BODY,
)
async def list_jobs(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """The caller's jobs, newest first, a page at a time."""
    key, body = await context.caller(request)
    body = given_fields(body)
    state = read_word(body, "status", [known.value for known in JobState])
    limit = read_bounded_int(body, "limit", most=MAX_PAGE) or 50
    jobs = await context.in_thread(
        context.store.list_jobs,
        JobFilter(key.id, None if state is None else JobState(state), read_track_id(body.get("track_id"))),
        before_seq=read_bounded_int(body, "before", most=MAX_SEQ),
        limit=limit,
    )
    base_url = context.base_url(request)

    def bodies() -> list[dict[str, Any]]:
        return [context.job_body(job, fetch_path=f"{ENTERPRISE}/fetch", base_url=base_url) for job in jobs]

    next_before = jobs[-1].seq if jobs and len(jobs) == limit else None
    return JSONResponse({"status": "success", "calls": await context.in_thread(bodies), "next": next_before})
