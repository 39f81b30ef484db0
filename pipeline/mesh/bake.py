"""Colours of a surface into its texture, or onto its vertices. Knows nothing of where colours come from.

Every texel that a chart touches, or that bilinear filtering reads beside one, gets the colour of the surface there;
the rest of the texture repeats the nearest of those, so that no background shows at seams or in mipmaps.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import UnwrappedMesh

ColoursAt = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
"""Points (P, 3) and unit normals (P, 3) to sRGB (P, 3) in [0, 1]."""

NO_FACE = -1
REACH_TEXELS = 1.5
"""How far beside a chart texels are coloured from the surface: as far as bilinear filtering reads from inside it."""


def bake(
    unwrapped: UnwrappedMesh,
    normals: NDArray[np.float32],
    colours_at: ColoursAt,
    *,
    texture_size: int,
    chunk_size: int,
    on_share: Callable[[float], None] = lambda share: None,
) -> NDArray[np.uint8]:
    """Make the texture of an unwrapped mesh.

    Args:
        normals: (V, 3) unit normals of its vertices.
        colours_at: tells the colours of surface points.
        texture_size: side of the texture.
        chunk_size: texels asked for at once; memory falls with it, the texture does not change.
        on_share: told the share that is done, between chunks.

    Returns:
        (texture_size, texture_size, 3) uint8 sRGB, row 0 at the top.
    """
    face, weights = own_texels(unwrapped, texture_size=texture_size)
    texture = np.zeros((texture_size, texture_size, 3), np.uint8)
    rows, columns = np.nonzero(face != NO_FACE)
    for start in range(0, len(rows), chunk_size):
        chunk = (rows[start : start + chunk_size], columns[start : start + chunk_size])
        corners = unwrapped.faces[face[chunk]]
        share = weights[chunk][:, :, None]
        points = (unwrapped.vertices[corners] * share).sum(axis=1)
        directions = (normals[corners] * share).sum(axis=1)
        directions /= np.maximum(np.sqrt((directions**2).sum(axis=1, keepdims=True)), 1e-12)
        texture[chunk] = _as_bytes(colours_at(points.astype(np.float32), directions.astype(np.float32)))
        on_share(min(1.0, (start + chunk_size) / len(rows)))
    return _fill_gutter(texture, face != NO_FACE)


def colour_vertices(
    mesh: TriMesh, normals: NDArray[np.float32], colours_at: ColoursAt, *, chunk_size: int
) -> NDArray[np.uint8]:
    """Colours (V, 3) uint8 sRGB of a mesh's vertices; arguments as for `bake`."""
    colours = np.empty((len(mesh.vertices), 3), np.uint8)
    for start in range(0, len(colours), chunk_size):
        chunk = slice(start, start + chunk_size)
        colours[chunk] = _as_bytes(colours_at(mesh.vertices[chunk].astype(np.float32), normals[chunk]))
    return colours


def own_texels(unwrapped: UnwrappedMesh, *, texture_size: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Which face each texel belongs to, and where on it the texel's centre lies.

    Texels whose centre no face covers belong to the face that comes within `REACH_TEXELS`, the nearest first; their
    weights lie outside [0, 1], on the continuation of the face's plane.

    Returns:
        (S, S) int32 faces or `NO_FACE`, and (S, S, 3) float32 weights of the faces' corners, which sum to 1.
    """
    corners = unwrapped.uvs[unwrapped.faces].astype(np.float64) * texture_size
    face = np.full((texture_size, texture_size), NO_FACE, np.int32)
    weights = np.zeros((texture_size, texture_size, 3), np.float32)
    nearest = np.full((texture_size, texture_size), REACH_TEXELS**2, np.float32)
    _rasterise(corners, face, weights, nearest, REACH_TEXELS)
    return face, weights


@njit(cache=True)
def _distance2(px, py, ax, ay, bx, by):  # type: ignore[no-untyped-def]
    """Squared distance of a point from a segment."""
    ex, ey = bx - ax, by - ay
    length2 = ex * ex + ey * ey
    t = 0.0
    if length2 > 0:
        t = min(max(((px - ax) * ex + (py - ay) * ey) / length2, 0.0), 1.0)
    dx, dy = px - ax - t * ex, py - ay - t * ey
    return dx * dx + dy * dy


@njit(cache=True)
def _rasterise(corners, face, weights, nearest, reach):  # type: ignore[no-untyped-def]
    """Fill `face` (S, S), `weights` (S, S, 3) and `nearest` (S, S), squared distances, from corners (F, 3, 2)."""
    size = face.shape[0]
    for f in range(len(corners)):
        ax, ay = corners[f, 0, 0], corners[f, 0, 1]
        bx, by = corners[f, 1, 0], corners[f, 1, 1]
        cx, cy = corners[f, 2, 0], corners[f, 2, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        left = max(int(np.ceil(min(ax, bx, cx) - reach - 0.5)), 0)
        right = min(int(np.floor(max(ax, bx, cx) + reach - 0.5)), size - 1)
        top = max(int(np.ceil(min(ay, by, cy) - reach - 0.5)), 0)
        bottom = min(int(np.floor(max(ay, by, cy) + reach - 0.5)), size - 1)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                if nearest[y, x] < 0:
                    continue
                px, py = x + 0.5, y + 0.5
                if area != 0:
                    u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                    v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                else:
                    u, v = 1 / 3, 1 / 3
                w = 1 - u - v
                if area != 0 and u >= 0 and v >= 0 and w >= 0:
                    distance = -1.0  # covered: nobody comes nearer
                else:
                    distance = min(
                        _distance2(px, py, ax, ay, bx, by),
                        _distance2(px, py, bx, by, cx, cy),
                        _distance2(px, py, cx, cy, ax, ay),
                    )
                if distance < nearest[y, x]:
                    nearest[y, x] = distance
                    face[y, x] = f
                    # A sliver's plane leads far away within a texel.
                    low, high = -2.0, 3.0
                    u, v = min(max(u, low), high), min(max(v, low), high)
                    weights[y, x, 0] = u
                    weights[y, x, 1] = v
                    weights[y, x, 2] = 1 - u - v


def _as_bytes(colours: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.round(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def _fill_gutter(texture: NDArray[np.uint8], owned: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Repeat the nearest owned texel's colour everywhere else."""
    if owned.all() or not owned.any():
        return texture
    free = (~owned).astype(np.uint8)
    labels = np.asarray(cv2.distanceTransformWithLabels(free, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1], int)
    colour_of_label = np.zeros((labels.max() + 1, 3), np.uint8)
    colour_of_label[labels[owned]] = texture[owned]
    return colour_of_label[labels]
