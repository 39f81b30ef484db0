"""Compiles the kernels of the export and of the preview engine while a job waits: a new container has none compiled."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from threading import Thread

import numpy as np
import structlog

from pipeline.engines.preview.back_colours import invent_back_colours
from pipeline.engines.preview.subject_image import SubjectImage
from pipeline.engines.trellis.colours import GaussianColours, VertexColours
from pipeline.stages.export_kernels import export_ball

log = structlog.get_logger()


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
    with tempfile.TemporaryDirectory(prefix="image-to-3d-") as folder:
        export_ball(Path(folder), compression="meshopt")
    invent_back_colours(_tall_ellipse(), seed=1)
    _one_gaussian().colours_at(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32))


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
