"""The codecs of EXT_meshopt_compression: vertex attributes and triangle indices. Equal arrays give equal bytes.

Both are lossless, but that the corners of a triangle may be rotated. They do best where triangles follow their
neighbours and vertices come in the order of their first use: `pipeline.mesh.reorder`. Knows nothing of glTF's
JSON.

Source: Khronos, EXT_meshopt_compression, Appendix A (bitstream, modes 0 and 1), Appendix B (filter 1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.kernels import kernel

ATTRIBUTES_HEADER, TRIANGLES_HEADER = 0xA0, 0xE1
GROUP = 16
"""Elements whose deltas of one byte are stored with one number of bits."""
MAX_BLOCK_BYTES, MAX_BLOCK_ELEMENTS, MAX_STRIDE = 8192, 256, 256
TAIL_BYTES = 32
FIFO = 16
"""Length of the queues of recent edges and recent vertices."""
CODES = np.array([0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x01, 0x02, 0x03, 0x04, 0x05, 0x12, 0x21, 0x32, 0, 0], np.uint8)
"""The table of a stream of triangles: where the second and the third corner of a triangle without a recent edge come
from, if its first corner is new: 0 a new vertex, n the vertex that was pushed n vertices ago. The first entry must be
0x00, since three new corners cannot be written in another way."""
MAX_EXTRA_BYTES = 16
"""Most bytes of a triangle beside its code: one for where the corners come from, and three indices of up to five."""


def encode_attributes(elements: NDArray[np.uint8]) -> bytes:
    """Encode the elements of a buffer view (mode ATTRIBUTES).

    Args:
        elements: (N, K) the bytes of each element, N at least 1; K a multiple of 4 up to 256.

    Raises:
        ValueError: there is no element, or K is another number.
    """
    count, stride = elements.shape
    if not count or stride % 4 or not 0 < stride <= MAX_STRIDE:
        raise ValueError(f"needs elements of 4 to 256 bytes, in steps of 4; got {count} of {stride}")
    block = min(MAX_BLOCK_BYTES // stride // GROUP * GROUP, MAX_BLOCK_ELEMENTS)
    blocks, groups = -(-count // block), block // GROUP
    padded = np.concatenate([elements, np.repeat(elements[-1:], blocks * block - count, axis=0)])
    deltas = np.diff(padded, axis=0, prepend=padded[:1])  # in uint8, which wraps; the first is 0
    doubled = np.left_shift(deltas, 1, dtype=np.uint8)
    zigzag = np.where(deltas > 127, ~doubled, doubled)
    by_byte = zigzag.reshape(blocks, groups, GROUP, stride).transpose(0, 3, 1, 2)  # (blocks, stride, groups, 16)
    modes, content, lengths = _encode_groups(by_byte)
    # Two header bits for each group, four groups in a byte, the first in the lowest bits.
    header_bytes = -(-groups // 4)
    modes = np.pad(modes, ((0, 0), (0, 0), (0, header_bytes * 4 - groups)))
    headers = (modes.reshape(blocks, stride, header_bytes, 4) << np.arange(0, 8, 2, dtype=np.uint8)).sum(
        axis=3, dtype=np.uint8
    )
    # The last block has fewer groups; those that are only padding have no bytes.
    is_header = np.ones(headers.shape, bool)
    last_groups = -(-(count - (blocks - 1) * block) // GROUP)
    is_header[-1, :, -(-last_groups // 4) :] = False
    is_content = np.arange(GROUP) < lengths[..., None]
    rows = np.concatenate([headers, content.reshape(blocks, stride, -1)], axis=2)
    kept = np.concatenate([is_header, is_content.reshape(blocks, stride, -1)], axis=2)
    tail = bytes(max(TAIL_BYTES - stride, 0)) + elements[0].tobytes()
    return bytes([ATTRIBUTES_HEADER]) + rows[kept].tobytes() + tail


def _encode_groups(
    zigzag: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    """Encode groups of deltas, (..., 16): their modes (...), bytes (..., 16), and how many of these count (...)."""
    # In modes 1 and 2 a delta that does not fit is written as all ones, and as a byte after those of the group. More
    # than 16 bytes are never needed: mode 3 has 16.
    lengths = np.stack(
        [
            np.where(zigzag.any(axis=-1), GROUP + 1, 0),
            4 + (zigzag >= 3).sum(axis=-1),
            8 + (zigzag >= 15).sum(axis=-1),
            np.full(zigzag.shape[:-1], GROUP),
        ]
    )
    modes = lengths.argmin(axis=0)
    by_mode = np.stack([np.zeros_like(zigzag), _with_sentinels(zigzag, 2), _with_sentinels(zigzag, 4), zigzag])
    content = np.take_along_axis(by_mode, modes[None, ..., None], axis=0)[0]
    return modes.astype(np.uint8), content, np.take_along_axis(lengths, modes[None], axis=0)[0]


def _with_sentinels(zigzag: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Groups of deltas in a few bits each, then the bytes of those that do not fit: (..., 16) -> (..., 16)."""
    sentinel, in_byte = (1 << bits) - 1, 8 // bits
    small = np.minimum(zigzag, sentinel).reshape(*zigzag.shape[:-1], GROUP // in_byte, in_byte)
    packed = (small << np.arange(8 - bits, -1, -bits, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)
    order = np.argsort(zigzag < sentinel, axis=-1, kind="stable")
    large_first = np.take_along_axis(zigzag, order, axis=-1)
    return np.concatenate([packed, large_first], axis=-1)[..., :GROUP]


def encode_triangles(faces: NDArray[np.integer]) -> bytes:
    """Encode the indices of triangles (mode TRIANGLES); a decoder may return the corners of each rotated.

    Args:
        faces: (F, 3) indices of vertices, below 2^31.
    """
    codes = np.zeros(len(faces), np.uint8)
    extra = np.zeros(MAX_EXTRA_BYTES * len(faces), np.uint8)
    edges, vertices = np.full((FIFO, 2), -1, np.int64), np.full(FIFO, -1, np.int64)
    used = _encode_faces(np.ascontiguousarray(faces, np.int64), CODES, codes, extra, edges, vertices)
    return b"".join([bytes([TRIANGLES_HEADER]), codes.tobytes(), extra[:used].tobytes(), CODES.tobytes()])


@kernel
def _age_of(vertex: int, vertices: NDArray[np.int64], pushed: int) -> int:
    """How many others were pushed after a vertex; `FIFO` if it is in the queue no more."""
    for age in range(FIFO):
        if vertices[(pushed - 1 - age) % FIFO] == vertex:
            return age
    return FIFO


@kernel
def _write_index(index: int, last: int, data: NDArray[np.uint8], at: int) -> int:
    """Write an index as its difference from the last one, zigzag, seven bits in a byte; returns where it ends."""
    delta = index - last
    value = delta << 1 if delta >= 0 else (-delta << 1) - 1
    while value > 127:
        data[at] = value & 127 | 128
        value >>= 7
        at += 1
    data[at] = value
    return at + 1


@kernel
def _encode_faces(
    faces: NDArray[np.int64],  # (F, 3)
    table: NDArray[np.uint8],  # (16,)
    codes: NDArray[np.uint8],  # (F,) written
    data: NDArray[np.uint8],  # (16 F,) written
    edges: NDArray[np.int64],  # (16, 2) the queue of recent edges, -1 at first; written
    vertices: NDArray[np.int64],  # (16,) the queue of recent vertices, -1 at first; written
) -> int:
    """Write the code of each triangle, and the bytes that some need beside it; returns how many these are."""
    at = edges_pushed = pushed = 0
    following = last = 0  # the next new vertex, and the last index that was written out
    for f in range(len(faces)):
        # The most recent edge that is one of the triangle's. The sixteenth is out of reach of a code.
        edge_age = turn = 0
        is_found = False
        while edge_age < FIFO - 1 and not is_found:
            slot = (edges_pushed - 1 - edge_age) % FIFO
            for corner in range(3):
                if faces[f, corner] == edges[slot, 0] and faces[f, (corner + 1) % 3] == edges[slot, 1]:
                    turn, is_found = corner, True
            edge_age += not is_found
        if not is_found:  # begin with a corner that is new, if there is one
            for corner in range(2, -1, -1):
                if faces[f, corner] == following:
                    turn = corner
        a, b, c = faces[f, turn], faces[f, (turn + 1) % 3], faces[f, (turn + 2) % 3]
        if is_found:
            age = _age_of(c, vertices, pushed)
            kind = 15  # the index of c is written out
            if c == following:
                kind = 0
                following += 1
            elif 0 < age < 13:
                kind = age
            elif c == last - 1:
                kind = 13
            elif c == last + 1:
                kind = 14
            codes[f] = edge_age << 4 | kind
            if kind == 15:
                at = _write_index(c, last, data, at)
            if kind >= 13:
                last = c
            if kind == 0 or kind >= 13:
                vertices[pushed % FIFO] = c
                pushed += 1
        else:
            is_new = a == following
            following += is_new
            # Where b and c come from: 0 is new, 1 to 14 recent, 15 written out.
            b_from = c_from = 15
            age = _age_of(b, vertices, pushed)
            if b == following:
                b_from = 0
                following += 1
            elif age < 14:
                b_from = age + 1
            age = _age_of(c, vertices, pushed)
            if c == following:
                c_from = 0
                following += 1
            elif age < 14:
                c_from = age + 1
            pair = b_from << 4 | c_from
            entry = 0
            while entry < 14 and table[entry] != pair:
                entry += 1
            if is_new and entry < 14:
                codes[f] = 0xF0 | entry
            else:
                # A pair of 0 would reset `following`. It does not occur: with a new first corner it is in the table,
                # and without one no corner is new.
                codes[f] = 0xFE if is_new else 0xFF
                data[at] = pair
                at += 1
                if not is_new:
                    at = _write_index(a, last, data, at)
                    last = a
                if b_from == 15:
                    at = _write_index(b, last, data, at)
                    last = b
                if c_from == 15:
                    at = _write_index(c, last, data, at)
                    last = c
            vertices[pushed % FIFO] = a
            pushed += 1
            if b_from == 0 or b_from == 15:
                vertices[pushed % FIFO] = b
                pushed += 1
            if c_from == 0 or c_from == 15:
                vertices[pushed % FIFO] = c
                pushed += 1
            edges[edges_pushed % FIFO, 0], edges[edges_pushed % FIFO, 1] = b, a
            edges_pushed += 1
        edges[edges_pushed % FIFO, 0], edges[edges_pushed % FIFO, 1] = c, b
        edges[(edges_pushed + 1) % FIFO, 0], edges[(edges_pushed + 1) % FIFO, 1] = a, c
        edges_pushed += 2
    return at
