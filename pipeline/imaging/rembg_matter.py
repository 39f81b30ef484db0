"""Background removal by a model, for deployments that have its weights. Needs the extra `matting`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import MissingExtra

REMOVER_FILE = "matting/u2net.onnx"  # below the folder of all engines' weights, where `fetch-weights` puts it


class RembgMatter:
    """A `pipeline.imaging.matting.Matter` over a model that rembg knows.

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
        try:
            import rembg  # type: ignore[import-not-found]  # optional
        except ModuleNotFoundError as error:
            raise MissingExtra("background removal by a model", extra="matting") from error
        self._remove: Any = rembg.remove
        self._session: Any = rembg.new_session(model) if file is None else _u2net_session(file)

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Alpha (H, W) uint8 of a picture (H, W, 3) uint8."""
        return np.asarray(self._remove(Image.fromarray(rgb), session=self._session, only_mask=True), np.uint8)


def choose_matter(model: str | None, weights: str) -> RembgMatter | None:
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
        return RembgMatter(model, file=file if model == "u2net" else None)
    if file is None:
        return None
    try:
        return RembgMatter("u2net", file=file)
    except MissingExtra:
        return None


def _u2net_session(file: Path) -> Any:
    """rembg's session over a file of any folder; its own session for custom models takes files of its home alone."""
    import onnxruntime  # type: ignore[import-not-found]  # optional
    from rembg.sessions.u2net import U2netSession  # type: ignore[import-not-found]  # optional

    class FileSession(U2netSession):
        @classmethod
        def download_models(cls, *args: object, **kwargs: object) -> str:
            return str(file)

    return FileSession("u2net", onnxruntime.SessionOptions())
