"""Downloads one image from a customer's URL, within bounds of time and size, and says what went wrong in plain words.

A host that fails for a passing reason is asked a few times. Knows nothing of images but that they are not text.
"""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from pipeline.errors import BlockedAddress, DownloadFailed, DownloadInterrupted
from pipeline.net.content_encoding import ACCEPTED_ENCODINGS, BadEncoding, TooLong, UnknownEncoding, decode_content
from pipeline.net.deadline import Deadline, IsCancelled, deadline
from pipeline.net.egress import AddressPolicy, Resolve, guarded_client, host_of, why_unreachable
from pipeline.net.retry_after import retry_after_s
from schemas.contract import plain_url, read_http_url

MAX_BYTES = 20 * 2**20
TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
MAX_REDIRECTS = 5
ATTEMPTS = 3
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
"""A host that asks for a longer pause is not waited for: the caller is told instead."""
SNIFFED_BYTES = 512

OK_STATUSES = frozenset({200, 203})  # 203: a proxy on the way has changed the answer, which still is one
PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 527, 529, 530})
"""Statuses after which the same request may succeed; the 52x and 530 are Cloudflare's about the server behind it."""


def fetch(
    url: str,
    policy: AddressPolicy,
    *,
    max_bytes: int = MAX_BYTES,
    timeout_s: float = TIMEOUT_S,
    max_redirects: int = MAX_REDIRECTS,
    resolve: Resolve | None = None,
    is_cancelled: IsCancelled | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> bytes:
    """GET a URL and follow redirects, each checked like the first URL.

    Args:
        timeout_s: for everything together: redirects, further attempts and the pauses between them.
        is_cancelled: asked while the download runs.
        pause: waits so many seconds before a further attempt.

    Raises:
        BlockedAddress: it leads to an address that this deployment does not allow.
        DownloadFailed: a status other than 200, too long a body, or a text instead of an image.
        DownloadInterrupted: a failure that may pass: no answer in time, a connection that breaks off, 429, 5xx.
        Cancelled: the job was cancelled.
    """
    with guarded_client(policy, resolve=resolve) as client, deadline(timeout_s, is_cancelled=is_cancelled) as limit:
        download = _Download(client, limit, max_bytes, max_redirects, timeout_s)

        def pause_s(state: RetryCallState) -> float:
            assert state.outcome is not None
            failure = state.outcome.exception()
            if isinstance(failure, DownloadInterrupted) and failure.retry_after_s is not None:
                return failure.retry_after_s
            return FIRST_PAUSE_S * 2 ** (state.attempt_number - 1) * (1 + 0.25 * random.random())

        def is_enough(state: RetryCallState) -> bool:
            return stop_after_attempt(ATTEMPTS)(state) or state.upcoming_sleep >= min(limit.left_s, LONGEST_PAUSE_S)

        def wait(seconds: float) -> None:
            pause(seconds)
            limit.check()

        retrying = Retrying(
            retry=retry_if_exception_type(DownloadInterrupted), wait=pause_s, stop=is_enough, sleep=wait, reraise=True
        )
        try:
            return retrying(download, url)
        except httpx.TimeoutException as failure:
            raise DownloadInterrupted(f"{host_of(url)} did not send the image within {timeout_s:g} s") from failure


@dataclass(frozen=True)
class _Download:
    """One attempt, redirects included."""

    client: httpx.Client
    limit: Deadline
    max_bytes: int
    max_redirects: int
    timeout_s: float

    def __call__(self, url: str) -> bytes:
        for _ in range(self.max_redirects + 1):
            host = host_of(url)
            try:
                found = self._get(url)
            except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as failure:
                raise BlockedAddress(f"{host} is not a usable http or https address") from failure
            except httpx.TimeoutException as failure:
                raise DownloadInterrupted(f"{host} did not send the image within {self.timeout_s:g} s") from failure
            except httpx.ConnectError as failure:
                kind = DownloadInterrupted if _may_pass(failure) else DownloadFailed
                raise kind(f"{host} cannot be reached: {why_unreachable(failure)}") from failure
            except httpx.HTTPError as failure:  # it was reached
                raise DownloadInterrupted(f"the download from {host} broke off") from failure
            if isinstance(found, bytes):
                return found
            joined = urljoin(url, plain_url(found))
            url = read_http_url(joined) or joined
        raise DownloadFailed(f"{host_of(url)} redirects more than {self.max_redirects} times")

    def _get(self, url: str) -> bytes | str:
        """One GET: the body, or where a redirect leads.

        Raises:
            DownloadFailed: another answer than an image.
            httpx.HTTPError: no answer.
        """
        host = host_of(url)
        headers = {"connection": "close", "accept": "image/*,*/*;q=0.5", "accept-encoding": ACCEPTED_ENCODINGS}
        timeout = httpx.Timeout(self.limit.left_s, connect=min(self.limit.left_s, CONNECT_TIMEOUT_S))
        with self.client.stream("GET", url, headers=headers, timeout=timeout) as answer:
            if answer.has_redirect_location:
                return answer.headers["location"]
            if answer.status_code not in OK_STATUSES:
                raise _refusal(host, answer)
            announced = answer.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > self.max_bytes:
                raise DownloadFailed(_too_long(host, self.max_bytes))
            content = bytearray()
            for piece in answer.iter_raw():
                content += piece
                if len(content) > self.max_bytes:
                    raise DownloadFailed(_too_long(host, self.max_bytes))
        try:
            image = decode_content(bytes(content), answer.headers.get("content-encoding", ""), max_bytes=self.max_bytes)
        except TooLong:
            raise DownloadFailed(_too_long(host, self.max_bytes)) from None
        except UnknownEncoding as error:
            raise DownloadFailed(
                f"{host} sends the image with the content encoding {error}, which is not read"
            ) from None
        except BadEncoding:
            raise DownloadInterrupted(f"the download from {host} is damaged") from None
        if (text := _text_type(image, answer.headers.get("content-type", ""))) is not None:
            raise DownloadFailed(f"{host} sends {text} instead of an image; use the direct link to the image")
        return image


def _refusal(host: str, answer: httpx.Response) -> DownloadFailed:
    """The error for a status that brings no image."""
    message = f"{host} answered {answer.status_code} instead of an image"
    if answer.status_code not in PASSING_STATUSES:
        return DownloadFailed(message)
    return DownloadInterrupted(message, retry_after_s=retry_after_s(answer.headers.get("retry-after", "")))


def _may_pass(failure: httpx.ConnectError) -> bool:
    """Whether a connection that failed may succeed a moment later."""
    cause: BaseException | None = failure
    while cause is not None:
        match cause:
            case ssl.SSLCertVerificationError():
                return False
            case ssl.SSLError():
                return isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)
            case socket.gaierror():
                return cause.errno == socket.EAI_AGAIN
            case UnicodeError():
                return False
            case _:
                cause = cause.__cause__ or cause.__context__
    return True


def _text_type(content: bytes, content_type: str) -> str | None:
    """What a body is, in words, if it is a text; no accepted format begins with 512 bytes of text."""
    head = content[:SNIFFED_BYTES]
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(content) <= SNIFFED_BYTES:
            return None
        text = head[: error.start].decode()
    if not text.strip() or any(character < " " and character not in "\t\n\r\f" for character in text):
        return None
    media_type = content_type.partition(";")[0].strip().lower()
    start = text.lstrip().lower()
    if media_type in ("text/html", "application/xhtml+xml") or start.startswith(("<!doctype html", "<html")):
        return "a web page (text/html)"
    if media_type == "image/svg+xml" or start.startswith("<svg"):
        return "an SVG drawing (image/svg+xml)"
    is_textual = media_type.startswith("text/") or media_type.endswith(("json", "xml", "javascript"))
    return f"a text ({media_type})" if is_textual and media_type.isascii() and len(media_type) < 60 else None


def _too_long(host: str, max_bytes: int) -> str:
    return f"{host} sends more than {max_bytes / 2**20:g} MiB"
