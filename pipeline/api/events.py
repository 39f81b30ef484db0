"""The route that follows a job: server-sent events until its end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, Request
from sse_starlette import EventSourceResponse

from pipeline.api.context import Context, context_of
from pipeline.api.problems import BAD_REQUEST, NOT_FOUND, OK, UNAUTHORIZED, documented
from pipeline.api.requests import read_id
from pipeline.api.routes import ENTERPRISE
from pipeline.errors import NotFound, StoreUnavailable
from pipeline.jobs.model import Job
from schemas.responses import ErrorBody

router = APIRouter(tags=["jobs"])


@router.get(
    f"{ENTERPRISE}/events/{{call_id}}",
    responses={
        **documented(BAD_REQUEST, UNAUTHORIZED, NOT_FOUND),
        OK: {"content": {"text/event-stream": {}}, "description": "Events `progress`, then one `end`."},
    },
    response_class=EventSourceResponse,
)
async def events(call_id: str, request: Request, context: Context = Depends(context_of)) -> EventSourceResponse:
    """Server-sent events: stage, percent and queue position as they change, then the final body."""
    caller, _ = await context.user(request)
    job = await context.in_thread(context.job_of, caller, read_id(call_id))
    return EventSourceResponse(_events(job, context, context.base_url(request)), ping=15)


async def _events(job: Job, context: Context, base_url: str) -> AsyncIterator[dict[str, str]]:
    last: dict[str, Any] | None = None

    def read() -> tuple[bool, dict[str, Any]]:
        latest = context.service.with_progress(context.store.get(job.id, api_key_id=job.api_key_id))
        return latest.state.is_final, context.job_body(latest, fetch_path=f"{ENTERPRISE}/fetch", base_url=base_url)

    with context.followers.joined(job.api_key_id):
        while True:
            try:
                is_final, body = await context.in_thread(read)
            except NotFound as error:  # the job was deleted while the client was connected
                yield {
                    "event": "end",
                    "data": json.dumps(ErrorBody(message=str(error), error_code=error.code).to_json()),
                }
                return
            except StoreUnavailable:  # the stream stays open until the store answers again
                await context.followers.pause(job)
                continue
            if is_final:
                yield {"event": "end", "data": json.dumps(body)}
                return
            progress = {name: body[name] for name in ("stage", "progress", "queue_position", "eta", "message")}
            if last is None or progress | {"eta": 0} != last | {"eta": 0}:
                yield {"event": "progress", "data": json.dumps(progress)}
                last = progress
            await context.followers.pause(job)
