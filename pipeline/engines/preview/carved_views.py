"""Views from several sides to a coloured body: the visual hull, with the colours of the views that see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.engines.preview.colours import ProjectedViews, Projector, depth_map
from pipeline.engines.preview.hull import carve
from pipeline.engines.preview.placement import Silhouette, place_silhouettes
from pipeline.engines.preview.subject_image import SubjectImage, as_bytes
from pipeline.engines.preview.view_direction import ViewDirection
from pipeline.mesh.tri_mesh import TriMesh


def carve_views(
    images: Sequence[SubjectImage],
    directions: Sequence[ViewDirection],
    *,
    resolution: int,
    on_progress: Callable[[float], None],
) -> tuple[TriMesh, ProjectedViews]:
    """Carve the visual hull of the views and project their colours onto it.

    Args:
        images: views of one subject, not all along one line of sight.
        directions: where each was taken from; at least one is level.
        resolution: cells along the unit cube.
        on_progress: receives the fraction done.

    Raises:
        UnreadableImage: the silhouettes have no common body.
    """
    silhouettes = place_silhouettes(images, directions, resolution=resolution)
    mesh = carve(silhouettes, resolution=resolution, on_progress=on_progress)
    cameras = [_camera(image, silhouette) for image, silhouette in zip(images, silhouettes, strict=True)]
    return mesh, ProjectedViews(
        tuple(replace(camera, depths=depth_map(mesh.vertices, camera, cells=resolution // 2)) for camera in cameras)
    )


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
