"""The image encoder: DINOv2 with registers, whose final norm is replaced by one without parameters.

Source: Darcet et al. 2023, arXiv 2309.16588; microsoft/TRELLIS@6b0d647, trellis_image_to_3d.py, encode_image.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from pipeline.ops.constants import constant

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
TOKEN_NORM_EPS = 1e-5


def encoder_config(
    *, image_size: int, patch_size: int, width: int, depth: int, heads: int, registers: int, mlp_ratio: int = 4
) -> Dinov2WithRegistersConfig:
    """Return the configuration of an encoder; values that are not arguments are those of the released encoder."""
    return Dinov2WithRegistersConfig(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        mlp_ratio=mlp_ratio,
        num_register_tokens=registers,
        layer_norm_eps=1e-6,
        layerscale_value=1.0,
    )


class ImageEncoder(nn.Module):
    """Images to tokens, with the normalisation of the training data."""

    def __init__(self, model: Dinov2WithRegistersModel) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    @property
    def image_size(self) -> int:
        """Side of the input images in pixels."""
        config: Any = self.model.config  # transformers declares its fields dynamically
        size = config.image_size
        assert isinstance(size, int)  # the library also allows (height, width), which `encoder_config` does not use
        return size

    def prenorm(self, images: Tensor) -> Tensor:
        """Return the tokens before the model's final norm.

        Args:
            images: (P, H, W, 3) uint8 RGB.

        Returns:
            (P, L, C) float32: class token, registers, patches row by row.
        """
        x = images.permute(0, 3, 1, 2).float() / 255  # (P, H, W, 3) -> (P, 3, H, W)
        mean, std = (constant(v, x.device).view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
        hidden = self.model(((x - mean) / std).to(self.model.dtype), output_hidden_states=True).hidden_states
        return hidden[-1].float()

    def forward(self, images: Tensor) -> Tensor:
        """Encode images: (P, H, W, 3) uint8 -> (P, L, C) float32."""
        tokens = self.prenorm(images)
        return F.layer_norm(tokens, tokens.shape[-1:], eps=TOKEN_NORM_EPS)
