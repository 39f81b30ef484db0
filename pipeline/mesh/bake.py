"""Bakes the attributes of a surface into a material, or its colours into vertices. Knows nothing of their source.

Every texel that a chart covers, or that bilinear filtering reads next to one, gets the attributes of the surface there,
all of them in one pass. All other texels repeat the nearest baked one (dilation), so that no background bleeds in at
seams or in mipmaps; so do the colours of texels without any alpha, which no one sees but the filter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.kernels import kernel, pixel_range
from pipeline.mesh.material import METALLIC, ROUGHNESS, Material, SurfaceAttributes, alpha_mode_of
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import UnwrappedMesh

AttributesAt = Callable[[NDArray[np.float32], NDArray[np.float32]], SurfaceAttributes]
"""Points (P, 3) and unit normals (P, 3) to their attributes."""
NormalsAt = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
"""Points (P, 3) and unit normals (P, 3) to the unit normals (P, 3) of a finer surface there."""

NO_FACE = -1
REACH_TEXELS = 1.5
"""Distance from a chart up to which texels are baked: bilinear filtering inside it reads texel centres up to sqrt(2)
away."""
MIN_WEIGHT, MAX_WEIGHT = -2.0, 3.0
"""Bounds of extrapolated barycentric weights: across a sliver's short side they grow without limit within a texel."""
TILE = 16
"""Side of the tiles in whose order texels are baked, in texels."""
LEAST_NORMAL_Z = 0.05
"""A baked normal stays on the outer side of the simplified surface, or light would come through it."""


class Detail(NamedTuple):
    """What a normal map is baked of.

    Attributes:
        normals_at: returns the normals of the finer surface.
        tangents: (V, 4), see `pipeline.mesh.tangents`, of the unwrapped mesh.
    """

    normals_at: NormalsAt
    tangents: NDArray[np.float32]


def bake(
    unwrapped: UnwrappedMesh,
    normals: NDArray[np.float32],
    attributes_at: AttributesAt,
    *,
    texture_size: int,
    chunk_size: int,
    detail: Detail | None = None,
    on_share: Callable[[float], None] = lambda share: None,
) -> Material:
    """Bake the material of an unwrapped mesh.

    Args:
        unwrapped: (V, 3) vertices, (F, 3) faces and (V, 2) texture coordinates.
        normals: (V, 3) unit normals of its vertices.
        attributes_at: returns the attributes of surface points.
        texture_size: S, side of the images in texels.
        chunk_size: most points per call of `attributes_at`; it bounds the memory and does not change the images.
        detail: gives the material a normal map.
        on_share: called between chunks with the completed share, 0 to 1.
    """
    face, weights = own_texels(unwrapped, texture_size=texture_size)
    owned = face != NO_FACE
    images: dict[str, NDArray[np.uint8]] = {}
    texels = _by_tiles(owned)
    for start in range(0, len(texels), chunk_size):
        chunk = texels[start : start + chunk_size]
        corners = unwrapped.faces.take(face.take(chunk), axis=0)  # (P, 3)
        shares = weights.reshape(-1, 3).take(chunk, axis=0)
        points = _mean(unwrapped.vertices, corners, shares)
        directions = _unit(_mean(normals, corners, shares))
        attributes = _as_bytes(attributes_at(points, directions))
        if detail is not None:
            tangents = _mean(detail.tangents, corners, shares)
            attributes["normal"] = _in_tangent_space(detail.normals_at(points, directions), directions, tangents)
        for name, values in attributes.items():
            image = images.setdefault(name, np.zeros((texture_size, texture_size, values.shape[1]), np.uint8))
            image.reshape(-1, values.shape[1])[chunk] = values
        on_share(min(1.0, (start + chunk_size) / len(texels)))
    return _material_of(images, owned)


def colour_vertices(
    mesh: TriMesh, normals: NDArray[np.float32], attributes_at: AttributesAt, *, chunk_size: int
) -> NDArray[np.uint8]:
    """Colours of a mesh's vertices.

    Args:
        mesh: (V, 3) vertices.
        normals: (V, 3) unit normals.
        attributes_at: returns the attributes of surface points.
        chunk_size: most points per call of `attributes_at`; it does not change the colours.

    Returns:
        (V, 3) uint8 sRGB, or (V, 4) with alpha if the source has it.
    """
    parts = []
    for start in range(0, len(mesh.vertices), chunk_size):
        chunk = slice(start, start + chunk_size)
        attributes = _as_bytes(attributes_at(mesh.vertices[chunk].astype(np.float32), normals[chunk]))
        parts.append(np.column_stack([attributes[name] for name in ("base_colour", "alpha") if name in attributes]))
    return np.concatenate(parts) if parts else np.zeros((0, 3), np.uint8)


def _material_of(images: dict[str, NDArray[np.uint8]], owned: NDArray[np.bool_]) -> Material:
    """Fill the free texels of images, (S, S, C) by name, and leave out those that say nothing."""
    if not images:  # no face covers a texel
        return Material(np.zeros((*owned.shape, 3), np.uint8))
    alpha = images.get("alpha")
    mode = "OPAQUE" if alpha is None else alpha_mode_of(alpha[owned][:, 0] / 255)
    base_colour = images["base_colour"]
    if alpha is None or mode == "OPAQUE":
        base_colour = _dilate(base_colour, owned)
    else:
        base_colour = np.dstack([_dilate(base_colour, owned & (alpha[..., 0] > 0)), _dilate(alpha, owned)])
    factors, both = {"metallic": METALLIC, "roughness": ROUGHNESS}, []
    for name, default in factors.items():
        image = images.get(name, np.full((*owned.shape, 1), round(default * 255), np.uint8))
        both.append(image)
        if name in images:
            factors[name] = float(image[owned].mean()) / 255
    is_uniform = all(np.ptp(image[owned]) <= 1 for image in both)
    return Material(
        base_colour,
        mode,
        None if is_uniform else _dilate(np.dstack(both), owned),
        **factors,
        normal=_dilate(images["normal"], owned) if "normal" in images else None,
    )


def _in_tangent_space(
    detailed: NDArray[np.float32], normals: NDArray[np.float32], tangents: NDArray[np.floating]
) -> NDArray[np.uint8]:
    """Normals (P, 3) in the frame of interpolated normals (P, 3) and tangents (P, 4), as bytes (P, 3).

    The bitangent is cross(normal, tangent) * w, as glTF defines it.
    """
    along = _unit(tangents[:, :3] - normals * (tangents[:, :3] * normals).sum(axis=1, keepdims=True))
    across = np.cross(normals, along) * np.sign(tangents[:, 3:])
    local = np.stack([(detailed * axis).sum(axis=1) for axis in (along, across, normals)], axis=1)
    local[:, 2] = np.maximum(local[:, 2], LEAST_NORMAL_Z)
    return _rounded(0.5 + 0.5 * _unit(local))


def own_texels(unwrapped: UnwrappedMesh, *, texture_size: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Assign every texel to a face and compute the barycentric weights of its centre.

    A texel whose centre no face covers is assigned to the nearest face within `REACH_TEXELS`; its weights then lie
    outside [0, 1] and extrapolate in the face's plane.

    Args:
        unwrapped: (F, 3) faces and (V, 2) texture coordinates.
        texture_size: S, side of the texture in texels.

    Returns:
        (S, S) int32 faces or `NO_FACE`, and (S, S, 3) float32 weights of the faces' corners, which sum to 1.
    """
    corners = unwrapped.uvs[unwrapped.faces].astype(np.float64) * texture_size  # (F, 3, 2) in texels
    face = np.full((texture_size, texture_size), NO_FACE, np.int32)
    weights = np.zeros((texture_size, texture_size, 3), np.float32)
    nearest = np.full((texture_size, texture_size), REACH_TEXELS**2, np.float32)  # farther faces never win
    _rasterise(corners, face, weights, nearest, REACH_TEXELS)
    return face, weights


@kernel
def _distance2(px: float, py: float, ax: float, ay: float, bx: float, by: float) -> float:
    """Squared distance of the point p from the segment a b."""
    ex, ey = bx - ax, by - ay
    length2 = ex * ex + ey * ey
    t = 0.0
    if length2 > 0:
        t = min(max(((px - ax) * ex + (py - ay) * ey) / length2, 0.0), 1.0)
    dx, dy = px - ax - t * ex, py - ay - t * ey
    return dx * dx + dy * dy


@kernel
def _rasterise(
    corners: NDArray[np.float64],  # (F, 3, 2) texels
    face: NDArray[np.int32],  # (S, S) written
    weights: NDArray[np.float32],  # (S, S, 3) written
    nearest: NDArray[np.float32],  # (S, S) squared texels, written; holds the largest squared distance accepted
    reach: float,
) -> None:
    """Assign texels to faces; see `own_texels`."""
    # Invariant: `face` and `weights` belong to the nearest face so far, the first of equally near ones. `nearest` is
    # its squared distance, or -1 if it covers the texel's centre.
    size = face.shape[0]
    for f in range(len(corners)):
        ax, ay = corners[f, 0, 0], corners[f, 0, 1]
        bx, by = corners[f, 1, 0], corners[f, 1, 1]
        cx, cy = corners[f, 2, 0], corners[f, 2, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        left, right = pixel_range(ax, bx, cx, reach, size)
        top, bottom = pixel_range(ay, by, cy, reach, size)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                if nearest[y, x] < 0:  # covered: the atlas has no overlaps, so no other face covers it too
                    continue
                px, py = x + 0.5, y + 0.5
                if area != 0:
                    u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                    v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                else:  # a face without area has no barycentric coordinates: use its centroid
                    u, v = 1 / 3, 1 / 3
                w = 1 - u - v
                if area != 0 and u >= 0 and v >= 0 and w >= 0:
                    distance = -1.0  # covered: nearer than any face that does not cover it
                else:
                    distance = _distance2(px, py, ax, ay, bx, by)
                    distance = min(distance, _distance2(px, py, bx, by, cx, cy))
                    distance = min(distance, _distance2(px, py, cx, cy, ax, ay))
                if distance < nearest[y, x]:
                    nearest[y, x] = distance
                    face[y, x] = f
                    u, v = min(max(u, MIN_WEIGHT), MAX_WEIGHT), min(max(v, MIN_WEIGHT), MAX_WEIGHT)
                    weights[y, x, 0] = u
                    weights[y, x, 1] = v
                    weights[y, x, 2] = 1 - u - v


def _as_bytes(attributes: SurfaceAttributes) -> dict[str, NDArray[np.uint8]]:
    """The attributes that there are, by name: (P, C) uint8 each."""
    values = {name: getattr(attributes, name) for name in ("base_colour", "alpha", "metallic", "roughness")}
    return {name: _rounded(each.reshape(len(each), -1)) for name, each in values.items() if each is not None}


def _rounded(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Round values in [0, 1] to 8 bits."""
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _by_tiles(owned: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Flat indices of the texels that are owned, (S, S) -> (P,), tile by tile.

    Points that follow each other then lie close to each other, and what a source reads for them stays in the cache.
    """
    texels = np.flatnonzero(owned)
    row, column = texels // owned.shape[1], texels % owned.shape[1]
    tile = row // TILE * -(-owned.shape[1] // TILE) + column // TILE
    return texels[np.argsort(tile.astype(np.uint16), kind="stable")]  # 16 bits sort in linear time


def _mean(
    values: NDArray[np.floating], corners: NDArray[np.integer], shares: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Values (V, C) at corners (P, 3), interpolated by their shares (P, 3): (P, C)."""
    first, second, third = (values.take(corners[:, k], axis=0) * shares[:, k, None] for k in range(3))
    return (first + second + third).astype(np.float32)


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Vectors of length 1: (P, 3) -> (P, 3)."""
    return vectors / np.maximum(np.sqrt((vectors**2).sum(axis=1, keepdims=True)), 1e-12)


def _dilate(image: NDArray[np.uint8], owned: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Fill all texels that are not owned, (S, S), with the values of the nearest owned one: (S, S, C) -> (S, S, C)."""
    if owned.all() or not owned.any():
        return image
    free = (~owned).astype(np.uint8)
    # The label of a texel names the nearest owned texel. Mask size 5 approximates the Euclidean distance within 2 %.
    labels = np.asarray(cv2.distanceTransformWithLabels(free, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1], int)
    value_of_label = np.zeros((labels.max() + 1, image.shape[2]), np.uint8)
    value_of_label[labels[owned]] = image[owned]
    return value_of_label[labels]
