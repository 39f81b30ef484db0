"""The complete network, with attribute names of the checkpoint, and the loading of its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.engines.triposr.backbone import Transformer1D
from pipeline.engines.triposr.field import TriplaneField
from pipeline.engines.triposr.image_encoder import DINOSingleImageTokenizer
from pipeline.engines.triposr.spec import DeterministicWeights, ModelSpec
from pipeline.engines.triposr.triplane import NeRFMLP, Triplane1DTokenizer, TriplaneUpsampleNetwork
from pipeline.engines.triposr.weights import FILE_NAME
from pipeline.errors import WeightsUnusable
from pipeline.nn.checkpoint import load_strictly
from pipeline.nn.deterministic_weights import fill_deterministic


class TSR(nn.Module):
    """The network from an image to a triplane, and the decoder of the triplane."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.renderer = spec.renderer
        self.image_tokenizer = DINOSingleImageTokenizer(spec.encoder)
        self.tokenizer = Triplane1DTokenizer(spec.tokenizer)
        self.backbone = Transformer1D(spec.backbone)
        self.post_processor = TriplaneUpsampleNetwork(spec.post_processor)
        self.decoder = NeRFMLP(spec.decoder)

    def forward(self, images: Tensor, *, on_block: Callable[[int], None] = lambda done: None) -> Tensor:
        """Compute the triplanes of images.

        Args:
            images: (P, H, W, 3) float32 in [0, 1].
            on_block: receives the number of each finished block of the backbone.

        Returns:
            (P, 3, C, S, S) scene codes.
        """
        context = self.image_tokenizer(images.permute(0, 3, 1, 2))  # (P, H, W, 3) -> (P, 3, H, W) -> (P, M, E)
        tokens = self.backbone(self.tokenizer(len(images)), context, on_block=on_block)  # (P, K, L)
        return self.post_processor(self.tokenizer.detokenize(tokens))  # (P, 3, K, S/2, S/2) -> (P, 3, C, S, S)

    def field(self, scene_code: Tensor) -> TriplaneField:
        """Return the field of one scene code, (3, C, S, S)."""
        return TriplaneField.of(self.decoder, scene_code, renderer=self.renderer)


def make_model(spec: ModelSpec) -> TSR:
    """Build the network without weights on the meta device, where it takes no memory."""
    with torch.device("meta"):
        return TSR(spec)


def load_model(spec: ModelSpec, folder: Path | None) -> TSR:
    """Build the network with its weights in host memory, independent of the file afterwards.

    Args:
        spec: the model.
        folder: the folder that `fetch_weights` filled; None for deterministic test weights.

    Raises:
        WeightsUnusable: the file is missing, truncated, or does not match the model.
    """
    if spec.deterministic_weights is not None:
        return _deterministic_model(spec, spec.deterministic_weights)
    if folder is None:
        raise WeightsUnusable(f"{spec.name} needs a folder of weights")
    model = make_model(spec)
    load_strictly(model, folder / FILE_NAME, device="cpu", copy=True)
    return model


@torch.no_grad()
def _deterministic_model(spec: ModelSpec, rule: DeterministicWeights) -> TSR:
    with torch.random.fork_rng(devices=[]):  # layer initialisation draws from the global generator
        model = TSR(spec)
    fill_deterministic(model, seed=rule.seed, scale=rule.scale)
    model.decoder.linears[-1].bias[0] += rule.density_shift
    return model.eval().requires_grad_(False)
