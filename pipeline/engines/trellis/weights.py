"""Fetching the published weights once, and checking that they are what the model needs. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

from pipeline.engines.trellis.spec import IMAGE_LARGE, EncoderSpec, ModelSpec
from pipeline.errors import MissingExtra, WeightsUnusable
from pipeline.nn.tensor_files import Entry, check_entries, read_entries

WEIGHTS_FOLDER = "trellis"  # below the folder of all engines' weights
ENCODER_FOLDER = "encoder"
RECORD_NAME = "fetched.json"  # sha256 of every file as it came on the first fetch
READ_BYTES = 1 << 22


@cache
def manifest(name: str) -> dict[str, Entry]:
    """The tensors that a published file holds.

    The packaged list writes a repeated block once: `blocks.{24}.norm2.weight` stands for blocks 0 to 23.

    Args:
        name: the file's name without folder and ending, or `encoder`.
    """
    packed = json.loads(files("pipeline.engines.trellis").joinpath("manifests.json").read_text())[name]
    entries: dict[str, Entry] = {}
    for key, (dtype, shape) in packed.items():
        match = re.search(r"\{(\d+)\}", key)
        numbers = range(int(match[1])) if match else range(1)
        for number in numbers:
            entries[re.sub(r"\{\d+\}", str(number), key)] = Entry(dtype, tuple(shape))
    return entries


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


def fetch_weights(
    weights: Path,
    *,
    spec: ModelSpec = IMAGE_LARGE,
    endpoint: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Bring all files of a model into `weights / "trellis"`, each at its pinned revision, and check them.

    A connection that breaks is taken up where it broke, and files that are whole are not fetched again; a file that a
    killed process left half is fetched anew.

    Args:
        weights: the folder of all engines' weights.
        endpoint: address of a mirror; the public hub by default.
        report: takes one line for each thing done.

    Returns:
        The model's own folder; everything in it is used offline from then on.

    Raises:
        WeightsUnusable: a file cannot be fetched or is not what the model needs.
    """
    folder = weights / WEIGHTS_FOLDER
    names = [checkpoint.file_name for checkpoint in spec.checkpoints.values()]
    encoder = spec.encoder
    fetch_files(spec.repo_id, names, folder, revision=spec.revision, endpoint=endpoint)
    fetch_files(
        encoder.repo_id, [encoder.file_name], folder / ENCODER_FOLDER, revision=encoder.revision, endpoint=endpoint
    )
    check_weights(folder, spec)
    report(f"{spec.name}: names, shapes, types and sizes fit")
    verify_record(folder, [*names, f"{ENCODER_FOLDER}/{encoder.file_name}"], report=report)
    return folder


def fetch_files(repo_id: str, names: list[str], folder: Path, *, revision: str, endpoint: str | None = None) -> None:
    """Bring files of a published repository into a folder; those that are there are not fetched again.

    Raises:
        WeightsUnusable: one cannot be fetched.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise MissingExtra("fetching weights", extra="trellis") from error
    for name in names:
        try:
            hf_hub_download(repo_id, name, revision=revision, local_dir=folder, endpoint=endpoint)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsUnusable(f"{name} of {repo_id} cannot be fetched: {reason}") from error


def verify_record(folder: Path, names: list[str], *, report: Callable[[str], None] = lambda line: None) -> None:
    """Compare every file's sha256 with the one of its first fetch, or note it where there is none.

    Raises:
        WeightsUnusable: a file has changed since.
    """
    record_path = folder / RECORD_NAME
    record: dict[str, str] = json.loads(record_path.read_text()) if record_path.is_file() else {}
    for name in names:
        digest = file_sha256(folder / name)
        known = record.setdefault(name, digest)
        if known != digest:
            raise WeightsUnusable(f"{name} has changed since it was fetched: sha256 {digest}, recorded {known}")
        report(f"{digest}  {name}")
    record_path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
