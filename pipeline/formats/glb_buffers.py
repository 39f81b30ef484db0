"""The binary part of a GLB under construction: its buffers, buffer views and accessors, coded by meshopt or not.

Source: Khronos, glTF 2.0 Specification, section 3.6 (binary data storage); EXT_meshopt_compression.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.meshopt import encode_attributes, encode_triangles

MAGIC, CONTAINER_VERSION, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 2, 0x4E4F534A, 0x004E4942
COMPONENT_TYPES = {"b": 5120, "B": 5121, "h": 5122, "H": 5123, "I": 5125, "f": 5126}
"""glTF's numbers for the component types, by numpy's letters."""
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
MESHOPT = "EXT_meshopt_compression"
Kind = Literal["SCALAR", "VEC2", "VEC3", "VEC4"]
VECTORS: dict[int, Kind] = {2: "VEC2", 3: "VEC3", 4: "VEC4"}


class GlbBuffers:
    """Arrays and files in a GLB's binary chunk.

    Args:
        is_coded: whether arrays are coded by meshopt. Their buffer views then lie in a second buffer, which exists in
            the memory of readers only.
    """

    def __init__(self, *, is_coded: bool = False) -> None:
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []
        self._content = bytearray()
        self.is_coded = is_coded
        self._decoded_bytes = 0

    @property
    def content(self) -> bytes:
        """The binary chunk."""
        return bytes(self._content)

    @property
    def buffers(self) -> list[dict[str, Any]]:
        """glTF's `buffers`."""
        decoded = {"byteLength": self._decoded_bytes, "extensions": {MESHOPT: {"fallback": True}}}
        return [{"byteLength": len(self._content)}, *([decoded] if self.is_coded else [])]

    def add_file(self, content: bytes) -> int:
        """Append a file; returns its buffer view's index."""
        self.views.append({"buffer": 0, **self._append(content)})
        return len(self.views) - 1

    def add_vertices(
        self,
        values: NDArray[Any],
        *,
        is_normalized: bool = False,
        with_bounds: bool = False,
        coded: NDArray[Any] | None = None,
    ) -> int:
        """Append an attribute of the vertices; returns its accessor's index.

        Args:
            values: (V, 2), (V, 3) or (V, 4).
            is_normalized: whether integers stand for [0, 1] or [-1, 1].
            with_bounds: whether the accessor states the lowest and highest values, as that of positions must.
            coded: (V, 4) int8 what is coded instead, to which readers apply the filter for unit vectors.
        """
        elements = _padded_rows(values)
        stride = elements.shape[1]
        view: dict[str, Any] = {"byteStride": stride} if stride > values[0].nbytes else {}
        view["target"] = ARRAY_BUFFER
        if self.is_coded:
            stored = elements if coded is None else _padded_rows(coded)
            options = {} if coded is None else {"filter": "OCTAHEDRAL"}
            self._add_coded(view, encode_attributes(stored), "ATTRIBUTES", len(values), stride, **options)
        else:
            self.views.append({"buffer": 0, **self._append(elements.tobytes()), **view})
        extra: dict[str, Any] = {"normalized": True} if is_normalized else {}
        if with_bounds:
            extra |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        return self._add_accessor(values, VECTORS[values.shape[1]], **extra)

    def add_faces(self, faces: NDArray[np.integer], *, vertices: int) -> int:
        """Append the indices of faces, (F, 3), of a number of vertices; returns their accessor's index."""
        # 65535 is the primitive restart value of 16-bit indices, which glTF forbids as an index.
        indices = faces.astype(np.uint16 if vertices < 65535 else np.uint32).ravel()
        view = {"target": ELEMENT_ARRAY_BUFFER}
        if self.is_coded:
            self._add_coded(view, encode_triangles(faces), "TRIANGLES", len(indices), indices.itemsize)
        else:
            self.views.append({"buffer": 0, **self._append(indices.tobytes()), **view})
        return self._add_accessor(indices, "SCALAR")

    def add_description(self, values: NDArray[Any], kind: Kind, **extra: Any) -> int:
        """Add an accessor of values that are stored elsewhere, by an extension of the primitive; returns its index."""
        component = COMPONENT_TYPES[values.dtype.char]
        self.accessors.append({"componentType": component, "count": len(values), "type": kind, **extra})
        return len(self.accessors) - 1

    def _add_accessor(self, values: NDArray[Any], kind: Kind, **extra: Any) -> int:
        """Add the accessor of the last buffer view; returns its index."""
        return self.add_description(values, kind, bufferView=len(self.views) - 1, **extra)

    def _append(self, content: bytes) -> dict[str, int]:
        """Append bytes at the next multiple of four, as accessors must be aligned; returns where they are."""
        self._content += b"\0" * (-len(self._content) % 4)
        place = {"byteOffset": len(self._content), "byteLength": len(content)}
        self._content += content
        return place

    def _add_coded(self, view: dict[str, Any], content: bytes, mode: str, count: int, stride: int, **more: str) -> None:
        """Add a buffer view of decoded bytes, and the code that they are made from."""
        self._decoded_bytes += -self._decoded_bytes % 4
        place = {"buffer": 1, "byteOffset": self._decoded_bytes, "byteLength": count * stride}
        self._decoded_bytes += count * stride
        code = {"buffer": 0, **self._append(content), "byteStride": stride, "count": count, "mode": mode, **more}
        self.views.append({**place, **view, "extensions": {MESHOPT: code}})


def _padded_rows(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of each row, (N, K) to (N, B), with zeros up to a multiple of four."""
    rows = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))


def container(document: dict[str, Any], binary: bytes) -> bytes:
    """A GLB of glTF's JSON and the binary chunk; padded with spaces and zeros to multiples of four bytes."""
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        [
            struct.pack("<III", MAGIC, CONTAINER_VERSION, length),
            struct.pack("<II", len(text), JSON_CHUNK),
            text,
            struct.pack("<II", len(binary), BINARY_CHUNK),
            binary,
        ]
    )
