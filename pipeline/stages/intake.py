"""Stage 1: turns the images of a request into checked foreground images. A bad image never costs a GPU second.

Knows nothing of engines.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import ForegroundImage
from pipeline.errors import InvalidRequest
from pipeline.imaging.background_removal import (
    SOLID_ALPHA,
    TRUSTED_CONFIDENCE,
    BackgroundRemover,
    Cutout,
    cut_out,
    keep_whole,
)
from pipeline.imaging.decode import decode_image
from pipeline.imaging.inline import at_most, read_inline
from pipeline.imaging.views import split_sheet
from pipeline.net.download import MAX_BYTES
from pipeline.stages.given_mesh import voxels_of_file
from schemas.contract import read_http_url
from schemas.request import MAX_VIEWS, GenerationRequest, ImageTo3DRequest
from schemas.text import TextTo3DRequest

Decode = Callable[[bytes], NDArray[np.uint8]]
"""Decodes an image's bytes to (H, W, 4) uint8 RGBA, as `decode_image` does."""
Fetch = Callable[[str], bytes]
"""Downloads an http(s) URL; raises `BlockedAddress` or `DownloadFailed`."""


class LoadedViews(list[ForegroundImage]):
    """The views of a job, and how their backgrounds were removed.

    A list, because a checkpoint of an earlier version holds one.

    Attributes:
        cutouts: one for each image of the request; a sheet is one image.
        init_voxels: (N, 3) cells of the mesh of a request whose shape is given, see `voxels_of_file`.
    """

    init_voxels: NDArray[np.uint8] | None = None  # of the class too: a checkpoint of an earlier version has none

    def __init__(self, views: Iterable[ForegroundImage] = (), *, cutouts: Sequence[Cutout] = ()) -> None:
        super().__init__(views)
        self.cutouts = tuple(cutouts)

    @property
    def confidences(self) -> list[float | None]:
        """One for each image; None where the background was not removed here, or by a model that gives none."""
        return [cutout.confidence for cutout in self.cutouts]

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each cut-out that cannot be trusted, or that was not kept."""
        return (*self._unsure, *self._lost)

    @property
    def _lost(self) -> tuple[str, ...]:
        return tuple(
            f"{_numbered('The transparency of the image', number, len(self.cutouts))} is ignored, because remove_bg is "
            "false: the whole image is the subject. Leave remove_bg out to keep what the transparency cuts out."
            for number, cutout in enumerate(self.cutouts, start=1)
            if cutout.lost_transparency
        )

    @property
    def _unsure(self) -> tuple[str, ...]:
        return tuple(
            f"{_numbered('The background of the image', number, len(self.cutouts))} was removed with a confidence of "
            f"{confidence:.2f}, and below {TRUSTED_CONFIDENCE} parts of the subject may be missing or parts of the "
            "background left: look at the cut-out among the files, and send a transparent PNG if it is wrong. A model "
            "removes backgrounds better, where the operator runs `image-to-3d fetch-weights --remover birefnet`."
            for number, confidence in enumerate(self.confidences, start=1)
            if confidence is not None and confidence < TRUSTED_CONFIDENCE
        )


def _numbered(words: str, number: int, count: int) -> str:
    return words if count == 1 else f"{words} {number}"


def load_views(
    request: GenerationRequest,
    *,
    fetch: Fetch,
    decode: Decode = decode_image,
    remover: BackgroundRemover | None = None,
    allow_paths: bool = False,
) -> LoadedViews:
    """Load and decode a request's images and remove their backgrounds; or load its mesh, and make voxels of it.

    Args:
        fetch: downloads what is given as a URL.
        decode: decodes images; for those of strangers in another process, see `DecodeProcess`.
        remover: removes backgrounds; None is the one that needs no weights.
        allow_paths: an image may be the path of a file of this machine; never for requests from outside.

    Returns:
        One view for each image, or those of a sheet; none of a text.

    Raises:
        CallerError: one sentence about the first invalid image, or about the mesh.
    """
    if isinstance(request, TextTo3DRequest):
        loaded = LoadedViews()
        if request.init_mesh is not None:
            content = read_image(request.init_mesh, fetch=fetch, allow_paths=allow_paths)
            loaded.init_voxels = voxels_of_file(content)
        return loaded
    assert isinstance(request, ImageTo3DRequest)
    images = (decode(read_image(source, fetch=fetch, allow_paths=allow_paths)) for source in request.image)
    views = foreground_images(images, multi_image=request.multi_image, remove_bg=request.remove_bg, remover=remover)
    request.check_view_angles(len(views))
    return views


def foreground_images(
    images: Iterable[NDArray[np.uint8]],
    *,
    multi_image: bool,
    remove_bg: bool = True,
    remover: BackgroundRemover | None = None,
) -> LoadedViews:
    """Remove the backgrounds of decoded images, unless they are to be kept.

    Args:
        images: each (H, W, 4) uint8 RGBA; decoded one after another where they come from a generator.
        multi_image: a single image is a sheet of several views.
        remove_bg: false: each whole image is the subject, and each view of a sheet up to its bounding box.
        remover: removes backgrounds; None is the one that needs no weights.

    Returns:
        One view for each image, or those of a sheet.

    Raises:
        UnreadableImage: one sentence about the first image at fault.
    """
    if not remove_bg:
        return _whole_images(list(images), multi_image=multi_image)
    cutouts = [cut_out(image, remover=remover) for image in images]
    views = [cutout.image for cutout in cutouts]
    if multi_image and len(views) == 1:
        views = split_sheet(views[0], most=MAX_VIEWS)
    return LoadedViews(views, cutouts=cutouts)


def _whole_images(images: Sequence[NDArray[np.uint8]], *, multi_image: bool) -> LoadedViews:
    """Images with their backgrounds; the transparency of a sheet separates its views, and nothing else."""
    is_sheet = multi_image and len(images) == 1
    whole = [keep_whole(image) for image in images]
    if not is_sheet:
        return LoadedViews([each.image for each in whole], cutouts=whole)
    views = [keep_whole(_bounded(view)).image for view in split_sheet(images[0], most=MAX_VIEWS)]
    return LoadedViews(views, cutouts=[replace(whole[0], lost_transparency=False)])


def _bounded(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A view without the soft edge around its bounding box: (H, W, 4) -> (h, w, 4)."""
    solid = view[..., 3] >= SOLID_ALPHA
    rows, columns = (np.flatnonzero(solid.any(axis=axis)) for axis in (1, 0))
    return view[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def read_image(source: str, *, fetch: Fetch, allow_paths: bool = False) -> bytes:
    """The bytes behind a URL, a data URI, bare base64 or, where allowed, a path.

    Raises:
        CallerError: there are none, or too many.
    """
    scheme = source[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return fetch(read_http_url(source) or source)
    if allow_paths and not scheme.startswith("data:"):
        return read_path(Path(source))
    return read_inline(source)


def read_path(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InvalidRequest(f"{path} is a folder, not an image")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InvalidRequest(f"{path} does not exist") from None
    except OSError as error:
        reason = "its name is too long" if error.errno == errno.ENAMETOOLONG else (error.strerror or "").lower()
        raise InvalidRequest(f"{str(path)[:80]} cannot be read: {reason}") from None
    except ValueError:  # a NUL in the name
        raise InvalidRequest("the image's path contains a NUL character") from None
    return at_most(content)
