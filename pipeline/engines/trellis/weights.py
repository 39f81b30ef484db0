"""Download of the published weights, and the check that they match the model. Imports no torch."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

from pipeline.engines.trellis.spec import IMAGE_LARGE, EncoderSpec, ModelSpec, TextEncoderSpec
from pipeline.errors import WeightsUnusable
from pipeline.nn.hub_download import OnBytes, Report, fetch_files, ignore_progress, unpack_manifest, verify_record
from pipeline.nn.remover_weights import fetch_remover, missing_remover_bytes
from pipeline.nn.tensor_files import Entry, check_entries, read_entries

WEIGHTS_FOLDER = "trellis"  # below the folder of all engines' weights
ENCODER_FOLDER = "encoder"
TEXT_ENCODER_FOLDER = "text_encoder"


@cache
def manifest(name: str) -> dict[str, Entry]:
    """Return the tensors of a published file.

    Args:
        name: the file's name without folder and extension, `encoder`, or `text_encoder` for the text tower alone.
    """
    return unpack_manifest(json.loads(files("pipeline.engines.trellis").joinpath("manifests.json").read_text())[name])


def encoder_path(folder: Path, spec: EncoderSpec | TextEncoderSpec) -> Path:
    """Return where the encoder's file lies in the folder of the models."""
    name = TEXT_ENCODER_FOLDER if isinstance(spec, TextEncoderSpec) else ENCODER_FOLDER
    return folder / name / spec.file_name


def check_encoder_file(path: Path, spec: EncoderSpec | TextEncoderSpec) -> None:
    """Check the header of the encoder's file; its keys are those of the transformers release that wrote it.

    Of a text encoder's file only the text tower is used, and checked.

    Raises:
        WeightsUnusable: the file is missing, truncated, or belongs to another model.
    """
    found = read_entries(path)
    if isinstance(spec, TextEncoderSpec):
        expected = manifest("text_encoder")
        check_entries(path.name, {key: entry for key, entry in found.items() if key in expected}, expected)
    elif spec == IMAGE_LARGE.encoder:
        check_entries(path.name, found, manifest("encoder"))


def check_weights(folder: Path, spec: ModelSpec = IMAGE_LARGE, *, sizes: bool = True) -> None:
    """Check the headers of all files of a model: names, shapes and types.

    Args:
        folder: the folder of the models.
        spec: the model.
        sizes: also require the published file sizes, which re-written files need not have.

    Raises:
        WeightsUnusable: names the first file and key that do not match.
    """
    for checkpoint in spec.checkpoints.values():
        path = folder / checkpoint.file_name
        check_entries(path.name, read_entries(path), manifest(path.stem))
        if sizes and checkpoint.size_bytes is not None and path.stat().st_size != checkpoint.size_bytes:
            raise WeightsUnusable(
                f"{path.name} has {path.stat().st_size} bytes, expected {checkpoint.size_bytes} as published"
            )
    check_encoder_file(encoder_path(folder, spec.encoder), spec.encoder)


def file_sizes(folder: Path, spec: ModelSpec) -> dict[Path, int]:
    """Return the size in bytes of every file of a model; without a published size, that of its tensors."""

    def size_of(name: str, published: int | None) -> int:
        return published or sum(entry.size_bytes for entry in manifest(name).values())

    sizes = {
        folder / checkpoint.file_name: size_of(Path(checkpoint.file_name).stem, checkpoint.size_bytes)
        for checkpoint in spec.checkpoints.values()
    }
    encoder = spec.encoder
    is_text = isinstance(encoder, TextEncoderSpec)
    published = encoder.size_bytes if is_text else None
    sizes[encoder_path(folder, encoder)] = size_of("text_encoder" if is_text else "encoder", published)
    return sizes


def missing_bytes(weights: Path, spec: ModelSpec = IMAGE_LARGE) -> int:
    """Return how many bytes `fetch_weights` would download into the folder of all engines' weights; 0 if complete."""
    sizes = file_sizes(weights / WEIGHTS_FOLDER, spec)
    return sum(size for path, size in sizes.items() if not path.exists()) + missing_remover_bytes(weights)


def fetch_weights(
    weights: Path,
    *,
    spec: ModelSpec = IMAGE_LARGE,
    endpoint: str | None = None,
    report: Report = ignore_progress,
    on_bytes: OnBytes = ignore_progress,
) -> Path:
    """Download a model into `weights / "trellis"` and the background remover beside it, pinned and checked.

    A broken transfer resumes where it stopped, and complete files are not downloaded again.

    Args:
        weights: the folder of all engines' weights.
        spec: the model.
        endpoint: URL of a mirror; the public hub by default.
        report: receives one line of text per finished step.
        on_bytes: receives the progress of each file.

    Returns:
        The model's folder; its files are used offline from then on.

    Raises:
        WeightsUnusable: a file cannot be downloaded or does not match the model.
    """
    folder = weights / WEIGHTS_FOLDER
    names = [checkpoint.file_name for checkpoint in spec.checkpoints.values()]
    encoder = spec.encoder
    for repo_id, revision, file_names, target in (
        (spec.repo_id, spec.revision, names, folder),
        (encoder.repo_id, encoder.revision, [encoder.file_name], folder / ENCODER_FOLDER),
    ):
        fetch_files(repo_id, file_names, target, revision=revision, endpoint=endpoint, on_bytes=on_bytes)
    check_weights(folder, spec)
    report(f"{spec.name}: names, shapes, types and sizes match")
    verify_record(folder, [*names, f"{ENCODER_FOLDER}/{encoder.file_name}"], report=report)
    fetch_remover(weights, endpoint=endpoint, report=report, on_bytes=on_bytes)
    return folder
