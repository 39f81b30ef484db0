"""Temporary outputs behind signed links, with `Range` and `ETag`."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import FileResponse, Response

from pipeline.api.context import Context, context_of
from pipeline.api.problems import (
    BAD_REQUEST,
    NOT_FOUND,
    NOT_MODIFIED,
    NOT_SATISFIABLE,
    OK,
    PARTIAL_CONTENT,
    documented,
)

router = APIRouter(tags=["files"])

RESPONSES: dict[int | str, dict[str, Any]] = {
    **documented(NOT_FOUND),
    OK: {"content": {"application/octet-stream": {}}, "description": "The file."},
    PARTIAL_CONTENT: {"description": "The part that `Range` asks for."},
    NOT_MODIFIED: {"description": "The caller's copy is current."},
    BAD_REQUEST: {"description": "`Range` is malformed."},
    NOT_SATISFIABLE: {"description": "`Range` lies beyond the file's end."},
}


@router.api_route("/files/{token}/{name}", methods=["GET"], responses=RESPONSES, response_class=Response)
@router.api_route("/files/{token}/{name}", methods=["HEAD"], include_in_schema=False)
async def read_file(token: str, name: str, request: Request, context: Context = Depends(context_of)) -> Response:
    """A temporary output. The link itself grants access, and it expires."""
    stored = await context.in_thread(context.service.temporary.open_file, token, name)
    headers = {
        "etag": stored.etag,
        "last-modified": formatdate(stored.modified_at, usegmt=True),
        "cache-control": "private, max-age=3600",
        "access-control-allow-origin": "*",
        # Without a file name: it is the last part of the URL, and a page may save the file under another one.
        "content-disposition": "inline",
    }
    seen = request.headers.get("if-none-match", "")
    if stored.etag in [tag.strip().removeprefix("W/") for tag in seen.split(",")]:
        return Response(status_code=NOT_MODIFIED, headers=headers)
    return FileResponse(stored.path, media_type=stored.content_type, headers=headers)
