"""Files on their way out and files that have arrived, and what a storage must be able to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal, Protocol

FileKind = Literal["model", "companion", "turntable", "extra", "thumbnail"]

CONTENT_TYPES = {
    ".glb": "model/gltf-binary",
    ".obj": "model/obj",
    ".mtl": "model/mtl",
    ".stl": "model/stl",
    ".ply": "application/octet-stream",  # PLY has no registered type
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}


def content_type_of(name: str) -> str:
    """The MIME type of a file by the ending of its name."""
    return CONTENT_TYPES.get(PurePath(name).suffix.lower(), "application/octet-stream")


@dataclass(frozen=True)
class OutputFile:
    """A finished file on the local disk, not yet delivered.

    Attributes:
        path: where it lies; its name is the name under which it is delivered.
        kind: `model` is the requested asset, `companion` belongs to it (an OBJ's .mtl and texture).
        content_type: MIME type.
    """

    path: Path
    kind: FileKind
    content_type: str


@dataclass(frozen=True)
class Artifact:
    """A delivered file whose URL answers."""

    name: str
    kind: FileKind
    url: str
    size_bytes: int
    content_type: str
    sha256: str


class Storage(Protocol):
    """A place that takes finished files and gives back URLs that answer."""

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        """Copy the files; when this returns, every URL answers 200. Storing the same files again changes nothing.

        Raises:
            DeliveryFailed: the place did not take them.
        """
        ...


class CustomerBucket(Storage, Protocol):
    """A storage of the customer's own, whose public address may not answer although the files are there."""

    def check_public_url(self, artifacts: Sequence[Artifact]) -> str | None:
        """Why the files' URLs do not answer, in one sentence; None when they do."""
        ...


@dataclass(frozen=True)
class StoredFile:
    """A file that a link opens: what is needed to answer it, ranges included.

    Attributes:
        etag: a strong validator in quotes; it changes whenever the file is written anew.
        modified_at: seconds since 1970.
    """

    path: Path
    size_bytes: int
    etag: str
    content_type: str
    modified_at: float


class LinkedFiles(Protocol):
    """Temporary outputs as the web process knows them: by their links."""

    def predict_urls(self, names: Iterable[str], *, file_prefix: str, created_at: float) -> list[str]:
        """The links under which files will be found; nothing needs to be there yet.

        Args:
            created_at: when the call was submitted, seconds since 1970.
        """
        ...

    def open_file(self, token: str, name: str) -> StoredFile:
        """The file that a link leads to.

        Raises:
            NotFound: the token is not ours, was altered or has expired, or there is no such file (yet, or any more).
        """
        ...

    def delete(self, file_prefix: str) -> bool:
        """Remove the files of one call; returns whether there were any."""
        ...


def output_names(
    output_format: str,
    *,
    file_prefix: str,
    render: bool = False,
    is_textured: bool = True,
    extra_endings: Sequence[str] = (),
) -> list[tuple[str, FileKind]]:
    """The files of a call in the order of the answer: known before they are made, so that links can be predicted.

    Args:
        output_format: ending of the model.
        extra_endings: what the engine adds.
    """
    names: list[tuple[str, FileKind]] = [(f"{file_prefix}.{output_format}", "model")]
    if output_format == "obj":
        names.append((f"{file_prefix}.mtl", "companion"))
        if is_textured:
            names.append((f"{file_prefix}_texture.png", "companion"))
    if render:
        names.append((f"{file_prefix}.mp4", "turntable"))
    extra: FileKind = "extra"
    return [
        *names,
        *((f"{file_prefix}.{ending}", extra) for ending in extra_endings),
        (f"{file_prefix}_thumbnail.png", "thumbnail"),
    ]
