"""The structure flow model: velocity of the dense latent from which the occupied voxels are decoded.

Source: Xiang et al. 2024, arXiv 2412.01506, section 3.3; microsoft/TRELLIS@6b0d647, sparse_structure_flow.py.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.condition import Condition, encode_condition
from pipeline.nn.dense_blocks import HEAD_EPS, ModulatedCrossBlock, modulation, pixel_shuffle_3d
from pipeline.nn.embeddings import TimestepEmbedder, position_embedding
from pipeline.nn.precision import set_precision


class SparseStructureFlowModel(nn.Module):
    """A transformer over the patches of a dense latent, modulated by the time, with cross-attention to a condition."""

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        cond_channels: int,
        out_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int = 64,
        mlp_ratio: float = 4,
        patch_size: int = 2,
        pe_mode: Literal["ape"] = "ape",
        use_fp16: bool = False,
        share_mod: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
    ) -> None:
        """Build the layers; the arguments are those of the released configuration files.

        Raises:
            ValueError: `pe_mode` is not supported.
        """
        super().__init__()
        if pe_mode != "ape":
            raise ValueError(f"pe_mode must be 'ape', got {pe_mode!r}")
        self.resolution = resolution
        self.in_channels = in_channels
        self.patch_size = patch_size
        num_heads = num_heads or model_channels // num_head_channels
        self.t_embedder = TimestepEmbedder(model_channels)
        self.adaLN_modulation = modulation(model_channels, 6) if share_mod else None
        side = torch.arange(resolution // patch_size, dtype=torch.int32)
        coords = torch.cartesian_prod(side, side, side).reshape(-1, 3)  # x slowest
        self.pos_emb: Tensor
        self.register_buffer("pos_emb", position_embedding(coords, model_channels))
        self.input_layer = nn.Linear(in_channels * patch_size**3, model_channels)
        self.blocks = nn.ModuleList(
            ModulatedCrossBlock(
                model_channels,
                cond_channels,
                num_heads,
                mlp_ratio=mlp_ratio,
                share_mod=share_mod,
                qk_rms_norm=qk_rms_norm,
                qk_rms_norm_cross=qk_rms_norm_cross,
            )
            for _ in range(num_blocks)
        )
        self.out_layer = nn.Linear(model_channels, out_channels * patch_size**3)
        self.set_dtype(torch.float16 if use_fp16 else torch.float32)

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Set the type of the blocks; everything around them stays float32."""
        self.dtype = dtype
        set_precision(self.blocks, dtype)

    def encode_condition(self, tokens: Tensor, *, negative: Tensor | None = None) -> Condition:
        """Compute keys and values of (P, L, E) tokens, one context per guided pass, and of the (1, L, E) negative."""
        negative = None if negative is None else negative.to(self.dtype)
        return encode_condition(self.blocks, tokens.to(self.dtype), negative=negative)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Compute the velocity.

        Args:
            x: (B, C, R, R, R); several passes of `condition` are stacked along B, passes slowest.
            t: (B,) or (1,) time in [0, 1000].
            condition: from `encode_condition`.

        Returns:
            (B, D, R, R, R) in the type of `x`.
        """
        h = self.input_layer(self._patches(x)) + self.pos_emb  # (B, N, C p^3) -> (B, N, M)
        mod = self.t_embedder(t)  # (B,) -> (B, M)
        if self.adaLN_modulation is not None:
            mod = self.adaLN_modulation(mod)
        h, mod = h.to(self.dtype), mod.to(self.dtype)[:, None]  # (B, M) -> (B, 1, M)
        for block, context in zip(self.blocks, condition.layers, strict=True):
            h = block(h, mod, context)
        h = F.layer_norm(h.to(x.dtype), h.shape[-1:], eps=HEAD_EPS)
        patches = self.out_layer(h).mT  # (B, N, M) -> (B, N, D p^3) -> (B, D p^3, N)
        side = self.resolution // self.patch_size
        return pixel_shuffle_3d(patches.unflatten(-1, (side, side, side)), self.patch_size)

    def _patches(self, x: Tensor) -> Tensor:
        """Split into patches, the inverse of the pixel shuffle: (B, C, R, R, R) -> (B, N, C p^3), x slowest."""
        b, c, p, side = len(x), x.shape[1], self.patch_size, self.resolution // self.patch_size
        x = x.view(b, c, side, p, side, p, side, p).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return x.reshape(b, side**3, c * p**3)
