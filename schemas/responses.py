"""The bodies of responses. Knows no status codes and nothing of how a job runs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JobId = int
ISO = "ISO 8601 in UTC"
CREATED_AT = Field(default="", description=f"when the job was submitted, {ISO}")
FINISHED_AT = Field(default=None, description=f"when the job ended, {ISO}; null before")
EXPIRES_AT = Field(
    default=None,
    description=f"when the first of these ends, {ISO}: the job's record, the URLs of its files; null before its end",
)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)

    def to_json(self) -> dict[str, Any]:
        """The body as it is sent: plain JSON values, null included."""
        return self.model_dump(mode="json", exclude_none=False)


class FileEntry(_Body):
    """One delivered file."""

    kind: str = Field(description="model, material, texture, turntable, thumbnail, splat, cutout or extra")
    format: str = Field(description="the file's extension, such as `glb`")
    url: str = Field(description="where the file can be downloaded")
    content_type: str = Field(description="its MIME type")
    bytes: int = Field(description="its size")
    faces: int | None = Field(default=None, description="the number of faces of a model, null for other files")
    expires_at: str | None = Field(
        default=None, description=f"when the URL ends, {ISO}; null for a file in your own bucket"
    )


class UploadedBody(_Body):
    """Images that were stored for later submits."""

    status: Literal["success"] = "success"
    output: list[str] = Field(description="a URL for each image, in the order of the request, to pass as `image`")
    url: str = Field(description="the first of them")
    expires_at: str = Field(description=f"when the URLs end, {ISO}")


class SuccessBody(_Body):
    """A job that succeeded: from submit, from fetch, and in the webhook."""

    status: Literal["success"] = "success"
    warning: str = ""
    id: JobId = Field(ge=1, le=2**31 - 1)
    generationTime: float  # noqa: N815  # the documented name
    output: list[str]
    proxy_links: list[str]
    nsfw_content_detected: bool = False
    webhook_status: str = ""
    track_id: str | int | None = None
    extra_assets: list[str] = []
    files: list[FileEntry] = Field(default=[], description="every file of `output` and `extra_assets`, with its type")
    created_at: str = CREATED_AT
    finished_at: str | None = FINISHED_AT
    expires_at: str | None = EXPIRES_AT
    meta: dict[str, Any] = {}


class ProcessingBody(_Body):
    """A job that is queued or running."""

    status: Literal["processing"] = "processing"
    tip: str = "The job is in progress; request fetch_result again, or wait for the webhook."
    eta: int = Field(ge=1)
    message: str
    fetch_result: str
    id: JobId = Field(ge=1, le=2**31 - 1)
    output: list[str] = []
    meta: dict[str, Any] = {}
    future_links: list[str]
    extra_assets: list[str] = []
    track_id: str | int | None = None
    warning: str = ""
    progress: int = Field(ge=0, le=100)
    stage: str
    queue_position: int
    created_at: str = CREATED_AT
    finished_at: None = FINISHED_AT
    expires_at: None = EXPIRES_AT


class FailedBody(_Body):
    """A job that failed or was cancelled."""

    status: Literal["failed"] = "failed"
    id: JobId = Field(ge=1, le=2**31 - 1)
    message: str
    track_id: str | int | None = None
    error_code: str = Field(default="", description="as in `ErrorBody`")
    retryable: bool = Field(default=False, description="whether the same request may succeed when it is sent again")
    webhook_status: str = ""
    created_at: str = CREATED_AT
    finished_at: str | None = FINISHED_AT
    expires_at: str | None = EXPIRES_AT
    meta: dict[str, Any] = {}


class ErrorBody(_Body):
    """A request that was refused: one sentence, the first problem first."""

    status: Literal["error"] = "error"
    message: str
    error_code: str = Field(description="what went wrong, for programs; the description of this API lists the codes")


class RateLimitedBody(ErrorBody):
    """A request beyond one of the key's limits."""

    retry_after: int = Field(description="seconds until the limit allows more")


class SystemDetailsBody(_Body):
    """The state of the deployment."""

    status: Literal["ok"] = "ok"
    model_count: int = Field(description="engines that are loaded")
    queue_time: int = Field(description="seconds until a new job would start")


class ServerActionBody(_Body):
    """A server action that was done."""

    status: Literal["success"] = "success"
    message: str
