"""The seven networks of one model: construction, loading, precision and device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModel, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from pipeline.engines.trellis.gaussian_decoder import SLatGaussianDecoder
from pipeline.engines.trellis.image_encoder import ImageEncoder, encoder_config
from pipeline.engines.trellis.latent_flow import SLatFlowModel
from pipeline.engines.trellis.mesh_decoder import SLatMeshDecoder
from pipeline.engines.trellis.radiance_decoder import SLatRadianceFieldDecoder
from pipeline.engines.trellis.spec import DeterministicWeights, EncoderSpec, ModelSpec, TextEncoderSpec
from pipeline.engines.trellis.structure_flow import SparseStructureFlowModel
from pipeline.engines.trellis.text.encoder import TextEncoder, load_text_encoder, text_config
from pipeline.engines.trellis.text.tokenizer import PromptTokenizer
from pipeline.engines.trellis.weights import check_weights, encoder_path
from pipeline.errors import WeightsUnusable
from pipeline.nn.checkpoint import load_strictly, module_entries, read_tensors
from pipeline.nn.deterministic_weights import fill_deterministic
from pipeline.nn.structure_decoder import SparseStructureDecoder

PART_CLASSES: dict[str, type[nn.Module]] = {
    "structure_flow": SparseStructureFlowModel,
    "structure_decoder": SparseStructureDecoder,
    "latent_flow": SLatFlowModel,
    "gaussian_decoder": SLatGaussianDecoder,
    "radiance_decoder": SLatRadianceFieldDecoder,
    "mesh_decoder": SLatMeshDecoder,
}


@dataclass(frozen=True, eq=False)
class Models:
    """The networks of one model."""

    encoder: ImageEncoder | TextEncoder
    structure_flow: SparseStructureFlowModel
    structure_decoder: SparseStructureDecoder
    latent_flow: SLatFlowModel
    gaussian_decoder: SLatGaussianDecoder
    radiance_decoder: SLatRadianceFieldDecoder
    mesh_decoder: SLatMeshDecoder

    @property
    def device(self) -> torch.device:
        """The device of all networks."""
        return self.structure_flow.pos_emb.device

    def move_to(self, device: torch.device, *, dtype: torch.dtype) -> None:
        """Move all networks in place, one after the other.

        Args:
            device: target device.
            dtype: type of the heavy blocks. The conversion happens on the side that keeps the transfer small: before
                the move when it narrows, after the move when it widens.
        """
        for name in (*PART_CLASSES, "encoder"):
            part: Any = getattr(self, name)
            if name in PART_CLASSES and part.dtype.itemsize >= dtype.itemsize:
                part.set_dtype(dtype)
            part.to(device)
            if name in PART_CLASSES:
                part.set_dtype(dtype)


def load_models(spec: ModelSpec, folder: Path | None, *, device: torch.device, dtype: torch.dtype | None) -> Models:
    """Build and load all networks.

    Args:
        spec: the model.
        folder: the folder that `fetch_weights` filled; None for deterministic test weights.
        device: target device.
        dtype: type of the heavy blocks; everything else is float32. None keeps the stored types and copies the tensors
            into memory of their own instead of mapping them from the files.

    Raises:
        WeightsUnusable: a file is missing, truncated, or does not match; nothing is kept.
    """
    if spec.deterministic_weights is not None:
        return _deterministic_models(spec, spec.deterministic_weights, device=device, dtype=dtype)
    if folder is None:
        raise WeightsUnusable(f"{spec.name} needs a folder of weights")
    check_weights(
        folder, spec, sizes=False
    )  # all headers first, so that a wrong file is found before gigabytes are read
    with ThreadPoolExecutor() as pool:
        parts = {name: pool.submit(_load_part, spec, name, folder, device, dtype) for name in PART_CLASSES}
        encoder = pool.submit(_load_any_encoder, spec.encoder, folder, device, copy=dtype is None)
        filled: dict[str, Any] = {name: part.result() for name, part in parts.items()}
        return Models(encoder=encoder.result(), **filled)


def make_part(spec: ModelSpec, name: str) -> nn.Module:
    """Build one network with its published arguments and types, without weights, on the current default device."""
    return PART_CLASSES[name](**spec.checkpoints[name].args)


def _load_part(spec: ModelSpec, name: str, folder: Path, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """Build one network on the meta device and load its file."""
    with torch.device("meta"):
        part: Any = make_part(spec, name)
    stored = module_entries(part)  # before the type changes: the file has the published types
    if dtype is not None:
        part.set_dtype(dtype)
    path = folder / spec.checkpoints[name].file_name
    load_strictly(part, path, device=device, stored=stored, copy=dtype is None)
    return part


def _load_any_encoder(
    spec: EncoderSpec | TextEncoderSpec, folder: Path, device: torch.device, *, copy: bool
) -> ImageEncoder | TextEncoder:
    if isinstance(spec, TextEncoderSpec):
        return load_text_encoder(spec, encoder_path(folder, spec).parent, device, copy=copy)
    return _load_encoder(spec, folder, device, copy=copy)


def _config(spec: EncoderSpec) -> Dinov2WithRegistersConfig:
    return encoder_config(
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        width=spec.width,
        depth=spec.depth,
        heads=spec.heads,
        registers=spec.registers,
    )


def _load_encoder(spec: EncoderSpec, folder: Path, device: torch.device, *, copy: bool = False) -> ImageEncoder:
    """Load the encoder with transformers, whose names its file has; what the library only warns about is an error.

    Args:
        spec: the encoder.
        folder: the folder of the model.
        device: target device.
        copy: copy the tensors into memory of their own, see `read_tensors`.

    Raises:
        WeightsUnusable: the file is missing, truncated, or does not match.
    """
    path = encoder_path(folder, spec)
    loaded: Any = Dinov2WithRegistersModel.from_pretrained(
        None if copy else path.parent,
        state_dict=read_tensors(path) if copy else None,
        config=_config(spec),
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # reported by key below instead of as an exception without one
        output_loading_info=True,
    )
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise WeightsUnusable(f"{path.name} does not match the encoder: {kind} {sorted(map(str, info[kind]))[0]}")
    return ImageEncoder(model).to(device)


def _untrained_encoder(spec: EncoderSpec | TextEncoderSpec) -> ImageEncoder | TextEncoder:
    if isinstance(spec, TextEncoderSpec):
        return TextEncoder(CLIPTextModel(text_config(spec)), PromptTokenizer.of_bytes())
    return ImageEncoder(Dinov2WithRegistersModel(_config(spec)))


@torch.no_grad()
def _deterministic_models(
    spec: ModelSpec, rule: DeterministicWeights, *, device: torch.device, dtype: torch.dtype | None
) -> Models:
    with torch.random.fork_rng(devices=[]):  # layer initialisation draws from the global generator
        parts: dict[str, Any] = {name: make_part(spec, name) for name in PART_CLASSES}
        encoder = _untrained_encoder(spec.encoder)
    for name, part in {**parts, "encoder": encoder.model}.items():
        fill_deterministic(part, seed=rule.seed, key_prefix=f"{name}.")
    models = Models(encoder=encoder, **parts)
    parts["structure_decoder"].out_layer[2].bias += rule.occupancy_shift
    models.mesh_decoder.out_layer.bias[:8] += rule.distance_shift
    for field in fields(models):
        getattr(models, field.name).eval().requires_grad_(False)
    models.move_to(device, dtype=dtype or torch.float32)
    return models
