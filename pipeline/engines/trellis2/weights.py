"""Download of the published weights, and the check that they match the model. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from pipeline.engines.trellis2.spec import RELEASED, ModelSpec, networks_up_to
from pipeline.errors import WeightsUnusable
from pipeline.nn.hub_download import OnBytes, Report, fetch_files, ignore_progress, unpack_manifest, verify_record
from pipeline.nn.remover_weights import fetch_remover, missing_remover_bytes
from pipeline.nn.tensor_files import Entry, check_entries, read_entries
from schemas.request import DETAILS

WEIGHTS_FOLDER = "trellis2"  # below the folder of all engines' weights
ENCODER_FOLDER = "encoder"
LICENCES = "LICENCES.txt"
LICENCES_TEXT = """\
The weights in this folder and their licences

ckpts/*  TRELLIS.2-4B and, of them, the structure decoder of TRELLIS-image-large. MIT License,
         Copyright (c) Microsoft Corporation.
encoder  DINOv3 ViT-L/16. DINOv3 License, Copyright (c) Meta Platforms, Inc.; its text is LICENSE.md beside the
         weights, and who passes the weights on passes it on too.
"""


@cache
def manifest(name: str) -> dict[str, Entry]:
    """Return the tensors of a published file.

    Args:
        name: the file's name without folder and extension, or `encoder`.
    """
    return unpack_manifest(json.loads(files("pipeline.engines.trellis2").joinpath("manifests.json").read_text())[name])


def encoder_key(key: str) -> str:
    """The key of the encoder's file in the words of this transformers release; earlier ones left out a prefix."""
    return re.sub(r"^(?:model\.)?layer\.", "model.layer.", key)


def check_weights(
    folder: Path, spec: ModelSpec = RELEASED, *, names: Sequence[str] | None = None, sizes: bool = True
) -> None:
    """Check the headers of the files of a model: names, shapes and types.

    Args:
        folder: the folder of the model.
        spec: the model.
        names: of the networks; by default all.
        sizes: also require the published file sizes, which re-written files need not have.

    Raises:
        WeightsUnusable: names the first file and key that do not match.
    """
    for name in spec.checkpoints if names is None else names:
        checkpoint = spec.checkpoints[name]
        path = folder / checkpoint.file_name
        check_entries(path.name, read_entries(path), manifest(path.stem))
        if sizes and path.stat().st_size != checkpoint.size_bytes:
            raise WeightsUnusable(
                f"{path.name} has {path.stat().st_size} bytes, expected {checkpoint.size_bytes} as published"
            )
    path = folder / ENCODER_FOLDER / spec.encoder.file_name
    found = {encoder_key(key): entry for key, entry in read_entries(path).items()}
    check_entries(f"{ENCODER_FOLDER}/{path.name}", found, manifest("encoder"))


def missing_bytes(weights: Path, spec: ModelSpec = RELEASED, *, detail: int = DETAILS[1]) -> int:
    """Return how many bytes `fetch_weights` would download into the folder of all engines' weights; 0 if complete."""
    folder = weights / WEIGHTS_FOLDER
    sizes = {
        folder / spec.checkpoints[name].file_name: spec.checkpoints[name].size_bytes or 0
        for name in networks_up_to(detail)
    }
    sizes[folder / ENCODER_FOLDER / spec.encoder.file_name] = spec.encoder.size_bytes
    return sum(size for path, size in sizes.items() if not path.exists()) + missing_remover_bytes(weights)


def fetch_weights(
    weights: Path,
    *,
    spec: ModelSpec = RELEASED,
    detail: int = DETAILS[1],
    encoder_repo: str | None = None,
    endpoint: str | None = None,
    report: Report = ignore_progress,
    on_bytes: OnBytes = ignore_progress,
) -> Path:
    """Download a model into `weights / "trellis2"` and the background remover beside it, checked.

    A broken transfer resumes where it stopped, and complete files are not downloaded again.

    Args:
        weights: the folder of all engines' weights.
        spec: the model.
        detail: the largest one that will be asked for; 512 needs fewer files.
        encoder_repo: a repository with the encoder's weights, `owner/name` or `owner/name@revision`, for those without
            access to the original, which is gated. Of either, the header must match; the sha256 of the first download
            is recorded, and another file is refused from then on.
        endpoint: URL of a mirror; the public hub by default.
        report: receives one line of text per finished step.
        on_bytes: receives the progress of each file.

    Returns:
        The model's folder; its files are used offline from then on.

    Raises:
        WeightsUnusable: a file cannot be downloaded or does not match the model.
    """
    folder, names = weights / WEIGHTS_FOLDER, networks_up_to(detail)
    for name in names:
        part = spec.checkpoints[name]
        fetch_files(
            part.repo_id, [part.remote_name], folder, revision=part.revision, endpoint=endpoint, on_bytes=on_bytes
        )
    repo, _, revision = (encoder_repo or f"{spec.encoder.repo_id}@{spec.encoder.revision}").partition("@")
    fetch_files(
        repo,
        [spec.encoder.file_name],
        folder / ENCODER_FOLDER,
        revision=revision or "main",
        endpoint=endpoint,
        on_bytes=on_bytes,
    )
    (folder / LICENCES).write_text(LICENCES_TEXT)
    check_weights(folder, spec, names=names)
    report(f"{spec.name}: names, shapes, types and sizes match")
    recorded = [*(spec.checkpoints[name].file_name for name in names), f"{ENCODER_FOLDER}/{spec.encoder.file_name}"]
    verify_record(folder, recorded, report=report)
    fetch_remover(weights, endpoint=endpoint, report=report, on_bytes=on_bytes)
    return folder
