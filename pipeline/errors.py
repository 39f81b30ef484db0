"""Every error that this project raises on purpose. Knows nothing of HTTP, exit codes or logging.

ImageTo3DError
├── CallerError             the sender can fix it; never retried
│   ├── InvalidRequest      a field is missing, malformed or out of bounds
│   ├── UnreadableImage     a picture that cannot be decoded, or holds nothing to model
│   ├── BlockedAddress      a URL that leads where this deployment does not go
│   ├── DownloadFailed      a picture's URL that did not give a picture
│   ├── UnwritableOutput    the place that the caller named cannot be written
│   ├── Unauthorized        no key, or one that is unknown or revoked
│   ├── NotFound            there is no such thing, or it is another key's
│   ├── LimitReached        what a key's limits refuse
│   │   ├── QuotaSpent      the key's calls of the month are used up
│   │   └── RateLimited     too many calls waiting, or too many in one minute
│   └── MissingExtra        an optional part of the installation is needed and absent
├── StageError              ours; the message says which stage failed and why
│   ├── EngineFailed        the engine raised, or returned what cannot be exported
│   ├── OutOfMemory         the device had too little memory, even after the smaller retry
│   ├── WeightsUnusable     a checkpoint is missing, truncated, or does not fit the model
│   ├── DiskFull            this machine has no room for a call's files
│   ├── ExportFailed        the mesh or its texture could not be made into files
│   └── DeliveryFailed      no storage took the files
├── StoreUnavailable        the database is locked, full or away; nothing was changed
├── LeaseLost               a worker wrote to a job that is no longer its own
└── Cancelled               the caller asked for the call to stop
"""

from __future__ import annotations


class ImageTo3DError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one sentence fit for the caller.

    Attributes:
        gpu_seconds: accelerator seconds that a generation had cost when this ended it, 0 for all other errors.
    """

    code = "error"
    retryable = False
    gpu_seconds: float = 0.0


class CallerError(ImageTo3DError):
    """The sender can fix it; trying again unchanged gives the same."""

    code = "caller_error"


def is_caller_error(code: str) -> bool:
    """Whether an error code is that of a `CallerError`."""
    pending: list[type[CallerError]] = [CallerError]
    while pending:
        kind = pending.pop()
        if kind.code == code:
            return True
        pending += kind.__subclasses__()
    return False


class InvalidRequest(CallerError):
    """A field is missing, malformed or out of bounds."""

    code = "invalid_request"


class UnreadableImage(CallerError):
    """A picture that cannot be decoded, or that holds nothing to model."""

    code = "unreadable_image"


class BlockedAddress(CallerError):
    """A URL that leads to an address where this deployment does not go."""

    code = "blocked_address"


class DownloadFailed(CallerError):
    """A picture's URL that answered with an error, too slowly, or with too much."""

    code = "download_failed"


class UnwritableOutput(CallerError):
    """The place that the caller named cannot be written."""

    code = "unwritable_output"


class Unauthorized(CallerError):
    """No key, or one that is unknown or revoked."""

    code = "unauthorized"


class NotFound(CallerError):
    """There is no such thing, or it belongs to another key, which reads the same."""

    code = "not_found"


class LimitReached(CallerError):
    """Base of what a key's limits refuse.

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
    """The key's calls of the month are used up."""

    code = "quota_spent"


class RateLimited(LimitReached):
    """Too many calls waiting, or too many in one minute; the same call works later."""

    code = "rate_limited"
    retryable = True


class MissingExtra(CallerError):
    """An optional part of the installation is needed and absent; the message says which to install."""

    code = "missing_extra"

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}': pip install 'image-to-3d[{extra}]'")
        self.extra = extra


class StageError(ImageTo3DError):
    """Ours: a stage of the call failed for a reason that the sender cannot mend."""

    code = "stage_error"
    retryable = True


class EngineFailed(StageError):
    """The engine raised, or returned something that cannot be exported."""

    code = "engine_failed"


class OutOfMemory(StageError):
    """The device had too little memory, even after the smaller retry."""

    code = "out_of_memory"


class WeightsUnusable(StageError):
    """A checkpoint is missing, truncated, or does not fit the model that it is for."""

    code = "weights_unusable"
    retryable = False


class DiskFull(StageError):
    """This machine has no room for a call's files."""

    code = "disk_full"


class ExportFailed(StageError):
    """The mesh or its texture could not be made into files."""

    code = "export_failed"


class DeliveryFailed(StageError):
    """No storage took the files."""

    code = "delivery_failed"


class StoreUnavailable(ImageTo3DError):
    """The database is locked, full or away; nothing was changed, and the same request works later."""

    code = "store_unavailable"
    retryable = True


class LeaseLost(ImageTo3DError):
    """A worker wrote to a job that ended, or that another worker has taken up since."""

    code = "lease_lost"


class Cancelled(ImageTo3DError):
    """The caller asked for the call to stop; raised between stages and sampling steps."""

    code = "cancelled"
