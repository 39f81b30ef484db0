"""The static files of our pages, each page's in a folder beside this module. Knows nothing of what the pages do."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePath

from fastapi import Request
from fastapi.responses import Response

from pipeline.api.problems import NOT_MODIFIED
from pipeline.errors import NotFound

PACKAGE = "pipeline.api"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}
"""The files that are served, by their extension."""


@dataclass(frozen=True)
class Asset:
    """A file's content, plain and compressed."""

    content: bytes
    gzipped: bytes
    etag: str


@cache
def read_asset(folder: str, name: str) -> Asset:
    """A file that exists. Blocks; the first read also compresses it."""
    content = files(PACKAGE).joinpath(folder, name).read_bytes()
    return Asset(content, gzip.compress(content, mtime=0), f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def answer_asset(folder: str, name: str, request: Request) -> Response:
    """The response with a file; browsers keep it and revalidate it by its ETag. Blocks.

    Raises:
        NotFound: the folder has no such file, or none that is served.
    """
    media_type = MEDIA_TYPES.get(PurePath(name).suffix)
    if media_type is None or name not in _names(folder):
        raise NotFound(f"There is nothing at {request.url.path[:200]}.")
    asset = read_asset(folder, name)
    headers = {"cache-control": "no-cache", "etag": asset.etag, "vary": "accept-encoding"}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=NOT_MODIFIED, headers=headers)
    content = asset.content
    if "gzip" in request.headers.get("accept-encoding", "") and len(asset.gzipped) < len(content):
        content, headers["content-encoding"] = asset.gzipped, "gzip"
    return Response(content, media_type=media_type, headers={**headers, "x-content-type-options": "nosniff"})


@cache
def _names(folder: str) -> frozenset[str]:
    return frozenset(entry.name for entry in files(PACKAGE).joinpath(folder).iterdir())
