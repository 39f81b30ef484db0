"""Coloured subjects with a known inside, none of them symmetric, and their views from named sides.

The angles are those of a request: degrees that grow counter-clockwise seen from above, or "top" and "bottom".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.tri_mesh import TriMesh
from pipeline.render.mesh_view import RenderMesh, render_view
from pipeline.render.orbit import Camera, intrinsics_of
from schemas.contract import ViewAngle
from tests.reference.solids import Field, horizon_camera, length, mesh_of

Colour = tuple[int, int, int]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """A part of one colour: an ellipsoid of half-axes `size`, or a box."""

    centre: Vector
    size: Vector
    colour: Colour
    is_box: bool = False

    def field(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (..., 3) to a value that is negative inside and roughly a distance near the surface."""
        q = (p - np.array(self.centre)) / np.array(self.size)
        inflated = np.abs(q).max(axis=-1) if self.is_box else length(q, 0, 1, 2)
        return (inflated - 1) * min(self.size)


@dataclass(frozen=True)
class Subject:
    """A union of parts; the front is toward +Z."""

    parts: tuple[Part, ...]

    def field(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (..., 3) to a value that is negative inside."""
        return np.min([part.field(p) for part in self.parts], axis=0)

    def colours(self, p: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Colours of surface points: (P, 3) -> (P, 3) uint8."""
        nearest = np.argmin([part.field(p) for part in self.parts], axis=0)
        return np.array([part.colour for part in self.parts], np.uint8)[nearest]


ORANGE, WHITE, BLACK, BROWN = (220, 130, 40), (235, 230, 220), (30, 28, 30), (110, 70, 40)
BLUE, RED, SKIN, GREEN, GREY = (50, 80, 170), (190, 50, 50), (230, 190, 160), (60, 130, 70), (130, 130, 135)

SUBJECTS: dict[str, Subject] = {
    # Stands on four legs and looks to the front; the tail bends to its left, the head is lowered to its right.
    "animal": Subject(
        (
            Part((0.0, 0.0, -0.05), (0.14, 0.14, 0.3), ORANGE),
            Part((0.0, -0.06, -0.05), (0.12, 0.11, 0.26), WHITE),
            Part((-0.04, 0.18, 0.27), (0.12, 0.12, 0.11), ORANGE),
            Part((-0.05, 0.14, 0.38), (0.06, 0.05, 0.07), WHITE),
            Part((-0.05, 0.15, 0.45), (0.02, 0.02, 0.02), BLACK),
            Part((-0.12, 0.3, 0.26), (0.035, 0.06, 0.03), BLACK),
            Part((0.05, 0.3, 0.26), (0.035, 0.06, 0.03), BLACK),
            *(Part((x, -0.24, z), (0.05, 0.16, 0.05), BROWN) for x in (-0.09, 0.09) for z in (-0.25, 0.14)),
            Part((0.06, 0.12, -0.36), (0.04, 0.16, 0.05), ORANGE),
            Part((0.09, 0.26, -0.4), (0.04, 0.06, 0.04), BLACK),
        )
    ),
    # One arm raised, the other hanging, a bag on the back, feet turned to the front.
    "character": Subject(
        (
            Part((0.0, 0.0, 0.0), (0.13, 0.18, 0.09), BLUE),
            Part((0.0, 0.27, 0.01), (0.11, 0.12, 0.11), SKIN),
            Part((0.0, 0.32, -0.03), (0.12, 0.11, 0.11), BROWN),
            Part((0.0, 0.26, 0.12), (0.025, 0.03, 0.03), SKIN),
            Part((0.0, 0.04, -0.13), (0.1, 0.13, 0.08), RED),
            Part((-0.18, 0.15, 0.03), (0.04, 0.15, 0.04), BLUE),
            Part((-0.18, 0.32, 0.04), (0.045, 0.05, 0.045), SKIN),
            Part((0.17, -0.06, 0.03), (0.045, 0.16, 0.05), BLUE),
            Part((0.17, -0.23, 0.05), (0.04, 0.05, 0.045), SKIN),
            *(Part((x, -0.28, 0.0), (0.06, 0.18, 0.065), GREY) for x in (-0.07, 0.07)),
            *(Part((x, -0.44, 0.05), (0.06, 0.045, 0.12), BLACK) for x in (-0.07, 0.07)),
        )
    ),
    # A seat with a back, one armrest, and a cushion.
    "chair": Subject(
        (
            Part((0.0, -0.05, 0.0), (0.25, 0.03, 0.25), BROWN, is_box=True),
            Part((0.0, 0.2, -0.225), (0.25, 0.25, 0.03), GREEN, is_box=True),
            Part((0.0, 0.0, 0.02), (0.18, 0.03, 0.2), RED, is_box=True),
            Part((0.22, 0.1, -0.02), (0.03, 0.03, 0.2), WHITE, is_box=True),
            Part((0.22, 0.02, 0.15), (0.025, 0.08, 0.025), WHITE, is_box=True),
            *(Part((x, -0.26, z), (0.03, 0.2, 0.03), BROWN, is_box=True) for x in (-0.22, 0.22) for z in (-0.22, 0.22)),
        )
    ),
    # A car seen from its front: long in z, the cabin behind the middle, one mirror.
    "car": Subject(
        (
            Part((0.0, -0.05, 0.0), (0.19, 0.09, 0.44), RED, is_box=True),
            Part((0.0, 0.09, -0.08), (0.16, 0.08, 0.22), BLUE, is_box=True),
            Part((0.0, -0.07, 0.43), (0.14, 0.03, 0.03), WHITE, is_box=True),
            Part((0.0, 0.02, -0.42), (0.18, 0.09, 0.03), BLACK, is_box=True),
            Part((0.23, 0.06, 0.1), (0.05, 0.03, 0.03), WHITE),
            *(Part((x, -0.14, z), (0.04, 0.09, 0.09), BLACK) for x in (-0.17, 0.17) for z in (-0.27, 0.27)),
        )
    ),
    # A teapot: spout to the viewer's left, handle to the right.
    "teapot": Subject(
        (
            Part((0.0, -0.05, 0.0), (0.24, 0.2, 0.22), WHITE),
            Part((0.0, 0.17, 0.0), (0.12, 0.05, 0.11), BLUE),
            Part((0.0, 0.23, 0.0), (0.03, 0.04, 0.03), RED),
            Part((-0.28, 0.03, 0.04), (0.12, 0.06, 0.05), GREEN),
            Part((0.27, 0.05, -0.02), (0.1, 0.04, 0.035), BROWN),
            Part((0.34, -0.04, -0.02), (0.035, 0.12, 0.035), BROWN),
        )
    ),
}


@cache
def render_mesh_of(name: str, *, cells: int = 96) -> RenderMesh:
    """A subject's surface with one colour for each face."""
    subject = SUBJECTS[name]
    mesh = mesh_of(subject.field, cells=cells)
    colours, of_face = np.unique(subject.colours(mesh.corners.mean(axis=1)), axis=0, return_inverse=True)
    # Faces share no vertices, so that no colour is interpolated; each colour fills two texels for the filter.
    corners = mesh.faces.reshape(-1)
    u = (np.repeat(of_face.reshape(-1), 3) + 0.5) / len(colours)
    uvs = np.stack([u, np.full_like(u, 0.5)], axis=1).astype(np.float32)
    faces = np.arange(len(corners), dtype=np.int32).reshape(-1, 3)
    return RenderMesh(mesh.vertices[corners], faces, mesh.vertex_normals()[corners], uvs, colours[None])


def camera_at(angle: ViewAngle, *, distance: float = 12.0) -> Camera:
    """A camera that looks at the origin from an angle of a request."""
    half_side_m = 0.62
    if not isinstance(angle, str):
        return horizon_camera(math.radians(angle), distance=distance, half_side_m=half_side_m)
    # In the cameras' frame, +Z up and the front at -Y: the image's right stays +X, its lower side is the front from
    # above and the back from below.
    sign = 1.0 if angle == "top" else -1.0
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, -sign, 0], [0, 0, -sign]]
    pose[:3, 3] = [0, 0, distance]
    return Camera(pose, intrinsics_of(2 * math.atan(half_side_m / distance)))


def subject_views(
    name: str, angles: Sequence[ViewAngle], *, size: int = 256, distance: float = 12.0, is_cropped: bool = False
) -> list[NDArray[np.uint8]]:
    """Images (H, W, 4) of a subject from several angles.

    Args:
        is_cropped: each image is cropped to the subject, so that its position in the frame is lost.
    """
    views = [render_view(render_mesh_of(name), camera_at(a, distance=distance), size=size) for a in angles]
    return [crop(view) for view in views] if is_cropped else views


def crop(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image without its transparent margin."""
    rows, columns = (np.flatnonzero((view[..., 3] >= 128).any(axis=axis)) for axis in (1, 0))
    return np.ascontiguousarray(view[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def field_of(name: str) -> Field:
    """The field of a subject."""
    return SUBJECTS[name].field


def truth_mesh(name: str) -> TriMesh:
    """The surface of a subject."""
    return mesh_of(field_of(name), cells=96)
