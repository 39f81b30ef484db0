"""The engines that this project has, by name, and how to make one. Imports an engine only when it is asked for.

Safe to import in the web container: no numpy, no torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import InvalidRequest, MissingExtra

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
        max_views: how many views of one subject it takes.
        has_weights: its class takes `weights`, the folder that `fetch-weights` fills.
        summary: one line about it.
        gpus: the accelerators that a rented deployment takes for it, by Modal's names, the best first; empty: none.
    """

    name: str
    module: str
    class_name: str
    extra: str
    max_views: int
    has_weights: bool
    summary: str
    gpus: tuple[str, ...] = ()


ENGINES: tuple[EngineSpec, ...] = (
    EngineSpec(
        name="preview",
        module="pipeline.engines.preview.engine",
        class_name="PreviewEngine",
        extra="local",
        max_views=8,
        has_weights=False,
        summary="weight-free silhouettes, on any CPU",
    ),
    EngineSpec(
        name="trellis",
        module="pipeline.engines.trellis.engine",
        class_name="TrellisEngine",
        extra="trellis",
        max_views=8,
        has_weights=True,
        summary="the released TRELLIS model",
        gpus=("H100", "A100-80GB", "A100-40GB"),
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
