"""The voxels of a mesh that a request gives, read in a process of its own: no file can hold or take down a worker.

The process has limits of time and memory, and none of this one's environment, which holds secrets.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntakeFailed, InvalidRequest

CPU_S = 60
WALL_S = 300.0
"""For a machine that is so busy that the computing time never comes."""
MEMORY_BYTES = 4 << 30
MAX_FACES = 2_000_000
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}  # each thread of it would take address space
READABLE = ("glb", "obj", "stl", "ply")
START = "import sys; sys.path[:] = {path!r}; from pipeline.stages.given_mesh import main; main()"
REFUSED = b"{"
"""How an answer begins that says why there are no voxels; a cell's first coordinate is below 64."""


def voxels_of_file(content: bytes) -> NDArray[np.uint8]:
    """Return the cells that the surface of a mesh touches: (N, 3), z up, sorted; see `voxelize`.

    A file of a format in which y points up is turned.

    Args:
        content: of a GLB, OBJ, STL or PLY file.

    Raises:
        InvalidRequest: it is no such file, holds no mesh, has too many faces, or takes too long to read.
        IntakeFailed: the process that reads it was ended from outside.
    """
    command = [sys.executable, "-c", START.format(path=sys.path)]
    try:
        done = subprocess.run(command, input=content, capture_output=True, env=ENVIRONMENT, timeout=WALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise InvalidRequest(f"init_mesh takes more than {WALL_S:.0f} s to read") from None
    if done.returncode:
        raise IntakeFailed("the process that reads meshes was ended; send the mesh again")
    if done.stdout.startswith(REFUSED):
        raise InvalidRequest(f"init_mesh {json.loads(done.stdout)['reason']}")
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, 3)


def read_voxels(content: bytes) -> NDArray[np.uint8]:
    """As `voxels_of_file`, in this process.

    Raises:
        InvalidRequest: the rest of a sentence about the mesh.
    """
    from pipeline.formats.file_type import file_type_of
    from pipeline.formats.reading import read_scene
    from pipeline.mesh.voxelize import voxelize
    from schemas.formats import FORMATS

    file_type = file_type_of(content)
    if file_type not in READABLE:
        raise InvalidRequest(f"must be a mesh as {', '.join(READABLE)}, got {file_type}")
    try:
        mesh = read_scene(io.BytesIO(content), file_type=file_type, companions={}).to_mesh()
        vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    except MemoryError:
        raise
    except Exception as error:  # readers of foreign files raise anything
        raise InvalidRequest(f"is no {file_type} file that can be read") from error
    if len(faces) > MAX_FACES:
        raise InvalidRequest(f"must have at most {MAX_FACES} faces, got {len(faces)}")
    if FORMATS[file_type].up_axis == "y":
        vertices = np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], axis=1)
    return voxelize(vertices, faces)


def main() -> None:
    """Read a mesh from the standard input and write its cells, or why there are none, to the standard output."""
    import resource  # absent on Windows

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        answer = read_voxels(sys.stdin.buffer.read()).tobytes()
    except InvalidRequest as error:
        answer = json.dumps({"reason": str(error)}).encode()
    except MemoryError:
        answer = json.dumps({"reason": f"needs more than {MEMORY_BYTES >> 20} MiB of memory to read"}).encode()
    sys.stdout.buffer.write(answer)
