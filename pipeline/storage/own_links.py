"""Recognises the links of this deployment's temporary files, so that they are read without a request to itself.

The link's signature is the permission, as it is for everybody who opens it. Knows nothing of HTTP.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline.errors import InvalidRequest, NotFound
from pipeline.storage.base import StoredFile

FILES_PATH = "/files/"
_PORTS = {"http": 80, "https": 443}


class OpensLinks(Protocol):
    """Temporary files, by their links."""

    def open_file(self, token: str, name: str) -> StoredFile:
        """The file behind a link; raises `NotFound`."""
        ...


class OwnLinks:
    """Opens images that a request names by a link of this deployment.

    Args:
        base_url: what its links begin with.
    """

    def __init__(self, files: OpensLinks, *, base_url: str) -> None:
        self._files = files
        self._origin = _origin(urlsplit(base_url))
        self._path = urlsplit(base_url).path.rstrip("/") + FILES_PATH

    def open(self, url: str) -> StoredFile | None:
        """The file behind a link; None for an address that is no link of this deployment. Blocks.

        Raises:
            InvalidRequest: the link has expired, was altered, or its file was deleted.
        """
        try:
            parts = urlsplit(url)
            is_own = _origin(parts) == self._origin and parts.path.startswith(self._path)
        except ValueError:
            return None
        if not is_own:
            return None
        token, _, name = unquote(parts.path.removeprefix(self._path)).partition("/")
        try:
            return self._files.open_file(token, name)
        except NotFound as error:
            raise InvalidRequest(f"image is a link of this service, but {error}") from error

    def read(self, url: str, *, most_bytes: int) -> bytes | None:
        """The first bytes of the file behind a link, at most `most_bytes`; otherwise as `open`."""
        found = self.open(url)
        if found is None:
            return None
        try:
            with found.path.open("rb") as file:
                return file.read(most_bytes)
        except FileNotFoundError as error:
            raise InvalidRequest("image is a link of this service, but its file was deleted") from error


def _origin(parts: SplitResult) -> tuple[str, str, int | None]:
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").rstrip("."), parts.port or _PORTS.get(scheme)
