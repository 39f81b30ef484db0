"""Routes about calls: submit, fetch, cancel, list, delete, redeliver, events."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse

from pipeline.api.bodies import NOTES
from pipeline.api.context import Context, context_of
from pipeline.api.problems import BAD_REQUEST, NOT_FOUND, QUOTA_SPENT, TOO_LARGE, TOO_MANY, UNAUTHORIZED, documented
from pipeline.api.requests import idempotency_key, read_id, wished_wait_s
from pipeline.engines.registry import find_spec
from pipeline.errors import InvalidRequest
from pipeline.jobs.record import JobState, NewJob, Submitted
from pipeline.net.egress import check_url
from schemas.contract import OutputFormat, is_http_url
from schemas.request import ImageTo3DRequest, parse_request
from schemas.responses import FailedBody, ProcessingBody, ServerActionBody, SuccessBody

ENTERPRISE, V6 = "/api/v1/enterprise/3d", "/api/v6/3d"
EVENT_POLL_S = 0.4
MAX_PAGE = 200

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
REFUSALS = documented(BAD_REQUEST, UNAUTHORIZED, QUOTA_SPENT, TOO_LARGE, TOO_MANY)
ABOUT_ONE = documented(BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, TOO_LARGE)
STATE = SuccessBody | ProcessingBody | FailedBody

router = APIRouter(tags=["calls"])


def body_schema(schema: dict[str, Any], *, example: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI part that tells of a JSON body."""
    return {"requestBody": {"content": {"application/json": {"schema": schema, "example": example}}, "required": True}}


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
SUBMIT_BODY = body_schema(ImageTo3DRequest.model_json_schema(), example=EXAMPLE)


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
    key, body = await context.caller(request)
    parsed = parse_request(body, default_output_format=default_output_format)
    _check_engine(parsed.request, context)
    await context.do(_check_addresses, parsed.request, context)
    sent = {name: value for name, value in body.items() if name != "key"}
    digest = hashlib.sha256(json.dumps([default_output_format, sent], sort_keys=True).encode()).hexdigest()
    new = NewJob(
        key_id=key.id,
        file_prefix=str(uuid.uuid4()),
        request=parsed.request.model_dump_json().encode(),
        request_sha256=digest,
        meta={**parsed.request.effective_parameters(), NOTES: list(parsed.warnings)},
        track_id=parsed.request.track_id,
        webhook_url=parsed.request.webhook,
        idempotency_key=idempotency_key(request),
    )
    submitted = await context.do(context.store.submit, new)
    if submitted.is_new:
        await context.do(context.service.dispatch, submitted.job.id)
    job = await context.ends.wait(submitted.job, wished_wait_s(request, context.settings.submit_wait_s))
    if not job.state.is_final:
        job = await context.do(context.store.get, job.id, key_id=key.id)
    answer = await context.do(context.answer_about, job, fetch_path=fetch_path, base_url=context.base_url(request))
    return JSONResponse(answer, headers=_rate_headers(submitted))


def _check_engine(request: ImageTo3DRequest, context: Context) -> None:
    """Refuse an engine that is not offered, and more views than it takes.

    Raises:
        InvalidRequest: so it is.
    """
    offered = context.settings.offered_engines
    name = request.engine or context.settings.engine
    if name not in offered:
        raise InvalidRequest(f"engine must be one of {', '.join(offered)}, got {name!r}")
    spec = find_spec(name)
    if len(request.image) > spec.max_views:
        takes = [other for other in offered if find_spec(other).max_views >= len(request.image)]
        hint = f"; {', '.join(takes)} would take them" if takes else ""
        raise InvalidRequest(f"engine {name} takes at most {spec.max_views} views, got {len(request.image)}{hint}")


def _check_addresses(request: ImageTo3DRequest, context: Context) -> None:
    """Refuse, before anything is recorded, addresses that this deployment does not go to. Blocks.

    Raises:
        BlockedAddress: one of them is such.
    """
    for picture in request.image:
        if is_http_url(picture):
            check_url(picture, context.settings)
    if request.webhook is not None:
        check_url(request.webhook, context.settings)


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
    return await _fetch(request, context, key_id=key.id, call_id=call_id, fetch_path=f"{ENTERPRISE}/fetch")


@router.post(f"{V6}/fetch/{{call_id}}", response_model=STATE, responses=ABOUT_ONE, openapi_extra=KEY_BODY)
async def fetch_v6(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """The same under the v6 path."""
    key, _ = await context.caller(request)
    return await _fetch(request, context, key_id=key.id, call_id=call_id, fetch_path=f"{V6}/fetch")


@router.post(f"{ENTERPRISE}/fetch", response_model=STATE, responses=ABOUT_ONE, openapi_extra=FETCH_BODY)
async def fetch_by_body(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """The same with the id in the body's `request_id`."""
    key, body = await context.caller(request)
    call_id = body.get("request_id", body.get("id"))
    return await _fetch(request, context, key_id=key.id, call_id=call_id, fetch_path=f"{ENTERPRISE}/fetch")


@router.post(f"{V6}/fetch", response_model=STATE, responses=ABOUT_ONE, openapi_extra=FETCH_BODY)
async def fetch_by_body_v6(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """The same under the v6 path."""
    key, body = await context.caller(request)
    call_id = body.get("request_id", body.get("id"))
    return await _fetch(request, context, key_id=key.id, call_id=call_id, fetch_path=f"{V6}/fetch")


async def _fetch(request: Request, context: Context, *, key_id: str, call_id: object, fetch_path: str) -> JSONResponse:
    number = read_id(call_id)
    job = await context.do(context.store.get, number, key_id=key_id)
    waited = await context.ends.wait(job, wished_wait_s(request, context.settings.fetch_wait_s))
    if not waited.state.is_final:
        waited = await context.do(context.store.get, number, key_id=key_id)
    base_url = context.base_url(request)
    return JSONResponse(await context.do(context.answer_about, waited, fetch_path=fetch_path, base_url=base_url))


@router.post(f"{ENTERPRISE}/cancel/{{call_id}}", response_model=STATE, responses=ABOUT_ONE, openapi_extra=KEY_BODY)
async def cancel(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Cancel a waiting call at once, ask a running one to stop; an ended one stays as it is."""
    key, _ = await context.caller(request)
    job = await context.do(context.store.request_cancel, read_id(call_id), key_id=key.id)
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
    job = await context.do(context.store.delete, read_id(call_id), key_id=key.id)
    await context.do(context.service.temporary.delete, job.file_prefix)
    return JSONResponse(ServerActionBody(message=f"Call {job.id} and its temporary outputs are deleted.").to_json())


@router.post(
    f"{ENTERPRISE}/redeliver/{{call_id}}", response_model=ServerActionBody, responses=ABOUT_ONE, openapi_extra=KEY_BODY
)
async def redeliver(call_id: str, request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Send an ended call's webhook again, under the id that it had."""
    key, _ = await context.caller(request)
    task = await context.do(context.store.redeliver, read_id(call_id), key_id=key.id)
    return JSONResponse(ServerActionBody(message=f"The webhook of call {task.job_id} is sent again.").to_json())


@router.post(f"{ENTERPRISE}/list", responses=documented(BAD_REQUEST, UNAUTHORIZED, TOO_LARGE), openapi_extra=LIST_BODY)
async def list_calls(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """The caller's calls, newest first, a page at a time."""
    key, body = await context.caller(request)
    state = body.get("status")
    if state is not None and state not in [known.value for known in JobState]:
        raise InvalidRequest(f"status must be one of {', '.join(known.value for known in JobState)}")
    track_id = body.get("track_id")
    if track_id is not None and (isinstance(track_id, bool) or not isinstance(track_id, str | int)):
        raise InvalidRequest("track_id must be a text or a whole number")
    limit, before = _whole(body, "limit", 50, MAX_PAGE), _whole(body, "before", None, 2**62)
    jobs = await context.do(
        context.store.list_jobs,
        key_id=key.id,
        state=None if state is None else JobState(state),
        track_id=track_id,
        before_seq=before,
        limit=limit,
    )
    base_url = context.base_url(request)

    def bodies() -> list[dict[str, Any]]:
        return [context.answer_about(job, fetch_path=f"{ENTERPRISE}/fetch", base_url=base_url) for job in jobs]

    following = jobs[-1].seq if jobs and len(jobs) == limit else None
    return JSONResponse({"status": "success", "calls": await context.do(bodies), "next": following})


def _whole(body: dict[str, Any], name: str, default: Any, most: int) -> Any:
    """A whole number of a body, from 1 to `most`.

    Raises:
        InvalidRequest: it is something else.
    """
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidRequest(f"{name} must be a whole number from 1 to {most}")
    return value


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
    job = await context.do(context.store.get, read_id(call_id), key_id=key.id)
    return EventSourceResponse(_events(job.id, key.id, context, context.base_url(request)), ping=15)


async def _events(job_id: int, key_id: str, context: Context, base_url: str) -> AsyncIterator[dict[str, str]]:
    last: dict[str, Any] | None = None
    while True:
        job = await context.do(context.store.get, job_id, key_id=key_id)
        body = await context.do(context.answer_about, job, fetch_path=f"{ENTERPRISE}/fetch", base_url=base_url)
        if job.state.is_final:
            yield {"event": "end", "data": json.dumps(body)}
            return
        progress = {name: body[name] for name in ("stage", "progress", "queue_position", "eta", "message")}
        if last is None or progress | {"eta": 0} != last | {"eta": 0}:
            yield {"event": "progress", "data": json.dumps(progress)}
            last = progress
        await asyncio.sleep(EVENT_POLL_S)
