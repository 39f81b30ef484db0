"""One S3 client for one customer, whose every request goes through a handed-in HTTP client. Knows no files and no URLs.

boto3 signs, retries and parses; the bytes travel by httpx. So the addresses that a customer's endpoint leads to are
checked when the connection is made, by the same guard as all other outgoing requests, and nothing of this machine's
AWS configuration (profiles, proxies, endpoints, metadata service) has a say.
"""

# botocore and boto3 ship no types.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import httpx

from pipeline.errors import ImageTo3DError, InvalidRequest

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
MAX_ANSWER_BYTES = 16 << 20
"""No answer that this service asks a bucket for is near that long."""

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Bucket:
    """One bucket: how to reach it, and where in it and under which address files lie.

    Attributes:
        endpoint_url: the service without the bucket; None is AWS itself, at the address of the region.
        is_path_style: the bucket stands in the path, not in front of the host.
        directory: what object keys begin with, without slashes at its ends; may be empty.
        public_url: what the URLs of files begin with, without a slash at its end.
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
        """The address under which the file of this name is found."""
        return f"{self.public_url}/{quote(name)}"


def make_client(bucket: Bucket, http: httpx.Client, *, attempts: int = 4, timeout: httpx.Timeout = TIMEOUT) -> Any:
    """A boto3 S3 client that sends by `http`.

    Args:
        http: its transport decides which addresses may be reached.
        attempts: tries per request, with growing, jittered pauses (botocore's standard mode).
        timeout: for each wait of a request.

    Raises:
        InvalidRequest: the endpoint or the region cannot be part of an address.
    """
    import boto3.session
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    nothing = (None, None, None, None)
    no_file = (None, None, os.devnull, None)
    session = botocore.session.Session(
        session_vars={"profile": nothing, "config_file": no_file, "credentials_file": no_file}
    )
    session.register_component("data_loader", _shared_loader())
    config = Config(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={"addressing_style": "path" if bucket.is_path_style else "virtual", "payload_signing_enabled": True},
        # Newer checksums come as trailers that older S3 services refuse; Content-MD5 is understood everywhere.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=True,
        user_agent="image-to-3d",
    )
    customer = boto3.session.Session(
        botocore_session=session,
        aws_access_key_id=bucket.access_key_id,
        aws_secret_access_key=bucket.secret_access_key,
        region_name=bucket.region,
    )
    try:
        client: Any = customer.client("s3", endpoint_url=bucket.endpoint_url, config=config)
    except (ValueError, BotoCoreError) as error:
        raise InvalidRequest("endpoint_url and region_name do not make an address of a bucket") from error
    # To learn a bucket's region boto3 asks HeadBucket, and when that is redirected too, again, without end. Services
    # that know the region say it in the redirecting answer, so the question is never sent.
    client.meta.events.register_first("before-send.s3.HeadBucket", _answer_not_found)
    client.meta.events.register_last("before-send.s3", _sender(http, timeout))
    return client


def explain(error: Exception, *, bucket: str) -> str:
    """What a request failed of, in words: the service's code, the operation, a hint. Never a secret.

    What the service itself wrote is left out, because some repeat the request in it.
    """
    import botocore.exceptions
    from botocore.parsers import ResponseParserError

    match error:
        case botocore.exceptions.ClientError(response=response, operation_name=operation):
            return _explain_answer(response, operation, bucket)
        case botocore.exceptions.ConnectTimeoutError() | botocore.exceptions.EndpointConnectionError():
            return "the bucket's endpoint cannot be reached"
        case botocore.exceptions.ReadTimeoutError():
            return "the bucket's endpoint does not answer"
        case botocore.exceptions.ConnectionClosedError():
            return "the connection to the bucket's endpoint was cut"
        case ResponseParserError():
            return "the endpoint does not answer as S3 does"
        case botocore.exceptions.BotoCoreError():
            return f"the bucket's details cannot be used ({type(error).__name__})"
        case ImageTo3DError():
            return str(error)
        case _:
            raise error


def failures() -> tuple[type[Exception], ...]:
    """Everything that a request by `make_client` may raise for reasons outside this service."""
    import botocore.exceptions
    from botocore.parsers import ResponseParserError

    return (
        botocore.exceptions.BotoCoreError,
        botocore.exceptions.ClientError,
        ResponseParserError,
        ImageTo3DError,
    )


def status_and_code(error: BaseException) -> tuple[int, str]:
    """HTTP status and S3 error code of a failed request, (0, "") where there was no answer."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return 0, ""
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
    """botocore's reader of service descriptions; shared, because parsing them costs more than all the rest."""
    from botocore.loaders import create_loader

    return create_loader()


def _sender(http: httpx.Client, timeout: httpx.Timeout) -> Callable[..., Any]:
    """What botocore calls in place of its own HTTP session; its errors are those that botocore's retries know."""
    from botocore.awsrequest import AWSResponse
    from botocore.exceptions import (
        ConnectionClosedError,
        ConnectTimeoutError,
        EndpointConnectionError,
        ReadTimeoutError,
    )

    def send(request: Any, **_: Any) -> Any:
        headers = {"accept-encoding": "identity"}
        for name, value in request.headers.items():
            if name.lower() != "expect":  # not signed; there is no waiting for a permission to send
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
        return AWSResponse(request.url, answer.status_code, dict(answer.headers), _Body(content))

    return send


def _answer_not_found(request: Any, **_: Any) -> Any:
    from botocore.awsrequest import AWSResponse

    return AWSResponse(request.url, 404, {}, _Body(b""))


def _read_bounded(answer: httpx.Response) -> bytes:
    content = bytearray()
    for chunk in answer.iter_raw():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise httpx.ReadError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


class _Body(io.BytesIO):
    """An answer's body as botocore reads it."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        """The whole of it, once."""
        while chunk := self.read(1 << 16):
            yield chunk
