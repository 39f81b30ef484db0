"""Fetching the published weights of whichever engine has some."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from pipeline.engines.registry import find_spec


def fetch_weights(engine: str, folder: Path, *, report: Callable[[str], None]) -> Path | None:
    """Bring an engine's weights into the folder of all engines' weights; whole files stay.

    Returns:
        The engine's own folder, None where it needs no weights.

    Raises:
        InvalidRequest: there is no engine of that name.
        WeightsUnusable: a file cannot be fetched, or is not what the model needs.
    """
    spec = find_spec(engine)
    if not spec.has_weights:
        return None
    package = spec.module.rpartition(".")[0]
    return importlib.import_module(f"{package}.weights").fetch_weights(folder, report=report)
