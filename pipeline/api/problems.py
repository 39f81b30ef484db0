"""Errors as HTTP responses: one string, the first problem first, with its error code and without internals.

The only module with status codes, and the only one that maps errors to them.
"""

from __future__ import annotations

import math
import uuid
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from pipeline.api.body_schema import JSON_TYPE
from pipeline.errors import (
    BodyTooLarge,
    BodyTooSlow,
    CallerError,
    GenerationGone,
    HeadTooLarge,
    ImageTo3DError,
    InternalError,
    InvalidRequest,
    LimitReached,
    MethodNotAllowed,
    NotFound,
    QuotaSpent,
    RateLimited,
    ServiceBusy,
    StoreUnavailable,
    Unauthorized,
    UnsupportedMediaType,
    error_codes,
)
from schemas.responses import ErrorBody, RateLimitedBody

log = structlog.get_logger()

OK, PARTIAL_CONTENT, NOT_MODIFIED = 200, 206, 304
BAD_REQUEST, UNAUTHORIZED, QUOTA_SPENT, NOT_FOUND, NOT_ALLOWED, GONE = 400, 401, 402, 404, 405, 410
TIMEOUT, TOO_LARGE, UNSUPPORTED_TYPE, NOT_SATISFIABLE, TOO_MANY, HEAD_TOO_LARGE = 408, 413, 415, 416, 429, 431
INTERNAL, UNAVAILABLE = 500, 503
STORE_RETRY_S = 2
SCHEMAS = "#/components/schemas/"
"""Where the OpenAPI document has the schemas that are referred to."""
OFFERED = (
    "image_to_3d, text_to_3d, fetch and base64_to_url are offered under /api/v6/3d and /api/v1/enterprise/3d, "
    "and /openapi.json lists every path"
)


def status_of(error: Exception) -> int:
    """The HTTP status of the response to an error."""
    match error:
        case Unauthorized():
            return UNAUTHORIZED
        case QuotaSpent():
            return QUOTA_SPENT
        case NotFound():
            return NOT_FOUND
        case GenerationGone():
            return GONE
        case MethodNotAllowed():
            return NOT_ALLOWED
        case BodyTooLarge():
            return TOO_LARGE
        case BodyTooSlow():
            return TIMEOUT
        case UnsupportedMediaType():
            return UNSUPPORTED_TYPE
        case HeadTooLarge():
            return HEAD_TOO_LARGE
        case RateLimited():
            return TOO_MANY
        case CallerError():
            return BAD_REQUEST
        case StoreUnavailable() | ServiceBusy():
            return UNAVAILABLE
        case _:
            return INTERNAL


def error_response(error: Exception) -> JSONResponse:
    """The response to a request that an error ended."""
    status = status_of(error)
    message = str(error)
    code = error.code if isinstance(error, ImageTo3DError) else InternalError.code
    headers: dict[str, str] = {}
    if isinstance(error, StoreUnavailable | ServiceBusy):
        headers["retry-after"] = str(STORE_RETRY_S)
    if status in (INTERNAL, UNAVAILABLE):
        request_id = uuid.uuid4().hex
        headers["x-request-id"] = request_id
        if status == INTERNAL:
            log.error("request failed", request_id=request_id, exc_info=error)
            message = f"Internal error; quote request id {request_id} when you report it."
        else:
            log.warning("request refused for now", request_id=request_id, reason=str(error))
            message = f"{error} Request id {request_id}."
    if isinstance(error, LimitReached):
        headers |= {
            "retry-after": str(error.retry_after_s),
            "x-ratelimit-limit": str(error.limit),
            "x-ratelimit-remaining": str(error.remaining),
            "x-ratelimit-reset": str(math.ceil(error.reset_at)),
        }
        limited = RateLimitedBody(message=message, error_code=code, retry_after=error.retry_after_s)
        return JSONResponse(limited.to_json(), status, headers)
    return JSONResponse(ErrorBody(message=message, error_code=code).to_json(), status, headers)


def count_refusal(request: Request, error: Exception) -> None:
    """Count a refusal for `/metrics`, and log a sample; an internal error is always logged, with its traceback."""
    code = error.code if isinstance(error, ImageTo3DError) else InternalError.code
    route = getattr(request.scope.get("route"), "path", "unknown")
    if status_of(error) != INTERNAL:
        request.app.state.context.refusals.add(code, method=request.method, route=route)


def install(app: FastAPI, *, errors_as_200: bool) -> None:
    """Answer every error of the app in the contract's form.

    Args:
        errors_as_200: answer the API's errors with HTTP 200. Files, pages and metrics keep their statuses: a client
            that asks for a file must not mistake an error for it.
    """

    def respond(request: Request, error: Exception) -> JSONResponse:
        response = error_response(error)
        count_refusal(request, error)
        if errors_as_200 and request.url.path.startswith("/api/"):
            response.status_code = OK
        return response

    async def on_error(request: Request, error: Exception) -> Response:
        return respond(request, error)

    async def on_disconnect(request: Request, error: Exception) -> Response:
        return Response(status_code=BAD_REQUEST)  # nobody reads it: the client disconnected while sending

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path[:200]
        match error.status_code:
            case 404:
                refusal: CallerError = NotFound(_nothing_at(path))
            case 405:
                refusal = MethodNotAllowed(f"{path} does not accept {request.method}.")
            case _:
                refusal = InvalidRequest(error.detail)
        response = respond(request, refusal)
        response.headers.update(error.headers or {})
        return response

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        reason = str(first["msg"])
        return respond(request, InvalidRequest(f"{first['loc'][-1]} {reason[:1].lower()}{reason[1:]}"))

    app.add_exception_handler(ImageTo3DError, on_error)
    app.add_exception_handler(Exception, on_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)


def _nothing_at(path: str) -> str:
    """Why a path is not served. Of ModelsLab's API its clients also call paths that this service does not offer."""
    if path.startswith("/api/"):
        return f"There is nothing at {path}: {OFFERED}."
    return f"There is nothing at {path}."


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for the OpenAPI document; 500 and 503 belong to every route."""
    descriptions = {
        BAD_REQUEST: "A field is missing, malformed or out of bounds; an unreadable image; a blocked address.",
        UNAUTHORIZED: "The API key is missing, unknown or revoked.",
        QUOTA_SPENT: "The key's quota for the month is used up.",
        NOT_FOUND: "This key has no such job.",
        GONE: "The job's generation is not kept any more.",
        TIMEOUT: "The body did not arrive in time.",
        TOO_LARGE: "The body is too long.",
        UNSUPPORTED_TYPE: "The body has a type or an encoding that is not taken; the message names those that are.",
        TOO_MANY: "Too many jobs are queued, or too many were submitted in one minute.",
        INTERNAL: "An internal error, with a request id.",
        UNAVAILABLE: "The database is unavailable at the moment, or too many large requests are arriving.",
    }
    bodies = {TOO_MANY: RateLimitedBody, QUOTA_SPENT: RateLimitedBody}
    of_bodies = (TIMEOUT, UNSUPPORTED_TYPE) if TOO_LARGE in statuses else ()
    return {
        status: {"description": descriptions[status], **_json_content(bodies.get(status, ErrorBody))}
        for status in (*statuses, *of_bodies, INTERNAL, UNAVAILABLE)
    }


def _json_content(body: type[BaseModel]) -> dict[str, Any]:
    """A JSON body of a response, by reference: of a `model` FastAPI makes a validator per route and status."""
    return {"content": {JSON_TYPE: {"schema": {"$ref": f"{SCHEMAS}{body.__name__}"}}}}


def error_schemas() -> dict[str, dict[str, Any]]:
    """What `documented` refers to, by name."""
    template = SCHEMAS + "{model}"
    return {
        body.__name__: body.model_json_schema(mode="serialization", ref_template=template)
        for body in (ErrorBody, RateLimitedBody)
    }


def error_codes_as_markdown() -> str:
    """A table of every `error_code`, for the OpenAPI document, made from the error classes."""
    rows = [
        f"| `{code}` | {retryable} | {(error.__doc__ or '').splitlines()[0]} |"
        for code, (error, retryable) in error_codes().items()
    ]
    return "\n".join(["| error_code | retryable | meaning |", "| --- | --- | --- |", *rows])
