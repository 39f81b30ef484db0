"""Reading requests: the JSON body, the key wherever it stands, how long the caller will wait."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import Request

from pipeline.api.problems import BodyTooLarge
from pipeline.errors import InvalidRequest
from schemas.contract import kind_of

MAX_WAIT_S = 120.0
MAX_IDEMPOTENCY_KEY_CHARS = 255
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", re.IGNORECASE)


async def read_object(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object; an absent body is an empty one.

    Raises:
        BodyTooLarge: it has more than `max_bytes`.
        InvalidRequest: it is no JSON, or no object.
    """
    announced = request.headers.get("content-length", "")
    too_large = BodyTooLarge(f"The body is larger than {max_bytes / 2**20:g} MiB.")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > max_bytes:
            raise too_large
    if not content.strip():
        return {}
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise InvalidRequest("the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {kind_of(body)}")
    return body


def presented_key(request: Request, body: dict[str, Any]) -> str | None:
    """The API key from the body's `key`, the header `key`, or `Authorization: Bearer`; the first that is there."""
    in_body = body.get("key")
    if isinstance(in_body, str) and in_body:
        return in_body
    in_header = request.headers.get("key")
    if in_header:
        return in_header
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def wished_wait_s(request: Request, default_s: float) -> float:
    """How long the caller lets us wait for a result: `Prefer: wait=N`, else the deployment's setting."""
    found = _WAIT.search(request.headers.get("prefer", ""))
    return min(float(found[1]), MAX_WAIT_S) if found else default_s


def idempotency_key(request: Request) -> str | None:
    """The header `Idempotency-Key`.

    Raises:
        InvalidRequest: it is too long.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) > MAX_IDEMPOTENCY_KEY_CHARS:
        raise InvalidRequest(f"Idempotency-Key must be at most {MAX_IDEMPOTENCY_KEY_CHARS} characters, got {len(key)}")
    return key or None


def read_id(value: object) -> int:
    """A call's id, as digits or as a number.

    Raises:
        InvalidRequest: it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value.strip(), re.ASCII):
        return int(value)
    raise InvalidRequest("request_id must be the id of a call, a whole number")
