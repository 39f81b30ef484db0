"""The engines that this project has, by name, and how to make one. Imports an engine only when it is asked for.

Safe to import in the web container: no numpy, no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InvalidRequest, MissingExtra, WeightsUnusable

if TYPE_CHECKING:
    from pipeline.engines.base import Engine


@dataclass(frozen=True)
class EngineSpec:
    """One row of the table of engines.

    Attributes:
        name: what requests and settings call it.
        module: where its class lives.
        class_name: the class, made with keyword arguments only.
        extra: the optional part of the installation that it needs.
        packages: what that part brings, by the names that are imported.
        max_views: how many views of one subject it takes.
        has_weights: its class takes `weights`, the folder that `fetch-weights` fills.
        summary: one line about it.
        gpus: the accelerators that a rented deployment takes for it, by Modal's names, the best first; empty: none.
    """

    name: str
    module: str
    class_name: str
    extra: str
    packages: tuple[str, ...]
    max_views: int
    has_weights: bool
    summary: str
    gpus: tuple[str, ...] = ()


TINY_WEIGHTS = "tiny"
"""Named instead of a folder: random weights of small shapes, for tests and trials of a deployment."""
LOCAL_PACKAGES = ("PIL", "cv2", "imageio_ffmpeg", "numba", "numpy", "scipy", "skimage", "trimesh", "xatlas")

ENGINES: tuple[EngineSpec, ...] = (
    EngineSpec(
        name="preview",
        module="pipeline.engines.preview.engine",
        class_name="PreviewEngine",
        extra="local",
        packages=LOCAL_PACKAGES,
        max_views=8,
        has_weights=False,
        summary="weight-free silhouettes, on any CPU",
    ),
    EngineSpec(
        name="trellis",
        module="pipeline.engines.trellis.engine",
        class_name="TrellisEngine",
        extra="trellis",
        packages=(*LOCAL_PACKAGES, "huggingface_hub", "safetensors", "torch", "transformers"),
        max_views=8,
        has_weights=True,
        summary="the released TRELLIS model",
        gpus=("H100", "A100-80GB", "A100-40GB"),
    ),
    EngineSpec(
        name="triposr",
        module="pipeline.engines.triposr.engine",
        class_name="TripoSREngine",
        extra="triposr",
        packages=(*LOCAL_PACKAGES, "huggingface_hub", "safetensors", "torch"),
        max_views=1,
        has_weights=True,
        summary="the released TripoSR model: drafts, also on a laptop's CPU",
        gpus=("L4", "A10", "T4"),
    ),
)


def find_spec(name: str) -> EngineSpec:
    """The engine of that name.

    Raises:
        InvalidRequest: there is none.
    """
    for spec in ENGINES:
        if spec.name == name:
            return spec
    raise InvalidRequest(f"engine must be one of {', '.join(s.name for s in ENGINES)}, got {name!r}")


def check_views(spec: EngineSpec, views: int, *, offered: Iterable[str] = ()) -> None:
    """See that an engine takes that many views of one subject.

    Args:
        offered: names of the engines that the caller could choose instead; all of them by default.

    Raises:
        InvalidRequest: it does not; the message names those that do.
    """
    if views <= spec.max_views:
        return
    others = [find_spec(name) for name in offered] or ENGINES
    takes = [other.name for other in others if other.max_views >= views]
    hint = f"; {', '.join(takes)} would take them" if takes else ""
    counted = f"at most {spec.max_views} views" if spec.max_views > 1 else "one view"
    raise InvalidRequest(f"engine {spec.name} takes {counted}, got {views}{hint}")


def is_installed(spec: EngineSpec) -> bool:
    """Whether the packages that an engine needs are here; imports none of them."""
    return all(importlib.util.find_spec(package) is not None for package in spec.packages)


def weights_module(spec: EngineSpec) -> Any:
    """The module with an engine's `fetch_weights` and `missing_bytes`, which imports no torch; None without weights."""
    return importlib.import_module(f"{spec.module.rpartition('.')[0]}.weights") if spec.has_weights else None


def require_weights(spec: EngineSpec, weights: str, *, remedy: str, refresh: Callable[[], None] = lambda: None) -> None:
    """See that an engine's weights are where they belong, before a machine is started that would look for them.

    Args:
        weights: the folder of all engines' weights, or the name of weights that are no files.
        remedy: the command that brings them, for the message.
        refresh: called where some are missing, since a folder may show an earlier state; they are counted anew then.

    Raises:
        WeightsUnusable: some are missing.
    """
    module = weights_module(spec)
    if module is None or weights == TINY_WEIGHTS or not module.missing_bytes(Path(weights)):
        return
    refresh()
    if missing := module.missing_bytes(Path(weights)):
        raise WeightsUnusable(f"{missing / 1e9:.2f} GB of the weights of {spec.name} are missing; bring them: {remedy}")


def make_engine(name: str, **arguments: Any) -> Engine:
    """Make the engine of that name, not yet loaded.

    Args:
        arguments: what the engine's class takes by keyword (device, folder of weights).

    Raises:
        InvalidRequest: no engine has that name.
        MissingExtra: its part of the installation is absent.
    """
    spec = find_spec(name)
    try:
        module = importlib.import_module(spec.module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in {"pipeline", "schemas"}:
            raise
        raise MissingExtra(f"the {name} engine", extra=spec.extra) from error
    return getattr(module, spec.class_name)(**arguments)
