"""Fetching the published weights once, and checking that they are what the model needs. Imports no torch."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

from pipeline.engines.trellis.remover import fetch_remover, missing_remover_bytes
from pipeline.engines.trellis.spec import IMAGE_LARGE, EncoderSpec, ModelSpec
from pipeline.errors import WeightsUnusable
from pipeline.nn.hub_download import OnBytes, Report, fetch_files, ignore_progress, unpack_manifest, verify_record
from pipeline.nn.tensor_files import Entry, check_entries, read_entries

WEIGHTS_FOLDER = "trellis"  # below the folder of all engines' weights
ENCODER_FOLDER = "encoder"


@cache
def manifest(name: str) -> dict[str, Entry]:
    """The tensors that a published file holds.

    Args:
        name: the file's name without folder and ending, or `encoder`.
    """
    return unpack_manifest(json.loads(files("pipeline.engines.trellis").joinpath("manifests.json").read_text())[name])


def check_encoder_file(path: Path, spec: EncoderSpec) -> None:
    """Check the encoder's file as it was published; its keys are those of the library that published it.

    Raises:
        WeightsUnusable: it is missing, cut short, or another model's.
    """
    found = read_entries(path)
    if spec == IMAGE_LARGE.encoder:
        check_entries(path.name, found, manifest("encoder"))


def check_weights(folder: Path, spec: ModelSpec = IMAGE_LARGE, *, sizes: bool = True) -> None:
    """Check all files of a model by their headers: names, shapes and types.

    Args:
        sizes: also ask for the published sizes, which files that were written anew need not have.

    Raises:
        WeightsUnusable: naming the first file and key that do not fit.
    """
    for checkpoint in spec.checkpoints.values():
        path = folder / checkpoint.file_name
        check_entries(path.name, read_entries(path), manifest(path.stem))
        if sizes and checkpoint.size_bytes is not None and path.stat().st_size != checkpoint.size_bytes:
            raise WeightsUnusable(
                f"{path.name} has {path.stat().st_size} bytes, the published one {checkpoint.size_bytes}"
            )
    check_encoder_file(folder / ENCODER_FOLDER / spec.encoder.file_name, spec.encoder)


def missing_bytes(weights: Path, spec: ModelSpec = IMAGE_LARGE) -> int:
    """How much `fetch_weights` would bring into the folder of all engines' weights; 0 where all is there."""
    folder, encoder = weights / WEIGHTS_FOLDER, spec.encoder
    sizes = {folder / checkpoint.file_name: checkpoint.size_bytes or 0 for checkpoint in spec.checkpoints.values()}
    sizes[folder / ENCODER_FOLDER / encoder.file_name] = sum(entry.size_bytes for entry in manifest("encoder").values())
    return sum(size for path, size in sizes.items() if not path.exists()) + missing_remover_bytes(weights)


def fetch_weights(
    weights: Path,
    *,
    spec: ModelSpec = IMAGE_LARGE,
    endpoint: str | None = None,
    report: Report = ignore_progress,
    on_bytes: OnBytes = ignore_progress,
) -> Path:
    """Bring a model's files into `weights / "trellis"` and its background remover beside, each pinned and checked.

    A transfer that broke goes on where it broke, and files that are whole are not fetched again.

    Args:
        weights: the folder of all engines' weights.
        endpoint: address of a mirror; the public hub by default.
        report: takes one line for each thing done.
        on_bytes: told how far each file has come.

    Returns:
        The model's own folder; everything in it is used offline from then on.

    Raises:
        WeightsUnusable: a file cannot be fetched or is not what the model needs.
    """
    folder = weights / WEIGHTS_FOLDER
    names = [checkpoint.file_name for checkpoint in spec.checkpoints.values()]
    encoder = spec.encoder
    for repo_id, revision, wanted, place in (
        (spec.repo_id, spec.revision, names, folder),
        (encoder.repo_id, encoder.revision, [encoder.file_name], folder / ENCODER_FOLDER),
    ):
        fetch_files(repo_id, wanted, place, revision=revision, endpoint=endpoint, on_bytes=on_bytes)
    check_weights(folder, spec)
    report(f"{spec.name}: names, shapes, types and sizes fit")
    verify_record(folder, [*names, f"{ENCODER_FOLDER}/{encoder.file_name}"], report=report)
    fetch_remover(weights, endpoint=endpoint, report=report, on_bytes=on_bytes)
    return folder
