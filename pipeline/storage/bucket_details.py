"""Turns a customer's bucket details into a `Bucket`. Pure: connects to nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from pipeline.errors import InvalidRequest
from pipeline.storage.s3_client import Bucket
from schemas.s3 import S3Details

AWS = re.compile(r"s3(?:[.-](?P<region>[a-z]{2,5}(?:-[a-z]+)+-\d+))?\.amazonaws\.(?:com|com\.cn|eu)")
"""AWS' plain endpoints, for which boto3 makes the address of the region."""
AWS_DOMAINS = {"cn-": "amazonaws.com.cn", "eusc-": "amazonaws.eu"}
"""Domains of AWS' partitions by the start of their regions; all other regions are on amazonaws.com."""
SERVICES = (
    r"s3(?:[.-][a-z0-9-]+)*\.amazonaws\.(?:com|com\.cn|eu)",
    r"(?!(?:eu|us|fedramp)\.)[^.]+(?:\.(?:eu|us|fedramp))?\.r2\.cloudflarestorage\.com",  # the account, a jurisdiction
    r"[a-z0-9-]+\.digitaloceanspaces\.com",
    r"s3\.[a-z0-9-]+\.backblazeb2\.com",
    r"s3(?:\.[a-z0-9-]+)?\.wasabisys\.com",
    r"s3\.[a-z0-9-]+\.scw\.cloud",
    r"s3\.[a-z0-9-]+(?:\.[a-z]+)?\.cloud\.ovh\.(?:net|us)",
    r"[a-z0-9-]+\.linodeobjects\.com",
    r"[a-z0-9-]+\.vultrobjects\.com",
    r"[a-z0-9-]+\.your-objectstorage\.com",
    r"storage\.googleapis\.com",
    r"storage\.yandexcloud\.net",
    r"gateway(?:\.[a-z0-9]+)?\.storjshare\.io",
    r"sos-[a-z0-9-]+\.exo\.io",
    r"obs\.[a-z0-9-]+\.(?:myhuaweicloud\.(?:com|eu)|otc\.t-systems\.com)",
    r"[a-z0-9]+\.compat\.objectstorage\.[a-z0-9-]+\.(?:oraclecloud|oci\.customer-oci)\.com",  # the namespace
)
"""Hosts of services that take the bucket in the path too, without the bucket that a host may begin with."""
VIRTUAL_SERVICES = (
    r"(?:s3\.)?oss(?:-[a-z0-9-]+)?\.aliyuncs\.com",
    r"cos(?:-internal)?\.[a-z0-9-]+\.(?:myqcloud\.com|tencentcos\.cn)",
    r"tos-(?:s3-)?[a-z0-9-]+\.i?volces\.com",
    r"(?:fly\.storage\.tigris\.dev|t3\.storage\.dev)",
    r"vhcompat\.objectstorage\.[a-z0-9-]+\.oci\.customer-oci\.com",
)
"""Hosts of services that take the bucket in the host only: they refuse it in the path."""
SERVICE_PATHS = (["storage", "v1", "s3"],)
"""Paths at which a service answers, before any bucket: Supabase's."""

_SERVICE = re.compile(
    rf"(?:(?P<bucket>.{{3,}})\.)?(?P<service>(?P<virtual>{'|'.join(VIRTUAL_SERVICES)})|{'|'.join(SERVICES)})"
)
_ADDRESS = re.compile(r"[0-9.]+|.*:.*")


@dataclass(frozen=True)
class _Endpoint:
    """The parts of an endpoint's URL.

    Attributes:
        service: the URL without a bucket in its host, and with the path before the bucket.
        host_bucket: the bucket that the host begins with, "" without one.
        path_bucket: the bucket in the path, "" without one.
        directory: what follows the bucket in the path.
        is_virtual_only: the service is known to refuse buckets in the path.
    """

    service: SplitResult
    host_bucket: str
    path_bucket: str
    directory: list[str]
    is_virtual_only: bool


def bucket_of_details(details: S3Details) -> Bucket:
    """Find the bucket's name, and whether it is in the host or in the path.

    An explicit `bucket` wins. Otherwise the name is the first path segment of the endpoint behind a known service's
    path, the part of the host before a known service's host or before `s3…`, or the first segment of `image_directory`.

    Raises:
        InvalidRequest: none of these names a bucket, or the details contradict each other.
    """
    directory = _segments(details.image_directory, "image_directory")
    endpoint = None if details.endpoint_url is None else _read_endpoint(details.endpoint_url, details)
    name = details.bucket
    if not name and endpoint is not None:
        name = endpoint.path_bucket or endpoint.host_bucket
    if not name and directory:
        name, *directory = directory
    if not name:
        raise InvalidRequest("no bucket is named: neither by bucket, nor by endpoint_url, nor by image_directory")
    region = details.region_name
    service, is_virtual = None, details.addressing_style != "path"
    if endpoint is not None:
        directory = endpoint.directory + directory
        aws = AWS.fullmatch(endpoint.service.hostname or "")
        if aws is None:
            service = urlunsplit(endpoint.service)
            is_known_virtual = endpoint.is_virtual_only or endpoint.host_bucket == name or ".amazonaws." in service
            is_virtual = details.addressing_style == "virtual" or (is_virtual and is_known_virtual)
        elif aws["region"] and "region_name" not in details.model_fields_set:
            region = aws["region"]
    if is_virtual and service is not None and _ADDRESS.fullmatch(urlsplit(service).hostname or ""):
        raise InvalidRequest("addressing_style must be path where endpoint_url holds an IP address")
    bucket = Bucket(
        endpoint_url=service,
        name=name,
        region=region,
        is_path_style=not is_virtual,
        directory="/".join(directory),
        public_url="",
        access_key_id=details.aws_access_key_id.get_secret_value(),
        secret_access_key=details.aws_secret_access_key.get_secret_value(),
    )
    return replace(bucket, public_url=_public_url(bucket, details.public_url))


def _read_endpoint(url: str, details: S3Details) -> _Endpoint:
    """Take an endpoint's URL apart.

    Raises:
        InvalidRequest: it has a query or dots as segments, which no S3 service has.
    """
    parts = urlsplit(url)
    if parts.query:
        raise InvalidRequest("endpoint_url must not have a query")
    path = _segments(unquote(parts.path), "endpoint_url")
    known = next((known for known in SERVICE_PATHS if path[: len(known)] == known), list[str]())
    behind = path[len(known) :]
    if not details.bucket:
        before, path_bucket, directory = known, behind[0] if behind else "", behind[1:]
    elif details.bucket in behind:
        index = behind.index(details.bucket)
        before, path_bucket, directory = known + behind[:index], details.bucket, behind[index + 1 :]
    else:
        before, path_bucket, directory = path, "", []
    host, is_virtual_only = parts.hostname or "", False
    host_bucket, service_host = "", host
    if found := _SERVICE.fullmatch(host):
        host_bucket, service_host, is_virtual_only = found["bucket"] or "", found["service"], bool(found["virtual"])
        if is_virtual_only and host_bucket and details.bucket not in ("", host_bucket):
            raise InvalidRequest(f"bucket is another one than {host_bucket!r}, whose address endpoint_url is")
    elif details.bucket and details.addressing_style == "virtual" and host.startswith(f"{details.bucket}."):
        host_bucket, service_host = details.bucket, host.removeprefix(f"{details.bucket}.")
    elif len(labels := host.split(".")) > 2 and labels[1].startswith("s3"):
        host_bucket, service_host = labels[0], ".".join(labels[1:])
    is_in_host = host_bucket and host_bucket == (details.bucket or path_bucket or host_bucket)
    if not is_in_host:
        host_bucket, service_host = "", host
    netloc = parts.netloc if service_host == host else service_host + (f":{parts.port}" if parts.port else "")
    service = SplitResult(parts.scheme, netloc, "".join(f"/{quote(segment)}" for segment in before), "", "")
    return _Endpoint(service, host_bucket, path_bucket, directory, is_virtual_only)


def _segments(path: str, field: str) -> list[str]:
    """The segments of a path, without empty ones.

    Raises:
        InvalidRequest: one of them is `.` or `..`: services and clients resolve these, and lead to another place.
    """
    segments = [segment for segment in path.split("/") if segment]
    if any(segment in (".", "..") for segment in segments):
        raise InvalidRequest(f"{field} must not contain the segments '.' and '..'")
    return segments


def _public_url(bucket: Bucket, given: str | None) -> str:
    """The start of the files' URLs, escaped, which contains the directory once."""
    parts = urlsplit(given or _own_url(bucket))
    path = parts.path.rstrip("/")
    if bucket.directory and not f"{unquote(path)}/".endswith(f"/{bucket.directory}/"):
        path = f"{path}/{quote(bucket.directory)}"
    return urlunsplit(parts._replace(path=path))


def _own_url(bucket: Bucket) -> str:
    """The URL at which the service itself shows a bucket.

    Raises:
        InvalidRequest: it has none that its name says.
    """
    if bucket.name.startswith("arn:"):
        raise InvalidRequest("public_url is required where bucket is an ARN")
    name = quote(bucket.name)
    if bucket.endpoint_url is None:
        domain = next(
            (domain for start, domain in AWS_DOMAINS.items() if bucket.region.startswith(start)), "amazonaws.com"
        )
        # The service's certificate does not hold for a name with dots in front of the host.
        if bucket.is_path_style or "." in bucket.name:
            return f"https://s3.{bucket.region}.{domain}/{name}"
        return f"https://{name}.s3.{bucket.region}.{domain}"
    parts = urlsplit(bucket.endpoint_url)
    if bucket.is_path_style or (parts.scheme == "https" and "." in bucket.name):
        return urlunsplit(parts._replace(path=f"{parts.path}/{name}"))
    return urlunsplit(parts._replace(netloc=f"{name}.{parts.netloc}"))
