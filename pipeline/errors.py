"""Every error that this project raises on purpose. Knows no status codes, exit codes or logging.

ImageTo3DError
├── CallerError             the sender can correct it; never retried
│   ├── InvalidRequest      a field is missing, malformed or out of bounds
│   │   ├── IdempotencyKeyReused  an Idempotency-Key was sent again with another body
│   │   └── PromptRefused   the deployment's rules refuse a text
│   ├── UnreadableImage     an image cannot be decoded, or shows no subject
│   ├── BlockedAddress      a URL leads to an address that this deployment does not connect to
│   ├── DownloadFailed      an image's URL answered with an error, or with something else than an image
│   │   └── DownloadInterrupted     for a reason that may pass: no answer in time, 429, 5xx, a broken connection
│   ├── UnwritableOutput    the output path that the caller named cannot be written
│   ├── Unauthorized        the API key is missing, unknown or revoked
│   ├── NotFound            nothing has this id or path, or it belongs to another key
│   ├── MethodNotAllowed    the path exists, but does not take this HTTP method
│   ├── BodyTooLarge        the request's body is longer than this deployment accepts
│   ├── BodyTooSlow         the request's body did not arrive in time
│   ├── UnsupportedMediaType the request's body has a type or an encoding that is not taken
│   ├── HeadTooLarge        the request has too many or too long headers
│   ├── LimitReached        base of the refusals by a key's limits
│   │   ├── QuotaSpent      the key's jobs of the month are used up
│   │   └── RateLimited     too many jobs are queued, or too many were submitted in one minute
│   └── MissingExtra        an optional part of the installation is needed and absent
├── StageError              ours; the message says what failed
│   ├── IntakeFailed        the images could not be loaded, for a reason that is not theirs
│   │   └── DecoderLost     the process that decodes images was ended from outside
│   ├── EngineFailed        the engine raised, gave no answer, or returned what cannot be exported
│   ├── OutOfMemory         the machine or its device had too little memory
│   ├── WeightsUnusable     a checkpoint is missing, truncated, or does not fit the model
│   ├── DiskFull            no space is left for a job's files
│   ├── ExportFailed        the mesh or its texture could not be made into files
│   ├── DeliveryFailed      no storage accepted the files
│   └── Interrupted         the job's workers stopped too often before it was finished
├── InternalError           an unexpected exception outside of any job
├── StoreUnavailable        the database is locked, full or unreachable; nothing was changed
├── ServiceBusy             too many large requests arrive at once, or the moderation service does not answer
├── LeaseLost               a worker wrote to a job that is no longer its own
├── CannotStart             a process of the service cannot start on this machine, for its operator
└── Cancelled               the caller asked for the job to stop

`ImageTo3DError`, `CallerError` and `InvalidRequest` are defined in `schemas.errors`, because the contract raises
them and must not import this package.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from schemas.errors import CallerError as CallerError
from schemas.errors import ImageTo3DError as ImageTo3DError
from schemas.errors import InvalidRequest as InvalidRequest


class IdempotencyKeyReused(InvalidRequest):
    """An Idempotency-Key was sent again with another body."""

    code = "idempotency_key_reused"


class PromptRefused(InvalidRequest):
    """The deployment's list of words, or the moderation service that it asks, refuses a text."""

    code = "prompt_refused"


class UnreadableImage(CallerError):
    """An image cannot be decoded, or shows no subject."""

    code = "unreadable_image"


class BlockedAddress(CallerError):
    """A URL leads to an address that this deployment does not connect to."""

    code = "blocked_address"


class DownloadFailed(CallerError):
    """An image's URL answered with an error, or with something else than an image."""

    code = "download_failed"


class DownloadInterrupted(DownloadFailed):
    """An image's URL failed for a reason that may pass: no answer in time, 429, 5xx, a connection that broke off.

    Attributes:
        retry_after_s: seconds that the host asks to wait; None where it does not say.
    """

    retryable = True  # several attempts failed, but the host may be in order again later

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnwritableOutput(CallerError):
    """The output path that the caller named cannot be written."""

    code = "unwritable_output"


class Unauthorized(CallerError):
    """The API key is missing, unknown or revoked."""

    code = "unauthorized"


class NotFound(CallerError):
    """Nothing has this id or path, or it belongs to another key, which reads the same."""

    code = "not_found"


class GenerationGone(CallerError):
    """The generation of a finished job is not kept any more, so its files cannot be made anew."""

    code = "generation_gone"


class MethodNotAllowed(CallerError):
    """The path exists, but does not take this HTTP method."""

    code = "method_not_allowed"


class BodyTooLarge(CallerError):
    """The request's body is longer than this deployment accepts."""

    code = "body_too_large"


class BodyTooSlow(CallerError):
    """The request's body did not arrive in time."""

    code = "body_too_slow"
    retryable = True  # the connection may be faster the next time


class UnsupportedMediaType(CallerError):
    """The request's body has a type or an encoding that this path does not take."""

    code = "unsupported_media_type"


class HeadTooLarge(CallerError):
    """The request has too many or too long headers."""

    code = "head_too_large"


class LimitReached(CallerError):
    """Base of the refusals by a key's limits.

    Attributes:
        limit: what the key may have.
        remaining: what it has left, 0 or more.
        reset_at: when more is allowed, in seconds since 1970.
        retry_after_s: whole seconds until then, at least 1.
    """

    def __init__(self, message: str, *, limit: int, remaining: int, reset_at: float, retry_after_s: int) -> None:
        super().__init__(message)
        self.limit = limit
        self.remaining = remaining
        self.reset_at = reset_at
        self.retry_after_s = retry_after_s


class QuotaSpent(LimitReached):
    """The key's jobs of the month are used up."""

    code = "quota_spent"  # not retryable: the quota resets only when the month ends


class RateLimited(LimitReached):
    """Too many jobs are queued, or too many were submitted in one minute."""

    code = "rate_limited"
    retryable = True  # the limit is free again after `retry_after` seconds


class MissingExtra(CallerError):
    """An optional part of the installation is needed and absent; the message says which one to install."""

    code = "missing_extra"

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}': pip install 'image-to-3d[{extra}]'")
        self.extra = extra


class StageError(ImageTo3DError):
    """A job failed for a reason that the sender cannot correct; the message says what failed."""

    code = "stage_error"
    retryable = True  # outside of the stages only the service's own parts fail, which may be in order again later


class IntakeFailed(StageError):
    """The images could not be loaded, for a reason that is not theirs."""

    code = "intake_failed"
    retryable = False  # decoding and background removal are deterministic: the same images fail again


class DecoderLost(IntakeFailed):
    """The process that decodes images was ended from outside, for lack of memory on the machine for instance."""

    retryable = True  # not the image's fault


class EngineFailed(StageError):
    """The engine raised, gave no answer, or returned what cannot be exported."""

    code = "engine_failed"
    retryable = True  # a lost container or device is replaced, and a seed of 0 draws another generation


class OutOfMemory(StageError):
    """The machine or its device had too little memory, even after the engine's smaller retry."""

    code = "out_of_memory"
    retryable = False  # the same request needs as much again: it takes a smaller one


class WeightsUnusable(StageError):
    """A checkpoint is missing, truncated, or does not fit the model that it is for."""

    code = "weights_unusable"
    retryable = False  # the operator must fetch the weights


class DiskFull(StageError):
    """No space is left for a job's files."""

    code = "disk_full"
    retryable = True  # outputs expire and free their space


class ExportFailed(StageError):
    """The mesh or its texture could not be made into files."""

    code = "export_failed"
    retryable = False  # the export is deterministic: the same generation fails again


class DeliveryFailed(StageError):
    """No storage accepted the files."""

    code = "delivery_failed"
    retryable = True  # a storage that is unreachable or full now may accept them later


class Interrupted(StageError):
    """The job's workers stopped too often before it was finished."""

    code = "interrupted"
    retryable = True  # workers stop for reasons of their own: restarts, lost machines


class InternalError(ImageTo3DError):
    """An unexpected error in the service; the message holds a request id for the report to its operator."""

    code = "internal_error"
    retryable = False  # nothing is known about it


class StoreUnavailable(ImageTo3DError):
    """The database is locked, full or unreachable; nothing was changed."""

    code = "store_unavailable"
    retryable = True  # nothing was changed, and the database may answer again a moment later


class ServiceBusy(ImageTo3DError):
    """Too many large requests of callers whose key is not known arrive at once, or moderation does not answer."""

    code = "service_busy"
    retryable = True  # they end, or are refused, within a minute


class LeaseLost(ImageTo3DError):
    """A worker wrote to a job that has ended, or that another worker has claimed since."""

    code = "lease_lost"
    retryable = False  # the job is another worker's


class CannotStart(ImageTo3DError):
    """A process of the service cannot start on this machine: its port is taken, or its secret is another one."""

    code = "cannot_start"
    retryable = False  # its operator has to change something


class Cancelled(ImageTo3DError):
    """The caller asked for the job to stop."""

    code = "cancelled"
    retryable = False  # the caller's own decision


def error_classes(root: type[ImageTo3DError] = ImageTo3DError) -> Iterator[type[ImageTo3DError]]:
    """The classes of this project's errors in the order of the tree, without the bases that nothing raises."""
    if root not in (ImageTo3DError, CallerError, LimitReached):
        yield root
    for subclass in root.__subclasses__():
        yield from error_classes(subclass)


def error_codes() -> dict[str, tuple[type[ImageTo3DError], str]]:
    """Each error code with its class and whether a retry may help: `yes`, `no`, or `sometimes`.

    A class without a code of its own shares that of its base, and differs from it in whether a retry may help: a failed
    job says which of both it is.
    """
    codes: dict[str, tuple[type[ImageTo3DError], str]] = {}
    for error in error_classes():
        retryable = "yes" if error.retryable else "no"
        first, before = codes.get(error.code, (error, retryable))
        codes[error.code] = (first, before if before == retryable else "sometimes")
    return codes


def is_caller_error(code: str) -> bool:
    """Whether an error code is that of a `CallerError`."""
    return any(error.code == code for error in error_classes(CallerError))


def translate(error: Exception, *, where: str, otherwise: type[StageError] = StageError) -> ImageTo3DError:
    """An exception as an error of this tree: the only place where foreign exceptions are translated.

    Args:
        where: what failed, as the subject of the message ("export", "engine trellis").
        otherwise: the class for an exception that is neither ours nor about memory or disk space.

    Returns:
        The error itself where it is ours already. Otherwise a new one that says what failed and nothing of the inside;
        the exception is its `__cause__`.
    """
    if isinstance(error, ImageTo3DError):
        return error
    translated: ImageTo3DError = otherwise(f"{where} failed for an internal reason ({type(error).__name__})")
    if isinstance(error, MemoryError):
        translated = OutOfMemory(f"{where} failed: out of memory")
    elif isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            translated = DiskFull(f"{where} failed: no space left on the device")
        else:  # the system's own text: an exception's `strerror` may hold any text of its library
            translated = otherwise(f"{where} failed: {os.strerror(error.errno)}")
    translated.__cause__ = error
    return translated
