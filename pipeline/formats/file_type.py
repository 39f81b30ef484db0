"""The format of a 3D file by its content. Reads no mesh."""

from __future__ import annotations

import io
import zipfile

from schemas.formats import FORMATS, ZIP_MAGIC

STL_HEADER_BYTES, STL_FACE_BYTES = 84, 50


def file_type_of(content: bytes) -> str:
    """The format of a 3D file by how it begins; obj, which begins with anything, where it is none of the others."""
    if content.startswith(ZIP_MAGIC):
        return _zip_file_type(content)
    for name, spec in FORMATS.items():
        if spec.magic and content.startswith(spec.magic):
            return name
    faces = int.from_bytes(content[80:STL_HEADER_BYTES], "little")
    is_binary_stl = len(content) == STL_HEADER_BYTES + STL_FACE_BYTES * faces
    return "stl" if is_binary_stl or content[:5] == b"solid" else "obj"


def _zip_file_type(content: bytes) -> str:
    """Which of the formats that are zip archives a file has: 3mf or usdz."""
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        return "3mf"
    return "usdz" if any(name.endswith((".usd", ".usda", ".usdc")) for name in names) else "3mf"
