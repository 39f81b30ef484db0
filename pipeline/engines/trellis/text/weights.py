"""Download of the published text models; the decoders are shared with the image model and stored once. No torch."""

from __future__ import annotations

from pathlib import Path

from pipeline.engines.trellis.spec import IMAGE_LARGE, ModelSpec, TextEncoderSpec
from pipeline.engines.trellis.text.spec import DEFAULT_SIZE, SIZES
from pipeline.engines.trellis.weights import (
    TEXT_ENCODER_FOLDER,
    WEIGHTS_FOLDER,
    check_weights,
    file_sizes,
)
from pipeline.errors import InvalidRequest, WeightsUnusable
from pipeline.nn.hub_download import OnBytes, Report, fetch_files, file_sha256, ignore_progress, verify_record


def find_size(size: str) -> ModelSpec:
    """Return the model of a size.

    Raises:
        InvalidRequest: there is none.
    """
    if size not in SIZES:
        raise InvalidRequest(f"the size must be one of {', '.join(SIZES)}, got {size!r}")
    return SIZES[size]


def _paths(weights: Path, spec: ModelSpec) -> dict[Path, int]:
    """Return the size in bytes of every file of a model, the vocabulary's included."""
    folder = weights / WEIGHTS_FOLDER
    encoder = spec.encoder
    assert isinstance(encoder, TextEncoderSpec)
    vocabulary = {folder / TEXT_ENCODER_FOLDER / name: VOCABULARY_BYTES for name in encoder.sha256}
    return vocabulary | file_sizes(folder, spec)


VOCABULARY_BYTES = 1 << 20
"""Size of vocab.json and of merges.txt, about."""


def chosen_size(weights: Path, size: str | None = None) -> str:
    """Return the size that an engine loads: the given one, else the largest whose files are there, else the default.

    Raises:
        InvalidRequest: there is no such size.
    """
    if size is not None:
        find_size(size)
        return size
    present = [name for name, spec in SIZES.items() if all(path.exists() for path in _paths(weights, spec))]
    return present[-1] if present else DEFAULT_SIZE


def missing_bytes(weights: Path, *, size: str | None = None) -> int:
    """Return how many bytes `fetch_weights` would download into the folder of all engines' weights; 0 if complete."""
    paths = _paths(weights, SIZES[chosen_size(weights, size)])
    return sum(size_bytes for path, size_bytes in paths.items() if not path.exists())


def fetch_weights(
    weights: Path,
    *,
    size: str | None = None,
    endpoint: str | None = None,
    report: Report = ignore_progress,
    on_bytes: OnBytes = ignore_progress,
) -> Path:
    """Download a text model into `weights / "trellis"`, where the image model's decoders lie, pinned and checked.

    A broken transfer resumes where it stopped, and complete files are not downloaded again.

    Args:
        weights: the folder of all engines' weights.
        size: `base`, `large` or `xlarge`; by default as `chosen_size`.
        endpoint: URL of a mirror; the public hub by default.
        report: receives one line of text per finished step.
        on_bytes: receives the progress of each file.

    Returns:
        The folder of the models; their files are used offline from then on.

    Raises:
        InvalidRequest: there is no such size.
        WeightsUnusable: a file cannot be downloaded or does not match the model.
    """
    spec = find_size(chosen_size(weights, size))
    encoder = spec.encoder
    assert isinstance(encoder, TextEncoderSpec)
    folder = weights / WEIGHTS_FOLDER
    flows = [spec.structure_flow.file_name, spec.latent_flow.file_name]
    decoders = [each.file_name for each in spec.checkpoints.values() if each.file_name not in flows]
    texts = folder / TEXT_ENCODER_FOLDER
    for repo_id, revision, names, target in (
        (spec.repo_id, spec.revision, flows, folder),
        (IMAGE_LARGE.repo_id, IMAGE_LARGE.revision, decoders, folder),
        (encoder.repo_id, encoder.revision, list(encoder.sha256), texts),
    ):
        fetch_files(repo_id, names, target, revision=revision, endpoint=endpoint, on_bytes=on_bytes)
    check_weights(folder, spec)
    for name, expected in encoder.sha256.items():
        if (found := file_sha256(texts / name)) != expected:
            raise WeightsUnusable(f"{name} has the sha256 {found}, expected {expected} as published")
    report(f"{spec.name}: names, shapes, types and sizes match")
    verify_record(
        folder, [*flows, *decoders, *(f"{TEXT_ENCODER_FOLDER}/{name}" for name in encoder.sha256)], report=report
    )
    return folder
