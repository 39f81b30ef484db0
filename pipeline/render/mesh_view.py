"""Renders a textured mesh on the CPU: z-buffer, bilinear texture filtering, a light at the camera. No torch, no files.

For the turntables of engines without a renderer of their own, for thumbnails, and for tests that look at results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.kernels import is_on_disk, kernel, pixel_range
from pipeline.render.orbit import Camera, intrinsics_of, look_at, orbit_cameras

FOV_RAD = math.radians(32)
SUPERSAMPLING = 2
"""Samples along each side of a pixel."""
BACKGROUND = (244, 245, 247)
AMBIENT = 0.62
"""Brightness of a surface that is seen edge-on; one that faces the camera has 1."""
NO_FACE = -1
SCREEN_DOOR = np.array([[0.125, 0.625], [0.875, 0.375]])
"""Least alpha with which a surface covers each sample of a pixel: transparency without sorting, in five levels."""
FRAMES_AHEAD = 2
"""Frames rendered in threads while one is encoded: each holds a supersampled image."""
MIN_DEPTH_M = 1e-6
FRAMING_MARGIN = 1.04
"""The camera's distance relative to the nearest one that shows the whole mesh."""


@dataclass(frozen=True, eq=False)
class RenderMesh:
    """A mesh with all that is needed to render it.

    Attributes:
        vertices: (V, 3), +Y up, the front toward +Z.
        faces: (F, 3) int32.
        normals: (V, 3) unit vectors.
        uvs: (V, 2) in [0, 1], v downwards.
        texture: (H, W, 3) uint8 sRGB, or (H, W, 4) with alpha.
        is_double_sided: whether faces are seen and lit on both sides.
        alpha_cutoff: texels with less alpha are holes; None shows alpha as transparency.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    normals: NDArray[np.float32]
    uvs: NDArray[np.float32]
    texture: NDArray[np.uint8]
    is_double_sided: bool = False
    alpha_cutoff: float | None = None


def turntable(mesh: RenderMesh, *, frames: int, size: int) -> Iterator[NDArray[np.uint8]]:
    """Frames (size, size, 3) uint8 of one orbit around a mesh, front first, over the background colour."""
    cameras = orbit_cameras(frames, radius=_distance(mesh), fov_rad=FOV_RAD, start_yaw_rad=math.pi)
    with ThreadPoolExecutor(FRAMES_AHEAD) as pool:
        waiting = []
        for camera in cameras:
            waiting.append(pool.submit(render_view, mesh, camera, size=size))
            if len(waiting) > FRAMES_AHEAD:
                yield over_background(waiting.pop(0).result())
        for image in waiting:
            yield over_background(image.result())


def thumbnail(mesh: RenderMesh, *, size: int) -> NDArray[np.uint8]:
    """Image (size, size, 4) uint8 RGBA of a mesh's front, from 25 degrees to the side and 15 degrees above."""
    yaw, pitch, radius = math.pi + math.radians(25), math.radians(15), _distance(mesh)
    eye = radius * np.array([math.sin(yaw) * math.cos(pitch), math.cos(yaw) * math.cos(pitch), math.sin(pitch)])
    return render_view(mesh, Camera(look_at(eye, np.zeros(3)), intrinsics_of(FOV_RAD)), size=size)


def is_compiled() -> bool:
    """Whether this machine has compiled the last kernel of a thumbnail, perhaps of an earlier version."""
    return is_on_disk(_shade)


def render_view(mesh: RenderMesh, camera: Camera, *, size: int) -> NDArray[np.uint8]:
    """Render one image of a mesh.

    Args:
        mesh: (V, 3) vertices, (F, 3) faces, with normals and texture.
        camera: in the frame of `pipeline.render.orbit`, +Z up; the whole mesh lies in front of it.
        size: side of the image in pixels.

    Returns:
        (size, size, 4) uint8 RGBA, straight alpha.
    """
    side = size * SUPERSAMPLING
    pose = camera.world_to_camera
    seen = _to_z_up(mesh.vertices) @ pose[:3, :3].T + pose[:3, 3]  # (V, 3) in the camera's frame
    facing = -(_to_z_up(mesh.normals) @ pose[2, :3])  # (V,) cosine between normal and viewing direction
    depth = np.maximum(seen[:, 2], MIN_DEPTH_M)
    focal, centre = camera.intrinsics[0, 0] * side, camera.intrinsics[0, 2] * side
    # Column, row and inverse depth: inverse depth is linear on the screen, depth is not.
    screen = np.stack([seen[:, 0] / depth * focal + centre, seen[:, 1] / depth * focal + centre, 1 / depth], axis=1)
    light = AMBIENT + (1 - AMBIENT) * (np.abs(facing) if mesh.is_double_sided else np.clip(facing, 0, 1))
    face = np.full((side, side), NO_FACE, np.int32)
    inverse_depth = np.zeros((side, side))
    uvs = mesh.uvs.astype(np.float64)
    has_alpha = mesh.texture.shape[2] == 4
    alpha = np.ascontiguousarray(mesh.texture[..., 3]) if has_alpha else np.zeros((0, 0), np.uint8)
    least = SCREEN_DOOR if mesh.alpha_cutoff is None else np.full_like(SCREEN_DOOR, mesh.alpha_cutoff)
    _find_faces(screen, mesh.faces, mesh.is_double_sided, uvs, alpha, 255 * least, face, inverse_depth)
    samples = np.zeros((side, side, 4), np.float32)
    _shade(screen, mesh.faces, face, light, uvs, mesh.texture, samples)
    # Area filtering needs premultiplied colours, or the black of empty samples would darken the silhouette.
    image = np.asarray(cv2.resize(samples, (size, size), interpolation=cv2.INTER_AREA), np.float32)
    alpha = image[..., 3:]
    colours = image[..., :3] / np.maximum(alpha, 1e-6)
    return np.round(np.clip(np.concatenate([colours, alpha * 255], axis=2), 0, 255)).astype(np.uint8)


def over_background(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image composited over the background colour: (H, W, 4) straight alpha -> (H, W, 3)."""
    alpha = image[..., 3:].astype(np.float32) / 255
    mixed = image[..., :3] * alpha + np.array(BACKGROUND, np.float32) * (1 - alpha)
    return np.round(mixed).astype(np.uint8)


def _distance(mesh: RenderMesh) -> float:
    """Distance from the origin, metres, at which a camera sees the whole mesh from every side."""
    reach = float(np.linalg.norm(mesh.vertices, axis=1).max()) if len(mesh.vertices) else 1.0
    return FRAMING_MARGIN * reach / math.sin(FOV_RAD / 2)


def _to_z_up(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """From +Y up, front +Z to +Z up, front -Y: (N, 3) -> (N, 3)."""
    return np.stack([vectors[:, 0], -vectors[:, 2], vectors[:, 1]], axis=1).astype(np.float64)


# Kernels release the GIL, so that the frames of a turntable render in parallel.


@kernel
def _find_faces(
    screen: NDArray[np.float64],  # (V, 3) column, row, inverse depth
    faces: NDArray[np.int32],  # (F, 3)
    is_double_sided: bool,
    uvs: NDArray[np.float64],  # (V, 2)
    alpha: NDArray[np.uint8],  # (R, C); empty if the surface is opaque
    least_alpha: NDArray[np.float64],  # (2, 2) by the sample's row and column
    face: NDArray[np.int32],  # (H, W) written
    inverse_depth: NDArray[np.float64],  # (H, W) written; zeros at first
) -> None:
    """Find the nearest face at each pixel's centre."""
    # Invariant: `face` is the nearest face so far, the first of equally near ones, and `inverse_depth` belongs to it.
    height, width = face.shape
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, aw = screen[a, 0], screen[a, 1], screen[a, 2]
        bx, by, bw = screen[b, 0], screen[b, 1], screen[b, 2]
        cx, cy, cw = screen[c, 0], screen[c, 1], screen[c, 2]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        # Rows grow downwards, so a front face is clockwise and has a negative area.
        if area == 0 or (area > 0 and not is_double_sided):
            continue
        left, right = pixel_range(ax, bx, cx, 0.0, width)
        top, bottom = pixel_range(ay, by, cy, 0.0, height)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                px, py = x + 0.5, y + 0.5
                u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                w = 1 - u - v
                if u >= 0 and v >= 0 and w >= 0:
                    near = u * aw + v * bw + w * cw
                    if near > inverse_depth[y, x]:
                        if alpha.size > 0:
                            pu = (u * aw * uvs[a, 0] + v * bw * uvs[b, 0] + w * cw * uvs[c, 0]) / near
                            pv = (u * aw * uvs[a, 1] + v * bw * uvs[b, 1] + w * cw * uvs[c, 1]) / near
                            row = min(max(int(pv * alpha.shape[0]), 0), alpha.shape[0] - 1)
                            column = min(max(int(pu * alpha.shape[1]), 0), alpha.shape[1] - 1)
                            if alpha[row, column] < least_alpha[y % 2, x % 2]:
                                continue
                        inverse_depth[y, x] = near
                        face[y, x] = f


@kernel
def _shade(
    screen: NDArray[np.float64],  # (V, 3) column, row, inverse depth
    faces: NDArray[np.int32],  # (F, 3)
    face: NDArray[np.int32],  # (H, W)
    light: NDArray[np.float64],  # (V,) brightness
    uvs: NDArray[np.float64],  # (V, 2)
    texture: NDArray[np.uint8],  # (R, C, 3)
    image: NDArray[np.float32],  # (H, W, 4) written: premultiplied colour 0 to 255, alpha 0 or 1
) -> None:
    """Shade the pixels that have a face."""
    height, width = face.shape
    rows, columns = texture.shape[0], texture.shape[1]
    for y in range(height):
        for x in range(width):
            f = face[y, x]
            if f < 0:
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            px, py = x + 0.5, y + 0.5
            ax, ay, bx, by, cx, cy = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
            area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            # Perspective-correct interpolation: screen-space weights times inverse depth, normalised to sum to 1.
            u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area * screen[a, 2]
            v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area * screen[b, 2]
            w = ((ax - px) * (by - py) - (ay - py) * (bx - px)) / area * screen[c, 2]
            total = u + v + w
            u, v, w = u / total, v / total, w / total
            brightness = u * light[a] + v * light[b] + w * light[c]
            # Bilinear filter with clamped edges; texel centres lie at k + 0.5.
            tx = min(max((u * uvs[a, 0] + v * uvs[b, 0] + w * uvs[c, 0]) * columns - 0.5, 0.0), columns - 1.0)
            ty = min(max((u * uvs[a, 1] + v * uvs[b, 1] + w * uvs[c, 1]) * rows - 0.5, 0.0), rows - 1.0)
            x0, y0 = int(tx), int(ty)
            x1, y1 = min(x0 + 1, columns - 1), min(y0 + 1, rows - 1)
            fx, fy = tx - x0, ty - y0
            for k in range(3):
                upper = texture[y0, x0, k] * (1 - fx) + texture[y0, x1, k] * fx
                lower = texture[y1, x0, k] * (1 - fx) + texture[y1, x1, k] * fx
                image[y, x, k] = (upper * (1 - fy) + lower * fy) * brightness
            image[y, x, 3] = 1.0
