"""The image's tokens: a DINOv2 with registers, its own final norm replaced by one without parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
TOKEN_NORM_EPS = 1e-5


def encoder_config(
    *, image_size: int, patch_size: int, width: int, depth: int, heads: int, registers: int, mlp_ratio: int = 4
) -> Dinov2WithRegistersConfig:
    """Configuration of an encoder; everything that is not an argument is as in the released one."""
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
    """Images to tokens."""

    def __init__(self, model: Dinov2WithRegistersModel) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def prenorm(self, images: Tensor) -> Tensor:
        """Tokens before the model's own final norm.

        Args:
            images: (P, H, W, 3) uint8 RGB.

        Returns:
            (P, L, C): class token, registers, patches row by row.
        """
        x = images.permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
        hidden = self.model(((x - mean) / std).to(self.model.dtype), output_hidden_states=True).hidden_states
        return hidden[-1].float()

    def forward(self, images: Tensor) -> Tensor:
        """(P, H, W, 3) uint8 -> (P, L, C) float32 tokens that the flow models attend to."""
        tokens = self.prenorm(images)
        return F.layer_norm(tokens, tokens.shape[-1:], eps=TOKEN_NORM_EPS)
