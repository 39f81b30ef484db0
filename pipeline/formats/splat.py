"""3D Gaussians as the .ply file that splat viewers open. Equal arrays give equal bytes.

Source: the layout of point_cloud.ply in graphdeco-inria/gaussian-splatting, which viewers adopted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PROPERTIES = (
    *("x", "y", "z", "nx", "ny", "nz"),
    *(f"f_dc_{i}" for i in range(3)),
    "opacity",
    *(f"scale_{i}" for i in range(3)),
    *(f"rot_{i}" for i in range(4)),
)
OPACITY_MARGIN = 1e-6  # keeps the inverse of the sigmoid finite


def splat_ply_bytes(
    *,
    xyz: NDArray[np.floating],
    features_dc: NDArray[np.floating],
    opacity: NDArray[np.floating],
    scaling: NDArray[np.floating],
    rotation: NDArray[np.floating],
) -> bytes:
    """Encode Gaussians.

    Args:
        xyz: (G, 3) centres in the file's frame.
        features_dc: (G, 3) coefficients of the constant spherical harmonic.
        opacity: (G,) in [0, 1]; the file holds its logit.
        scaling: (G, 3) standard deviations, above 0; the file holds their natural logarithm.
        rotation: (G, 4) unit quaternions, w first.
    """
    solid = np.clip(opacity.astype(np.float64).reshape(-1, 1), OPACITY_MARGIN, 1 - OPACITY_MARGIN)
    columns = [
        xyz,
        np.zeros_like(xyz),  # normals: in the layout, read by no viewer
        features_dc,
        np.log(solid / (1 - solid)),
        np.log(scaling.astype(np.float64)),
        rotation,
    ]
    table = np.concatenate([column.astype("<f4") for column in columns], axis=1)
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(table)}",
        *(f"property float {name}" for name in PROPERTIES),
        "end_header",
    ]
    return ("\n".join(header) + "\n").encode("ascii") + table.tobytes()
