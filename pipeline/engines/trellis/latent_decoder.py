"""The transformer over voxels with shifted windows that the three decoders of the structured latent share.

Source: Xiang et al. 2024, arXiv 2412.01506, section 3.2; shifted windows: Liu et al. 2021, arXiv 2103.14030.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.engines.trellis.sparse_blocks import SparseTransformerBlock, run_blocks
from pipeline.nn.embeddings import position_embedding
from pipeline.nn.precision import set_precision
from pipeline.ops.voxels import VoxelSet


class LatentTransformer(nn.Module):
    """Linear layer, position embedding, transformer blocks; blocks of odd index shift the windows by half a window."""

    def __init__(
        self,
        resolution: int,
        latent_channels: int,
        model_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int = 64,
        mlp_ratio: float = 4,
        attn_mode: Literal["full", "swin"] = "swin",
        window_size: int = 8,
        pe_mode: Literal["ape"] = "ape",
        use_fp16: bool = False,
        qk_rms_norm: bool = False,
    ) -> None:
        """Build the layers; the arguments are those of the released configuration files.

        Raises:
            ValueError: `pe_mode` or `attn_mode` is not supported.
        """
        super().__init__()
        if pe_mode != "ape":
            raise ValueError(f"pe_mode must be 'ape', got {pe_mode!r}")
        if attn_mode not in ("full", "swin"):
            raise ValueError(f"attn_mode must be 'full' or 'swin', got {attn_mode!r}")
        self.resolution = resolution
        self.input_layer = nn.Linear(latent_channels, model_channels)
        self.blocks = nn.ModuleList(
            SparseTransformerBlock(
                model_channels,
                num_heads or model_channels // num_head_channels,
                mlp_ratio=mlp_ratio,
                window_size=window_size if attn_mode == "swin" else None,
                shift_window=window_size // 2 * (i % 2),
                qk_rms_norm=qk_rms_norm,
            )
            for i in range(num_blocks)
        )
        self.set_dtype(torch.float16 if use_fp16 else torch.float32)

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Set the type of the heavy parts; input and output layers stay float32."""
        self.dtype = dtype
        set_precision(self.heavy_parts(), dtype)

    def heavy_parts(self) -> list[nn.Module]:
        """Return the parts whose linear and convolution weights are in half precision in the released files."""
        return [self.blocks]

    def transform(self, feats: Tensor, voxels: VoxelSet) -> Tensor:
        """Apply the transformer: (P, N, C) latents -> (P, N, M) in the type of the blocks."""
        h = self.input_layer(feats)  # (P, N, C) -> (P, N, M)
        width = h.shape[-1]
        h = h + voxels.remember(("position", width), lambda: position_embedding(voxels.coords[:, 1:], width))
        return run_blocks(self.blocks, h.to(self.dtype), voxels)
