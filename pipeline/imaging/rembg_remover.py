"""Background removal with a rembg model, for deployments that have its weights. Needs the extra `matting`."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import MissingExtra

REMOVER_FILE = "matting/u2net.onnx"  # in the weights folder, where `fetch-weights` puts it


class RembgRemover:
    """A `pipeline.imaging.background_removal.BackgroundRemover` that runs a model of rembg.

    The library and the model are loaded for the first image that needs them, once per process: most images that a
    service receives are transparent already.

    Args:
        model: its name, such as `isnet-general-use`; rembg downloads it on first use, to `U2NET_HOME`.
        file: weights of `u2net` to use instead of a download.

    Raises:
        MissingExtra: rembg is not installed.
        ValueError: a file is given for another model.
    """

    def __init__(self, model: str, *, file: Path | None = None) -> None:
        if file is not None and model != "u2net":
            raise ValueError(f"a file holds u2net, not {model}")
        if importlib.util.find_spec("rembg") is None:
            raise MissingExtra("background removal by a model", extra="matting")
        self._model = model
        self._file = file

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Alpha of the subject: (H, W, 3) uint8 sRGB -> (H, W) uint8."""
        import rembg  # optional

        alpha = rembg.remove(Image.fromarray(rgb), session=_session(self._model, self._file), only_mask=True)
        return np.asarray(alpha, np.uint8)


def select_background_remover(model: str | None, weights: str) -> RembgRemover | None:
    """Select the deployment's background remover; None means GrabCut, which needs no weights.

    Args:
        model: rembg's name of the configured model; None selects the file that `fetch-weights` downloaded, if there is
            one and rembg is installed.
        weights: the weights folder, or the name of weights that are not files.

    Raises:
        MissingExtra: a model is named and rembg is not installed.
    """
    fetched = Path(weights) / REMOVER_FILE
    file = fetched if fetched.is_file() else None
    if model is not None:
        return RembgRemover(model, file=file if model == "u2net" else None)
    if file is None:
        return None
    try:
        return RembgRemover("u2net", file=file)
    except MissingExtra:
        return None


@cache
def _session(model: str, file: Path | None) -> Any:
    """rembg's session for a model; its own sessions cannot load a file from an arbitrary folder, this one can."""
    import onnxruntime  # optional
    import rembg  # optional
    from rembg.sessions.u2net import U2netSession  # optional

    if file is None:
        return rembg.new_session(model)

    class FileSession(U2netSession):
        @classmethod
        def download_models(cls, *args: object, **kwargs: object) -> str:
            return str(file)

    return FileSession("u2net", onnxruntime.SessionOptions())
