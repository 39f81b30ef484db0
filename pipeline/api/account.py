"""Routes about a caller's account and the deployment: bucket, usage, system details, server actions."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from pipeline.api.body_schema import body_schema
from pipeline.api.context import Context, context_of
from pipeline.api.problems import BAD_REQUEST, OK, TOO_LARGE, TOO_MANY, UNAUTHORIZED, documented
from pipeline.api.queue_stats import read_queue_estimate
from pipeline.api.routes import ENTERPRISE, KEY_BODY, V6
from pipeline.errors import InvalidRequest
from pipeline.jobs.model import LedgerFilter
from pipeline.net.deadline import IsCancelled
from pipeline.storage.bucket_details import bucket_of_details
from pipeline.storage.encrypted_bucket import encrypt_bucket
from pipeline.storage.s3 import PROBE_PATIENCE, S3Storage
from schemas.contract import truncate_for_message
from schemas.responses import ServerActionBody, SystemDetailsBody
from schemas.s3 import S3Details, parse_s3_details

REFUSALS = documented(BAD_REQUEST, UNAUTHORIZED, TOO_LARGE)
ACCOUNT = "/api/v1/enterprise"
S3_EXAMPLE = {
    "key": "…",
    "deploy_type": "image_to_3d",
    "public_url": "https://cdn.example.com/assets/",
    "region_name": "us-east-1",
    "endpoint_url": "https://bucket.s3.amazonaws.com",
    "aws_access_key_id": "AKIAIOSFODNN7EXAMPLE",
    "aws_secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "image_directory": "3d",
}
S3_BODY = body_schema(S3Details.model_json_schema(), example=S3_EXAMPLE)

router = APIRouter(tags=["account"])


@router.post(
    f"{ACCOUNT}/update_s3",
    response_model=ServerActionBody,
    responses={**REFUSALS, **documented(TOO_MANY)},
    openapi_extra=S3_BODY,
)
async def update_s3(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Save the bucket that outputs are uploaded to, after a test object was put, read back and deleted there."""
    key, body = await context.caller(request)
    bucket = bucket_of_details(parse_s3_details({name: value for name, value in body.items() if name != "key"}))

    def save(is_cancelled: IsCancelled) -> None:
        http = context.service.http
        S3Storage(bucket, http=http, patience=PROBE_PATIENCE, is_cancelled=is_cancelled).probe()
        context.store.save_s3(key.id, encrypt_bucket(bucket, owner=key.id, secret_box=context.service.secret_box))

    await context.probe(request, key, save)
    return JSONResponse(
        ServerActionBody(message=f"Outputs are uploaded to bucket {bucket.name} from now on.").to_json()
    )


@router.post(f"{ACCOUNT}/reset_s3", response_model=ServerActionBody, responses=REFUSALS, openapi_extra=KEY_BODY)
async def reset_s3(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Remove the bucket; outputs go to temporary storage from now on."""
    key, _ = await context.caller(request)
    was_there = await context.in_thread(context.store.reset_s3, key.id)
    message = "The bucket is removed; outputs go to temporary storage." if was_there else "There was no bucket."
    return JSONResponse(ServerActionBody(message=message).to_json())


@router.post(
    f"{ENTERPRISE}/system_details", response_model=SystemDetailsBody, responses=REFUSALS, openapi_extra=KEY_BODY
)
async def system_details(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """The number of loaded engines, and seconds until a new job would start."""
    await context.caller(request)

    def read() -> SystemDetailsBody:
        queue = read_queue_estimate(context.store)
        return SystemDetailsBody(model_count=len(queue.engines), queue_time=queue.wait_s)

    return JSONResponse((await context.in_thread(read)).to_json())


async def _restart(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Restart the workers after their running jobs; later jobs get fresh ones."""
    await context.caller(request)
    if await context.restart_workers():
        return _done("Workers restart when their running jobs are finished.")
    return _done(f"A restart was requested less than {context.settings.restart_pause_s:g} s ago.")


async def _clear_cache(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Drop cached inputs; this service keeps none after a job has ended."""
    await context.caller(request)
    return _done("No inputs are kept after a job has ended.")


async def _clear_queue(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Cancel the caller's queued jobs."""
    key, _ = await context.caller(request)
    cancelled = await context.in_thread(context.store.cancel_queued, api_key_id=key.id)
    return _done(f"Cancelled {cancelled} queued jobs.")


def _done(message: str) -> JSONResponse:
    return JSONResponse(ServerActionBody(message=message).to_json())


for _prefix in (ENTERPRISE, V6):
    for _names, _action in (
        (("restart_server", "update_server", "update"), _restart),
        (("clear_cache",), _clear_cache),
        (("clear_queue",), _clear_queue),
    ):
        for _name in _names:
            router.add_api_route(
                f"{_prefix}/{_name}",
                _action,
                methods=["POST"],
                response_model=ServerActionBody,
                responses=REFUSALS,
                openapi_extra=KEY_BODY,
                name=_name,
                operation_id=f"{_name}{'_v6' if _prefix == V6 else ''}",
            )


@router.get(
    "/api/v1/usage",
    responses={
        **documented(BAD_REQUEST, UNAUTHORIZED),
        OK: {"content": {"application/json": {}, "text/csv": {}}, "description": "Jobs and GPU seconds by day."},
    },
)
async def usage(request: Request, format: str = "json", context: Context = Depends(context_of)) -> Response:
    """The caller's jobs and GPU seconds by day (UTC), as JSON or with `format=csv` as CSV."""
    key, _ = await context.caller(request)
    if format not in ("json", "csv"):
        raise InvalidRequest(f"format must be json or csv, got {truncate_for_message(format)}")
    days = await context.in_thread(context.store.usage_days, LedgerFilter(key.id))
    rows: list[dict[str, Any]] = [
        {name: value for name, value in asdict(day).items() if name != "api_key_id"} for day in days
    ]
    if format != "csv":
        return JSONResponse({"status": "success", "days": rows})
    columns = ["day", "calls", "succeeded", "failed", "cancelled", "seconds", "gpu_seconds"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows(rows)
    return PlainTextResponse(buffer.getvalue(), media_type="text/csv")
