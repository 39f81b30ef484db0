"""The whole network under the checkpoint's names, and how it comes to its weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.engines.triposr.backbone import Transformer1D
from pipeline.engines.triposr.field import TriplaneField
from pipeline.engines.triposr.image_encoder import DINOSingleImageTokenizer
from pipeline.engines.triposr.spec import ModelSpec
from pipeline.engines.triposr.triplane import NeRFMLP, Triplane1DTokenizer, TriplaneUpsampleNetwork


class TSR(nn.Module):
    """A picture to a triplane, and the decoder that reads it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.renderer = spec.renderer
        self.image_tokenizer = DINOSingleImageTokenizer(spec.encoder)
        self.tokenizer = Triplane1DTokenizer(spec.tokenizer)
        self.backbone = Transformer1D(spec.backbone)
        self.post_processor = TriplaneUpsampleNetwork(spec.post_processor)
        self.decoder = NeRFMLP(spec.decoder)

    def forward(self, pictures: Tensor, *, on_block: Callable[[int], None] = lambda done: None) -> Tensor:
        """Planes of pictures.

        Args:
            pictures: (P, H, W, 3) float32 in [0, 1].
            on_block: gets the number of each finished block of the backbone.

        Returns:
            (P, 3, C, S, S) scene codes.
        """
        context = self.image_tokenizer(pictures.permute(0, 3, 1, 2))
        tokens = self.backbone(self.tokenizer(len(pictures)), context, on_block=on_block)
        return self.post_processor(self.tokenizer.detokenize(tokens))

    def field(self, scene_code: Tensor) -> TriplaneField:
        """The field of one picture's (3, C, S, S) planes."""
        return TriplaneField.of(self.decoder, scene_code, renderer=self.renderer)


def make_model(spec: ModelSpec) -> TSR:
    """The network, unfilled, on the meta device, where it takes no memory."""
    with torch.device("meta"):
        return TSR(spec)
