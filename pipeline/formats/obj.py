"""Wavefront OBJ and its MTL material, with relative file names. Equal arrays give equal bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def obj_bytes(
    *,
    vertices: NDArray[np.floating],
    normals: NDArray[np.floating],
    faces: NDArray[np.int32],
    uvs: NDArray[np.floating] | None = None,
    uv_faces: NDArray[np.int32] | None = None,
    material_file: str | None = None,
    name: str = "asset",
    comment: str = "image-to-3d",
) -> bytes:
    """Encode a mesh. Texture coordinates have their own indices, so vertices are not duplicated at seams.

    Args:
        vertices: (V, 3).
        normals: (V, 3) unit vectors.
        faces: (F, 3) indices into both.
        uvs: (T, 2) in [0, 1], v downwards; written with v upwards, as OBJ defines it. None without a texture.
        uv_faces: (F, 3) indices into `uvs`; None without a texture.
        material_file: name of the .mtl file in the same folder.
        name: of the object and its material: one word.
        comment: the first line.
    """
    lines = [f"# {comment}"]
    if material_file is not None:
        lines.append(f"mtllib {material_file}")
    lines.append(f"o {name}")
    if material_file is not None:
        lines.append(f"usemtl {name}")
    lines += [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in vertices.tolist()]
    if uvs is not None:
        lines += [f"vt {u:.7g} {1 - v:.7g}" for u, v in uvs.tolist()]
    lines += [f"vn {x:.5g} {y:.5g} {z:.5g}" for x, y, z in normals.tolist()]
    numbered = (faces + 1).tolist()  # OBJ counts from 1
    if uv_faces is None:
        lines += [f"f {a}//{a} {b}//{b} {c}//{c}" for a, b, c in numbered]
    else:
        texture = (uv_faces + 1).tolist()
        lines += [
            f"f {a}/{i}/{a} {b}/{j}/{b} {c}/{k}/{c}" for (a, b, c), (i, j, k) in zip(numbered, texture, strict=True)
        ]
    return ("\n".join(lines) + "\n").encode()


def mtl_bytes(*, texture_file: str | None, name: str = "asset") -> bytes:
    """Encode the material that `obj_bytes` refers to.

    Args:
        name: that of the object.
        texture_file: name of the base colour's file in the same folder; None gives plain grey.
    """
    colour = "Kd 1 1 1" if texture_file is not None else "Kd 0.72 0.72 0.72"
    lines = [f"newmtl {name}", "Ka 1 1 1", colour, "Ks 0 0 0", "d 1", "illum 1"]
    if texture_file is not None:
        lines.append(f"map_Kd {texture_file}")
    return ("\n".join(lines) + "\n").encode()
