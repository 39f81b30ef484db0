"""The file formats of an asset: the one registry that the contract, the storage, the commands and the export read.

A format is added here, and its encoder in `pipeline.formats.encode`. Knows nothing of meshes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal

OutputFormat = Literal["glb", "obj", "stl", "ply", "usdz", "3mf"]
"""The file formats of an asset, in the order of the documentation."""
TextureFormat = Literal["png", "jpeg", "webp"]
"""The formats of the images of textures."""
Compression = Literal["none", "quantize", "meshopt", "draco"]
"""How the geometry of a GLB is stored: as it is, in fewer bits, and these coded by one of glTF's two codecs."""

ZIP_MAGIC = b"PK\x03\x04"


@cache
def is_installed(package: str) -> bool:
    """Whether a package is installed here; looks through the folders of packages once, and imports nothing."""
    return find_spec(package) is not None


@dataclass(frozen=True)
class TextureSpec:
    """What the format of a texture's image is outside its encoder: MIME type, and the end of a file's name."""

    media_type: str
    ending: str


TEXTURE_FORMATS: dict[TextureFormat, TextureSpec] = {
    "png": TextureSpec("image/png", ".png"),
    "jpeg": TextureSpec("image/jpeg", ".jpg"),
    "webp": TextureSpec("image/webp", ".webp"),
}


@dataclass(frozen=True)
class FormatSpec:
    """What a format is outside its encoder.

    Attributes:
        name: its word in requests, and the extension of its files.
        media_type: MIME type.
        texture: where the colours are: embedded in the file, in files beside it, at the vertices, or nowhere.
        material_file: the end of the name of a material's file beside the model; "" without one.
        texture_formats: those that the images of its textures can have; empty where it has no images.
        needs_body: whether its readers, such as slicers, need a surface that encloses a body.
        magic: the bytes that every file begins with; b"" where there are none.
        up_axis: the axis that points up in its files where the request names none.
        units_per_metre: what a metre is in its files.
        default_size_m: longest side of the asset in metres where the request names none.
        package: the Python package that its encoder needs beside those of every export; "" without one.
        extra: the optional dependency group that has this package.
    """

    name: OutputFormat
    media_type: str
    texture: Literal["embedded", "companion", "vertices", "none"]
    material_file: str = ""
    texture_formats: tuple[TextureFormat, ...] = ()
    needs_body: bool = False
    magic: bytes = b""
    up_axis: Literal["y", "z"] = "y"
    units_per_metre: float = 1.0
    default_size_m: float = 1.0
    package: str = ""
    extra: str = "local"

    @property
    def is_writable(self) -> bool:
        """Whether the package of its encoder is installed here."""
        return not self.package or is_installed(self.package)

    def texture_format(self, asked: TextureFormat) -> TextureFormat:
        """The format of its textures' images where a request asks for one: JPEG instead of WebP, both are lossy."""
        return asked if asked in self.texture_formats else "jpeg"


FORMATS: dict[str, FormatSpec] = {
    spec.name: spec
    for spec in (
        FormatSpec("glb", "model/gltf-binary", "embedded", texture_formats=("png", "jpeg", "webp"), magic=b"glTF"),
        FormatSpec(
            "obj",
            "model/obj",
            "companion",
            material_file=".mtl",
            texture_formats=("png", "jpeg"),
        ),
        # STL and PLY state no unit and no axis. Slicers read STL in millimetres; importers of both expect z up. PLY has
        # no registered media type.
        FormatSpec(
            "stl", "model/stl", "none", needs_body=True, up_axis="z", units_per_metre=1000.0, default_size_m=0.1
        ),
        FormatSpec("ply", "application/octet-stream", "vertices", magic=b"ply", up_axis="z"),
        FormatSpec(
            "usdz",
            "model/vnd.usdz+zip",
            "embedded",
            texture_formats=("png", "jpeg"),
            package="pxr",
            extra="usd",
            magic=ZIP_MAGIC,
        ),
        FormatSpec(
            "3mf",
            "model/3mf",
            "vertices",
            needs_body=True,
            up_axis="z",
            units_per_metre=1000.0,
            default_size_m=0.1,
            package="lib3mf",
            magic=ZIP_MAGIC,
        ),
    )
}
"""All formats by name."""
OUTPUT_FORMATS = tuple(FORMATS)


def extensions_in_words(last: str = "or") -> str:
    """The extensions for a sentence: ".glb, .obj or .stl"."""
    *first, final = (f".{name}" for name in FORMATS)
    return f"{', '.join(first)} {last} {final}"
