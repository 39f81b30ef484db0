"""What the clients send, and how they read the answers. Does no input or output but reading images from disk."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, cast
from urllib.parse import unquote, urlsplit

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline.client.errors import ApiError, ClientError, JobFailed
from schemas.formats import Compression, OutputFormat, TextureFormat
from schemas.responses import EstimateBody, FailedBody, ListBody, ProcessingBody, SuccessBody

API = "/api/v1/enterprise"
SUBMIT, SUBMIT_TEXT = "/api/v6/3d/image_to_3d", "/api/v6/3d/text_to_3d"
ESTIMATE_SUBMIT = "/api/v6/3d/estimate"
"""Below this prefix `output_format` is `glb` by default, below the other one `obj`."""
FileSource: TypeAlias = "str | PathLike[str] | bytes"
"""One image or mesh: an http(s) URL or a data URI, else a path, or the bytes of a file."""
Job: TypeAlias = SuccessBody | ProcessingBody | FailedBody
OnProgress: TypeAlias = Callable[[ProcessingBody], object]
JOB: TypeAdapter[Job] = TypeAdapter(Job)
LIST: TypeAdapter[ListBody] = TypeAdapter(ListBody)
ESTIMATE: TypeAdapter[EstimateBody] = TypeAdapter(EstimateBody)

FETCH_WAIT_S = 30
"""How long the service may hold an answer to a fetch back until the job ends."""
ANSWER_MARGIN_S = 30.0
TRANSIENT = frozenset({502, 503, 504})
PAUSES_S = (0.5, 1.0, 2.0, 4.0)
MAX_PAUSE_S = 30.0

Body = TypeVar("Body", bound=BaseModel)


class GenerationParameters(TypedDict, total=False):
    """The fields that submits of images and of texts share, but for the key."""

    render: bool
    output_format: OutputFormat
    output_formats: Sequence[OutputFormat] | str | None
    resolution: int
    ss_guidance_strength: float
    ss_sampling_steps: int
    slat_guidance_strength: float
    slat_sampling_steps: int
    mesh_simplify: float
    target_faces: int | None
    lods: Sequence[int] | str | None
    chunk_size: int
    seed: int
    temp: bool
    webhook: str | None
    track_id: str | int | None
    texture_size: int
    engine: str | None
    no_texture: bool
    normal_map: bool
    splat: bool
    size: float | None
    origin: Literal["bottom", "center"]
    up_axis: Literal["y", "z"] | None
    texture_format: TextureFormat
    compression: Compression
    print_ready: bool
    min_wall_mm: float
    retention_s: int | None


class SubmitParameters(GenerationParameters, total=False):
    """The fields of a submit but for the key and the image; docs/http-api.md describes each."""

    multi_image: bool
    detail: int
    tex_sampling_steps: int
    tex_guidance_strength: float
    multi_image_mode: Literal["stochastic", "multidiffusion"] | None
    view_angles: Sequence[float | str] | str | None
    depth: float | None
    remove_bg: bool
    foreground_ratio: float | None


class TextParameters(GenerationParameters, total=False):
    """The fields of a submit of a text but for the key, the prompt and the mesh; docs/http-api.md describes each."""

    negative_prompt: str
    guidance_scale: float | None
    num_inference_steps: int | None


class ExportParameters(TypedDict, total=False):
    """What a finished job's files may be made anew with, without the engine; docs/http-api.md describes each."""

    render: bool
    output_format: OutputFormat
    output_formats: Sequence[OutputFormat] | str | None
    mesh_simplify: float
    target_faces: int | None
    lods: Sequence[int] | str | None
    texture_size: int
    texture_format: TextureFormat
    compression: Compression
    size: float | None
    origin: Literal["bottom", "center"]
    up_axis: Literal["y", "z"] | None
    print_ready: bool
    min_wall_mm: float
    no_texture: bool
    normal_map: bool
    chunk_size: int
    temp: bool
    webhook: str | None
    track_id: str | int | None
    retention_s: int | None


@dataclass(frozen=True)
class Call:
    """One request, safe to send again: it changes nothing, or carries an Idempotency-Key.

    Attributes:
        path: below the service's address.
        body: sent as JSON, or as form fields where there are files.
        files: name of the form field, file name and content of each file.
        wait_s: how long the service may hold the answer back.
    """

    path: str
    body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    files: Sequence[tuple[str, tuple[str, bytes]]] = ()
    wait_s: float = 0.0
    idempotency_key: str | None = None

    def arguments(self, key: str) -> dict[str, Any]:
        """Keyword arguments of `httpx.Client.post` beside the URL."""
        headers = {"key": key, "prefer": f"wait={self.wait_s:g}"}
        if self.idempotency_key is not None:
            headers["idempotency-key"] = self.idempotency_key
        sent: dict[str, Any] = {"headers": headers, "timeout": self.wait_s + ANSWER_MARGIN_S}
        if self.files:
            return sent | {"data": {name: _as_field(value) for name, value in self.body.items()}, "files": self.files}
        return sent | {"json": self.body}


def _as_field(value: Any) -> Any:
    """A value as a form field: repeated for several texts, else text, and JSON where it has parts."""
    if isinstance(value, str):
        return value
    parts = cast(list[object], value) if isinstance(value, list) else []
    if parts and all(isinstance(part, str) for part in parts):
        return parts
    return json.dumps(value)


def submit_call(
    image: FileSource | Sequence[FileSource],
    parameters: Mapping[str, Any],
    *,
    wait_s: float,
    idempotency_key: str | None,
    path: str = SUBMIT,
) -> Call:
    """A submit, or a call with the same body; local images are sent as files."""
    sources = [image] if isinstance(image, str | bytes | PathLike) else list(image)
    body = _given(parameters)
    if len(sources) > 1:
        body.setdefault("multi_image", True)
    if all(_is_url(source) for source in sources):
        body["image"] = sources if len(sources) > 1 else sources[0]
        files: list[tuple[str, tuple[str, bytes]]] = []
    elif any(_is_url(source) for source in sources):
        raise ClientError("images are all local files, or all URLs: upload the files first, see Client.upload")
    else:
        files = [("image", read_file(source, f"image-{number}")) for number, source in enumerate(sources)]
    key = None if path == ESTIMATE_SUBMIT else idempotency_key or str(uuid.uuid4())
    return Call(path, body, files, wait_s, key)


def text_call(
    prompt: str,
    init_mesh: FileSource | None,
    parameters: Mapping[str, Any],
    *,
    wait_s: float,
    idempotency_key: str | None,
) -> Call:
    """A submit of a text; a local mesh is sent as a file."""
    body = {"prompt": prompt, **_given(parameters)}
    files: list[tuple[str, tuple[str, bytes]]] = []
    if init_mesh is not None and not _is_url(init_mesh):
        files = [("init_mesh", read_file(init_mesh, "mesh"))]
    elif init_mesh is not None:
        body["init_mesh"] = init_mesh
    return Call(SUBMIT_TEXT, body, files, wait_s, idempotency_key or str(uuid.uuid4()))


def _given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def upload_call(image: FileSource) -> Call:
    """An upload of one local image."""
    return Call(f"{API}/3d/uploads", files=[("image", read_file(image, "image-0"))])


def fetch_call(job_id: int, *, wait_s: float) -> Call:
    """A fetch that answers when the job ends, after `wait_s` at the latest."""
    return Call(f"{API}/3d/fetch/{job_id}", wait_s=wait_s)


def id_of(job: Job | int) -> int:
    """The id of a job."""
    return job if isinstance(job, int) else job.id


def _is_url(source: FileSource) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://", "data:"))


def read_file(source: FileSource, name: str) -> tuple[str, bytes]:
    """The name and the content of a local file; `name` is that of a file which is given as bytes."""
    if isinstance(source, bytes):
        return name, source
    path = Path(source)
    return path.name, path.read_bytes()


def read_body(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        ApiError: the service refused, or something else answered.
    """
    try:
        parsed: object = answer.json()
    except ValueError:
        parsed = None
    body = cast(dict[str, Any], parsed) if isinstance(parsed, dict) else {}
    if "status" not in body:
        kind = answer.headers.get("content-type", "nothing")
        raise ApiError(f"HTTP {answer.status_code} with {kind}: not this service's answer", status=answer.status_code)
    if answer.is_error or body["status"] == "error":
        raise ApiError(
            str(body.get("message", "")),
            status=answer.status_code,
            error_code=str(body.get("error_code", "")),
            retry_after_s=retry_after_s(answer),
            request_id=answer.headers.get("x-request-id", ""),
        )
    return body


def read_job(answer: httpx.Response) -> Job:
    """The job of an answer, in whatever state."""
    return validated(JOB, answer)


def validated(adapter: TypeAdapter[Any], answer: httpx.Response) -> Any:
    """The body of an answer as its type.

    Raises:
        ApiError: the service refused, or the body is another one.
    """
    body = read_body(answer)
    try:
        return adapter.validate_python(body)
    except ValidationError as error:
        raise ApiError(f"an answer of another version of the service: {error}", status=answer.status_code) from error


def ended(job: Job) -> SuccessBody | None:
    """The result of a job, None while it goes on.

    Raises:
        JobFailed: it failed or was cancelled.
    """
    if isinstance(job, FailedBody):
        raise JobFailed(job)
    return job if isinstance(job, SuccessBody) else None


def retry_after_s(answer: httpx.Response) -> float | None:
    """The seconds of `Retry-After`, None without them."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None


def pause_s(attempt: int, answer: httpx.Response | None) -> float | None:
    """How long to wait before the next attempt at a call; None when the last one was final.

    Args:
        attempt: attempts made so far.
        answer: of the last one, None if the connection failed.
    """
    if attempt > len(PAUSES_S) or (answer is not None and answer.status_code not in TRANSIENT):
        return None
    asked_s = None if answer is None else retry_after_s(answer)
    longest_s = PAUSES_S[attempt - 1] if asked_s is None else min(asked_s, MAX_PAUSE_S)
    return longest_s * random.uniform(0.8, 1.2)  # so that clients that failed together do not return together


def file_name(url: str) -> str:
    """The name of the file behind a URL, without any folder."""
    name = unquote(urlsplit(url).path).replace("\\", "/").rpartition("/")[2]
    return name if name.strip(".") else "file"
