"""Reads what `pipeline.formats.meshopt` writes, and what other writers of EXT_meshopt_compression write.

For inspection, not for speed: a mesh of 100,000 faces takes half a second.

Source: Khronos, EXT_meshopt_compression, Appendix A (bitstream) and B (filters).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.meshopt import (
    ATTRIBUTES_HEADER,
    FIFO,
    GROUP,
    MAX_BLOCK_BYTES,
    MAX_BLOCK_ELEMENTS,
    TAIL_BYTES,
    TRIANGLES_HEADER,
)
from pipeline.formats.quantize import from_octahedral

INDICES_HEADER = 0xD1


def decode_view(code: bytes, *, mode: str, count: int, stride: int, filter_name: str = "NONE") -> bytes:
    """The bytes of a buffer view.

    Args:
        mode, filter_name, count, stride: as the extension of the buffer view has them.

    Raises:
        ValueError: it is damaged, or of a version or with a filter that is not read.
    """
    try:
        if mode == "ATTRIBUTES":
            return _filtered(decode_attributes(code, count=count, stride=stride), filter_name).tobytes()
        read = {"TRIANGLES": _decode_triangles, "INDICES": _decode_indices}[mode]
        indices = read(code, count)
    except (IndexError, KeyError) as error:
        raise ValueError(f"the data of {mode} cannot be decoded") from error
    return np.array(indices, np.int64).astype({2: np.uint16, 4: np.uint32}[stride]).tobytes()


def decode_attributes(code: bytes, *, count: int, stride: int) -> NDArray[np.uint8]:
    """The elements of a buffer view: (count, stride).

    Raises:
        ValueError: the code is of another version.
        IndexError: it is too short.
    """
    _check_header(code, ATTRIBUTES_HEADER)
    data = np.frombuffer(code, np.uint8)
    at = 1
    block = min(MAX_BLOCK_BYTES // stride // GROUP * GROUP, MAX_BLOCK_ELEMENTS)
    deltas = np.zeros((-(-count // block) * block, stride), np.uint8)
    for start in range(0, count, block):
        groups = -(-min(block, count - start) // GROUP)
        for byte in range(stride):
            header, at = data[at : at + -(-groups // 4)], at + -(-groups // 4)
            for group in range(groups):
                mode = header[group // 4] >> group % 4 * 2 & 3
                place = slice(start + group * GROUP, start + (group + 1) * GROUP)
                deltas[place, byte], at = _decode_group(data, at, int(mode))
    steps = np.where(deltas & 1, ~(deltas >> 1), deltas >> 1)
    return data[len(data) - stride :] + np.cumsum(steps[:count], axis=0, dtype=np.uint8)


def _decode_group(data: NDArray[np.uint8], at: int, mode: int) -> tuple[NDArray[np.uint8], int]:
    """Sixteen deltas, and where what follows them begins."""
    if mode == 0:
        return np.zeros(GROUP, np.uint8), at
    if len(data) - at < TAIL_BYTES:  # the last group ends where the tail begins
        raise IndexError("the code is too short")
    if mode == 3:
        return data[at : at + GROUP], at + GROUP
    bits = 2 * mode
    packed = np.repeat(data[at : at + 2 * bits], 8 // bits)
    shifts = np.tile(np.arange(8 - bits, -1, -bits, dtype=np.uint8), 2 * bits)
    values = np.bitwise_and(np.right_shift(packed, shifts), (1 << bits) - 1, dtype=np.uint8)
    at += 2 * bits
    is_large = values == (1 << bits) - 1
    large = int(is_large.sum())
    values[is_large] = data[at : at + large]
    return values, at + large


def _filtered(elements: NDArray[np.uint8], filter_name: str) -> NDArray[np.uint8]:
    """Elements after the filter of the extension: (N, K) -> (N, K)."""
    if filter_name == "NONE":
        return elements
    if filter_name != "OCTAHEDRAL":
        raise ValueError(f"the filter {filter_name} is not read")
    kind = {4: np.int8, 8: np.int16}[elements.shape[1]]
    values = elements.view(kind).copy()
    vectors = from_octahedral(values[:, :2] / values[:, 2:3].astype(np.float64))
    values[:, :3] = np.round(vectors * np.iinfo(kind).max)
    return values.view(np.uint8)


class _Reader:
    """Bytes of a code, read one after another, and the state of the indices in them."""

    def __init__(self, code: bytes, at: int) -> None:
        self.code = code
        self.at = at
        self.last = [0, 0]

    def byte(self) -> int:
        self.at += 1
        return self.code[self.at - 1]

    def number(self) -> int:
        """An unsigned number, seven bits in a byte."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def index(self, value: int, baseline: int = 0) -> int:
        """The index that is a zigzag number away from the last one of a baseline."""
        self.last[baseline] += -(value >> 1) - 1 if value & 1 else value >> 1
        return self.last[baseline]


def _decode_triangles(code: bytes, count: int) -> list[int]:
    _check_header(code, TRIANGLES_HEADER)
    table, reader = code[-FIFO:], _Reader(code, 1 + count // 3)
    edges: list[tuple[int, int]] = []
    vertices: list[int] = []
    following = 0
    indices: list[int] = []
    for triangle in range(count // 3):
        high, low = divmod(code[1 + triangle], 16)
        if high < 15:
            a, b = edges[-1 - high]
            if low == 0:
                c = following
                following += 1
            elif low < 13:
                c = vertices[-1 - low]
            elif low < 15:
                c = reader.index(1 if low == 13 else 2)
            else:
                c = reader.index(reader.number())
            if low == 0 or low >= 13:
                vertices.append(c)
        else:
            pair = table[low] if low < 14 else reader.byte()
            if pair == 0 and low >= 14:
                following = 0
            corners: list[int] = []
            for source in (15 if low == 15 else 0, pair >> 4, pair & 15):
                if source == 0:
                    corners.append(following)
                    following += 1
                elif source == 15:
                    corners.append(reader.index(reader.number()))
                else:
                    corners.append(vertices[-source])
            a, b, c = corners
            vertices.append(a)
            vertices += [v for v, source in ((b, pair >> 4), (c, pair & 15)) if source in (0, 15)]
            edges.append((b, a))
        edges += [(c, b), (a, c)]
        indices += [a, b, c]
        del edges[:-FIFO], vertices[:-FIFO]
    return indices


def _decode_indices(code: bytes, count: int) -> list[int]:
    _check_header(code, INDICES_HEADER)
    reader = _Reader(code, 1)
    return [reader.index(value >> 1, value & 1) for value in (reader.number() for _ in range(count))]


def _check_header(code: bytes, expected: int) -> None:
    """Refuse another codec or version.

    Raises:
        ValueError: it is one.
    """
    if code[0] != expected:
        raise ValueError(f"the header of the data is {code[0]:#x}, expected {expected:#x}")
