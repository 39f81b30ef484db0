"""Routes about calls: submit, fetch, cancel, list, delete, redeliver, events."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse

from pipeline.api.context import Context, context_of
from pipeline.api.problems import BAD_REQUEST, NOT_FOUND, QUOTA_SPENT, TOO_LARGE, TOO_MANY, UNAUTHORIZED, documented
from pipeline.api.requests import idempotency_key, read_id, read_track_id, read_whole, requested_wait_s
from pipeline.engines.registry import check_views, find_spec
from pipeline.errors import InvalidRequest, NotFound, StoreUnavailable
from pipeline.imaging.inline import check_beginning, read_inline
from pipeline.jobs.model import Job, JobMeta, JobState, NewJob, Submitted
from pipeline.net.egress import check_url
from pipeline.telemetry import current_traceparent, note_on_span
from schemas.contract import OutputFormat, is_http_url
from schemas.request import ImageTo3DRequest, parse_request
from schemas.responses import ErrorBody, FailedBody, ProcessingBody, ServerActionBody, SuccessBody

ENTERPRISE, V6 = "/api/v1/enterprise/3d", "/api/v6/3d"
EVENT_POLL_S = 0.4
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
"""A red ball on nothing, 32 x 32 pixels: a picture that is there wherever the contract is tried."""
TRIED = {"image": BALL, "output_format": "glb", "resolution": 64, "texture_size": 512}
"""A submit that works as it stands."""
REFUSALS = documented(BAD_REQUEST, UNAUTHORIZED, QUOTA_SPENT, TOO_LARGE, TOO_MANY)
ABOUT_ONE = documented(BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, TOO_LARGE)
STATE = SuccessBody | ProcessingBody | FailedBody

router = APIRouter(tags=["calls"])


def body_schema(
    schema: dict[str, Any], *, example: dict[str, Any], tried: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The OpenAPI part that tells of a JSON body.

    Args:
        example: a body as clients send it, with its key.
        tried: the body that `/docs` offers first; the example without its key by default. A key in the body goes before
            the one that the page was given, so a made-up one must not stand there.
    """
    keyless = {name: value for name, value in example.items() if name != "key"}
    examples = {
        "header": {"summary": "The key in a header", "value": keyless if tried is None else tried},
        "body": {"summary": "The key in the body", "value": example},
    }
    return {
        "requestBody": {"content": {"application/json": {"schema": schema, "examples": examples}}, "required": True}
    }


KEY_BODY = body_schema(
    {"type": "object", "properties": {"key": {"type": "string", "description": "API key"}}}, example={"key": "…"}
)
FETCH_BODY = body_schema(
    {
        "type": "object",
        "properties": {"key": {"type": "string"}, "request_id": {"type": "string"}},
        "required": ["request_id"],
    },
    example={"key": "…", "request_id": "1207959551"},
)
LIST_BODY = body_schema(
    {
        "type": "object",
        "properties": {
            "key": {"type": "string"},
            "status": {"type": "string", "enum": [state.value for state in JobState]},
            "track_id": {"type": "string"},
            "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
            "before": {"type": "integer", "description": "`next` of the page before"},
        },
    },
    example={"key": "…", "status": "success", "limit": 20},
)
SUBMIT_BODY = body_schema(ImageTo3DRequest.model_json_schema(), example=EXAMPLE, tried=TRIED)


@router.post(f"{ENTERPRISE}/image_to_3d", response_model=STATE, responses=REFUSALS, openapi_extra=SUBMIT_BODY)
async def submit(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Submit a picture; the answer is the result if it is there in time, else where to fetch it. Default format obj."""
    return await _submit(request, context, default_output_format="obj", fetch_path=f"{ENTERPRISE}/fetch")


@router.post(f"{V6}/image_to_3d", response_model=STATE, responses=REFUSALS, openapi_extra=SUBMIT_BODY)
async def submit_v6(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Submit a picture; as the enterprise path, with default format glb."""
    return await _submit(request, context, default_output_format="glb", fetch_path=f"{V6}/fetch")


async def _submit(
    request: Request, context: Context, *, default_output_format: OutputFormat, fetch_path: str
) -> JSONResponse:
    body = await context.body(request)
    base_url, wait_s = context.base_url(request), requested_wait_s(request, context.settings.submit_wait_s)
    new = await context.do(_read_submit, request, context, body, default_output_format)
    if addresses := _addresses_of(new):
        await context.look_up(lambda: _check_addresses(addresses, context))

    def record() -> tuple[Submitted, dict[str, Any] | None]:
        submitted = context.store.submit(new.job)
        if submitted.is_new:
            context.service.dispatch(submitted.job.id)
        job, position = submitted.job, submitted.queue_position
        if wait_s > 0 and not job.state.is_final:
            return submitted, None
        return submitted, context.answer_about(job, fetch_path=fetch_path, base_url=base_url, queue_position=position)

    submitted, answer = await context.do(record)
    note_on_span({"job.id": submitted.job.id})
    if answer is None:
        answer = await _answer_in_time(context, submitted.job, wait_s=wait_s, fetch_path=fetch_path, base_url=base_url)
    return JSONResponse(answer, headers=_rate_headers(submitted))


@dataclass(frozen=True)
class _Draft:
    """A submit that was read and may be recorded."""

    request: ImageTo3DRequest
    job: NewJob


def _read_submit(
    request: Request, context: Context, body: dict[str, Any], default_output_format: OutputFormat
) -> _Draft:
    """Everything about a submit that can be told without going anywhere. Blocks, for a while where pictures are large.

    Raises:
        Unauthorized: nobody that we know.
        CallerError: a field is at fault.
    """
    key = context.authenticate(request, body)
    parsed = parse_request(body, default_output_format=default_output_format)
    _check_engine(parsed.request, context)
    for picture in parsed.request.image:
        if not is_http_url(picture):
            check_beginning(read_inline(picture))
    sent = {name: value for name, value in body.items() if name != "key"}
    digest = hashlib.sha256(json.dumps([default_output_format, sent], sort_keys=True).encode()).hexdigest()
    job = NewJob(
        api_key_id=key.id,
        file_prefix=str(uuid.uuid4()),
        request=parsed.request.model_dump_json().encode(),
        request_sha256=digest,
        meta=JobMeta(parsed.request.effective_parameters(), tuple(parsed.warnings), current_traceparent()),
        track_id=parsed.request.track_id,
        webhook_url=parsed.request.webhook,
        idempotency_key=idempotency_key(request),
    )
    return _Draft(parsed.request, job)


def _check_engine(request: ImageTo3DRequest, context: Context) -> None:
    """Refuse an engine that is not offered, and more views than it takes.

    Raises:
        InvalidRequest: so it is.
    """
    offered = context.settings.offered_engines
    name = request.engine or context.settings.engine
    if name not in offered:
        raise InvalidRequest(f"engine must be one of {', '.join(offered)}, got {name!r}")
    check_views(find_spec(name), len(request.image), offered=offered)


def _addresses_of(draft: _Draft) -> list[str]:
    """Where the call would go."""
    addresses = [picture for picture in draft.request.image if is_http_url(picture)]
    return addresses if draft.request.webhook is None else [*addresses, draft.request.webhook]


def _check_addresses(addresses: list[str], context: Context) -> None:
    """Refuse, before anything is recorded, addresses that this deployment does not go to. Blocks.

    Raises:
        BlockedAddress: one of them is such.
    """
    for address in addresses:
        check_url(address, context.settings)


async def _answer_in_time(context: Context, job: Job, *, wait_s: float, fetch_path: str, base_url: str) -> Any:
    """The answer about a job: its result if that comes within the wait, else how far it is."""
    waited = await context.ends.wait(job, wait_s)

    def look() -> dict[str, Any]:
        latest = (
            waited if waited.state.is_final or wait_s <= 0 else context.store.get(job.id, api_key_id=job.api_key_id)
        )
        return context.answer_about(latest, fetch_path=fetch_path, base_url=base_url)

    return await context.do(look)


def _rate_headers(submitted: Submitted) -> dict[str, str]:
    rate = submitted.rate
    if rate is None:
        return {}
    return {
        "x-ratelimit-limit": str(rate.limit),
        "x-ratelimit-remaining": str(rate.remaining),
        "x-ratelimit-reset": str(math.ceil(rate.reset_at)),
    }


@router.post(f"{ENTERPRISE}/fetch/{{call_id}}", response_model=STATE, responses=ABOUT_ONE, openapi_extra=KEY_BODY)
async def fetch(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """The state of a call, or its result; waits a while for the result."""
    key, _ = await context.caller(request)
    return await _fetch(request, context, api_key_id=key.id, call_id=call_id, fetch_path=f"{ENTERPRISE}/fetch")


@router.post(f"{V6}/fetch/{{call_id}}", response_model=STATE, responses=ABOUT_ONE, openapi_extra=KEY_BODY)
async def fetch_v6(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """As the enterprise path: the state of a call, or its result."""
    key, _ = await context.caller(request)
    return await _fetch(request, context, api_key_id=key.id, call_id=call_id, fetch_path=f"{V6}/fetch")


@router.post(f"{ENTERPRISE}/fetch", response_model=STATE, responses=ABOUT_ONE, openapi_extra=FETCH_BODY)
async def fetch_by_body(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """The state of the call that the body's `request_id` names, or its result; waits a while for the result."""
    key, body = await context.caller(request)
    call_id = body.get("request_id", body.get("id"))
    return await _fetch(request, context, api_key_id=key.id, call_id=call_id, fetch_path=f"{ENTERPRISE}/fetch")


@router.post(f"{V6}/fetch", response_model=STATE, responses=ABOUT_ONE, openapi_extra=FETCH_BODY)
async def fetch_by_body_v6(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """As the enterprise path: the state of the call that the body's `request_id` names, or its result."""
    key, body = await context.caller(request)
    call_id = body.get("request_id", body.get("id"))
    return await _fetch(request, context, api_key_id=key.id, call_id=call_id, fetch_path=f"{V6}/fetch")


async def _fetch(
    request: Request, context: Context, *, api_key_id: str, call_id: object, fetch_path: str
) -> JSONResponse:
    job = await context.do(context.store.get, read_id(call_id), api_key_id=api_key_id)
    wait_s = requested_wait_s(request, context.settings.fetch_wait_s)
    base_url = context.base_url(request)
    return JSONResponse(await _answer_in_time(context, job, wait_s=wait_s, fetch_path=fetch_path, base_url=base_url))


@router.post(f"{ENTERPRISE}/cancel/{{call_id}}", response_model=STATE, responses=ABOUT_ONE, openapi_extra=KEY_BODY)
async def cancel(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Cancel a waiting call at once, ask a running one to stop; an ended one stays as it is."""
    key, _ = await context.caller(request)
    job = await context.do(context.store.request_cancel, read_id(call_id), api_key_id=key.id)
    base_url = context.base_url(request)
    return JSONResponse(
        await context.do(context.answer_about, job, fetch_path=f"{ENTERPRISE}/fetch", base_url=base_url)
    )


@router.post(
    f"{ENTERPRISE}/delete/{{call_id}}", response_model=ServerActionBody, responses=ABOUT_ONE, openapi_extra=KEY_BODY
)
async def delete(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Delete an ended call: its record and its temporary outputs."""
    key, _ = await context.caller(request)
    job = await context.do(context.store.delete, read_id(call_id), api_key_id=key.id)
    await context.do(context.service.temporary.delete, job.file_prefix)
    return JSONResponse(ServerActionBody(message=f"Call {job.id} and its temporary outputs are deleted.").to_json())


@router.post(
    f"{ENTERPRISE}/redeliver/{{call_id}}", response_model=ServerActionBody, responses=ABOUT_ONE, openapi_extra=KEY_BODY
)
async def redeliver(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Send an ended call's webhook again, under the id that it had."""
    key, _ = await context.caller(request)
    task = await context.do(context.store.redeliver, read_id(call_id), api_key_id=key.id)
    return JSONResponse(ServerActionBody(message=f"The webhook of call {task.job_id} is sent again.").to_json())


@router.post(f"{ENTERPRISE}/list", responses=documented(BAD_REQUEST, UNAUTHORIZED, TOO_LARGE), openapi_extra=LIST_BODY)
async def list_calls(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """The caller's calls, newest first, a page at a time."""
    key, body = await context.caller(request)
    state = body.get("status")
    if state is not None and state not in [known.value for known in JobState]:
        raise InvalidRequest(f"status must be one of {', '.join(known.value for known in JobState)}")
    limit, before = read_whole(body, "limit", 50, MAX_PAGE), read_whole(body, "before", None, MAX_SEQ)
    jobs = await context.do(
        context.store.list_jobs,
        api_key_id=key.id,
        state=None if state is None else JobState(state),
        track_id=read_track_id(body.get("track_id")),
        before_seq=before,
        limit=limit,
    )
    base_url = context.base_url(request)

    def bodies() -> list[dict[str, Any]]:
        return [context.answer_about(job, fetch_path=f"{ENTERPRISE}/fetch", base_url=base_url) for job in jobs]

    next_before = jobs[-1].seq if jobs and len(jobs) == limit else None
    return JSONResponse({"status": "success", "calls": await context.do(bodies), "next": next_before})


@router.get(
    f"{ENTERPRISE}/events/{{call_id}}",
    responses={
        **documented(BAD_REQUEST, UNAUTHORIZED, NOT_FOUND),
        200: {"content": {"text/event-stream": {}}, "description": "Events `progress`, then one `end`."},
    },
    response_class=EventSourceResponse,
)
async def events(call_id: str, request: Request, context: Context = Depends(context_of)) -> EventSourceResponse:
    """Server-sent events: stage, percent and queue position as they change, then the final body."""
    key, _ = await context.caller(request)
    job = await context.do(context.store.get, read_id(call_id), api_key_id=key.id)
    return EventSourceResponse(_events(job.id, key.id, context, context.base_url(request)), ping=15)


async def _events(job_id: int, api_key_id: str, context: Context, base_url: str) -> AsyncIterator[dict[str, str]]:
    last: dict[str, Any] | None = None

    def look() -> tuple[bool, dict[str, Any]]:
        job = context.store.get(job_id, api_key_id=api_key_id)
        return job.state.is_final, context.answer_about(job, fetch_path=f"{ENTERPRISE}/fetch", base_url=base_url)

    while True:
        try:
            is_final, body = await context.do(look)
        except NotFound as gone:  # deleted while its caller watched
            yield {"event": "end", "data": json.dumps(ErrorBody(message=str(gone)).to_json())}
            return
        except StoreUnavailable:  # for the moment; whoever watches goes on watching
            await asyncio.sleep(EVENT_POLL_S)
            continue
        if is_final:
            yield {"event": "end", "data": json.dumps(body)}
            return
        progress = {name: body[name] for name in ("stage", "progress", "queue_position", "eta", "message")}
        if last is None or progress | {"eta": 0} != last | {"eta": 0}:
            yield {"event": "progress", "data": json.dumps(progress)}
            last = progress
        await asyncio.sleep(EVENT_POLL_S)
