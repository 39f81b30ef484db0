"""The networks of one model: construction, loading when one is first used, precision, device, and host memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

from pipeline.engines.trellis2.flow import SLatFlowModel, SparseStructureFlowModel
from pipeline.engines.trellis2.image_encoder import ImageEncoder
from pipeline.engines.trellis2.spec import DeterministicWeights, ModelSpec
from pipeline.engines.trellis2.unet import FlexiDualGridVaeDecoder, SparseUnetVaeDecoder
from pipeline.engines.trellis2.weights import ENCODER_FOLDER, check_weights, encoder_key
from pipeline.errors import WeightsUnusable
from pipeline.nn.checkpoint import load_strictly, read_tensors
from pipeline.nn.deterministic_weights import fill_deterministic
from pipeline.nn.structure_decoder import SparseStructureDecoder

ENCODER = "encoder"
PART_CLASSES: dict[str, type[nn.Module]] = {
    "structure_flow": SparseStructureFlowModel,
    "structure_decoder": SparseStructureDecoder,
    "shape_flow_512": SLatFlowModel,
    "shape_flow_1024": SLatFlowModel,
    "texture_flow_512": SLatFlowModel,
    "texture_flow_1024": SLatFlowModel,
    "shape_decoder": FlexiDualGridVaeDecoder,
    "texture_decoder": SparseUnetVaeDecoder,
}
FLOW_DTYPE, DECODER_DTYPE = torch.bfloat16, torch.float16
"""Of the heavy layers on an accelerator, as in the release."""
CPU = torch.device("cpu")


def make_part(spec: ModelSpec, name: str) -> nn.Module:
    """Build one network with its published arguments, without weights, on the current default device."""
    return PART_CLASSES[name](**spec.checkpoints[name].args)


def stored_part(spec: ModelSpec, name: str) -> nn.Module:
    """Build one network on the meta device in the types of its file."""
    with torch.device("meta"):
        part: Any = make_part(spec, name)
    if name == "structure_decoder":
        return part  # of mixed types, which its constructor sets
    return part.to(FLOW_DTYPE if "flow" in name else DECODER_DTYPE)


class Models:
    """Networks that are loaded when they are first used, and may leave the device while others work.

    Args:
        spec: the model.
        folder: the folder that `fetch_weights` filled; None for deterministic test weights.
        device: where the networks compute.
        dtype: type of the heavy layers; None uses the release's on an accelerator and float32 on a CPU.
        offload: networks wait in host memory and are on the device one at a time.
        device_is_known: False where `move_to` follows; until then the heavy layers of a published model keep the types
            of its files, which take half of the memory of float32.
    """

    def __init__(
        self,
        spec: ModelSpec,
        folder: Path | None,
        *,
        device: torch.device,
        dtype: torch.dtype | None = None,
        offload: bool = False,
        device_is_known: bool = True,
    ) -> None:
        if spec.deterministic_weights is None and folder is None:
            raise WeightsUnusable(f"{spec.name} needs a folder of weights")
        self.spec = spec
        self.folder = folder
        self.device = device
        self.dtype = dtype
        self.offload = offload
        self._keeps_stored_types = not device_is_known and spec.deterministic_weights is None
        self._parts: dict[str, nn.Module] = {}

    def load(self, names: tuple[str, ...], *, device: torch.device | None = None) -> None:
        """Read networks that are not loaded yet, after the headers of all of them were checked.

        Args:
            names: of the networks; the encoder is loaded too.
            device: where to; by default where they wait.

        Raises:
            WeightsUnusable: a file is missing, truncated, or does not match.
        """
        missing = [name for name in (*names, ENCODER) if name not in self._parts]
        if missing and self.folder is not None:
            check_weights(self.folder, self.spec, names=names, sizes=False)
        for name in missing:
            self._parts[name] = self._load_part(name, device or self._waiting_device)

    def use(self, name: str) -> Any:
        """The network, loaded and on the device.

        Raises:
            WeightsUnusable: its file is missing, truncated, or does not match.
        """
        if name not in self._parts:
            self._parts[name] = self._load_part(name, self._waiting_device)
        if self.offload:
            for other, part in self._parts.items():
                if other != name:
                    part.to(CPU)
        return self._parts[name].to(self.device)

    def move_to(self, device: torch.device) -> None:
        """Make another device the one where the networks compute."""
        self.device = device
        self._keeps_stored_types = False
        for name, part in self._parts.items():
            self._set_dtype(name, part)
            if not self.offload:
                part.to(device)

    @property
    def _waiting_device(self) -> torch.device:
        return CPU if self.offload else self.device

    def _set_dtype(self, name: str, part: Any) -> None:
        if name == ENCODER:
            return
        released = FLOW_DTYPE if "flow" in name else DECODER_DTYPE
        is_full = self.device.type == "cpu" and not self._keeps_stored_types
        part.set_dtype(self.dtype or (torch.float32 if is_full else released))

    def _load_part(self, name: str, device: torch.device) -> nn.Module:
        if self.spec.deterministic_weights is not None:
            part = _deterministic_part(self.spec, name, self.spec.deterministic_weights)
        elif name == ENCODER:
            part = self._load_encoder()
        else:
            assert self.folder is not None
            part = stored_part(self.spec, name)
            load_strictly(part, self.folder / self.spec.checkpoints[name].file_name, device=CPU, copy=True)
            if name != "structure_decoder":
                part.float()  # norms, gains and the layers around the blocks compute in float32
        self._set_dtype(name, part)
        return part.eval().requires_grad_(False).to(device)

    def _load_encoder(self) -> ImageEncoder:
        assert self.folder is not None
        state = read_tensors(self.folder / ENCODER_FOLDER / self.spec.encoder.file_name)
        with torch.device("meta"):
            model = DINOv3ViTModel(DINOv3ViTConfig(**self.spec.encoder.args))
        known = {encoder_key(key): tensor for key, tensor in state.items()}
        result = model.load_state_dict(known, strict=False, assign=True)
        if result.missing_keys or result.unexpected_keys:
            raise WeightsUnusable(
                f"the encoder's file does not match: {[*result.missing_keys, *result.unexpected_keys][:1]}"
            )
        # Its frequencies are no part of the file and were made on the meta device.
        fresh = DINOv3ViTModel(DINOv3ViTConfig(**{**self.spec.encoder.args, "num_hidden_layers": 1}))
        for (path, buffer), (_, made) in zip(model.named_buffers(), fresh.named_buffers(), strict=True):
            owner = model.get_submodule(path.rpartition(".")[0])
            setattr(owner, path.rpartition(".")[2], made.to(buffer.dtype))
        return ImageEncoder(model)


@torch.no_grad()
def _deterministic_part(spec: ModelSpec, name: str, rule: DeterministicWeights) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # layer initialisation draws from the global generator
        part = DINOv3ViTModel(DINOv3ViTConfig(**spec.encoder.args)) if name == ENCODER else make_part(spec, name)
    fill_deterministic(part, seed=rule.seed, key_prefix=f"{name}.")
    state = part.state_dict()
    for key, values in rule.added.get(name, {}).items():
        added = torch.tensor(values)
        state[key][: added.numel()] += added
    return ImageEncoder(part) if isinstance(part, DINOv3ViTModel) else part
