"""A material whose images are files: what the formats that have materials are written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.texture import LEAST_PSNR_DB, EncodedImage, encode_image
from pipeline.mesh.material import Material
from schemas.formats import TextureFormat

CHANNELS = ("base_colour", "alpha", "metallic_roughness", "roughness", "metallic", "normal")
"""In the order in which they are written."""
LEAST_NORMAL_PSNR_DB = 45.0
"""Of a normal map: 0.6 degrees. What light shows of a normal's error is more than what a colour's is seen."""


@dataclass(frozen=True, eq=False)
class MaterialImages:
    """The images of a material as files, each encoded when it is first asked for.

    Attributes:
        material: what they show.
        is_textured: whether the files have the images at all.
        texture_format: of the files; an image with alpha is a PNG instead of a JPEG.
        shown: (S, S) which texels the surface shows; None for all.
    """

    material: Material
    is_textured: bool = True
    texture_format: TextureFormat = "png"
    shown: NDArray[np.bool_] | None = None

    @cached_property
    def packed(self) -> dict[str, EncodedImage]:
        """By channel, as glTF and USD have them.

        `base_colour`: RGB, or RGBA with straight alpha where the surface is not opaque, sRGB. `metallic_roughness`: RGB
        with roughness in green and metallic in blue; red, where occlusion may be, is white. `normal`: RGB.
        """
        images = {"base_colour": self.material.base_colour} | self._normal
        if (both := self.material.metallic_roughness) is not None:
            white = np.full(both.shape[:2], 255, np.uint8)
            images["metallic_roughness"] = np.dstack([white, both[..., 1], both[..., 0]])
        return self._encoded(images)

    @cached_property
    def separate(self) -> dict[str, EncodedImage]:
        """By channel, one image for each, as OBJ has them: `base_colour` and `normal` in RGB, the others grey."""
        images = {"base_colour": self.material.base_colour[..., :3]} | self._normal
        if self.material.alpha_mode != "OPAQUE":
            images["alpha"] = self.material.base_colour[..., 3]
        if (both := self.material.metallic_roughness) is not None:
            images |= {"metallic": both[..., 0], "roughness": both[..., 1]}
        return self._encoded(images)

    @property
    def _normal(self) -> dict[str, NDArray[np.uint8]]:
        return {} if self.material.normal is None else {"normal": self.material.normal}

    def _encoded(self, images: Mapping[str, NDArray[np.uint8]]) -> dict[str, EncodedImage]:
        """As files, each image once."""
        if not self.is_textured:
            return {}
        ordered = {channel: images[channel] for channel in CHANNELS if channel in images}
        return {channel: self._file(channel, np.ascontiguousarray(image)) for channel, image in ordered.items()}

    def _file(self, channel: str, image: NDArray[np.uint8]) -> EncodedImage:
        key = channel, image.shape[2:]
        if key not in self._made:
            least = LEAST_NORMAL_PSNR_DB if channel == "normal" else LEAST_PSNR_DB
            self._made[key] = encode_image(image, self.texture_format, shown=self.shown, least_psnr_db=least)
        return self._made[key]

    @cached_property
    def _made(self) -> dict[tuple[str, tuple[int, ...]], EncodedImage]:
        """Files by channel and number of its components: most images are the same in all formats."""
        return {}
