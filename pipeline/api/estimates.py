"""The route that says what a submit would take, without recording a job."""

from __future__ import annotations

import math
from functools import partial

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from pipeline.api.body_schema import body_schema
from pipeline.api.context import Context, context_of
from pipeline.api.problems import BAD_REQUEST, TOO_LARGE, UNAUTHORIZED, documented
from pipeline.api.queue_stats import read_queue_estimate
from pipeline.api.routes import DEFAULT_FORMATS, EXAMPLE, V6, WORKING_EXAMPLE, prefix_of
from pipeline.api.submissions import Submission, check_urls, read_submission
from schemas.request import ImageTo3DRequest
from schemas.responses import EstimateBody
from schemas.text import is_text_body

router = APIRouter(tags=["jobs"])

ESTIMATE_BODY = body_schema(ImageTo3DRequest.model_json_schema(), example=EXAMPLE, working_example=WORKING_EXAMPLE)


async def estimate(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Validate the body of a submit and say what the job would take and cost; nothing is recorded."""
    body = await context.body(request)
    read = partial(read_submission, is_text=is_text_body(body))
    submission = await context.in_thread(read, request, context, body, DEFAULT_FORMATS[prefix_of(request)])
    await check_urls(submission, context)
    return JSONResponse((await context.in_thread(_estimate_of, submission, context)).to_json())


def _estimate_of(submission: Submission, context: Context) -> EstimateBody:
    """The estimate of a validated submit. Blocks."""
    queue, settings = read_queue_estimate(context.store), context.settings
    engine = str(submission.job.meta.parameters.get("engine") or settings.engine)
    job_s = queue.job_s_of.get(engine, queue.job_s)
    price = settings.price_of(engine, seconds=job_s)
    return EstimateBody(
        engine=engine,
        seconds=round(job_s, 2),
        queue_position=queue.queued + 1,
        queue_time=queue.wait_s,
        eta=max(1, math.ceil(queue.wait_s + job_s)),
        price=price,
        currency=None if price is None else settings.currency,
        warning=" ".join(submission.job.meta.notes),
    )


for _prefix in DEFAULT_FORMATS:
    router.add_api_route(
        f"{_prefix}/estimate",
        estimate,
        methods=["POST"],
        name=f"estimate{'_v6' if _prefix == V6 else ''}",
        response_model=EstimateBody,
        responses=documented(BAD_REQUEST, UNAUTHORIZED, TOO_LARGE),
        openapi_extra=ESTIMATE_BODY,
    )
