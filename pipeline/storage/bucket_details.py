"""Turns a customer's bucket details into a `Bucket`. Pure: connects to nothing."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

from pipeline.errors import InvalidRequest
from pipeline.storage.s3_client import Bucket
from schemas.s3 import S3Details

AWS = "amazonaws.com"
# Services whose hosts are `service.example` or `bucket.service.example`, with the number of labels of the service.
SERVICE_LABELS = {"digitaloceanspaces.com": 3, "r2.cloudflarestorage.com": 4, "backblazeb2.com": 4, "wasabisys.com": 4}


def bucket_of_details(details: S3Details) -> Bucket:
    """Find the bucket's name, and whether it is in the host or in the path.

    An explicit `bucket` wins. Otherwise the name is the first path segment of the endpoint, the first label of a host
    of the form `bucket.s3…`, or the first segment of `image_directory`.

    Raises:
        InvalidRequest: none of these names a bucket.
    """
    endpoint = urlsplit(details.endpoint_url) if details.endpoint_url else None
    directory = [part for part in details.image_directory.split("/") if part]
    path = [part for part in endpoint.path.split("/") if part] if endpoint else []
    host_bucket, service_host = _split_host(endpoint.hostname or "") if endpoint else (None, "")
    name = details.bucket or (path[0] if path else host_bucket or (directory[0] if directory else ""))
    if not name:
        raise InvalidRequest("no bucket is named: neither by bucket, nor by endpoint_url, nor by image_directory")
    in_host = host_bucket == name
    if not details.bucket and not path and not in_host:
        directory = directory[1:]
    is_aws = endpoint is None or service_host.endswith(AWS)
    service = None
    if endpoint is not None and not (is_aws and service_host.startswith("s3")):
        netloc = service_host + (f":{endpoint.port}" if endpoint.port else "") if in_host else endpoint.netloc
        service = urlunsplit((endpoint.scheme, netloc, "", "", ""))
    bucket = Bucket(
        endpoint_url=service,
        name=name,
        region=details.region_name,
        is_path_style=not in_host and not is_aws,
        directory="/".join(directory),
        public_url="",
        access_key_id=details.aws_access_key_id.get_secret_value(),
        secret_access_key=details.aws_secret_access_key.get_secret_value(),
    )
    return _with_public_url(bucket, details)


def _split_host(host: str) -> tuple[str | None, str]:
    """Bucket and service of a host; the bucket is None if the host names only the service."""
    labels = host.split(".")
    for service, count in SERVICE_LABELS.items():
        if host.endswith(service):
            return (labels[0], ".".join(labels[1:])) if len(labels) > count else (None, host)
    if len(labels) > 2 and labels[1].startswith("s3"):
        return labels[0], ".".join(labels[1:])
    return None, host


def _with_public_url(bucket: Bucket, details: S3Details) -> Bucket:
    """The bucket with the start of its files' URLs, which contains the directory once."""
    base = (details.public_url or "").rstrip("/")
    if not base:
        if bucket.endpoint_url is None:
            base = f"https://{bucket.name}.s3.{bucket.region}.{AWS}"
        elif bucket.is_path_style:
            base = f"{bucket.endpoint_url}/{bucket.name}"
        else:
            scheme, _, host = bucket.endpoint_url.partition("://")
            base = f"{scheme}://{bucket.name}.{host}"
    if bucket.directory and not urlsplit(base).path.rstrip("/").endswith(f"/{bucket.directory}"):
        base = f"{base}/{bucket.directory}"
    return replace(bucket, public_url=base)
