"""Arrays in fewer bytes, without loss, for what travels between machines and is kept: see `Generation`.

Neighbouring rows are alike in what an engine returns, in the order in which it finds voxels and faces. So rows are
replaced by their differences to the one before where that helps; the bytes of numbers are stored by their place, the
highest of all numbers first; and zstd compresses that. float32 numbers that are multiples of a power of two, as
`on_grid` makes them, are stored as integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

VERSION = 1
LEVEL = 3
"""Of zstd: 200 MB and more a second. Level 9 takes five times as long for 3 % fewer bytes."""
SAMPLE = 1 << 16
"""Rows of which it is found out whether differences help."""
GRID_BITS = 24
"""Multiples of 2^-24 are stored as integers; below 0.5 every float32 but the smallest is one."""


@dataclass(frozen=True)
class PackedArray:
    """An array as bytes.

    Attributes:
        dtype: of the array, as numpy writes it.
        shape: of the array.
        bits: the numbers are stored as multiples of 2^-bits; None stores them as they are.
        has_differences: whether rows were replaced by their differences to the row before.
        content: the compressed bytes.
        version: of this format.
    """

    dtype: str
    shape: tuple[int, ...]
    bits: int | None
    has_differences: bool
    content: bytes
    version: int = VERSION

    def unpacked(self) -> NDArray[Any]:
        """The array.

        Raises:
            ValueError: it was packed by a version that this one does not know.
        """
        if self.version != VERSION:
            raise ValueError(f"arrays of format {self.version} are unknown; this version reads {VERSION}")
        dtype = np.dtype(self.dtype)
        stored = np.dtype(f"u{dtype.itemsize}")
        planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(self.content), np.uint8)
        numbers = np.ascontiguousarray(planes.reshape(dtype.itemsize, -1).T).view(stored)
        # The columns follow each other; within one, the rows.
        columns = numbers.reshape(math.prod(self.shape[1:]), self.shape[0])
        if self.has_differences:
            columns = np.cumsum(_unfolded(columns), axis=1, dtype=stored)
        rows = np.ascontiguousarray(columns.T).reshape(self.shape)
        if self.bits is None:
            return rows.view(dtype)
        return np.ldexp(rows.view(np.int32).astype(dtype), -self.bits)


def pack(values: NDArray[Any]) -> PackedArray:
    """Pack an array of one axis or more; `unpacked` returns the same bits."""
    bits = _grid_of(values)
    stored = np.dtype(f"u{values.dtype.itemsize}")
    whole = values if bits is None else np.ldexp(values, bits).astype(np.int32)
    rows = np.ascontiguousarray(whole).view(stored).reshape(len(values), math.prod(values.shape[1:]))
    columns = np.ascontiguousarray(rows.T)
    differences = _folded(np.diff(columns, axis=1, prepend=stored.type(0)))
    plain, differing = (len(_compressed(each[:, :SAMPLE])) for each in (columns, differences))
    helps = differing < plain
    return PackedArray(values.dtype.str, values.shape, bits, helps, _compressed(differences if helps else columns))


def on_grid(values: NDArray[np.floating], *, bits: int) -> NDArray[np.float32]:
    """The nearest multiples of 2^-bits: which `pack` stores in fewer bytes."""
    return (np.ldexp(np.rint(np.ldexp(values.astype(np.float64), bits)), -bits) + 0.0).astype(np.float32)


def with_fewer_digits(values: NDArray[np.floating], *, bits: int) -> NDArray[np.float16]:
    """The nearest float16 with so many bits after the first one, 1 to 9: a relative error of 2^-(bits + 1)."""
    dropped = 10 - bits
    half, kept = np.uint16(1 << (dropped - 1)), np.uint16(0xFFFF << dropped & 0xFFFF)
    return ((values.astype(np.float16).view(np.uint16) + half) & kept).view(np.float16)


class PacksArrays:
    """A dataclass whose arrays are packed when it is pickled; what was pickled without that is read as well."""

    def __getstate__(self) -> dict[str, object]:
        """The fields, without what was derived from them."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        return {name: pack(value) if isinstance(value, np.ndarray) else value for name, value in state.items()}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        """Set the fields."""
        self.__dict__.update(
            {name: each.unpacked() if isinstance(each, PackedArray) else each for name, each in state.items()}
        )


def _grid_of(values: NDArray[Any]) -> int | None:
    """The fewest bits of which all numbers are multiples, up to `GRID_BITS`; None where there are none."""
    if values.dtype != np.float32 or not np.isfinite(values).all() or np.abs(values).max(initial=0) >= 64:
        return None
    whole = np.ldexp(values, GRID_BITS)
    if (whole != np.rint(whole)).any() or (np.signbit(values) & (values == 0)).any():
        return None
    together = int(np.bitwise_or.reduce(whole.astype(np.int32), axis=None))
    return GRID_BITS - (((together & -together).bit_length() - 1) if together else GRID_BITS)


def _compressed(columns: NDArray[Any]) -> bytes:
    """The bytes of unsigned numbers, (C, R), place by place."""
    planes = np.ascontiguousarray(np.ascontiguousarray(columns).reshape(-1, 1).view(np.uint8).T)
    return zstandard.ZstdCompressor(level=LEVEL).compress(planes.tobytes())


def _folded(differences: NDArray[Any]) -> NDArray[Any]:
    """0, -1, 1, -2, 2, … as 0, 1, 2, 3, 4, …, in unsigned numbers that wrap."""
    signed = differences.view(f"i{differences.dtype.itemsize}")
    return ((signed << 1) ^ (signed >> (8 * differences.dtype.itemsize - 1))).view(differences.dtype)


def _unfolded(folded: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `_folded`."""
    one = folded.dtype.type(1)
    return (folded >> one) ^ (~(folded & one) + one)
