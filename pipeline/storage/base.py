"""Files to deliver and delivered files, and the protocols of storages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal, Protocol

from schemas.formats import FORMATS, TEXTURE_FORMATS, TextureFormat
from schemas.names import safe_name

FileKind = Literal["model", "companion", "lod", "turntable", "extra", "thumbnail"]
"""What the export says of a file; stored with the job."""
AnswerList = Literal["output", "extra_assets"]
"""The lists of URLs in a success body."""


@dataclass(frozen=True)
class FileRole:
    """A file as answers name it.

    Attributes:
        kind: the `kind` of an entry of `files`.
        listed_in: the list of URLs that the file is in too.
        meaning: one phrase for the documentation.
    """

    kind: str
    listed_in: AnswerList
    meaning: str


ROLES: tuple[tuple[FileKind, str, FileRole], ...] = (
    ("model", "", FileRole("model", "output", "the asset in a requested format")),
    ("lod", "", FileRole("lod", "output", "the asset in less detail, in a requested format")),
    ("companion", ".mtl", FileRole("material", "output", "the material of an OBJ")),
    ("companion", "", FileRole("texture", "output", "an image that the material names")),
    ("turntable", "", FileRole("turntable", "output", "a video of one turn (mp4)")),
    ("extra", "splat.ply", FileRole("splat", "extra_assets", "the Gaussians of the engine")),
    ("extra", "cutout.png", FileRole("cutout", "extra_assets", "the image without its background")),
    ("extra", "", FileRole("extra", "extra_assets", "any other file")),
    ("thumbnail", "", FileRole("thumbnail", "extra_assets", "a rendered image of the asset (PNG)")),
)
"""What a file is for the caller, by its `FileKind` and the end of its name; the first row that fits decides."""


def role_of(kind: FileKind, name: str) -> FileRole:
    """The role of a file."""
    return next(role for known, ending, role in ROLES if known == kind and name.endswith(ending))


CONTENT_TYPES = {
    **{f".{name}": spec.media_type for name, spec in FORMATS.items()},
    ".mtl": "model/mtl",
    ".mp4": "video/mp4",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".avif": "image/avif",
    ".heic": "image/heic",
}


def content_type_of(name: str) -> str:
    """The MIME type of a file by the extension of its name."""
    return CONTENT_TYPES.get(PurePath(name).suffix.lower(), "application/octet-stream")


@dataclass(frozen=True)
class OutputFile:
    """A finished file on the local disk, not yet delivered.

    Attributes:
        path: its location; the file is delivered under the same name.
        kind: `model` is the requested file, `lod` the same in less detail; `companion` belongs to one of them (an OBJ's
            .mtl and texture).
        content_type: MIME type.
        faces: how many faces a model or a level of detail has; None for other files.
    """

    path: Path
    kind: FileKind
    content_type: str
    faces: int | None = None


@dataclass(frozen=True)
class Artifact:
    """A delivered file, available at its URL.

    Attributes:
        faces: as for `OutputFile`.
        expires_at: when the URL ends, seconds since 1970; None where the service does not end it, and in records of
            version 0.1.0.
    """

    name: str
    kind: FileKind
    url: str
    size_bytes: int
    content_type: str
    sha256: str
    faces: int | None = None
    expires_at: float | None = None

    @staticmethod
    def of(file: OutputFile, *, url: str, size_bytes: int, sha256: str, expires_at: float | None = None) -> Artifact:
        """The artifact that a file became."""
        return Artifact(
            name=file.path.name,
            kind=file.kind,
            url=url,
            size_bytes=size_bytes,
            content_type=file.content_type,
            sha256=sha256,
            faces=file.faces,
            expires_at=expires_at,
        )


class Storage(Protocol):
    """Stores finished files and returns their URLs."""

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        """Copy the files; when this returns, every URL answers 200. Storing the same files again changes nothing.

        Raises:
            DeliveryFailed: the storage did not accept them.
        """
        ...


class CustomerBucket(Storage, Protocol):
    """A customer's own storage, whose public URL may not answer although the files are stored."""

    def check_public_url(self, artifacts: Sequence[Artifact]) -> str | None:
        """One sentence that says why the files' URLs do not answer; None if they do."""
        ...


@dataclass(frozen=True)
class StoredFile:
    """A file behind a link, with what an HTTP answer needs, ranges included.

    Attributes:
        etag: a strong validator in quotes; it changes whenever the file is written again.
        modified_at: seconds since 1970.
    """

    path: Path
    size_bytes: int
    etag: str
    content_type: str
    modified_at: float


class LinkedFiles(Storage, Protocol):
    """Temporary outputs and uploads as the web process uses them: by their links."""

    def predict_urls(
        self, names: Iterable[str], *, file_prefix: str, created_at: float, lifetime_s: float | None = None
    ) -> list[str]:
        """The links of files that may not exist yet.

        Args:
            created_at: when the job was submitted, seconds since 1970.
            lifetime_s: how long the job's files are kept after they are stored; None is the deployment's lifetime.
        """
        ...

    def open_file(self, token: str, name: str) -> StoredFile:
        """The file behind a link.

        Raises:
            NotFound: the token is not signed here, was altered or has expired, or the file does not exist.
        """
        ...

    def delete(self, file_prefix: str) -> bool:
        """Delete the files of one job; returns whether there were any."""
        ...


def companion_names(
    output_format: str,
    *,
    file_prefix: str,
    is_textured: bool = True,
    has_normal_map: bool = False,
    texture_format: TextureFormat = "png",
) -> list[str]:
    """The files that a model refers to: its material, then its images. Their names are one word in every format."""
    spec = FORMATS[output_format]
    names = [f"{safe_name(file_prefix)}{spec.material_file}"] if spec.material_file else []
    channels = [*(["texture"] * is_textured), *(["normal"] * has_normal_map)] if spec.texture == "companion" else []
    image_format = spec.texture_format(texture_format)
    return [*names, *(map_name(file_prefix, channel, image_format) for channel in channels)]


def map_name(file_prefix: str, channel: str, texture_format: TextureFormat) -> str:
    """The file of an image of a material beside the model: `robot_texture.png`, `robot_roughness.jpg`."""
    return f"{safe_name(file_prefix)}_{channel}{TEXTURE_FORMATS[texture_format].ending}"


def cutout_names(file_prefix: str, *, views: int) -> list[str]:
    """The names of the cut-outs of a job's views, each of which is delivered if its background was removed."""
    return [f"{file_prefix}{f'_{number}' if views > 1 else ''}_cutout.png" for number in range(1, views + 1)]


def level_stem(file_prefix: str, number: int) -> str:
    """What the names of a level of detail begin with; number 0 is the asset itself."""
    return f"{file_prefix}_lod{number}" if number else file_prefix


def output_names(
    output_formats: Sequence[str],
    *,
    file_prefix: str,
    lods: int = 0,
    render: bool = False,
    is_textured: bool = True,
    has_normal_map: bool = False,
    texture_format: TextureFormat = "png",
    extra_endings: Sequence[str] = (),
) -> list[tuple[str, FileKind]]:
    """The files of a job in the order of the answer, known before they exist, so that links can be predicted.

    Only the images of alpha, metallic and roughness beside an OBJ are not among them: the surface decides on them.

    Args:
        output_formats: extensions of the models.
        lods: how many further levels of detail there are.
        texture_format: what the request asks for.
        extra_endings: extensions of the engine's additional files.
    """
    names: list[tuple[str, FileKind]] = []
    for number in range(lods + 1):
        stem = level_stem(file_prefix, number)
        for output_format in output_formats:
            names.append((f"{stem}.{output_format}", "lod" if number else "model"))
            companions = companion_names(
                output_format,
                file_prefix=stem,
                is_textured=is_textured,
                has_normal_map=has_normal_map,
                texture_format=texture_format,
            )
            names.extend((name, "companion") for name in companions)
    if render:
        names.append((f"{file_prefix}.mp4", "turntable"))
    extra: FileKind = "extra"
    return [
        *names,
        *((f"{file_prefix}.{ending}", extra) for ending in extra_endings),
        (f"{file_prefix}_thumbnail.png", "thumbnail"),
    ]
