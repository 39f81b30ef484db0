"""The image encoder: a plain ViT whose attribute names follow the checkpoint.

Source: Caron et al. 2021 (DINO, ViT-B/16), arXiv 2104.14294; names and position interpolation of transformers 4.35.0,
which TripoSR pins. Later versions rename the parts and interpolate the positions differently.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.engines.triposr.spec import EncoderSpec
from pipeline.nn.activations import activation
from pipeline.ops.attention import attend
from pipeline.ops.constants import constant

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
SCALE_OFFSET = 0.1  # added to the target side by transformers 4.35.0, to avoid rounding down to one patch less


def interpolate_positions(positions: Tensor, *, rows: int, columns: int) -> Tensor:
    """Resample learnt position embeddings of a square patch grid to another grid.

    Passes a scale factor of (side + 0.1) / n instead of a size, and bicubic sampling positions follow from that factor:
    the released weights belong to tokens computed so.

    Args:
        positions: (1, 1 + n*n, C), the class token first.
        rows: rows of the target grid.
        columns: columns of the target grid.

    Returns:
        (1, 1 + rows*columns, C); the same tensor if the grids are equal.

    Raises:
        ValueError: the scale factor does not yield the target grid.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if positions.shape[1] - 1 == rows * columns and rows == columns:
        return positions
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, n n, C) -> (1, C, n, n)
    scale = ((rows + SCALE_OFFSET) / side, (columns + SCALE_OFFSET) / side)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    if tuple(grid.shape[-2:]) != (rows, columns):
        raise ValueError(f"positions of {side} x {side} patches cannot be resampled to {rows} x {columns}")
    return torch.cat([positions[:, :1], grid.flatten(2).mT], dim=1)  # (1, C, rows, columns) -> (1, 1 + rows columns, C)


class PatchProjection(nn.Module):
    """The patch projection, `patch_embeddings`."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.projection = nn.Conv2d(
            spec.num_channels, spec.hidden_size, kernel_size=spec.patch_size, stride=spec.patch_size
        )


class Embeddings(nn.Module):
    """Class token and patch tokens with their positions."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        patches = (spec.image_size // spec.patch_size) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + patches, spec.hidden_size))
        self.patch_embeddings = PatchProjection(spec)

    def forward(self, images: Tensor) -> Tensor:
        """(P, 3, H, W) -> (P, 1 + patches, C)."""
        patches = self.patch_embeddings.projection(images)  # (P, C, rows, columns)
        positions = interpolate_positions(self.position_embeddings, rows=patches.shape[2], columns=patches.shape[3])
        # (P, C, rows, columns) -> (P, rows columns, C), after the class token
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
        return tokens + positions


class Projections(nn.Module):
    """Query, key and value projections of one layer, `attention.attention`."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Linear(spec.hidden_size, spec.hidden_size, bias=spec.qkv_bias) for _ in range(3)
        )


class Dense(nn.Module):
    """A linear layer under the name `dense`."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:  # (..., width_in) -> (..., width_out)
        return self.dense(x)


class Attention(nn.Module):
    """Self-attention of one layer."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.num_heads = spec.num_attention_heads
        self.attention = Projections(spec)
        self.output = Dense(spec.hidden_size, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # (P, L, C) -> (P, L, C)
        q, k, v = (  # (P, L, C) -> (P, L, H, D)
            layer(x).unflatten(-1, (self.num_heads, -1))
            for layer in (self.attention.query, self.attention.key, self.attention.value)
        )
        return self.output(attend(q, k, v).flatten(-2))  # (P, L, H, D) -> (P, L, C)


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.attention = Attention(spec)
        self.layernorm_after = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.intermediate = Dense(spec.hidden_size, spec.intermediate_size)
        self.output = Dense(spec.intermediate_size, spec.hidden_size)
        self.activation = activation(spec.hidden_act)

    def forward(self, x: Tensor) -> Tensor:  # (P, L, C) -> (P, L, C)
        x = x + self.attention(self.layernorm_before(x))
        return x + self.output(self.activation(self.intermediate(self.layernorm_after(x))))


class Layers(nn.Module):
    """All layers, `encoder`."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(spec) for _ in range(spec.num_hidden_layers))


class VisionTransformer(nn.Module):
    """The whole encoder. The checkpoint also holds a pooler, which is loaded but not evaluated."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.embeddings = Embeddings(spec)
        self.encoder = Layers(spec)
        self.layernorm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.pooler = Dense(spec.hidden_size, spec.hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images: (P, 3, H, W) -> (P, 1 + patches, C)."""
        x = self.embeddings(images)
        for layer in self.encoder.layer:
            x = layer(x)
        return self.layernorm(x)


class DINOSingleImageTokenizer(nn.Module):
    """Images to tokens, with the normalisation of the training data."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.model = VisionTransformer(spec)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (P, 3, H, W) float32 in [0, 1].

        Returns:
            (P, 1 + patches, C): the class token, then the patches row by row.
        """
        mean, std = (constant(v, images.device).view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
        return self.model((images - mean) / std)
