"""An S3 client for one customer, whose requests all go through a given HTTP client. Knows nothing of files and URLs.

boto3 signs, retries and parses; httpx sends. So the addresses that a customer's endpoint resolves to are checked when
the connection is made, as for all other outgoing requests, and this machine's AWS configuration (profiles, proxies,
endpoints, metadata service) has no effect.
"""

# botocore and boto3 ship no types.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast
from urllib.parse import quote, urlsplit, urlunsplit
from xml.parsers import expat

import httpx

from pipeline.errors import DeliveryFailed, ImageTo3DError, InvalidRequest
from pipeline.net.deadline import DeadlinePassed

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
MAX_CONTENT_BYTES = 16 << 20
"""Far above the size of any part of an object that this service requests."""
MAX_XML_BYTES = 256 << 10
MAX_XML_DEPTH = 32
"""Bounds of every other answer; those of S3 are far below."""
READ_BYTES = 64 << 10

_URL_SAFE = "/%!$&'()*+,;=:@~"
"""Signs that the path of a URL may hold as they are (RFC 3986, section 3.3), and that of an escape."""
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Bucket:
    """One bucket: how to reach it, its directory for files, and their public address.

    Attributes:
        endpoint_url: the service without the bucket; None means AWS, at the address of the region.
        is_path_style: the bucket's name is in the path, not in the host.
        directory: the prefix of object keys, without leading and trailing slashes; may be empty.
        public_url: the start of the URLs of files, without a trailing slash; a query follows the file's name.
    """

    endpoint_url: str | None
    name: str
    region: str
    is_path_style: bool
    directory: str
    public_url: str
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)

    def key_of(self, name: str) -> str:
        """The object's key for a file of this name."""
        return f"{self.directory}/{name}" if self.directory else name

    def url_of(self, name: str) -> str:
        """The URL of the file of this name."""
        parts = urlsplit(self.public_url)
        path = quote(parts.path, safe=_URL_SAFE).rstrip("/")
        return urlunsplit(parts._replace(path=f"{path}/{quote(name)}"))


def make_client(bucket: Bucket, http: httpx.Client, *, attempts: int = 4, timeout: httpx.Timeout = TIMEOUT) -> Any:
    """A boto3 S3 client that sends its requests with `http`.

    Args:
        http: its transport decides which addresses may be reached.
        attempts: per request, with exponential backoff and jitter (botocore's standard mode).
        timeout: of each network operation of a request.

    Raises:
        InvalidRequest: endpoint and region do not form an address.
    """
    import boto3.session
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    nothing = (None, None, None, None)
    no_file = (None, None, os.devnull, None)
    session: Any = botocore.session.Session(
        session_vars={"profile": nothing, "config_file": no_file, "credentials_file": no_file}
    )
    session.register_component("data_loader", _shared_loader())
    config = Config(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={"addressing_style": "path" if bucket.is_path_style else "virtual", "payload_signing_enabled": True},
        # Newer checksums are sent as trailers, which older S3 services refuse; all services accept Content-MD5.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=True,
        user_agent=http.headers["user-agent"],
    )
    customer: Any = boto3.session.Session(
        botocore_session=session,
        aws_access_key_id=bucket.access_key_id,
        aws_secret_access_key=bucket.secret_access_key,
        region_name=bucket.region,
    )
    try:
        client: Any = customer.client("s3", endpoint_url=bucket.endpoint_url, config=config)
    except (ValueError, BotoCoreError) as error:
        raise InvalidRequest("endpoint_url and region_name do not make an address of a bucket") from error
    # To find a bucket's region, boto3 sends HeadBucket, and if that is redirected too, sends it again without end.
    # Services that know the region name it in the redirect itself, so HeadBucket is never sent.
    client.meta.events.register_first("before-send.s3.HeadBucket", _answer_not_found)
    client.meta.events.register_last("before-send.s3", _sender(http, timeout))
    return client


def explain(error: Exception, *, bucket: str) -> str:
    """Why a request failed: the service's error code, the operation, a hint. Never a secret.

    The service's own message is left out, because some services repeat the request in it.
    """
    import botocore.exceptions
    from botocore.parsers import ResponseParserError

    match error:
        case botocore.exceptions.ClientError():
            failed: Any = error
            return _explain_answer(failed.response, failed.operation_name, bucket)
        case botocore.exceptions.ConnectTimeoutError() | botocore.exceptions.EndpointConnectionError():
            return "the bucket's endpoint cannot be reached"
        case botocore.exceptions.ReadTimeoutError():
            return "the bucket's endpoint does not answer"
        case botocore.exceptions.ConnectionClosedError():
            return "the connection to the bucket's endpoint was cut"
        case ResponseParserError():
            return "the endpoint does not answer like S3"
        case botocore.exceptions.BotoCoreError():
            return f"the bucket's details cannot be used ({type(error).__name__})"
        case ImageTo3DError():
            return str(error)
        case _:
            raise error


def failures() -> tuple[type[Exception], ...]:
    """The exceptions that a request of `make_client` raises for reasons outside this service."""
    import botocore.exceptions
    from botocore.parsers import ResponseParserError

    return (
        botocore.exceptions.BotoCoreError,
        botocore.exceptions.ClientError,
        ResponseParserError,
        ImageTo3DError,
    )


def status_and_code(error: BaseException) -> tuple[int, str]:
    """HTTP status and S3 error code of a failed request, (0, "") without an answer."""
    response: Any = getattr(error, "response", None)
    if not isinstance(response, Mapping):
        return 0, ""
    response = cast("Mapping[str, Any]", response)
    code = str(response.get("Error", {}).get("Code", ""))
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), code if _CODE.fullmatch(code) else ""


HINTS = {
    "AccessDenied": "the credentials may not do this",
    "InvalidAccessKeyId": "the access key id is not known there",
    "SignatureDoesNotMatch": "the secret access key does not fit the access key id",
    "NoSuchBucket": "there is no bucket '{bucket}'",
    "SlowDown": "the service asks for fewer requests",
    "RequestTimeTooSkewed": "the clocks of this service and of the endpoint differ",
    "BadDigest": "the content was damaged on the way",
    "EntityTooLarge": "the file is larger than the bucket takes",
    "QuotaExceeded": "the bucket is full",
}
_WRONG_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})


def _explain_answer(response: Any, operation: str, bucket: str) -> str:
    error = response.get("Error", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(error.get("Code", ""))
    if not _CODE.fullmatch(code):
        code = {403: "AccessDenied", 404: "NotFound"}.get(status, f"HTTP {status}")
    said = f"{code} on {operation}"
    if code in _WRONG_REGION or status in (301, 307):
        region = str(error.get("Region", ""))
        where = f"it is in {region}" if re.fullmatch(r"[a-z0-9-]{1,32}", region) else "it is in another one"
        return f"{said}: wrong region for the bucket, {where}"
    hint = HINTS.get(code, "")
    return f"{said}: {hint.format(bucket=bucket)}" if hint else said


@lru_cache(maxsize=1)
def _shared_loader() -> Any:
    """botocore's loader of service descriptions; shared, because parsing them takes longer than all the rest."""
    import botocore.loaders

    loaders: Any = botocore.loaders
    return loaders.create_loader()


def _sender(http: httpx.Client, timeout: httpx.Timeout) -> Callable[..., Any]:
    """The function that botocore calls instead of its own HTTP session; raises the errors that botocore retries."""
    from botocore.awsrequest import AWSResponse
    from botocore.exceptions import (
        ConnectionClosedError,
        ConnectTimeoutError,
        EndpointConnectionError,
        ReadTimeoutError,
    )
    from botocore.parsers import ResponseParserError

    def send(request: Any, **_: Any) -> Any:
        headers: dict[str, str] = {"accept-encoding": "identity"}
        for name, value in request.headers.items():
            if name.lower() != "expect":  # not signed; the body is sent without waiting for 100 Continue
                headers[name.lower()] = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        try:
            with http.stream(
                request.method,
                request.url,
                headers=headers,
                content=request.body or b"",
                timeout=timeout,
                follow_redirects=False,
            ) as answer:
                content = _read_bounded(answer)
        except DeadlinePassed as error:  # before TimeoutException, which botocore retries
            raise DeliveryFailed("the bucket's endpoint takes too long") from error
        except httpx.ConnectTimeout as error:
            raise ConnectTimeoutError(endpoint_url=request.url, error=error) from error
        except httpx.TimeoutException as error:
            raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except httpx.ConnectError as error:
            raise EndpointConnectionError(endpoint_url=request.url, error=error) from error
        except httpx.TransportError as error:
            raise ConnectionClosedError(endpoint_url=request.url, error=error) from error
        except httpx.InvalidURL as error:
            raise InvalidRequest("endpoint_url does not hold a host that can be reached") from error
        except _UnreadableAnswer as error:
            raise ResponseParserError(str(error)) from error
        return AWSResponse(request.url, answer.status_code, dict(answer.headers), _Body(content))

    return send


def _answer_not_found(request: Any, **_: Any) -> Any:
    from botocore.awsrequest import AWSResponse

    headers: dict[str, str] = {}
    return AWSResponse(request.url, 404, headers, _Body(b""))


class _UnreadableAnswer(Exception):
    """An answer that is longer, or nested deeper, than any of an S3 service."""


def _read_bounded(answer: httpx.Response) -> bytes:
    """The body of an answer. That of a refusal is dropped if it is out of bounds: its status says enough.

    Raises:
        _UnreadableAnswer: the body of a success is out of bounds.
    """
    is_content = answer.is_success and answer.request.method == "GET"
    max_bytes = MAX_CONTENT_BYTES if is_content else MAX_XML_BYTES
    content = bytearray()
    for chunk in answer.iter_raw(READ_BYTES):
        content += chunk
        if len(content) > max_bytes:
            break
    if len(content) <= max_bytes and (is_content or _is_flat_xml(content)):
        return bytes(content)
    if answer.is_success:
        raise _UnreadableAnswer("an answer that is out of bounds")
    return b""


def _is_flat_xml(content: bytes | bytearray) -> bool:
    """Whether botocore can parse an answer: it recurses into elements, and would expand entities.

    What is no XML at all is left to botocore, which says so.
    """
    depth = 0
    is_flat = True
    parser = expat.ParserCreate()

    def on_start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, is_flat
        depth += 1
        if depth > MAX_XML_DEPTH:
            is_flat = False
            raise StopIteration

    def on_end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def on_doctype(*_: object) -> None:
        nonlocal is_flat
        is_flat = False
        raise StopIteration

    parser.StartElementHandler, parser.EndElementHandler = on_start, on_end
    parser.StartDoctypeDeclHandler = on_doctype
    with suppress(expat.ExpatError, StopIteration):
        parser.Parse(bytes(content), True)
    return is_flat


class _Body(io.BytesIO):
    """A response body as botocore reads it."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        """All bytes, in chunks."""
        while chunk := self.read(1 << 16):
            yield chunk
