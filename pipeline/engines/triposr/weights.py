"""Download the published checkpoint once and store it as safetensors, so that no server ever opens a pickle.

Imports torch only to convert a checkpoint.
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
    ignore_progress,
    unpack_manifest,
    verify_record,
)
from pipeline.nn.tensor_files import Entry, check_entries, read_entries

WEIGHTS_FOLDER = "triposr"  # below the folder of all engines' weights
FILE_NAME = "model.safetensors"


@cache
def manifest() -> dict[str, Entry]:
    """Return the tensors of the published checkpoint, which are those of the model."""
    return unpack_manifest(json.loads(files("pipeline.engines.triposr").joinpath("manifest.json").read_text()))


def missing_bytes(weights: Path, spec: ModelSpec = RELEASED) -> int:
    """Return how many bytes `fetch_weights` would download into the folder of all engines' weights; 0 if complete."""
    folder = weights / WEIGHTS_FOLDER
    return 0 if (folder / FILE_NAME).exists() or (folder / spec.file_name).exists() else spec.size_bytes


def check_weights(folder: Path) -> None:
    """Check the header of the converted file: names, shapes and types.

    Raises:
        WeightsUnusable: names the first key that does not match.
    """
    path = folder / FILE_NAME
    check_entries(path.name, read_entries(path), manifest())


def fetch_weights(
    weights: Path,
    *,
    spec: ModelSpec = RELEASED,
    endpoint: str | None = None,
    report: Report = ignore_progress,
    on_bytes: OnBytes = ignore_progress,
) -> Path:
    """Download the model into `weights / "triposr"` at its pinned revision, check it and convert it.

    A broken transfer resumes where it stopped, and an existing model is not downloaded again.

    Args:
        weights: the folder of all engines' weights.
        spec: the model.
        endpoint: URL of a mirror; the public hub by default.
        report: receives one line of text per finished step.
        on_bytes: receives the progress of the download.

    Returns:
        The model's folder; its files are used offline from then on.

    Raises:
        WeightsUnusable: the file cannot be downloaded or does not match the model.
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
    report(f"{spec.name}: names, shapes and types match")
    verify_record(folder, [FILE_NAME], report=report)
    return folder


def convert_checkpoint(path: Path, target: Path, *, expected: dict[str, Entry] | None = None) -> None:
    """Write the tensors of a pickled checkpoint as safetensors.

    Uses torch's restricted unpickler, which constructs tensors and plain containers only and refuses anything else
    before it is constructed.

    Args:
        path: a zip-format pickle of one plain dictionary, as published.
        target: created atomically when it is complete.
        expected: the tensors that it must hold; by default those of the model.

    Raises:
        WeightsUnusable: the file cannot be read, contains other objects than tensors, or does not match `expected`.
    """
    import torch
    from safetensors.torch import save_file
    from torch import Tensor

    from pipeline.nn.checkpoint import FILE_DTYPES

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # noqa: TID251 - the published file is a pickle; read only here, restricted to tensors
    except FileNotFoundError as error:
        raise WeightsUnusable(f"{path.name} is missing in {path.parent}") from error
    except Exception as error:  # a damaged or malicious pickle can raise any exception
        raise WeightsUnusable(
            f"{path.name} is damaged, or contains other objects than tensors; not loaded ({type(error).__name__})"
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
