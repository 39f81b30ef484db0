"""Wavefront OBJ with its material, which name their neighbours relatively. The same arrays give the same bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MATERIAL = "surface"


def obj_bytes(
    *,
    vertices: NDArray[np.floating],
    normals: NDArray[np.floating],
    faces: NDArray[np.int32],
    uvs: NDArray[np.floating] | None = None,
    uv_faces: NDArray[np.int32] | None = None,
    material_file: str | None = None,
) -> bytes:
    """Encode a mesh; seams of the texture split texture coordinates, not vertices.

    Args:
        vertices: (V, 3) metres, y-up.
        normals: (V, 3) unit vectors.
        faces: (F, 3) into both.
        uvs: (T, 2) in [0, 1], v downwards; OBJ's own go upwards. None without texture.
        uv_faces: (F, 3) into `uvs`.
        material_file: name of the .mtl beside it.
    """
    lines = ["# image-to-3d, y-up, metres"]
    if material_file is not None:
        lines += [f"mtllib {material_file}", f"usemtl {MATERIAL}"]
    lines += [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in vertices.tolist()]
    if uvs is not None:
        lines += [f"vt {u:.7g} {1 - v:.7g}" for u, v in uvs.tolist()]
    lines += [f"vn {x:.5g} {y:.5g} {z:.5g}" for x, y, z in normals.tolist()]
    numbered = (faces + 1).tolist()
    if uv_faces is None:
        lines += [f"f {a}//{a} {b}//{b} {c}//{c}" for a, b, c in numbered]
    else:
        texture = (uv_faces + 1).tolist()
        lines += [
            f"f {a}/{i}/{a} {b}/{j}/{b} {c}/{k}/{c}" for (a, b, c), (i, j, k) in zip(numbered, texture, strict=True)
        ]
    return ("\n".join(lines) + "\n").encode()


def mtl_bytes(*, texture_file: str | None) -> bytes:
    """Encode the material that `obj_bytes` refers to.

    Args:
        texture_file: name of the base colour's file beside it; None is plain grey.
    """
    colour = "Kd 1 1 1" if texture_file is not None else "Kd 0.72 0.72 0.72"
    lines = [f"newmtl {MATERIAL}", "Ka 1 1 1", colour, "Ks 0 0 0", "d 1", "illum 1"]
    if texture_file is not None:
        lines.append(f"map_Kd {texture_file}")
    return ("\n".join(lines) + "\n").encode()
