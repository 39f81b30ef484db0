"""Errors as HTTP answers: the only place that knows status codes. One string, the first problem first, no internals."""

from __future__ import annotations

import math
import uuid
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from pipeline.errors import (
    BodyTooLarge,
    CallerError,
    ImageTo3DError,
    LimitReached,
    NotFound,
    QuotaSpent,
    RateLimited,
    StoreUnavailable,
    Unauthorized,
)
from schemas.responses import ErrorBody, RateLimitedBody

log = structlog.get_logger()

BAD_REQUEST, UNAUTHORIZED, QUOTA_SPENT, NOT_FOUND, NOT_ALLOWED = 400, 401, 402, 404, 405
TOO_LARGE, NOT_SATISFIABLE, TOO_MANY, INTERNAL, UNAVAILABLE = 413, 416, 429, 500, 503
STORE_RETRY_S = 2


def status_of(error: Exception) -> int:
    """The HTTP status that an error is answered with."""
    match error:
        case Unauthorized():
            return UNAUTHORIZED
        case QuotaSpent():
            return QUOTA_SPENT
        case NotFound():
            return NOT_FOUND
        case BodyTooLarge():
            return TOO_LARGE
        case RateLimited():
            return TOO_MANY
        case CallerError():
            return BAD_REQUEST
        case StoreUnavailable():
            return UNAVAILABLE
        case _:
            return INTERNAL


def answer_error(error: Exception) -> JSONResponse:
    """The answer to a request that was refused."""
    status = status_of(error)
    headers: dict[str, str] = {}
    body: ErrorBody = ErrorBody(message=str(error))
    if isinstance(error, LimitReached):
        headers = {
            "retry-after": str(error.retry_after_s),
            "x-ratelimit-limit": str(error.limit),
            "x-ratelimit-remaining": str(error.remaining),
            "x-ratelimit-reset": str(math.ceil(error.reset_at)),
        }
        body = RateLimitedBody(message=str(error), retry_after=error.retry_after_s)
    if isinstance(error, StoreUnavailable):
        headers["retry-after"] = str(STORE_RETRY_S)
    if status in (INTERNAL, UNAVAILABLE):
        request_id = uuid.uuid4().hex
        headers["x-request-id"] = request_id
        if status == INTERNAL:
            log.error("request failed", request_id=request_id, exc_info=error)
            body = ErrorBody(message=f"Internal error; quote request id {request_id} when you report it.")
        else:
            log.warning("request put off", request_id=request_id, reason=str(error))
            body = ErrorBody(message=f"{error} Request id {request_id}.")
    return JSONResponse(body.to_json(), status, headers)


def install(app: FastAPI, *, errors_as_200: bool) -> None:
    """Answer every error of the app in the contract's form.

    Args:
        errors_as_200: answer those of the API with HTTP 200. Files, pages and metrics keep their statuses: who asks for
            a file must not take an error for one.
    """

    def status_for(request: Request, status: int) -> int:
        return 200 if errors_as_200 and request.url.path.startswith("/api/") else status

    async def on_error(request: Request, error: Exception) -> Response:
        answer = answer_error(error)
        answer.status_code = status_for(request, answer.status_code)
        return answer

    async def on_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=BAD_REQUEST)  # nobody reads it: the caller hung up while sending

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {NOT_FOUND: f"There is nothing at {request.url.path[:200]}."}.get(
            error.status_code, f"{request.method} is not for {request.url.path[:200]}."
        )
        status = status_for(request, error.status_code)
        return JSONResponse(ErrorBody(message=message).to_json(), status, dict(error.headers or {}))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        message = f"{first['loc'][-1]} {str(first['msg'])[:1].lower()}{str(first['msg'])[1:]}"
        return JSONResponse(ErrorBody(message=message).to_json(), status_for(request, BAD_REQUEST))

    app.add_exception_handler(ImageTo3DError, on_error)
    app.add_exception_handler(Exception, on_error)
    app.add_exception_handler(ClientDisconnect, on_gone)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for the OpenAPI document; 500 and 503 are everywhere."""
    descriptions = {
        BAD_REQUEST: "A field is missing, malformed or out of bounds; an unreadable image; a blocked address.",
        UNAUTHORIZED: "No API key, or one that is unknown or revoked.",
        QUOTA_SPENT: "The key's quota for the month is spent.",
        NOT_FOUND: "There is no such call for this key.",
        TOO_LARGE: "The body is too long.",
        TOO_MANY: "Too many calls waiting, or too many in one minute.",
        INTERNAL: "An internal error, with a request id.",
        UNAVAILABLE: "The database is away for the moment.",
    }
    models = {TOO_MANY: RateLimitedBody}
    return {
        status: {"model": models.get(status, ErrorBody), "description": descriptions[status]}
        for status in (*statuses, INTERNAL, UNAVAILABLE)
    }
