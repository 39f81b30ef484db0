"""The bodies of answers. Knows no status codes and nothing of how a call is run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

CallId = int


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)

    def to_json(self) -> dict[str, Any]:
        """The body as it is sent: plain JSON values, fields that are absent left out."""
        return self.model_dump(mode="json", exclude_none=False)


class SuccessBody(_Body):
    """A call that succeeded: from submit, from fetch, and to the webhook."""

    status: Literal["success"] = "success"
    warning: str = ""
    id: CallId = Field(ge=1, le=2**31 - 1)
    generationTime: float  # noqa: N815  # the documented name
    output: list[str]
    proxy_links: list[str]
    nsfw_content_detected: bool = False
    webhook_status: str = ""
    track_id: str | int | None = None
    extra_assets: list[str] = []
    meta: dict[str, Any] = {}


class ProcessingBody(_Body):
    """A call that is waiting or running."""

    status: Literal["processing"] = "processing"
    tip: str = "Your call is being worked on; ask fetch_result again, or wait for the webhook."
    eta: int = Field(ge=1)
    message: str
    fetch_result: str
    id: CallId = Field(ge=1, le=2**31 - 1)
    output: list[str] = []
    meta: dict[str, Any] = {}
    future_links: list[str]
    extra_assets: list[str] = []
    track_id: str | int | None = None
    warning: str = ""
    progress: int = Field(ge=0, le=100)
    stage: str
    queue_position: int


class FailedBody(_Body):
    """A call that failed or was cancelled."""

    status: Literal["failed"] = "failed"
    id: CallId = Field(ge=1, le=2**31 - 1)
    message: str
    track_id: str | int | None = None
    error_code: str = ""
    retryable: bool = False
    webhook_status: str = ""
    meta: dict[str, Any] = {}


class ErrorBody(_Body):
    """A request that was refused: one sentence, the first problem first."""

    status: Literal["error"] = "error"
    message: str
    error_code: str = Field(description="what went wrong, for programs; the codes are listed at the top of this page")


class RateLimitedBody(ErrorBody):
    """A request beyond one of the key's limits."""

    retry_after: int = Field(description="seconds until the limit allows more")


class SystemDetailsBody(_Body):
    """What the deployment is doing."""

    status: Literal["ok"] = "ok"
    model_count: int
    queue_time: int


class ServerActionBody(_Body):
    """A server action that was done."""

    status: Literal["success"] = "success"
    message: str
