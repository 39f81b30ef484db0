"""Compiles the kernels of the export and of the preview engine while a job waits: a new container has none compiled."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from threading import Thread

import numpy as np
import structlog
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from pipeline.engines.base import ColourSource, Generation, ignore_steps
from pipeline.engines.preview.back_colours import invent_back_colours
from pipeline.engines.preview.subject_image import SubjectImage
from pipeline.engines.trellis.colours import GaussianColours, VertexColours
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.stages.export import export
from schemas.request import ImageTo3DRequest

POINTS = 200
GOLDEN_ANGLE_RAD = np.pi * (3 - np.sqrt(5))

log = structlog.get_logger()


class Grey(ColourSource):
    """One colour everywhere."""

    def colours_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `ColourSource`."""
        return np.full((len(points), 3), 0.5, np.float32)


@cache
def start_prewarm() -> Thread:
    """Run `prewarm_numba` in a thread, once per process; a failure is only logged.

    An export need not wait for the thread: if two threads need the same kernel, numba compiles it in one of them while
    the other waits.
    """
    thread = Thread(target=_try_prewarm, name="prewarm", daemon=True)
    thread.start()
    return thread


def _try_prewarm() -> None:
    try:
        prewarm_numba()
    except Exception:
        log.warning("prewarming failed", exc_info=True)


def prewarm_numba() -> None:
    """Export a ball with a hole, invent a back, look a Gaussian up: afterwards, no job has a kernel to compile."""
    request = ImageTo3DRequest(image=("none",), texture_size=512, compression="meshopt")
    with tempfile.TemporaryDirectory(prefix="image-to-3d-") as folder:
        export(_ball(), request=request, file_prefix="ball", folder=Path(folder), on_step=ignore_steps)
    invent_back_colours(_tall_ellipse(), seed=1)
    _one_gaussian().colours_at(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32))


def _ball() -> Generation:
    """Points along a spiral from pole to pole, and their hull without one face, so that the export closes a hole."""
    z = np.linspace(-1, 1, POINTS)
    radius, turn = np.sqrt(1 - z**2), GOLDEN_ANGLE_RAD * np.arange(POINTS)
    points = 0.5 * np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)
    faces = ConvexHull(points).simplices[1:]
    return Generation(TriMesh(points.astype(np.float32), faces.astype(np.int32)), Grey(), engine="", seed=1)


def _one_gaussian() -> GaussianColours:
    """Return the smallest colour source of TRELLIS."""
    return GaussianColours(
        xyz=np.zeros((1, 3), np.float32),
        scaling=np.ones((1, 3), np.float16),
        rotation=np.array([[1, 0, 0, 0]], np.float16),
        opacity=np.ones(1, np.float16),
        rgb=np.zeros((1, 3), np.uint8),
        fallback=VertexColours(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.uint8)),
    )


def _tall_ellipse() -> SubjectImage:
    """Return a subject seen from its front, with grain that patches can be found by."""
    y, x = np.mgrid[-1:1:64j, -1:1:40j]
    colours = np.random.default_rng(0).random((64, 40, 3)).astype(np.float32)
    return SubjectImage((x**2 + y**2 < 1).astype(np.float32), colours, (20.0, 32.0), 64.0)
