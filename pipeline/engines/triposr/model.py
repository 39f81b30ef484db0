"""The whole network under the checkpoint's names, and how it comes to its weights."""

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
    """A image to a triplane, and the decoder that reads it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.renderer = spec.renderer
        self.image_tokenizer = DINOSingleImageTokenizer(spec.encoder)
        self.tokenizer = Triplane1DTokenizer(spec.tokenizer)
        self.backbone = Transformer1D(spec.backbone)
        self.post_processor = TriplaneUpsampleNetwork(spec.post_processor)
        self.decoder = NeRFMLP(spec.decoder)

    def forward(self, images: Tensor, *, on_block: Callable[[int], None] = lambda done: None) -> Tensor:
        """Planes of images.

        Args:
            images: (P, H, W, 3) float32 in [0, 1].
            on_block: gets the number of each finished block of the backbone.

        Returns:
            (P, 3, C, S, S) scene codes.
        """
        context = self.image_tokenizer(images.permute(0, 3, 1, 2))
        tokens = self.backbone(self.tokenizer(len(images)), context, on_block=on_block)
        return self.post_processor(self.tokenizer.detokenize(tokens))

    def field(self, scene_code: Tensor) -> TriplaneField:
        """The field of one image's (3, C, S, S) planes."""
        return TriplaneField.of(self.decoder, scene_code, renderer=self.renderer)


def make_model(spec: ModelSpec) -> TSR:
    """The network, unfilled, on the meta device, where it takes no memory."""
    with torch.device("meta"):
        return TSR(spec)


def load_model(spec: ModelSpec, folder: Path | None) -> TSR:
    """The network with its weights in host memory; nothing in it depends on the file any more.

    Args:
        folder: where `fetch_weights` put the file; None for a model whose weights follow from a rule.

    Raises:
        WeightsUnusable: the file is missing, cut short, or does not fit.
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
    with torch.random.fork_rng(devices=[]):  # the layers' own initialisation draws from the global generator
        model = TSR(spec)
    fill_deterministic(model, seed=rule.seed, scale=rule.scale)
    model.decoder.linears[-1].bias[0] += rule.density_shift
    return model.eval().requires_grad_(False)
