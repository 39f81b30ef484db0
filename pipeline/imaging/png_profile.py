"""The colours of a PNG as an ICC profile: of cICP, else iCCP, else sRGB, else gAMA with cHRM.

That order and the meaning of the chunks: PNG Specification (Third Edition), 4.3 and 11.3.2. Code points: ITU-T H.273.
The profile: ICC.1:2010. Knows nothing of decoding.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""x and y of white, red, green and blue, as in cHRM; the values of BT.709 and sRGB."""
PRIMARIES = {
    1: SRGB_PRIMARIES,
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
"""By H.273's number of colour primaries: BT.709, BT.2020 and Display P3."""
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
"""By H.273's number of transfer characteristics. 13 is sRGB's; 1, 6, 14 and 15 are shown as it, as browsers do."""
SRGB_CURVES = (1, 6, 13, 14, 15)
SRGB_GAMA = 45455
D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def profile_of(chunks: dict[bytes, bytes]) -> bytes | None:
    """The profile of a PNG's colours; None where they are sRGB, or say nothing that can be used.

    Args:
        chunks: the data of cICP, sRGB, gAMA and cHRM by name, and of iCCP the profile.
    """
    if len(chunks.get(b"cICP", b"")) == 4:
        primaries, transfer, matrix, _ = chunks[b"cICP"]
        if matrix == 0 and primaries in PRIMARIES and (transfer in GAMMAS or transfer in SRGB_CURVES):
            return _profile(PRIMARIES[primaries], GAMMAS.get(transfer))
    if b"iCCP" in chunks:
        return chunks[b"iCCP"]
    if b"sRGB" in chunks or len(chunks.get(b"gAMA", b"")) != 4:
        return None
    gama = int.from_bytes(chunks[b"gAMA"], "big")
    points = SRGB_PRIMARIES
    if len(chunks.get(b"cHRM", b"")) == 32:
        points = tuple(value / 100_000 for value in struct.unpack(">8I", chunks[b"cHRM"]))
    if not 1000 <= gama <= 1_000_000:
        return None
    return _profile(points, None if abs(gama - SRGB_GAMA) < 500 else 100_000 / gama)


def _profile(points: tuple[float, ...], gamma: float | None) -> bytes | None:
    """A matrix profile of an RGB display.

    Args:
        points: as `SRGB_PRIMARIES`.
        gamma: the exponent from sample to light; None for sRGB's curve.

    Returns:
        None for sRGB itself, and for points that span no colours.
    """
    is_srgb = bool(np.allclose(points, SRGB_PRIMARIES, atol=2e-3))
    if is_srgb and gamma is None:
        return None
    columns = _to_d50(SRGB_PRIMARIES if is_srgb else points)
    if columns is None:
        return None
    tags = {b"wtpt": _xyz(D50)}
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True):
        tags[name] = _xyz(tuple(column))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))
    table, body = [], b""
    begin = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table.append(name + struct.pack(">II", begin + len(body), len(data)))
        body += data
    head = struct.pack(">I4sI4s4s4s", begin + len(body), b"\0" * 4, 0x04200000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + _fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + b"".join(table) + body


def _to_d50(points: tuple[float, ...]) -> NDArray[np.float64] | None:
    """(3, 3) from linear RGB to XYZ, adapted to D50 by Bradford's transform; None for points that span no colours."""
    xy = np.array(points).reshape(4, 2)
    if (xy[:, 1] <= 0).any():
        return None
    white, red_green_blue = _xyz_of(xy[:1])[0], _xyz_of(xy[1:]).T
    if abs(np.linalg.det(red_green_blue)) < 1e-3:
        return None
    columns = red_green_blue * np.linalg.solve(red_green_blue, white)
    ratio = (_BRADFORD @ np.array(D50)) / (_BRADFORD @ white)
    adapted = np.linalg.solve(_BRADFORD, ratio[:, None] * (_BRADFORD @ columns))
    return adapted if np.isfinite(adapted).all() and np.abs(adapted).max() < 8 else None


def _xyz_of(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, 3) X, Y and Z at Y = 1 from (K, 2) chromaticities."""
    return np.column_stack([xy[:, 0] / xy[:, 1], np.ones(len(xy)), (1 - xy.sum(axis=1)) / xy[:, 1]])


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _curve(gamma: float | None) -> bytes:
    """A parametric curve: a power, or sRGB's (type 3)."""
    if gamma is not None:
        return b"para\0\0\0\0\0\0\0\0" + _fixed(gamma)
    return b"para\0\0\0\0\0\3\0\0" + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
