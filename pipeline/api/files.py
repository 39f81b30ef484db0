"""Temporary outputs behind signed links, with ranges and validators."""

from __future__ import annotations

from email.utils import formatdate

from fastapi import APIRouter, Depends, Request
from starlette.responses import FileResponse, Response

from pipeline.api.context import Context, context_of
from pipeline.api.problems import NOT_FOUND, NOT_SATISFIABLE, documented

router = APIRouter(tags=["files"])

ANSWERS = {
    **documented(NOT_FOUND),
    200: {"content": {"application/octet-stream": {}}, "description": "The file."},
    206: {"description": "The part that `Range` asks for."},
    304: {"description": "It is what the caller has already."},
    400: {"description": "`Range` cannot be read."},
    NOT_SATISFIABLE: {"description": "`Range` lies beyond the file's end."},
}


@router.api_route("/files/{token}/{name}", methods=["GET"], responses=ANSWERS, response_class=Response)
@router.api_route("/files/{token}/{name}", methods=["HEAD"], include_in_schema=False)
async def read_file(token: str, name: str, request: Request, context: Context = Depends(context_of)) -> Response:
    """A temporary output; the link is the permission, and it expires."""
    stored = await context.do(context.service.temporary.open_file, token, name)
    headers = {
        "etag": stored.etag,
        "last-modified": formatdate(stored.modified_at, usegmt=True),
        "cache-control": "private, max-age=3600",
        "access-control-allow-origin": "*",
        "content-disposition": f'inline; filename="{name}"',
        "x-content-type-options": "nosniff",
    }
    seen = request.headers.get("if-none-match", "")
    if stored.etag in [tag.strip().removeprefix("W/") for tag in seen.split(",")]:
        return Response(status_code=304, headers=headers)
    return FileResponse(stored.path, media_type=stored.content_type, headers=headers)
