"""Background removal by a model, for deployments that have its weights. Needs the extra `matting`."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import MissingExtra

REMOVER_FILE = "matting/u2net.onnx"  # below the folder of all engines' weights, where `fetch-weights` puts it


class RembgRemover:
    """A `pipeline.imaging.background_removal.BackgroundRemover` over a model that rembg knows.

    The library and the model are read at the first picture that needs them, once for the whole process: most pictures
    of a service are cut out already.

    Args:
        model: its name, such as `isnet-general-use`; fetched by rembg on first use, to where `U2NET_HOME` says.
        file: the model's weights, so that nothing is fetched; they must be those of `u2net`.

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
        """Alpha (H, W) uint8 of a picture (H, W, 3) uint8."""
        import rembg  # type: ignore[import-not-found]  # optional

        alpha = rembg.remove(Image.fromarray(rgb), session=_session(self._model, self._file), only_mask=True)
        return np.asarray(alpha, np.uint8)


def select_background_remover(model: str | None, weights: str) -> RembgRemover | None:
    """The deployment's background remover, None for the way that needs no weights.

    Args:
        model: by rembg's name, as the deployment wants it; None for what `fetch-weights` brought, where rembg is there.
        weights: the folder of all engines' weights, or the name of weights that are no files.

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
    """rembg's session for a model; over a file of any folder where one is given, as its own sessions cannot."""
    import onnxruntime  # type: ignore[import-not-found]  # optional
    import rembg  # type: ignore[import-not-found]  # optional
    from rembg.sessions.u2net import U2netSession  # type: ignore[import-not-found]  # optional

    if file is None:
        return rembg.new_session(model)

    class FileSession(U2netSession):
        @classmethod
        def download_models(cls, *args: object, **kwargs: object) -> str:
            return str(file)

    return FileSession("u2net", onnxruntime.SessionOptions())
