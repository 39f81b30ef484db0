"""What a client raises."""

from __future__ import annotations

from schemas.responses import FailedBody


class ClientError(Exception):
    """Base of the errors of the clients."""


class ApiError(ClientError):
    """The service refused a request, or what answered is not the service.

    Attributes:
        status: the HTTP status.
        error_code: what went wrong, for programs; "" where the answer has none.
        retry_after_s: seconds until the request may be sent again, None where the answer does not say.
        request_id: to quote when an internal error is reported; "" without one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        error_code: str = "",
        retry_after_s: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class JobFailed(ClientError):
    """A job failed or was cancelled.

    Attributes:
        job: the body of the failed job, with `error_code` and `retryable`.
    """

    def __init__(self, job: FailedBody) -> None:
        super().__init__(f"job {job.id} failed ({job.error_code}): {job.message}")
        self.job = job


class WaitTimedOut(ClientError):
    """A job did not end within the time that the caller gave it; it goes on."""
