"""Compares the modules made from the official arguments with the kit's manifests, key by key."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pipeline.engines.trellis.models import make_part
from pipeline.engines.trellis.spec import IMAGE_LARGE
from pipeline.engines.trellis.weights import manifest
from pipeline.errors import WeightsUnusable
from pipeline.nn.checkpoint import FILE_DTYPES, module_entries
from pipeline.nn.tensor_files import Entry, check_entries


def kit_entries(path: Path) -> dict[str, Entry]:
    """The tensors of one manifest."""
    data = json.loads(path.read_text())
    names = {str(dtype).removeprefix("torch."): name for dtype, name in FILE_DTYPES.items()}
    return {key: Entry(names[data["dtypes"][key]], tuple(shape)) for key, shape in data["keys"].items()}


def check_part(name: str, folder: Path) -> str:
    """What is wrong with one part, empty where nothing is."""
    checkpoint = IMAGE_LARGE.checkpoints[name]
    stem = Path(checkpoint.file_name).stem
    path = folder / f"{stem}.json"
    with torch.device("meta"):
        part = make_part(IMAGE_LARGE, name)
    try:
        expected = kit_entries(path)
        check_entries(f"the module {name}", module_entries(part), expected)
        check_entries("the packaged manifest", manifest(stem), expected)
    except WeightsUnusable as error:
        return str(error)
    data = json.loads(path.read_text())
    if data["safetensors_bytes_published_listing"] != checkpoint.size_bytes:
        return f"{checkpoint.size_bytes} bytes in the spec, {data['safetensors_bytes_published_listing']} published"
    if dict(checkpoint.args) != data["args"]:
        return f"arguments {dict(checkpoint.args)}, official {data['args']}"
    return ""


def run_manifests(folder: Path) -> int:
    """Print one line for each checkpoint; returns how many do not fit."""
    failed = 0
    for name in IMAGE_LARGE.checkpoints:
        wrong = check_part(name, folder)
        failed += bool(wrong)
        count = len(manifest(Path(IMAGE_LARGE.checkpoints[name].file_name).stem))
        print(f"{name:20s} {count:4d} tensors  {wrong or 'ok'}")
    print(f"{len(IMAGE_LARGE.checkpoints) - failed} passed, {failed} failed")
    return failed
