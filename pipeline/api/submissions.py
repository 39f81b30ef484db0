"""A submit or an export, read and checked, as a job to record.

Everything that is refused before a job exists is refused here. Knows nothing of paths and of answers.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request

from pipeline.api.browser_tokens import BrowserToken
from pipeline.api.context import Context
from pipeline.api.form_fields import MESH_TOO_LARGE
from pipeline.api.requests import idempotency_key
from pipeline.engines.registry import check_views, check_work, choose_engine, defaults_of
from pipeline.errors import InvalidRequest
from pipeline.imaging.inline import MAX_TEXT_CHARS, check_inline
from pipeline.imaging.signatures import SIGNATURE_BYTES, require_accepted
from pipeline.jobs.api_keys import is_test_key
from pipeline.jobs.model import ApiKey, ExportSource, JobMeta, NewJob
from pipeline.moderation import check_prompts
from pipeline.net.egress import check_url
from pipeline.telemetry import current_traceparent
from schemas.contract import is_http_url
from schemas.formats import OutputFormat
from schemas.request import MIN_RETENTION_S, GenerationRequest, ImageTo3DRequest, ParsedRequest, parse_request
from schemas.text import TextTo3DRequest, parse_text_request

PIECE_CHARS = 1 << 20


@dataclass(frozen=True)
class Submission:
    """A submit that was read and validated.

    Attributes:
        urls: every address that the job would connect to.
        is_test: of a test key: it is answered with a fixed asset, and nothing runs.
        token: the browser token that it was sent with, None with a key.
        has_images: the addresses in this deployment's own storage are those of images.
    """

    job: NewJob
    urls: tuple[str, ...]
    is_test: bool
    token: BrowserToken | None = None
    has_images: bool = True


def read_submission(
    request: Request,
    context: Context,
    body: dict[str, Any],
    default_output_format: OutputFormat,
    *,
    is_text: bool = False,
) -> Submission:
    """Check everything about a submit that needs no network but a moderation service. Blocks where images are large.

    Args:
        is_text: the submit is one of a text.

    Raises:
        Unauthorized: the key is missing or unknown.
        InvalidRequest: a field is missing, malformed or out of bounds.
        UnreadableImage: an inline image cannot be decoded.
    """
    caller = context.identify(request, body)
    if is_text:
        parsed = parse_text_request(body, default_output_format=default_output_format)
    else:
        defaults = defaults_of(body.get("engine") or context.settings.engine)
        parsed = parse_request(body, default_output_format=default_output_format, defaults=defaults)
    if caller.token is not None and parsed.request.webhook is not None:
        raise InvalidRequest("webhook cannot be set with a browser token; the result is fetched, or followed by events")
    parsed = _with_engine(parsed, context)
    check_formats(parsed.request, context)
    check_retention(parsed.request, context)
    if isinstance(parsed.request, TextTo3DRequest):
        check_text(parsed.request, context)
    else:
        for image in parsed.request.sources:
            if not is_http_url(image):
                check_inline(image)
    engine = parsed.request.engine or context.settings.engine
    submission = submission_of(
        request, parsed, key=caller.key, sent=body, path_decides=default_output_format, engine=engine
    )
    return replace(submission, token=caller.token)


def submission_of(
    request: Request,
    parsed: ParsedRequest,
    *,
    key: ApiKey,
    sent: dict[str, Any],
    path_decides: str,
    engine: str = "",
    export_of: ExportSource | None = None,
) -> Submission:
    """A validated request as a job to record.

    Args:
        sent: the body as it was sent.
        path_decides: what the path adds to the body: with another one, a repeated idempotency key is refused.
        engine: as for `NewJob`.
        export_of: the job whose files are made anew, None for a job that generates.

    Raises:
        InvalidRequest: the idempotency key is too long.
    """
    keyless = {name: value for name, value in sent.items() if name != "key"}
    digest = _digest_of([path_decides, keyless])  # first: it holds the images as JSON, once
    parameters = parsed.request.effective_parameters()
    job = NewJob(
        api_key_id=key.id,
        file_prefix=str(uuid.uuid4()),
        request=_as_json(parsed.request),
        request_sha256=digest,
        meta=JobMeta(parameters, tuple(parsed.warnings), current_traceparent(), export_of),
        track_id=parsed.request.track_id,
        webhook_url=parsed.request.webhook,
        idempotency_key=idempotency_key(request),
        engine=engine,
    )
    webhook = () if parsed.request.webhook is None else (parsed.request.webhook,)
    urls = (*filter(is_http_url, parsed.request.sources), *webhook)
    return Submission(job, urls, is_test_key(key), has_images=isinstance(parsed.request, ImageTo3DRequest))


def _as_json(request: GenerationRequest) -> bytes:
    """A request as JSON. Its images are encoded in pieces into the result: pydantic holds them twice."""
    if not isinstance(request, ImageTo3DRequest):
        return request.model_dump_json().encode()
    result = io.BytesIO()
    result.write(request.model_dump_json(exclude={"image"}).encode()[:-1] + b',"image":[')
    for number, image in enumerate(request.image):
        result.write(b',"' if number else b'"')
        for start in range(0, len(image), PIECE_CHARS):
            result.write(json.dumps(image[start : start + PIECE_CHARS])[1:-1].encode())
        result.write(b'"')
    result.write(b"]}")
    return result.getvalue()


def _digest_of(value: Any) -> str:
    """The SHA-256 of a value as JSON, which is not in memory as a whole: it may hold images."""
    digest = hashlib.sha256()
    for text in json.JSONEncoder(sort_keys=True).iterencode(value):
        for start in range(0, len(text), PIECE_CHARS):
            digest.update(text[start : start + PIECE_CHARS].encode())
    return digest.hexdigest()


def _with_engine(parsed: ParsedRequest, context: Context) -> ParsedRequest:
    """The request with the engine that it is for, where that is not the deployment's default.

    Raises:
        InvalidRequest: the engine is not offered, takes no such input, not so many views, or would take too long.
    """
    request, offered = parsed.request, context.settings.offered_engines
    spec = choose_engine(request.engine, request.kind, offered=offered)
    if isinstance(request, ImageTo3DRequest):
        check_views(spec, len(request.image), offered=offered)
    views = len(request.image) if isinstance(request, ImageTo3DRequest) else 1
    check_work(spec, request, views=views, mode=context.settings.trellis_multi_image_mode)
    if spec.name == (request.engine or context.settings.engine):
        return parsed
    return replace(parsed, request=request.model_copy(update={"engine": spec.name}))


def check_text(request: TextTo3DRequest, context: Context) -> None:
    """Refuse a text that the deployment's rules refuse, and a mesh where it takes none.

    Raises:
        InvalidRequest: the deployment takes no mesh, or the prompt is refused.
        ServiceBusy: the moderation service does not answer.
    """
    if request.init_mesh is not None:
        if not context.settings.init_mesh:
            raise InvalidRequest("init_mesh is not offered by this deployment; leave it out")
        if not is_http_url(request.init_mesh) and len(request.init_mesh) > MAX_TEXT_CHARS:
            raise InvalidRequest(MESH_TOO_LARGE)
    check_prompts((request.prompt, request.negative_prompt), context.settings)


def check_formats(request: GenerationRequest, context: Context) -> None:
    """Refuse file formats that this deployment does not write.

    Raises:
        InvalidRequest: one is such.
    """
    offered = context.settings.offered_formats
    for name in request.formats:
        if name not in offered:
            raise InvalidRequest(f"this deployment cannot write {name}; it offers {', '.join(offered)}")


def check_retention(request: GenerationRequest, context: Context) -> None:
    """Refuse a longer lifetime of temporary outputs than the deployment allows.

    Raises:
        InvalidRequest: it is longer.
    """
    longest_s = context.settings.longest_retention_s
    if request.retention_s is not None and request.retention_s > longest_s:
        raise InvalidRequest(
            f"retention_s must be between {MIN_RETENTION_S} and {longest_s}, got {request.retention_s}"
        )


async def check_urls(submission: Submission, context: Context) -> None:
    """Refuse URLs that this deployment does not connect to, before anything is recorded.

    Raises:
        BlockedAddress: a URL leads to such an address.
        InvalidRequest: a link of this deployment opens no file.
        UnreadableImage: it opens a file that is no image.
    """

    def check() -> None:
        for url in submission.urls:
            beginning = context.service.own_links.read(url, most_bytes=SIGNATURE_BYTES)
            if beginning is None:
                check_url(url, context.settings)
            elif submission.has_images:
                require_accepted(beginning)

    if submission.urls:
        await context.resolve(check)
