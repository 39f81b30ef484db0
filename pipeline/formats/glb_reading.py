"""Undoes in a GLB what its readers may not know: the codec of meshopt, and normalized integers.

Draco, WebP and positions of whole numbers are left as they are: trimesh reads them.

Source: Khronos, glTF 2.0 Specification, sections 3.6 and 4; EXT_meshopt_compression.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from pipeline.formats.glb_buffers import BINARY_CHUNK, COMPONENT_TYPES, JSON_CHUNK, MESHOPT, container
from pipeline.formats.meshopt_decode import decode_view

COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
UNREAD_EXTENSIONS = {"KHR_meshopt_compression", "KHR_texture_basisu", "MESHOPT_compression"}
"""Other ways to store arrays and images, without which a file shows nothing, or no colours."""


class UnreadExtension(ValueError):
    """A GLB stores its arrays or images in a way that is not read; the message names it."""


def plain_glb(content: bytes) -> bytes:
    """The same GLB with plain arrays.

    Raises:
        UnreadExtension: it needs one.
        ValueError: it is no GLB, or is damaged.
    """
    document, binary = split(content)
    required = set(document.get("extensionsRequired", ()))
    if unread := sorted(required & UNREAD_EXTENSIONS):
        raise UnreadExtension(f"needs {', '.join(unread)}, which is not read")
    accessors = document.get("accessors", [])
    has_normalized = any(each.get("normalized") and "bufferView" in each for each in accessors)
    if MESHOPT not in required and not has_normalized:
        return content
    chunk = bytearray()
    for view in document.get("bufferViews", []):
        part = _view_content(view, binary)
        view |= _append(chunk, part)
        view.pop("extensions", None)
    for accessor in accessors:
        if accessor.get("normalized") and "bufferView" in accessor:
            _make_float(accessor, document["bufferViews"], chunk)
    document["buffers"] = [{"byteLength": len(chunk)}]
    for key in ("extensionsUsed", "extensionsRequired"):
        if key in document:
            document[key] = [each for each in document[key] if each != MESHOPT]
    return container(document, bytes(chunk))


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary chunk of a GLB.

    Raises:
        ValueError: it is no GLB.
    """
    chunks: dict[int, bytes] = {}
    at = 12
    while at + 8 <= len(content):
        length, kind = struct.unpack_from("<II", content, at)
        chunks.setdefault(kind, content[at + 8 : at + 8 + length])
        at += 8 + length
    if JSON_CHUNK not in chunks:
        raise ValueError("has no JSON chunk")
    return json.loads(chunks[JSON_CHUNK]), chunks.get(BINARY_CHUNK, b"")


def _view_content(view: dict[str, Any], binary: bytes) -> bytes:
    """The decoded bytes of a buffer view."""
    code = view.get("extensions", {}).get(MESHOPT)
    place = view if code is None else code
    if place.get("buffer", 0) != 0:
        raise ValueError("refers to another file")
    start = place.get("byteOffset", 0)
    part = binary[start : start + place["byteLength"]]
    if code is None:
        return part
    return decode_view(
        part,
        mode=code["mode"],
        count=code["count"],
        stride=code["byteStride"],
        filter_name=code.get("filter", "NONE"),
    )


def _append(chunk: bytearray, part: bytes) -> dict[str, int]:
    chunk += b"\0" * (-len(chunk) % 4)
    place = {"buffer": 0, "byteOffset": len(chunk), "byteLength": len(part)}
    chunk += part
    return place


def _make_float(accessor: dict[str, Any], views: list[dict[str, Any]], chunk: bytearray) -> None:
    """Give an accessor of normalized integers a buffer view of its own with the numbers that they stand for."""
    letters = {number: letter for letter, number in COMPONENT_TYPES.items()}
    kind = np.dtype(letters[accessor["componentType"]])
    width, view = COMPONENTS[accessor["type"]], views[accessor["bufferView"]]
    stride = view.get("byteStride", width * kind.itemsize)
    start = view["byteOffset"] + accessor.get("byteOffset", 0)
    values = np.ndarray((accessor["count"], width), kind, bytes(chunk), start, (stride, kind.itemsize))
    numbers = np.maximum(values / np.float32(np.iinfo(kind).max), -1).astype(np.float32)
    views.append(_append(chunk, numbers.tobytes()))
    for key in ("normalized", "byteOffset", "min", "max"):
        accessor.pop(key, None)
    accessor |= {"bufferView": len(views) - 1, "componentType": COMPONENT_TYPES["f"]}
