"""The image encoder: DINOv3 ViT, with a norm without parameters in place of its own final one.

Source: Siméoni et al. 2025 (DINOv3), arXiv 2508.10104; microsoft/TRELLIS.2@5565d24, DinoV3FeatureExtractor.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

TOKEN_NORM_EPS = 1e-5


class ImageEncoder(nn.Module):
    """Normalised images to tokens."""

    def __init__(self, model: DINOv3ViTModel) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def prenorm(self, pixels: Tensor) -> Tensor:
        """Return the output of the last block.

        Args:
            pixels: (P, 3, S, S) from `image_tensor`, S a multiple of 16.

        Returns:
            (P, L, C) float32: class token, registers, patches row by row.
        """
        hidden = self.model(pixels.to(self.model.dtype), output_hidden_states=True).hidden_states
        assert hidden is not None
        return hidden[-1].float()

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images: (P, 3, S, S) -> (P, L, C) float32."""
        tokens = self.prenorm(pixels)
        return F.layer_norm(tokens, tokens.shape[-1:], eps=TOKEN_NORM_EPS)
