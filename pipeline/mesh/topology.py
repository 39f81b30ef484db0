"""Which faces meet at which edges and vertices. Knows nothing of positions beyond what it is handed.

Half-edge h = 3 f + k goes from corner k of face f to the next corner; "its corner" is where it starts.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Faces = NDArray[np.int32]
HalfEdges = NDArray[np.int64]

NO_OPPOSITE = -1


def half_edge_ends(faces: Faces) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and end vertex of every half-edge: two arrays (3 F,)."""
    start = faces.astype(np.int64)
    return start.ravel(), np.roll(start, -1, axis=1).ravel()


def edge_keys(faces: Faces, vertices: int) -> NDArray[np.int64]:
    """A number for each half-edge (3 F,), the same for both directions of an edge and for no other."""
    start, end = half_edge_ends(faces)
    return np.minimum(start, end) * vertices + np.maximum(start, end)


def pair_half_edges(faces: Faces, vertices: int) -> tuple[HalfEdges, list[NDArray[np.int64]]]:
    """Pair the half-edges of edges that have exactly two.

    Returns:
        (3 F,) the partner of each, `NO_OPPOSITE` where the edge has one face or more than two; and for each edge with more
        than two faces its half-edges.
    """
    keys = edge_keys(faces, vertices)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.zeros(0, int)
    counts = np.diff(np.append(starts, len(ordered)))
    opposite = np.full(len(keys), NO_OPPOSITE, np.int64)
    pairs = starts[counts == 2]
    first, second = order[pairs], order[pairs + 1]
    opposite[first], opposite[second] = second, first
    crowded = [order[s : s + c] for s, c in zip(starts[counts > 2], counts[counts > 2], strict=True)]
    return opposite, crowded


@njit(cache=True)
def label_fans(opposite, count):  # type: ignore[no-untyped-def]
    """Number the fans of faces around vertices.

    Args:
        opposite: (3 F,) partners of opposite direction, -1 for none.
        count: 3 F.

    Returns:
        (3 F,) for the corner of each half-edge the number of its fan, and how many fans there are. A vertex is manifold
        when all its corners have one number.
    """
    fan = np.full(count, -1, np.int64)
    fans = 0
    for first in range(count):
        if fan[first] >= 0:
            continue
        here = first
        while here >= 0 and fan[here] < 0:  # one way round, by the half-edge that comes in
            fan[here] = fans
            incoming = here + 2 if here % 3 == 0 else here - 1
            here = opposite[incoming]
        here = opposite[first]  # and the other way, by the one that goes out
        while here >= 0:
            here = here - 2 if here % 3 == 2 else here + 1
            if fan[here] >= 0:
                break
            fan[here] = fans
            here = opposite[here]
        fans += 1
    return fan, fans


@njit(cache=True)
def boundary_loops(opposite, next_open):  # type: ignore[no-untyped-def]
    """Put the half-edges without a partner in order.

    Args:
        opposite: (3 F,)
        next_open: (3 F,) the open half-edge that starts where an open one ends, -1 for half-edges with a partner.

    Returns:
        (3 F,) for each open half-edge the number of its loop, -1 for others; and how many loops there are.
    """
    loop = np.full(len(opposite), -1, np.int64)
    loops = 0
    for first in range(len(opposite)):
        if next_open[first] < 0 or loop[first] >= 0:
            continue
        here = first
        while here >= 0 and loop[here] < 0:
            loop[here] = loops
            here = next_open[here]
        loops += 1
    return loop, loops
