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

    kind: str = Field(description="model, lod, material, texture, turntable, thumbnail, splat, cutout or extra")
    format: str = Field(description="the file's extension, such as `glb`")
    url: str = Field(description="where the file can be downloaded")
    content_type: str = Field(description="its MIME type")
    bytes: int = Field(description="its size")
    faces: int | None = Field(default=None, description="the number of faces of a model or lod, null for other files")
    expires_at: str | None = Field(
        default=None, description=f"when the URL ends, {ISO}; null for a file in your own bucket"
    )


class UploadedBody(_Body):
    """Images that were stored for later submits."""

    status: Literal["success"] = Field(default="success", description="always `success`")
    output: list[str] = Field(description="a URL for each image, in the order of the request, to pass as `image`")
    url: str = Field(description="the first of them")
    expires_at: str = Field(description=f"when the URLs end, {ISO}")


class SuccessBody(_Body):
    """A job that succeeded: from submit, from fetch, and in the webhook."""

    status: Literal["success"] = Field(default="success", description="always `success`")
    warning: str = Field(default="", description="sentences about what was ignored, assumed or done differently")
    id: JobId = Field(ge=1, le=2**31 - 1, description="the job's id")
    generationTime: float = Field(description="seconds of work, without the wait")  # noqa: N815  # the documented name
    output: list[str] = Field(
        description="URLs of the models with their companions, the levels of detail, the turntable"
    )
    proxy_links: list[str] = Field(description="the same as `output`")
    nsfw_content_detected: bool = Field(default=False, description="always false: nothing is judged")
    webhook_status: str = Field(default="", description="how the delivery of the webhook went, empty without one")
    track_id: str | int | None = Field(default=None, description="your own id, as it was sent")
    extra_assets: list[str] = Field(default=[], description="URLs of the thumbnail and of further files")
    files: list[FileEntry] = Field(default=[], description="every file of `output` and `extra_assets`, with its type")
    created_at: str = CREATED_AT
    finished_at: str | None = FINISHED_AT
    expires_at: str | None = EXPIRES_AT
    meta: dict[str, Any] = Field(default={}, description="every effective parameter, by name")


class ProcessingBody(_Body):
    """A job that is queued or running."""

    status: Literal["processing"] = Field(default="processing", description="always `processing`")
    tip: str = Field(
        default="The job is in progress; request fetch_result again, or wait for the webhook.",
        description="what to do next, as a sentence",
    )
    eta: int = Field(ge=1, description="seconds until the job ends, estimated")
    message: str = Field(description="where the job is, as a sentence")
    fetch_result: str = Field(description="the URL to request the result from")
    id: JobId = Field(ge=1, le=2**31 - 1, description="the job's id")
    output: list[str] = Field(default=[], description="empty until every file can be downloaded")
    meta: dict[str, Any] = Field(default={}, description="every effective parameter, by name")
    future_links: list[str] = Field(description="the URLs that `output` will hold")
    extra_assets: list[str] = Field(default=[], description="empty until the job has ended")
    track_id: str | int | None = Field(default=None, description="your own id, as it was sent")
    warning: str = Field(default="", description="sentences about what was ignored, assumed or done differently")
    progress: int = Field(ge=0, le=100, description="percent of the job that is done")
    stage: str = Field(description="queued, running, or the stage that runs")
    queue_position: int = Field(description="1 is next, 0 is not queued")
    created_at: str = CREATED_AT
    finished_at: None = FINISHED_AT
    expires_at: None = EXPIRES_AT


class FailedBody(_Body):
    """A job that failed or was cancelled."""

    status: Literal["failed"] = Field(default="failed", description="always `failed`")
    id: JobId = Field(ge=1, le=2**31 - 1, description="the job's id")
    message: str = Field(description="why the job ended, as a sentence")
    track_id: str | int | None = Field(default=None, description="your own id, as it was sent")
    error_code: str = Field(default="", description="as in `ErrorBody`")
    retryable: bool = Field(default=False, description="whether the same request may succeed when it is sent again")
    webhook_status: str = Field(default="", description="how the delivery of the webhook went, empty without one")
    created_at: str = CREATED_AT
    finished_at: str | None = FINISHED_AT
    expires_at: str | None = EXPIRES_AT
    meta: dict[str, Any] = Field(default={}, description="every effective parameter, by name")


class ErrorBody(_Body):
    """A request that was refused: one sentence, the first problem first."""

    status: Literal["error"] = Field(default="error", description="always `error`")
    message: str = Field(description="what is wrong, as a sentence")
    error_code: str = Field(description="what went wrong, for programs; the description of this API lists the codes")


class RateLimitedBody(ErrorBody):
    """A request beyond one of the key's limits."""

    retry_after: int = Field(description="seconds until the limit allows more")


class SystemDetailsBody(_Body):
    """The state of the deployment."""

    status: Literal["ok"] = Field(default="ok", description="always `ok`")
    model_count: int = Field(description="engines that are loaded")
    queue_time: int = Field(description="seconds until a new job would start")


class ServerActionBody(_Body):
    """A server action that was done."""

    status: Literal["success"] = Field(default="success", description="always `success`")
    message: str = Field(description="what was done, as a sentence")


class ListBody(_Body):
    """A page of a key's jobs, newest first."""

    status: Literal["success"] = Field(default="success", description="always `success`")
    calls: list[SuccessBody | ProcessingBody | FailedBody] = Field(description="the jobs, as a fetch answers them")
    next: int | None = Field(description="`before` of the next page, null on the last one")


class EstimateBody(_Body):
    """What a submit of the same body would take."""

    status: Literal["success"] = Field(default="success", description="always `success`")
    engine: str = Field(description="the engine that would run")
    seconds: float = Field(description="seconds of work: the mean of the engine, of recent jobs before its first")
    queue_position: int = Field(description="the place in the queue that the job would get, 1 is next")
    queue_time: int = Field(description="seconds until the job would start")
    eta: int = Field(ge=1, description="seconds until the job would end")
    price: float | None = Field(description="what the operator charges, null where no price is set")
    currency: str | None = Field(description="the currency of `price`, null without one")
    warning: str = Field(default="", description="sentences about what would be ignored")


class EngineEntry(_Body):
    """One engine."""

    name: str = Field(description="its name, for `engine` of a submit")
    summary: str = Field(description="what it is, as a phrase")
    needs: str = Field(description="what the machine that runs it needs, as a phrase; empty for any CPU")
    inputs: list[str] = Field(description="what it makes assets from: image, text, or both")
    max_views: int = Field(description="most views of one subject that it accepts; 0 for an engine of texts")
    ignores: list[str] = Field(description="fields of a submit that never change its result")
    offered: bool = Field(description="whether a submit to this deployment may name it")


class EnginesBody(_Body):
    """The engines that exist, and those that this deployment offers."""

    status: Literal["success"] = Field(default="success", description="always `success`")
    default: str = Field(description="the engine of a submit that names none")
    engines: list[EngineEntry] = Field(description="every engine, those that are not offered too")
