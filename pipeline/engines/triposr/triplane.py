"""The triplane: learnt tokens, their conversion to planes, upsampling, and the decoder network."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.engines.triposr.spec import DecoderSpec, TokenizerSpec, UpsamplerSpec
from pipeline.nn.activations import activation

OUT_CHANNELS = 4  # density and three features of the colour


class Triplane1DTokenizer(nn.Module):
    """The learnt tokens that every image starts from: plane by plane, row by row."""

    def __init__(self, spec: TokenizerSpec) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.zeros(3, spec.num_channels, spec.plane_size, spec.plane_size))

    def forward(self, batch_size: int) -> Tensor:
        """Return (B, C, 3 S S) tokens."""
        return self.embeddings.movedim(1, 0).flatten(1).expand(batch_size, -1, -1)  # (3, C, S, S) -> (C, 3 S S) -> ...

    def detokenize(self, tokens: Tensor) -> Tensor:
        """Convert tokens to planes: (B, C, 3 S S) -> (B, 3, C, S, S)."""
        size = self.embeddings.shape[-1]
        return tokens.unflatten(2, (3, size, size)).movedim(2, 1)


class TriplaneUpsampleNetwork(nn.Module):
    """Upsampling of the planes by 2, with the same weights for each plane."""

    def __init__(self, spec: UpsamplerSpec) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(spec.in_channels, spec.out_channels, kernel_size=2, stride=2)

    def forward(self, planes: Tensor) -> Tensor:
        """(B, 3, C, S, S) -> (B, 3, D, 2S, 2S)."""
        return self.upsample(planes.flatten(0, 1)).unflatten(0, planes.shape[:2])  # (3B, C, S, S) -> (3B, D, 2S, 2S)


class NeRFMLP(nn.Module):
    """The decoder: features of a point to its density and colour, both before their activations."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        widths = [spec.in_channels, *[spec.n_neurons] * spec.n_hidden_layers]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            # An activation has no weights, but it shifts the keys of the layers after it.
            layers += [nn.Linear(width_in, width_out, bias=spec.bias), nn.Identity()]
        self.layers = nn.ModuleList([*layers, nn.Linear(widths[-1], OUT_CHANNELS, bias=spec.bias)])
        self.activation_name = spec.activation
        self.activation = activation(spec.activation)

    @property
    def linears(self) -> list[nn.Linear]:
        """Return the layers with weights, in order."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        """(..., F) -> (..., 4)."""
        first, *rest = self.linears
        x = first(x)
        for layer in rest:
            x = layer(self.activation(x))
        return x
