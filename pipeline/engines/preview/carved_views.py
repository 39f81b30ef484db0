"""Views from several sides to a coloured body: the visual hull, with the colours of the views that see it.

A side that no view shows has the silhouette of the opposite one, mirrored. Its colours are taken from there too: most
subjects are symmetric, so the mirrored image of one flank is the likeliest image of the other. A front has features
that its back does not have, such as a face, so that side's colours are invented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.preview.colours import ProjectedViews, Projector, depth_map
from pipeline.engines.preview.hull import carve
from pipeline.engines.preview.placement import Silhouette, place_silhouettes
from pipeline.engines.preview.subject_image import SubjectImage, as_bytes
from pipeline.engines.preview.view_direction import ViewDirection
from pipeline.mesh.tri_mesh import TriMesh

SHARPNESS = 24
"""High enough that a feature on a border of two views, such as a nose, is not seen twice."""
WELL_SEEN_RAD = np.deg2rad(60)
"""A side with a view within this angle needs no invented one."""
INVENTED_WEIGHT = 0.02
"""Weight of an invented side beside a view: it colours what views see at a grazing angle or not at all."""


def carve_views(
    images: Sequence[SubjectImage],
    directions: Sequence[ViewDirection],
    *,
    resolution: int,
    invent_back: Callable[[SubjectImage], NDArray[np.float32]],
    on_progress: Callable[[float], None],
) -> tuple[TriMesh, ProjectedViews]:
    """Carve the visual hull of the views and project their colours onto it.

    Args:
        images: views of one subject, not all along one line of sight.
        directions: where each was taken from; at least one is level.
        resolution: cells along the unit cube.
        invent_back: returns the colours (H, W, 3) of the back of an image, seen through the front.
        on_progress: receives the fraction done.

    Raises:
        UnreadableImage: the silhouettes have no common body.
    """
    silhouettes = place_silhouettes(images, directions, resolution=resolution)
    mesh = carve(silhouettes, resolution=resolution, on_progress=on_progress)
    cameras = [_camera(image, silhouette) for image, silhouette in zip(images, silhouettes, strict=True)]
    cameras += _opposite_sides(images, cameras, invent_back)
    return mesh, ProjectedViews(
        tuple(replace(camera, depths=depth_map(mesh.vertices, camera, cells=resolution // 2)) for camera in cameras),
        sharpness=SHARPNESS,
    )


def _opposite_sides(
    images: Sequence[SubjectImage],
    cameras: Sequence[Projector],
    invent_back: Callable[[SubjectImage], NDArray[np.float32]],
) -> list[Projector]:
    """Return projectors for the level sides that no view shows, opposite to views."""
    level = [(image, camera) for image, camera in zip(images, cameras, strict=True) if camera.elevation_rad == 0]
    azimuths = np.array([camera.azimuth_rad for _, camera in level])
    sides = []
    for image, camera in level:
        opposite = camera.azimuth_rad + np.pi
        if np.cos(azimuths - opposite).max() > np.cos(WELL_SEEN_RAD):
            continue
        is_front = np.cos(camera.azimuth_rad) > np.sqrt(0.5)
        colours = as_bytes(invent_back(image)) if is_front else camera.colours
        width = image.alpha.shape[1]
        sides.append(
            replace(
                camera,
                azimuth_rad=opposite,
                colours=np.ascontiguousarray(colours[:, ::-1]),
                origin_px=(width - camera.origin_px[0], camera.origin_px[1]),
                weight=INVENTED_WEIGHT,
            )
        )
    return sides


def _camera(image: SubjectImage, silhouette: Silhouette) -> Projector:
    """Return the projector of an image, whose silhouette has a margin around it."""
    margin_px = (silhouette.mask.shape[1] - image.alpha.shape[1]) / 2
    return Projector(
        silhouette.direction.azimuth_rad,
        as_bytes(image.colours),
        silhouette.px_per_metre,
        (silhouette.origin_px[0] - margin_px, silhouette.origin_px[1] - margin_px),
        elevation_rad=silhouette.direction.elevation_rad,
    )
