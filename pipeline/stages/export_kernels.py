"""Compiles the kernels of the export ahead: on a machine's first run beside the engine, on Modal while a job waits.

`python -m pipeline.stages.export_kernels FOLDER` compiles them and keeps them on disk, for other processes; the folder
takes files that nobody needs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from pipeline.engines.base import ColourSource, Generation, ignore_steps
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.render.mesh_view import is_compiled
from pipeline.stages.export import export
from schemas.formats import Compression
from schemas.request import ImageTo3DRequest

POINTS = 200
GOLDEN_ANGLE_RAD = np.pi * (3 - np.sqrt(5))


class Grey(ColourSource):
    """One colour everywhere."""

    def colours_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `ColourSource`."""
        return np.full((len(points), 3), 0.5, np.float32)


@contextmanager
def compiling_beside() -> Iterator[None]:
    """Meanwhile, compile the kernels in another process, where they are not on disk and a second core is there.

    An export need not wait for it: what is not on disk yet, it compiles itself. The process ends with the block.
    """
    if is_compiled() or os.cpu_count() == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="image-to-3d-") as folder:
        command = [sys.executable, "-m", __name__, folder]
        nowhere = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def export_ball(folder: Path, *, compression: Compression = "none") -> None:
    """Export a ball with a hole: afterwards, an export in this process or a later one compiles nothing.

    Args:
        folder: takes the files.
        compression: of the GLB; each may have kernels of its own.
    """
    request = ImageTo3DRequest(image=("none",), texture_size=512, compression=compression)
    export(_ball(), request=request, file_prefix="ball", folder=folder, on_step=ignore_steps)


def _ball() -> Generation:
    """Points along a spiral from pole to pole, and their hull without one face, so that the export closes a hole."""
    z = np.linspace(-1, 1, POINTS)
    radius, turn = np.sqrt(1 - z**2), GOLDEN_ANGLE_RAD * np.arange(POINTS)
    points = 0.5 * np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)
    faces = ConvexHull(points).simplices[1:]
    return Generation(TriMesh(points.astype(np.float32), faces.astype(np.int32)), Grey(), engine="", seed=1)


if __name__ == "__main__":
    export_ball(Path(sys.argv[1]))
