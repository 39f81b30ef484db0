"""The material of a surface: what a source says of its points, and what is baked of it. Terms are those of glTF 2.0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

AlphaMode = Literal["OPAQUE", "MASK", "BLEND"]
"""How alpha is shown: not at all, as a hole below `ALPHA_CUTOFF`, or as transparency."""

ALPHA_CUTOFF = 0.5
METALLIC, ROUGHNESS = 0.0, 0.9
"""Of surfaces whose source says nothing of them."""
NEARLY_OPAQUE, NEARLY_CLEAR = 242 / 255, 13 / 255
"""Alpha beyond these, 5 % from an end, is not seen as transparency: what networks and resampling leave of 1 and 0."""
LEAST_TRANSPARENT_SHARE = 0.001
"""Below this share of the texels, transparent ones are taken for noise and the surface for opaque."""
LEAST_BLENDED_SHARE = 0.3
"""From this share of the transparent texels on, half-transparent ones are more than the rims of holes."""


@dataclass(frozen=True, eq=False)
class SurfaceAttributes:
    """Attributes of P surface points, in the terms of glTF's metallic-roughness material.

    An attribute that is None is the same everywhere: opaque, not metallic, of the roughness `ROUGHNESS`.

    Attributes:
        base_colour: (P, 3) float32 sRGB in [0, 1], not multiplied by alpha.
        alpha: (P,) float32 opacity in [0, 1], linear.
        metallic: (P,) float32 in [0, 1], linear: 0 is a dielectric, 1 a metal.
        roughness: (P,) float32 in [0, 1], linear: 0 is a mirror.
    """

    base_colour: NDArray[np.float32]
    alpha: NDArray[np.float32] | None = None
    metallic: NDArray[np.float32] | None = None
    roughness: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Material:
    """A baked material: images over one set of texture coordinates, row 0 at the top, and what is the same everywhere.

    Attributes:
        base_colour: (S, S, 3) uint8 sRGB, or (S, S, 4) with straight linear alpha where the mode is not OPAQUE. Texels
            without any alpha have the colour of the nearest one that has some.
        alpha_mode: chosen from the data by `alpha_mode_of`.
        metallic_roughness: (S, S, 2) uint8, linear; None where both are the same everywhere.
        metallic: where there is no image.
        roughness: where there is no image.
        normal: (S, S, 3) uint8, tangent-space normals, +Y up: (n + 1) / 2; None without.
    """

    base_colour: NDArray[np.uint8]
    alpha_mode: AlphaMode = "OPAQUE"
    metallic_roughness: NDArray[np.uint8] | None = None
    metallic: float = METALLIC
    roughness: float = ROUGHNESS
    normal: NDArray[np.uint8] | None = None

    @property
    def mean_metallic_roughness(self) -> tuple[float, float]:
        """Metallic and roughness, their means where they differ over the surface."""
        if self.metallic_roughness is None:
            return self.metallic, self.roughness
        metallic, roughness = self.metallic_roughness.reshape(-1, 2).mean(axis=0) / 255
        return float(metallic), float(roughness)

    @property
    def images(self) -> tuple[NDArray[np.uint8], ...]:
        """The images that there are."""
        return tuple(image for image in (self.base_colour, self.metallic_roughness, self.normal) if image is not None)


def alpha_mode_of(alpha: NDArray[np.floating]) -> AlphaMode:
    """Choose how alpha is shown, from the alpha of all texels of the surface: (N,) in [0, 1].

    OPAQUE if next to none is transparent. Else BLEND if a good share of the transparent ones lies between clear and
    opaque, as in glass; and MASK if next to all are clear, as beside a leaf or in a net: their rims alone lie between.
    MASK needs no sorting and shows the same in every viewer, so it is preferred where it says the same.
    """
    transparent = alpha < NEARLY_OPAQUE
    share = transparent.mean() if len(alpha) else 0.0
    if share < LEAST_TRANSPARENT_SHARE:
        return "OPAQUE"
    between = (alpha[transparent] > NEARLY_CLEAR).mean()
    return "BLEND" if between > LEAST_BLENDED_SHARE else "MASK"
