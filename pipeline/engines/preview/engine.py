"""The preview engine: silhouettes to solids, coloured from the images. No weights, no torch, deterministic.

One view is inflated; several views are carved into a visual hull. It demonstrates the service on any machine and does
not reconstruct what no view shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import (
    ForegroundImage,
    Generation,
    GenerationOptions,
    OnStep,
    ignore_steps,
    ignored_options,
)
from pipeline.engines.preview.back_colours import invent_back_colours
from pipeline.engines.preview.colours import ProjectedViews, Projector, depth_map
from pipeline.engines.preview.hull import carve, place_silhouettes
from pipeline.engines.preview.inflate import inflate
from pipeline.engines.preview.subject_image import SubjectImage, crop_subject, have_common_frame
from pipeline.engines.registry import draft_notice
from pipeline.mesh.tri_mesh import TriMesh

NAME = "preview"
MAX_SIDE_PX = 1024
ROUND = 1.0
UNUSED = (
    "ss_guidance_strength",
    "ss_sampling_steps",
    "slat_guidance_strength",
    "slat_sampling_steps",
    "multi_image_mode",
    "view_angles",
    "splat",
)
"""Options that affect only engines that sample, or that have Gaussians."""
INVENTED = {1: "the back and the thickness are invented", 2: "the sides and the thickness are invented"}
"""What is invented, by the number of views."""
INVENTED_FROM_SEVERAL = "hollows that no silhouette shows are filled"


class PreviewEngine:
    """Turns silhouettes into solids; see the module docstring."""

    name = NAME
    is_on_accelerator = False

    def load(self) -> None:
        """Do nothing: the engine has no weights."""

    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
    ) -> Generation:
        """Inflate one view, or carve the hull of several; see `Engine.generate`.

        Raises:
            UnreadableImage: a view holds no subject, or the views have no common body.
            Cancelled: raised by `on_step`.
        """
        on_step(0.0)
        warnings = ignored_options(NAME, options, UNUSED if len(views) <= 2 else (*UNUSED, "depth"))
        is_axis_known = have_common_frame(views)
        images = [crop_subject(view, max_side_px=MAX_SIDE_PX, is_axis_known=is_axis_known) for view in views]
        on_step(0.1)
        depth = None
        if len(images) <= 2:
            depth = ROUND if options.depth is None else options.depth
            mesh, projectors = _from_front(images, options, depth=depth)
        else:
            mesh, projectors = _from_several(images, options, on_step)
        if len(images) > 1:
            warnings += (_assumption(len(images)),)
        on_step(1.0)
        return Generation(
            mesh=mesh,
            colour_source=ProjectedViews(projectors),
            engine=NAME,
            seed=options.seed,
            warnings=warnings,
            draft=draft_notice(INVENTED.get(len(images), INVENTED_FROM_SEVERAL), views=len(images)),
            depth=depth,
        )


def _from_front(
    images: Sequence[SubjectImage], options: GenerationOptions, *, depth: float
) -> tuple[TriMesh, tuple[Projector, ...]]:
    """Inflate the first view; the second, if given, colours the back, otherwise its colours are invented."""
    front = images[0]
    px_per_metre = float(max(front.alpha.shape))
    near = Projector(0.0, _as_bytes(front.colours), px_per_metre, _middle_px(front))
    if len(images) == 1:
        back_colours = invent_back_colours(front, seed=options.seed)
        far = Projector(np.pi, _as_bytes(back_colours[:, ::-1]), px_per_metre, _middle_px(front))
    else:
        back = images[1]
        scale = px_per_metre * back.alpha.shape[0] / front.alpha.shape[0]
        far = Projector(np.pi, _as_bytes(back.colours), scale, _middle_px(back))
    return inflate(front.alpha, resolution=options.resolution, depth=depth), (near, far)


def _from_several(
    images: Sequence[SubjectImage], options: GenerationOptions, on_step: OnStep
) -> tuple[TriMesh, tuple[Projector, ...]]:
    silhouettes = place_silhouettes(images, resolution=options.resolution)
    mesh = carve(
        silhouettes,
        resolution=options.resolution,
        on_progress=lambda done: on_step(0.1 + 0.8 * done),
    )
    projectors = []
    for image, silhouette in zip(images, silhouettes, strict=True):
        margin_px = (silhouette.mask.shape[1] - image.alpha.shape[1]) / 2
        origin_px = (silhouette.origin_px[0] - margin_px, silhouette.origin_px[1] - margin_px)
        camera = Projector(silhouette.azimuth_rad, _as_bytes(image.colours), silhouette.px_per_metre, origin_px)
        depths = depth_map(mesh.vertices, camera, cells=options.resolution // 2)
        projectors.append(replace(camera, depths=depths))
    return mesh, tuple(projectors)


def _middle_px(image: SubjectImage) -> tuple[float, float]:
    return image.alpha.shape[1] / 2, image.alpha.shape[0] / 2


def _as_bytes(colours: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.round(colours * 255).astype(np.uint8)


def _assumption(views: int) -> str:
    return (
        f"The preview engine assumes {views} views evenly spaced around the subject, {360 / views:g} degrees "
        "apart, counter-clockwise seen from above."
    )
