"""Compares modules built with the published arguments with the manifests of the kit, key by key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModel
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

from pipeline.engines.trellis.models import make_part
from pipeline.engines.trellis.spec import IMAGE_LARGE, ModelSpec
from pipeline.engines.trellis.text.encoder import TOWER, text_config
from pipeline.engines.trellis.text.spec import CLIP_LARGE, SIZES
from pipeline.engines.trellis.weights import manifest
from pipeline.engines.trellis2 import models as trellis2
from pipeline.engines.trellis2.spec import RELEASED as RELEASED_2
from pipeline.engines.trellis2.weights import manifest as trellis2_manifest
from pipeline.engines.triposr.model import make_model
from pipeline.engines.triposr.spec import RELEASED
from pipeline.engines.triposr.weights import manifest as triposr_manifest
from pipeline.errors import WeightsUnusable
from pipeline.nn.checkpoint import FILE_DTYPES, module_entries
from pipeline.nn.tensor_files import Entry, check_entries


def kit_entries(path: Path) -> dict[str, Entry]:
    """Return the tensors of one manifest."""
    data = json.loads(path.read_text())
    names = {str(dtype).removeprefix("torch."): name for dtype, name in FILE_DTYPES.items()}
    return {key: Entry(names[data["dtypes"][key]], tuple(shape)) for key, shape in data["keys"].items()}


def check_part(name: str, folder: Path, spec: ModelSpec = IMAGE_LARGE) -> str:
    """Return what is wrong with one network; empty if nothing is."""
    checkpoint = spec.checkpoints[name]
    stem = Path(checkpoint.file_name).stem
    path = folder / f"{stem}.json"
    with torch.device("meta"):
        part = make_part(spec, name)
    try:
        expected = kit_entries(path)
        check_entries(f"the module {name}", module_entries(part), expected)
        check_entries("the packaged manifest", manifest(stem), expected)
    except WeightsUnusable as error:
        return str(error)
    data = json.loads(path.read_text())
    if data["safetensors_bytes_published_listing"] != checkpoint.size_bytes:  # None of those that no listing has
        return f"{checkpoint.size_bytes} bytes in the spec, {data['safetensors_bytes_published_listing']} published"
    if dict(checkpoint.args) != data["args"]:
        return f"arguments {dict(checkpoint.args)}, official {data['args']}"
    return ""


def check_text_encoder(folder: Path) -> str:
    """Return what is wrong with the text tower; empty if nothing is."""
    data = json.loads((folder / "clip_vit_large_patch14_text.json").read_text())
    expected = {key: Entry("F32", tuple(shape)) for key, shape in data["keys"].items()}
    with torch.device("meta"):
        entries = module_entries(CLIPTextModel(text_config(CLIP_LARGE)))
    named = {TOWER + key.removeprefix(TOWER): entry for key, entry in entries.items()}
    try:
        check_entries("the module CLIPTextModel", named, expected)
        check_entries("the packaged manifest", manifest("text_encoder"), expected)
    except WeightsUnusable as error:
        return str(error)
    if data["safetensors_bytes_whole_file"] != CLIP_LARGE.size_bytes:
        return f"{CLIP_LARGE.size_bytes} bytes in the spec, {data['safetensors_bytes_whole_file']} published"
    return ""


def text_rows(folder: Path) -> dict[str, tuple[int, str]]:
    """The text models' own networks: the number of tensors, and what is wrong."""
    rows = {
        f"{size} {name}": (len(manifest(Path(spec.checkpoints[name].file_name).stem)), check_part(name, folder, spec))
        for size, spec in SIZES.items()
        for name in ("structure_flow", "latent_flow")
    }
    return rows | {"text tower": (len(manifest("text_encoder")), check_text_encoder(folder))}


def check_trellis2_part(name: str, folder: Path) -> str:
    """Return what is wrong with one network of TRELLIS.2, or its image encoder; empty if nothing is."""
    if name == trellis2.ENCODER:
        data = json.loads((folder / "dinov3_vitl16.json").read_text())
        expected = {key: Entry("F32", tuple(shape)) for key, shape in data["keys"].items()}
        with torch.device("meta"):
            part: nn.Module = DINOv3ViTModel(DINOv3ViTConfig(**RELEASED_2.encoder.args))
        stem = name
    else:
        checkpoint = RELEASED_2.checkpoints[name]
        stem = Path(checkpoint.file_name).stem
        data = json.loads((folder / f"{stem}.json").read_text())
        expected = stored_entries(data)
        part = trellis2.stored_part(RELEASED_2, name)
        if data["safetensors_bytes_published"] != checkpoint.size_bytes:
            return f"{checkpoint.size_bytes} bytes in the spec, {data['safetensors_bytes_published']} published"
        if dict(checkpoint.args) != data["args"]:
            return f"arguments {dict(checkpoint.args)}, official {data['args']}"
    try:
        check_entries(f"the module {name}", module_entries(part), expected)
        check_entries("the packaged manifest", trellis2_manifest(stem), expected)
    except WeightsUnusable as error:
        return str(error)
    return ""


def stored_entries(data: Mapping[str, Any]) -> dict[str, Entry]:
    """Return the tensors that a manifest says a file has: in the stored types, without what is computed."""
    names = {str(dtype).removeprefix("torch."): name for dtype, name in FILE_DTYPES.items()}
    stored = data["dtypes_stored"]  # by key, or "all float16"
    return {
        key: Entry(names[stored[key] if isinstance(stored, dict) else stored.removeprefix("all ")], tuple(shape))
        for key, shape in data["keys"].items()
        if key not in data["buffers_not_stored"]
    }


def trellis2_rows(folder: Path) -> dict[str, tuple[int, str]]:
    """The networks of TRELLIS.2 and its encoder: the number of tensors, and what is wrong."""
    stems = {name: Path(checkpoint.file_name).stem for name, checkpoint in RELEASED_2.checkpoints.items()}
    stems[trellis2.ENCODER] = trellis2.ENCODER
    return {name: (len(trellis2_manifest(stem)), check_trellis2_part(name, folder)) for name, stem in stems.items()}


def check_triposr(folder: Path) -> str:
    """Return what is wrong with the TripoSR model; empty if nothing is."""
    data = json.loads((folder / "model.json").read_text())
    expected = {key: Entry("F32", tuple(shape)) for key, shape in data["keys"].items()}
    try:
        check_entries("the module TSR", module_entries(make_model(RELEASED)), expected)
        check_entries("the packaged manifest", triposr_manifest(), expected)
    except WeightsUnusable as error:
        return str(error)
    published = data["model_ckpt_bytes_published"], data["model_ckpt_sha256_published"]
    if published != (RELEASED.size_bytes, RELEASED.sha256):
        return f"size and sha256 are {(RELEASED.size_bytes, RELEASED.sha256)}, published {published}"
    return ""


def run_manifests(folder: Path) -> int:
    """Print one line for each checkpoint and return the number of mismatches."""
    if (folder / "model.json").exists():
        wrong = check_triposr(folder)
        print(f"{'triposr':20s} {len(triposr_manifest()):4d} tensors  {wrong or 'ok'}")
        print(f"{int(not wrong)} passed, {int(bool(wrong))} failed")
        return int(bool(wrong))
    if (folder / "clip_tokenizer.json").exists():
        rows = text_rows(folder)
    elif (folder / "dinov3_vitl16.json").exists():
        rows = trellis2_rows(folder)
    else:
        rows = {
            name: (len(manifest(Path(checkpoint.file_name).stem)), check_part(name, folder))
            for name, checkpoint in IMAGE_LARGE.checkpoints.items()
        }
    for name, (count, wrong) in rows.items():
        print(f"{name:24s} {count:4d} tensors  {wrong or 'ok'}")
    failed = sum(bool(wrong) for _, wrong in rows.values())
    print(f"{len(rows) - failed} passed, {failed} failed")
    return failed
