"""How much of a known subject a body carved from its views overlaps, beside the true visual hull of the same views."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.engines.preview.view_direction import ViewDirection
from pipeline.mesh.simplify import simplify
from pipeline.mesh.tri_mesh import TriMesh
from schemas.contract import ViewAngle
from tests.reference.solids import filled, inside_of, overlap
from tests.reference.subjects import SUBJECTS

NODES = 64
AXIS = np.linspace(-0.503, 0.507, NODES)  # no face of a subject lies on a node
STEP = AXIS[1] - AXIS[0]


@cache
def inside(name: str) -> NDArray[np.bool_]:
    """Grid points inside a subject: (N, N, N)."""
    return inside_of(SUBJECTS[name].field, AXIS)


@cache
def visual_hull(name: str, angles: tuple[ViewAngle, ...]) -> NDArray[np.bool_]:
    """Grid points inside the visual hull of a subject for parallel rays from some angles: (N, N, N)."""
    body = inside(name)
    points = np.stack(np.meshgrid(AXIS, AXIS, AXIS, indexing="ij"), axis=-1).reshape(-1, 3)
    kept = np.ones(len(points), bool)
    for angle in angles:
        direction = ViewDirection.of_angle(angle)
        column, row = (np.round(points @ a / STEP).astype(int) + NODES for a in (direction.rightward, direction.upward))
        mask = np.zeros((2 * NODES, 2 * NODES), np.uint8)
        mask[column[body.ravel()], row[body.ravel()]] = 1
        # Turned points leave single cells of the image empty.
        mask = (
            np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)))
            if angle_is_odd(angle)
            else mask
        )
        kept &= mask[column, row] > 0
    return kept.reshape(body.shape)


def angle_is_odd(angle: ViewAngle) -> bool:
    """Whether the axes of a view are not those of the grid."""
    return not isinstance(angle, str) and angle % 90 != 0


def share_of_hull(mesh: TriMesh, name: str, angles: Sequence[ViewAngle]) -> float:
    """Overlap of a carved body with the subject, relative to that of the true hull.

    The images determine neither scale nor position: the body is moved and scaled to the box of the hull, and the best
    of a few scales within a grid cell counts.
    """
    hull = visual_hull(name, tuple(angles))
    nodes = np.argwhere(hull)
    low, high = AXIS[nodes.min(axis=0)] - STEP / 2, AXIS[nodes.max(axis=0)] + STEP / 2
    small = simplify(mesh, target_faces=12_000)
    bounds = small.bounds()
    centred = small.vertices - bounds.mean(axis=0)
    scale = (high[1] - low[1]) / (bounds[1, 1] - bounds[0, 1])
    best = 0.0
    for stretch in (0.97, 1.0, 1.03):
        placed = TriMesh((centred * scale * stretch + (low + high) / 2).astype(np.float32), small.faces)
        best = max(best, overlap(filled(placed, AXIS), inside(name)))
    return best / overlap(hull, inside(name))
