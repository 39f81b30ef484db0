"""ImageList of a textured mesh on the CPU: a z-buffer, bilinear texture, soft light from the camera. No torch.

For turntables of engines that have no field of their own, for thumbnails, and for looking at results in tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.render.orbit import Camera, intrinsics_of, look_at, orbit_cameras

FOV_RAD = math.radians(32)
SUPERSAMPLING = 2
BACKGROUND = (244, 245, 247)
AMBIENT = 0.62
NO_FACE = -1
FRAMES_AHEAD = 2


@dataclass(frozen=True, eq=False)
class ShownMesh:
    """A mesh as it is looked at.

    Attributes:
        vertices: (V, 3), +Y up, the front toward +Z.
        faces: (F, 3) int32.
        normals: (V, 3) unit vectors.
        uvs: (V, 2) in [0, 1], v downwards.
        texture: (H, W, 3) uint8 sRGB.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    normals: NDArray[np.float32]
    uvs: NDArray[np.float32]
    texture: NDArray[np.uint8]


def turntable(mesh: ShownMesh, *, frames: int, size: int) -> Iterator[NDArray[np.uint8]]:
    """The frames (size, size, 3) of one round around a mesh, the front first, on a light ground."""
    cameras = orbit_cameras(frames, radius=_distance(mesh), fov_rad=FOV_RAD, start_yaw_rad=math.pi)
    with ThreadPoolExecutor(FRAMES_AHEAD) as pool:
        waiting = []
        for camera in cameras:
            waiting.append(pool.submit(render_view, mesh, camera, size=size))
            if len(waiting) > FRAMES_AHEAD:
                yield on_ground(waiting.pop(0).result())
        for picture in waiting:
            yield on_ground(picture.result())


def thumbnail(mesh: ShownMesh, *, size: int) -> NDArray[np.uint8]:
    """A picture (size, size, 4) RGBA from the front, a little from above and from the side."""
    yaw, pitch, radius = math.pi + math.radians(25), math.radians(15), _distance(mesh)
    eye = radius * np.array([math.sin(yaw) * math.cos(pitch), math.cos(yaw) * math.cos(pitch), math.sin(pitch)])
    return render_view(mesh, Camera(look_at(eye, np.zeros(3)), intrinsics_of(FOV_RAD)), size=size)


def front_camera(*, half_side_m: float = 0.5) -> Camera:
    """A camera so far in front that its rays are all but parallel; shows ±`half_side_m` around the origin."""
    far = 1e4 * half_side_m
    return Camera(look_at(np.array([0.0, -far, 0.0]), np.zeros(3)), intrinsics_of(2 * math.atan(half_side_m / far)))


def render_view(
    mesh: ShownMesh, camera: Camera, *, size: int, supersampling: int = SUPERSAMPLING, is_lit: bool = True
) -> NDArray[np.uint8]:
    """One picture of a mesh.

    Args:
        camera: in the frame of `pipeline.render.orbit`, +Z up.
        size: side of the picture in pixels.
        supersampling: rays along each side of a pixel.
        is_lit: shade by the normals; else the texture as it is.

    Returns:
        (size, size, 4) uint8 RGBA, straight alpha.
    """
    side = size * supersampling
    pose = camera.world_to_camera
    seen = _to_z_up(mesh.vertices) @ pose[:3, :3].T + pose[:3, 3]
    toward = -(_to_z_up(mesh.normals) @ pose[2, :3])  # how far normals point at the viewer
    depth = np.maximum(seen[:, 2], 1e-6)
    focal, centre = camera.intrinsics[0, 0] * side, camera.intrinsics[0, 2] * side
    screen = np.stack([seen[:, 0] / depth * focal + centre, seen[:, 1] / depth * focal + centre, 1 / depth], axis=1)
    light = AMBIENT + (1 - AMBIENT) * np.clip(toward, 0, 1) if is_lit else np.ones(len(toward))
    face = np.full((side, side), NO_FACE, np.int32)
    nearness = np.zeros((side, side))
    _find_faces(screen, mesh.faces, face, nearness)
    picture = np.zeros((side, side, 4), np.float32)
    _shade(screen, mesh.faces, face, light, mesh.uvs.astype(np.float64), mesh.texture, picture)
    if supersampling > 1:
        picture = np.asarray(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA), np.float32)
    alpha = picture[..., 3:]
    colours = picture[..., :3] / np.maximum(alpha, 1e-6)
    return np.round(np.clip(np.concatenate([colours, alpha * 255], axis=2), 0, 255)).astype(np.uint8)


def on_ground(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 4) laid on a light ground: (H, W, 3)."""
    alpha = picture[..., 3:].astype(np.float32) / 255
    mixed = picture[..., :3] * alpha + np.array(BACKGROUND, np.float32) * (1 - alpha)
    return np.round(mixed).astype(np.uint8)


def _distance(mesh: ShownMesh) -> float:
    """How far a camera must stand to see all of a mesh from all sides."""
    reach = float(np.linalg.norm(mesh.vertices, axis=1).max()) if len(mesh.vertices) else 1.0
    return 1.04 * reach / math.sin(FOV_RAD / 2)


def _to_z_up(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """From +Y up and front +Z to +Z up and front -Y."""
    return np.stack([vectors[:, 0], -vectors[:, 2], vectors[:, 1]], axis=1).astype(np.float64)


@njit(cache=True, nogil=True)
def _find_faces(screen, faces, face, nearness):  # type: ignore[no-untyped-def]
    """Which face is nearest at each pixel.

    Args:
        screen: (V, 3) column, row, and one over the depth.
        faces: (F, 3)
        face: (H, W), filled with numbers of faces.
        nearness: (H, W), filled with one over the depth.
    """
    height, width = face.shape
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, aw = screen[a, 0], screen[a, 1], screen[a, 2]
        bx, by, bw = screen[b, 0], screen[b, 1], screen[b, 2]
        cx, cy, cw = screen[c, 0], screen[c, 1], screen[c, 2]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= 0:  # rows grow downwards, so what faces the viewer runs the other way round
            continue
        left = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        right = min(int(np.floor(max(ax, bx, cx) - 0.5)), width - 1)
        top = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        bottom = min(int(np.floor(max(ay, by, cy) - 0.5)), height - 1)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                px, py = x + 0.5, y + 0.5
                u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                w = 1 - u - v
                if u >= 0 and v >= 0 and w >= 0:
                    near = u * aw + v * bw + w * cw
                    if near > nearness[y, x]:
                        nearness[y, x] = near
                        face[y, x] = f


@njit(cache=True, nogil=True)
def _shade(screen, faces, face, light, uvs, texture, picture):  # type: ignore[no-untyped-def]
    """Colours (H, W, 4), premultiplied, of the pixels that have a face."""
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
            u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area * screen[a, 2]
            v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area * screen[b, 2]
            w = ((ax - px) * (by - py) - (ay - py) * (bx - px)) / area * screen[c, 2]
            total = u + v + w
            u, v, w = u / total, v / total, w / total
            brightness = u * light[a] + v * light[b] + w * light[c]
            tx = min(max((u * uvs[a, 0] + v * uvs[b, 0] + w * uvs[c, 0]) * columns - 0.5, 0.0), columns - 1.0)
            ty = min(max((u * uvs[a, 1] + v * uvs[b, 1] + w * uvs[c, 1]) * rows - 0.5, 0.0), rows - 1.0)
            x0, y0 = int(tx), int(ty)
            x1, y1 = min(x0 + 1, columns - 1), min(y0 + 1, rows - 1)
            fx, fy = tx - x0, ty - y0
            for k in range(3):
                upper = texture[y0, x0, k] * (1 - fx) + texture[y0, x1, k] * fx
                lower = texture[y1, x0, k] * (1 - fx) + texture[y1, x1, k] * fx
                picture[y, x, k] = (upper * (1 - fy) + lower * fy) * brightness
            picture[y, x, 3] = 1.0
