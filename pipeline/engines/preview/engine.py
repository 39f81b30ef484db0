"""The preview engine: silhouettes to solids, coloured from the images. No weights, no torch, deterministic.

One view is inflated, with or without a view of its back; views from several sides are carved into a visual hull. It
demonstrates the service on any machine and does not reconstruct what no view shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from pipeline.engines.base import (
    ColourSource,
    ForegroundImage,
    Generation,
    GenerationOptions,
    OnStep,
    ignore_steps,
    ignored_options,
)
from pipeline.engines.preview.arrangement import Arrangement, arrange_views
from pipeline.engines.preview.back_colours import invent_back_colours
from pipeline.engines.preview.carved_views import carve_views
from pipeline.engines.preview.colours import ProjectedViews, Projector, TurnedColours
from pipeline.engines.preview.contour import measure_contour
from pipeline.engines.preview.front_parts import find_front_parts
from pipeline.engines.preview.inflate import inflate
from pipeline.engines.preview.subject_image import SubjectImage, as_bytes
from pipeline.engines.preview.view_direction import ViewDirection
from pipeline.engines.registry import draft_notice, find_spec
from pipeline.mesh.tri_mesh import TriMesh

NAME = "preview"
MAX_SIDE_PX = 1024
NEARLY_PARALLEL_RAD = np.deg2rad(20)
"""Views closer to one line of sight bound no body: their hull is a long lens."""
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
            InvalidRequest: `view_angles` do not fit the views.
            UnreadableImage: a view holds no subject, or the views have no common body.
            Cancelled: raised by `on_step`.
        """
        on_step(0.0)
        arrangement = arrange_views(views, options.view_angles, max_side_px=MAX_SIDE_PX)
        on_step(0.1)
        pair = _front_and_back(arrangement)
        resolution = round(options.resolution * (options.foreground_ratio or 1))  # the grid spans the frame
        ignored = find_spec(NAME).ignores if pair else (*find_spec(NAME).ignores, "depth")
        warnings = (*ignored_options(NAME, options, ignored), *arrangement.warnings)
        depth = None
        if pair:
            front = arrangement.images[pair[0]]
            shape = measure_contour(front.alpha)
            depth = round(shape.depth, 2) if options.depth is None else options.depth
            mesh = inflate(
                front.alpha,
                resolution=resolution,
                depth=depth,
                is_symmetric=shape.is_symmetric,
                front_parts=find_front_parts(front.colours, front.alpha),
            )
            projected = ProjectedViews(_two_sided([arrangement.images[k] for k in pair], seed=options.seed))
            mesh, source = _turned(mesh, projected, arrangement.directions[pair[0]])
        else:
            mesh, source = carve_views(
                arrangement.images,
                arrangement.directions,
                resolution=resolution,
                invent_back=partial(invent_back_colours, seed=options.seed),
                on_progress=lambda done: on_step(0.1 + 0.8 * done),
            )
        if pair and len(pair) < len(views):
            warnings += (
                f"{len(views) - len(pair)} of {len(views)} views are not used: others are from the same side.",
            )
        on_step(1.0)
        is_arranged = len(views) > 1 or options.view_angles is not None
        return Generation(
            mesh=mesh,
            attribute_source=source,
            engine=NAME,
            seed=options.seed,
            warnings=warnings,
            draft=draft_notice(INVENTED[len(pair)] if pair else INVENTED_FROM_SEVERAL, views=len(views)),
            depth=depth,
            view_angles=arrangement.angles if is_arranged else None,
            view_angles_confidence=arrangement.confidence,
        )


def _front_and_back(arrangement: Arrangement) -> tuple[int, ...]:
    """Return which views to inflate, because all look along nearly one line: the front, and the back if there is one.

    Empty if the views differ enough to carve a body.
    """
    directions = arrangement.directions
    if len(directions) > 1 and not all(direction.is_level for direction in directions):
        return ()
    azimuths = [direction.azimuth_rad for direction in directions]
    front = int(np.argmax(np.cos(azimuths)))
    turned = np.array(azimuths) - azimuths[front]
    if np.abs(np.sin(turned)).max() > np.sin(NEARLY_PARALLEL_RAD):
        return ()
    back = int(np.argmin(np.cos(turned)))
    return (front, back) if np.cos(turned[back]) < 0 else (front,)


def _turned(mesh: TriMesh, source: ColourSource, direction: ViewDirection) -> tuple[TriMesh, ColourSource]:
    """Turn a body whose front is the view from a direction to where that view is from."""
    if direction == ViewDirection(0.0):
        return mesh, source
    axes = np.stack([direction.rightward, direction.upward, direction.toward_camera]).astype(np.float32)
    return TriMesh((mesh.vertices @ axes).astype(np.float32), mesh.faces), TurnedColours(source, direction)


def _two_sided(images: Sequence[SubjectImage], *, seed: int) -> tuple[Projector, ...]:
    """Colour the front from the first view, and the back from the second; without one its colours are invented."""
    front = images[0]
    px_per_metre = float(max(front.alpha.shape))
    near = Projector(0.0, as_bytes(front.colours), px_per_metre, _middle_px(front))
    if len(images) == 1:
        back_colours = invent_back_colours(front, seed=seed)
        far = Projector(np.pi, as_bytes(back_colours[:, ::-1]), px_per_metre, _middle_px(front))
    else:
        back = images[1]
        scale = px_per_metre * back.alpha.shape[0] / front.alpha.shape[0]
        far = Projector(np.pi, as_bytes(back.colours), scale, _middle_px(back))
    return near, far


def _middle_px(image: SubjectImage) -> tuple[float, float]:
    return image.alpha.shape[1] / 2, image.alpha.shape[0] / 2
