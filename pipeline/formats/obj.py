"""Wavefront OBJ and its MTL material, with relative file names. Equal arrays give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.material import METALLIC, ROUGHNESS, Material

MTL_KEYS = {
    "base_colour": "map_Kd",
    "alpha": "map_d",
    "roughness": "map_Pr",
    "metallic": "map_Pm",
    "normal": "norm",
}
"""Keys of the images of each channel; the last three are those of the PBR extension."""


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


def mtl_bytes(*, material: Material | None = None, maps: Mapping[str, str] | None = None, name: str = "asset") -> bytes:
    """Encode the material that `obj_bytes` refers to: the classic keys, then those of the PBR extension.

    Readers of the classic keys alone see a highlight as wide as the roughness and as strong as the metal.

    Args:
        material: None gives plain grey.
        maps: names of image files in the same folder by their keys, such as `map_Kd`, `map_d`, `map_Pr`, `map_Pm` and
            `norm`; see `MTL_KEYS`.
        name: that of the object.
    """
    maps = maps or {}
    metallic, roughness = (METALLIC, ROUGHNESS) if material is None else material.mean_metallic_roughness
    colour = "Kd 1 1 1" if "map_Kd" in maps else "Kd 0.72 0.72 0.72"
    lines = [f"newmtl {name}", "Ka 1 1 1", colour]
    if (metallic, roughness) == (METALLIC, ROUGHNESS):
        lines += ["Ks 0 0 0", "d 1", "illum 1"]
    else:
        strength = f"{metallic:.4g}"
        lines += [f"Ks {strength} {strength} {strength}", f"Ns {1000 * (1 - roughness) ** 2:.4g}", "d 1", "illum 2"]
    lines += [f"Pr {roughness:.4g}", f"Pm {metallic:.4g}"]
    lines += [f"{key} {file_name}" for key, file_name in maps.items()]
    return ("\n".join(lines) + "\n").encode()
