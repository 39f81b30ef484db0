"""Fetching the published checkpoint once and keeping it as safetensors, so that no server ever opens a pickle.

Imports no torch before a checkpoint is converted.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

from pipeline.engines.triposr.spec import RELEASED, ModelSpec
from pipeline.errors import WeightsUnusable
from pipeline.nn.hub_download import (
    OnBytes,
    Report,
    fetch_files,
    file_sha256,
    ignore_report,
    unpack_manifest,
    verify_record,
)
from pipeline.nn.tensor_files import Entry, check_entries, read_entries

WEIGHTS_FOLDER = "triposr"  # below the folder of all engines' weights
FILE_NAME = "model.safetensors"


@cache
def manifest() -> dict[str, Entry]:
    """The tensors of the published checkpoint, which are those of the model."""
    return unpack_manifest(json.loads(files("pipeline.engines.triposr").joinpath("manifest.json").read_text()))


def missing_bytes(weights: Path, spec: ModelSpec = RELEASED) -> int:
    """How much `fetch_weights` would bring into the folder of all engines' weights; 0 where all is there."""
    folder = weights / WEIGHTS_FOLDER
    return 0 if (folder / FILE_NAME).exists() or (folder / spec.file_name).exists() else spec.size_bytes


def check_weights(folder: Path) -> None:
    """Check the converted file by its header: names, shapes and types.

    Raises:
        WeightsUnusable: naming the first key that does not fit.
    """
    path = folder / FILE_NAME
    check_entries(path.name, read_entries(path), manifest())


def fetch_weights(
    weights: Path,
    *,
    spec: ModelSpec = RELEASED,
    endpoint: str | None = None,
    report: Report = ignore_report,
    on_bytes: OnBytes = ignore_report,
) -> Path:
    """Bring the model into `weights / "triposr"` at its pinned revision, check it and convert it.

    A transfer that broke goes on where it broke, and a model that is there is not fetched again.

    Args:
        weights: the folder of all engines' weights.
        endpoint: address of a mirror; the public hub by default.
        report: takes one line for each thing done.
        on_bytes: told how far the file has come.

    Returns:
        The model's own folder; everything in it is used offline from then on.

    Raises:
        WeightsUnusable: the file cannot be fetched or is not what the model needs.
    """
    folder = weights / WEIGHTS_FOLDER
    path = folder / spec.file_name
    if not (folder / FILE_NAME).exists():
        fetch_files(
            spec.repo_id, [spec.file_name], folder, revision=spec.revision, endpoint=endpoint, on_bytes=on_bytes
        )
        digest = file_sha256(path)
        if digest != spec.sha256:
            raise WeightsUnusable(f"{path.name} is not the published file: sha256 {digest}, published {spec.sha256}")
        report(f"{digest}  {path.name}, as published")
        convert_checkpoint(path, folder / FILE_NAME)
    check_weights(folder)
    path.unlink(missing_ok=True)
    report(f"{spec.name}: names, shapes and types fit")
    verify_record(folder, [FILE_NAME], report=report)
    return folder


def convert_checkpoint(path: Path, target: Path, *, expected: dict[str, Entry] | None = None) -> None:
    """Write the tensors of a pickled checkpoint as safetensors.

    The pickle is read by the reader that knows tensors and plain containers alone: anything else that it asks for is
    refused before it is made.

    Args:
        path: a zip-format pickle of one plain dictionary, as published.
        target: appears only when it is whole.
        expected: what it must hold, the model's own tensors by default.

    Raises:
        WeightsUnusable: it cannot be read, asks for more than tensors, or does not hold what is expected.
    """
    import torch
    from safetensors.torch import save_file
    from torch import Tensor

    from pipeline.nn.checkpoint import FILE_DTYPES

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # noqa: TID251 - the published file is a pickle; read here alone, without its code
    except FileNotFoundError as error:
        raise WeightsUnusable(f"{path.name} is missing in {path.parent}") from error
    except Exception as error:  # a damaged or hostile pickle raises anything
        raise WeightsUnusable(
            f"{path.name} is damaged, or holds more than tensors: it was not opened ({type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsUnusable(f"{path.name} is not one plain dictionary of tensors")
    found = {
        str(key): Entry(FILE_DTYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
        for key, tensor in state.items()
    }
    check_entries(path.name, found, manifest() if expected is None else expected)
    draft = target.with_name(f"{target.name}.part")
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, draft)
    draft.replace(target)
