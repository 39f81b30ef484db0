"""Opens the bucket that all machines of a deployment share: temporary outputs, uploads, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import CannotStart, InvalidRequest
from pipeline.net.egress import guarded_client
from pipeline.secrets import load_master_keys
from pipeline.settings import Settings
from pipeline.storage.bucket_details import bucket_of_details
from pipeline.storage.links import LinkSigner
from pipeline.storage.own_bucket import OwnBucket
from pipeline.storage.shared_generations import SharedGenerations
from pipeline.storage.shared_outputs import SharedOutputs
from pipeline.storage.shared_work import SharedWork
from schemas.s3 import parse_s3_details

FILES, WORK, GENERATIONS = "files", "work", "generations"
"""Directories of the bucket."""


@dataclass(frozen=True)
class _OperatorsPolicy:
    """The operator may have the bucket in a private network; callers' addresses have the policy of the settings."""

    user_agent: str
    allow_private_addresses: bool = True


def shared_outputs(settings: Settings, master_keys: Sequence[bytes]) -> SharedOutputs | None:
    """The outputs of callers without a bucket, and uploads; None where they are kept on this machine.

    Raises:
        CannotStart: the settings name no bucket that can be used.
    """
    bucket = own_bucket(settings)
    if bucket is None:
        return None
    return SharedOutputs(
        settings.files_dir,
        bucket=bucket.within(FILES),
        signer=LinkSigner(master_keys),
        base_url=settings.base_url,
        lifetime_s=settings.output_lifetime_s,
    )


def shared_work(settings: Settings, master_keys: Sequence[bytes]) -> SharedWork | None:
    """The checkpoints of unfinished jobs; None where they are kept on this machine.

    Raises:
        CannotStart: as for `shared_outputs`.
    """
    bucket = own_bucket(settings)
    return None if bucket is None else SharedWork(bucket.within(WORK), master_keys=master_keys)


def shared_generations(settings: Settings, folder: Path) -> SharedGenerations | None:
    """The kept generations; None where they are kept on this machine.

    Args:
        folder: for those that this machine made or exported lately.

    Raises:
        CannotStart: as for `shared_outputs`.
    """
    bucket = own_bucket(settings)
    if bucket is None:
        return None
    return SharedGenerations(
        folder,
        bucket=bucket.within(GENERATIONS),
        master_keys=load_master_keys(settings),
        lifetime_s=settings.generation_lifetime_s,
        max_bytes=settings.max_generations_bytes,
    )


def own_bucket(settings: Settings) -> OwnBucket | None:
    """The directory that `OUTPUTS_URL` names; None without this setting. Connects to nothing.

    Raises:
        CannotStart: the settings do not name a bucket, or no credentials.
    """
    if settings.outputs_url is None:
        return None
    parts = urlsplit(settings.outputs_url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise CannotStart(f"OUTPUTS_URL must be s3://bucket or s3://bucket/prefix, got {settings.outputs_url!r}.")
    key_id, secret = settings.outputs_access_key_id, settings.outputs_secret_access_key
    if key_id is None or secret is None:
        raise CannotStart("OUTPUTS_URL needs OUTPUTS_ACCESS_KEY_ID and OUTPUTS_SECRET_ACCESS_KEY.")
    given = {
        "bucket": parts.netloc,
        "image_directory": unquote(parts.path),
        "endpoint_url": settings.outputs_endpoint_url,
        "region_name": settings.outputs_region,
        "aws_access_key_id": key_id.get_secret_value(),
        "aws_secret_access_key": secret.get_secret_value(),
    }
    try:
        bucket = bucket_of_details(parse_s3_details(given))
    except InvalidRequest as error:
        raise CannotStart(f"OUTPUTS_URL and its credentials cannot be used: {error}.") from error
    return OwnBucket(bucket, http=guarded_client(_OperatorsPolicy(settings.user_agent)))
