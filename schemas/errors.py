"""The roots of the error tree, which the contract itself raises. `pipeline.errors` draws the whole tree.

Knows nothing of HTTP and nothing of how a job runs.
"""

from __future__ import annotations


class ImageTo3DError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one sentence fit for the caller.

    Attributes:
        code: the `error_code` of refusals and of failed jobs.
        retryable: whether the same request may succeed when it is sent again.
        gpu_seconds: accelerator seconds that a generation had used when this error ended it, 0 for all other errors.
    """

    code = "error"
    retryable = False
    gpu_seconds: float = 0.0


class CallerError(ImageTo3DError):
    """The sender can correct the request; sent again unchanged, it gives the same error."""

    code = "caller_error"


class InvalidRequest(CallerError):
    """A field is missing, malformed or out of bounds."""

    code = "invalid_request"
