"""Background removal by a model, for deployments that have its weights. Needs the extra `matting`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import MissingExtra


class RembgMatter:
    """A `pipeline.imaging.matting.Matter` over a model that rembg knows.

    Args:
        model: its name, such as `isnet-general-use`; rembg keeps its weights in the folder that `U2NET_HOME` names.

    Raises:
        MissingExtra: rembg is not installed.
    """

    def __init__(self, model: str) -> None:
        try:
            import rembg  # type: ignore[import-not-found]  # optional
        except ModuleNotFoundError as error:
            raise MissingExtra("background removal by a model", extra="matting") from error
        self._remove: Any = rembg.remove
        self._session: Any = rembg.new_session(model)

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Alpha (H, W) uint8 of a picture (H, W, 3) uint8."""
        return np.asarray(self._remove(Image.fromarray(rgb), session=self._session, only_mask=True), np.uint8)
