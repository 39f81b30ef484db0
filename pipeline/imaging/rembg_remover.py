"""Background removal with a rembg model, for deployments that have its weights. Needs the extra `matting`."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import MissingExtra
from pipeline.imaging.cutout import Separation

# In the weights folder, where `fetch-weights` puts them.
REMOVER_FILE = "matting/u2net.onnx"
U2NETP_FILE = "matting/u2netp.onnx"
BIREFNET_FILE = "matting/birefnet-general-lite/onnx/model.onnx"
FETCHED_FILES = {"birefnet-general-lite": BIREFNET_FILE, "u2net": REMOVER_FILE, "u2netp": U2NETP_FILE}
"""The files by rembg's names of the models, the best model first."""
ALIASES = {"birefnet": "birefnet-general-lite"}
"""Names of `fetch-weights --remover` that rembg calls otherwise."""


class RembgRemover:
    """A `pipeline.imaging.background_removal.BackgroundRemover` that runs a model of rembg.

    The library and the model are loaded for the first image that needs them, once per process: most images that a
    service receives are transparent already.

    Args:
        model: its name, such as `isnet-general-use`; rembg downloads it on first use, to `U2NET_HOME`.
        file: weights to use instead of a download, for the models of `FETCHED_FILES`.

    Raises:
        MissingExtra: rembg is not installed.
        ValueError: a file is given for another model.
    """

    def __init__(self, model: str, *, file: Path | None = None) -> None:
        if file is not None and model not in FETCHED_FILES:
            raise ValueError(f"a file holds {' or '.join(reversed(FETCHED_FILES))}, not {model}")
        if importlib.util.find_spec("rembg") is None:
            raise MissingExtra("background removal by a model", extra="matting")
        self.model = model
        self.file = file

    def __call__(self, rgb: NDArray[np.uint8]) -> Separation:
        """Alpha of the subject: (H, W, 3) uint8 sRGB -> (H, W) uint8. The models give no confidence."""
        import rembg  # optional

        alpha = rembg.remove(Image.fromarray(rgb), session=_session(self.model, self.file), only_mask=True)
        return Separation(np.asarray(alpha, np.uint8))


def select_background_remover(model: str | None, weights: str) -> RembgRemover | None:
    """Select the deployment's background remover; None means `cutout.separate`, which needs no weights.

    Args:
        model: the configured model, by rembg's name or that of `fetch-weights --remover`; None selects the best of
            those that `fetch-weights` downloaded, if there is one and rembg is installed.
        weights: the weights folder, or the name of weights that are not files.

    Raises:
        MissingExtra: a model is named and rembg is not installed.
    """
    fetched = {name: path for name, file in FETCHED_FILES.items() if (path := Path(weights) / file).is_file()}
    if model is not None:
        name = ALIASES.get(model, model)
        return RembgRemover(name, file=fetched.get(name))
    for name, path in fetched.items():
        with suppress(MissingExtra):
            return RembgRemover(name, file=path)
    return None


@cache
def _session(model: str, file: Path | None) -> Any:
    """rembg's session for a model; its own sessions cannot load a file from an arbitrary folder, this one can."""
    import onnxruntime  # optional
    import rembg  # optional
    from rembg.sessions import sessions_class  # optional

    if file is None:
        return rembg.new_session(model)

    session_class = next(each for each in sessions_class if each.name() == model)

    class FileSession(session_class):
        @classmethod
        def download_models(cls, *args: object, **kwargs: object) -> str:
            return str(file)

    return FileSession(model, onnxruntime.SessionOptions())
