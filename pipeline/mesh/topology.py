"""Adjacency of faces at edges and vertices, by half-edges. Knows nothing of vertex positions.

Half-edge h = 3 f + k goes from corner k of face f to the next corner; "its corner" is the corner where it starts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.kernels import kernel

Faces = NDArray[np.int32]
HalfEdges = NDArray[np.int64]

NO_OPPOSITE = -1
"""In an array of opposite half-edges: a boundary, or an edge with more than two faces."""


def half_edge_ends(faces: Faces) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and end vertex of every half-edge: (F, 3) -> two arrays (3F,)."""
    return faces.astype(np.int64).ravel(), faces.take([1, 2, 0], axis=1).astype(np.int64).ravel()


def edge_keys(faces: Faces, vertices: int) -> NDArray[np.int64]:
    """A number for each half-edge that is equal for two half-edges of one edge only: (F, 3) -> (3F,).

    Args:
        faces: (F, 3).
        vertices: number of vertices, above every index in `faces`.
    """
    start, end = faces.ravel(), faces.take([1, 2, 0], axis=1).ravel()
    return np.minimum(start, end).astype(np.int64) * vertices + np.maximum(start, end)


def pair_half_edges(faces: Faces, vertices: int) -> tuple[HalfEdges, list[NDArray[np.int64]]]:
    """Pair the half-edges of every edge that has exactly two faces; their directions are not compared.

    Args:
        faces: (F, 3).
        vertices: number of vertices, above every index in `faces`.

    Returns:
        (3F,) the opposite of each half-edge, or `NO_OPPOSITE`; and for each non-manifold edge, one with more than two
        faces, its K half-edges, (K,).
    """
    keys = edge_keys(faces, vertices)
    ordered, order = _sorted_with_order(keys, int(vertices) ** 2)  # half-edges of one edge become neighbours
    if len(keys) % 2 == 0 and (ordered[::2] == ordered[1::2]).all() and (ordered[1:-1:2] != ordered[2::2]).all():
        opposite = np.empty(len(keys), np.int64)  # the usual case: every edge has two
        opposite[order[::2]], opposite[order[1::2]] = order[1::2], order[::2]
        return opposite, []
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.zeros(0, int)
    counts = np.diff(np.append(starts, len(ordered)))
    opposite = np.full(len(keys), NO_OPPOSITE, np.int64)
    pairs = starts[counts == 2]
    first, second = order[pairs], order[pairs + 1]
    opposite[first], opposite[second] = second, first
    non_manifold = [order[s : s + c] for s, c in zip(starts[counts > 2], counts[counts > 2], strict=True)]
    return opposite, non_manifold


def _sorted_with_order(keys: NDArray[np.int64], limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys (N,) from 0 to below `limit` in ascending order, and where each was: equal ones keep their order."""
    bits = len(keys).bit_length()
    if limit << bits > 2**63:
        order = np.argsort(keys, kind="stable")
        return keys[order], order
    both = np.sort(keys << bits | np.arange(len(keys)))  # numbers sort several times as fast as an order of them
    return both >> bits, both & ((1 << bits) - 1)


def label_fans(opposite: HalfEdges) -> tuple[NDArray[np.int64], int]:
    """Number the fans of faces around vertices: maximal sets of corners connected through edges at the vertex.

    Args:
        opposite: (3F,) the opposite of each half-edge, which runs in the opposite direction; -1 for none.

    Returns:
        (3F,) the fan of each half-edge's corner, and the number of fans. A vertex is manifold if all of its corners
        are in one fan.
    """
    fan = np.full(len(opposite), -1, np.int64)
    return fan, _label_fans(opposite, fan)


@kernel
def _label_fans(
    opposite: HalfEdges,  # (3F,)
    fan: NDArray[np.int64],  # (3F,) -1; written
) -> int:
    """See `label_fans`; returns the number of fans."""
    fans = 0
    for first in range(len(opposite)):
        if fan[first] >= 0:
            continue
        here = first
        # Around the vertex in one direction, through the half-edge that ends there, until the fan closes or a
        # boundary ends it.
        while here >= 0 and fan[here] < 0:
            fan[here] = fans
            incoming = here + 2 if here % 3 == 0 else here - 1
            here = opposite[incoming]
        # In the other direction, through the half-edge that starts there: the rest of a fan with a boundary. In a
        # closed fan the first step meets a corner that is numbered already.
        here = opposite[first]
        while here >= 0:
            here = here - 2 if here % 3 == 2 else here + 1
            if fan[here] >= 0:
                break
            fan[here] = fans
            here = opposite[here]
        fans += 1
    return fans


def boundary_loops(next_open: HalfEdges) -> tuple[NDArray[np.int64], int]:
    """Number the boundary loops.

    Args:
        next_open: (3F,) for a half-edge at a boundary, the one that starts where it ends; -1 for all others.

    Returns:
        (3F,) the loop of each half-edge at a boundary, -1 for others; and the number of loops.
    """
    loop = np.full(len(next_open), -1, np.int64)
    return loop, _label_loops(next_open, loop)


@kernel
def _label_loops(
    next_open: HalfEdges,  # (3F,)
    loop: NDArray[np.int64],  # (3F,) -1; written
) -> int:
    """See `boundary_loops`; returns the number of loops."""
    loops = 0
    for first in range(len(next_open)):
        if next_open[first] < 0 or loop[first] >= 0:
            continue
        here = first
        while here >= 0 and loop[here] < 0:
            loop[here] = loops
            here = next_open[here]
        loops += 1
    return loops
