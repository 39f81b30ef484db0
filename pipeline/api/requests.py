"""Reading requests: the JSON body, the API key from any of its places, how long the caller waits."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request

from pipeline.api.own_host import is_forwarded, is_loopback
from pipeline.errors import InvalidRequest, NotFound, Unauthorized
from pipeline.jobs.model import MAX_JOB_ID
from pipeline.settings import Settings
from schemas.contract import is_plain_text, truncate_for_message, whole_number

MAX_WAIT_S = 120.0
MAX_IDEMPOTENCY_KEY_CHARS = 255
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", re.IGNORECASE)


def presented_key(request: Request, body: dict[str, Any]) -> str | None:
    """The API key from the body's `key`, the header `key`, or `Authorization: Bearer`; the first that is there.

    A header may hold a proxy's own token, and the body the key: so the body's is looked for first.
    """
    in_body = body.get("key")
    if isinstance(in_body, str) and in_body.strip():
        return in_body.strip()  # as HTTP strips a header
    return header_key(request)


def header_key(request: Request) -> str | None:
    """The API key from the header `key`, else from `Authorization: Bearer`; None without one."""
    return request.headers.get("key") or bearer_token(request)


def bearer_token(request: Request) -> str | None:
    """The token of `Authorization: Bearer`."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def check_operator(request: Request, settings: Settings) -> None:
    """Refuse a caller that is not the deployment's operator.

    With `METRICS_TOKEN`, it presents that token. Without it, the request comes from this machine: from a loopback
    address, to a loopback name or address, with no sign of a proxy, and to a service that no proxy is said to be in
    front of (`PUBLIC_URL`).

    Raises:
        Unauthorized: the caller is somebody else.
    """
    expected = settings.metrics_token
    if expected is not None:
        presented = (bearer_token(request) or "").encode("utf-8", "surrogatepass")
        if not hmac.compare_digest(presented, expected.get_secret_value().encode()):
            raise Unauthorized("The operator's bearer token is required")
        return
    peer = request.client.host if request.client is not None else ""
    hosts = [peer, request.url.hostname or ""]
    if settings.public_url is not None:
        hosts.append(urlsplit(settings.public_url).hostname or "")
    if not all(is_loopback(host) for host in hosts) or is_forwarded(request):
        raise Unauthorized("Set IMAGE_TO_3D_METRICS_TOKEN to read this from another machine")


def requested_wait_s(request: Request, default_s: float) -> float:
    """How long the caller waits for a result: `Prefer: wait=N`, else the deployment's setting."""
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
    """A job's id, as digits or as a number.

    Raises:
        InvalidRequest: it is neither.
        NotFound: no job ever has such an id.
    """
    number = whole_number(value)
    if number is None or number < 0:
        raise InvalidRequest("request_id must be the id of a job, a whole number")
    if not 1 <= number <= MAX_JOB_ID:
        raise NotFound(f"There is no job with the id {truncate_for_message(number)}.")
    return number


def read_track_id(value: object) -> str | int | None:
    """A `track_id` to filter by.

    Raises:
        InvalidRequest: no job has such a value.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise InvalidRequest("track_id must be a text or a whole number")
    if not is_plain_text(value):
        raise InvalidRequest("track_id must be plain text without NUL characters or lone surrogates")
    return value


def read_bounded_int(body: dict[str, Any], name: str, *, most: int) -> int | None:
    """A whole number of a body, from 1 to `most`; None where it is absent.

    Raises:
        InvalidRequest: it is something else.
    """
    value = body.get(name)
    if value is None:
        return None
    number = whole_number(value)
    if number is None or not 1 <= number <= most:
        raise InvalidRequest(f"{name} must be a whole number from 1 to {most}")
    return number


def read_word(body: dict[str, Any], name: str, words: Sequence[str]) -> str | None:
    """One of a few words of a body, in upper or lower case; None where it is absent.

    Raises:
        InvalidRequest: it is something else.
    """
    value = body.get(name)
    if value is None:
        return None
    word = value.strip().lower() if isinstance(value, str) else None
    if word not in words:
        raise InvalidRequest(f"{name} must be one of {', '.join(words)}")
    return word
