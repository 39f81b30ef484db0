"""Images that a caller stores before the submit that uses them: in temporary storage, behind a signed link."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from pipeline.answers import iso_time
from pipeline.api.body_schema import body_schema
from pipeline.api.context import Context, context_of
from pipeline.api.form_fields import FilePart, images_of
from pipeline.api.problems import BAD_REQUEST, TOO_LARGE, TOO_MANY, UNAUTHORIZED, documented
from pipeline.api.routes import BALL, ENTERPRISE, V6
from pipeline.errors import DeliveryFailed, InvalidRequest, StoreUnavailable
from pipeline.imaging.inline import read_inline
from pipeline.imaging.signatures import require_accepted
from pipeline.storage.base import Artifact, OutputFile, content_type_of
from schemas.contract import given_fields, is_http_url, json_type_name
from schemas.request import MAX_VIEWS
from schemas.responses import UploadedBody

IMAGE_TEXT = {"type": "string", "description": "an image as base64 or a `data:` URI"}
UPLOAD_BODY = body_schema(
    {
        "title": "Upload",
        "type": "object",
        "properties": {"key": {"type": "string", "description": "API key"}, "image": IMAGE_TEXT},
        "required": ["image"],
    },
    example={"key": "…", "image": BALL},
    takes_raw=True,
)
BASE64_BODY = body_schema(
    {
        "title": "Base64ToUrl",
        "type": "object",
        "properties": {
            "key": {"type": "string", "description": "API key"},
            "init_obj": IMAGE_TEXT,
            "image": {**IMAGE_TEXT, "description": "the same as `init_obj`"},
        },
    },
    example={"key": "…", "init_obj": BALL},
)
REFUSALS = documented(BAD_REQUEST, UNAUTHORIZED, TOO_LARGE, TOO_MANY)

router = APIRouter(tags=["jobs"])


@router.post(f"{ENTERPRISE}/uploads", response_model=UploadedBody, responses=REFUSALS, openapi_extra=UPLOAD_BODY)
async def upload(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Store an image, or several, and get URLs to pass as `image`; the URL is the permission to read it."""
    key, body = await context.caller_with_files(request)
    return await _store(body, key.id, context)


async def base64_to_url(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Store an image that is sent as base64, and get a URL to pass as `image`."""
    key, body = await context.caller_with_files(request, takes_raw=False)
    given = given_fields(body)
    return await _store({"image": given.get("init_obj", given.get("image"))}, key.id, context)


for _prefix in (ENTERPRISE, V6):
    router.add_api_route(
        f"{_prefix}/base64_to_url",
        base64_to_url,
        methods=["POST"],
        name="base64_to_url_v6" if _prefix == V6 else "base64_to_url",
        response_model=UploadedBody,
        responses=REFUSALS,
        openapi_extra=BASE64_BODY,
    )


async def _store(body: dict[str, Any], api_key_id: str, context: Context) -> JSONResponse:
    def store() -> UploadedBody:
        contents = [_read(image) for image in images_of(body) if image not in (None, "")]
        if not contents:
            raise InvalidRequest("image is required")
        if len(contents) > MAX_VIEWS:
            raise InvalidRequest(f"image must be at most {MAX_VIEWS} images, got {len(contents)}")
        extensions = [require_accepted(content).extension for content in contents]
        context.uploads.take(api_key_id, sum(map(len, contents)))
        stored = _store_images(contents, extensions, context)
        return UploadedBody(
            output=[artifact.url for artifact in stored],
            url=stored[0].url,
            expires_at=iso_time(min(artifact.expires_at or 0.0 for artifact in stored)),
        )

    return JSONResponse((await context.in_thread(store)).to_json())


def _read(image: object) -> bytes:
    if isinstance(image, FilePart):
        return image.content()
    if not isinstance(image, str):
        raise InvalidRequest(f"image must be a file, a data URI or base64, got {json_type_name(image)}")
    if is_http_url(image):
        raise InvalidRequest("image is a URL already; pass it as image to a submit")
    return read_inline(image)


def _store_images(contents: list[bytes], extensions: list[str], context: Context) -> list[Artifact]:
    file_prefix = f"upload-{uuid.uuid4()}"
    with tempfile.TemporaryDirectory(prefix="image-to-3d-") as staging:
        files: list[OutputFile] = []
        for number, (content, extension) in enumerate(zip(contents, extensions, strict=True)):
            path = Path(staging) / f"image{number + 1}.{extension}"
            path.write_bytes(content)
            files.append(OutputFile(path, "extra", content_type_of(path.name)))
        try:
            return context.service.temporary.store(files, file_prefix=file_prefix)
        except DeliveryFailed as error:
            raise StoreUnavailable(f"The image cannot be stored: {error}.") from error
