"""The structured-latent flow model: velocity of the latents on the occupied voxels.

Source: Xiang et al. 2024, arXiv 2412.01506, section 3.3; microsoft/TRELLIS@6b0d647, structured_latent_flow.py.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.engines.trellis.sparse_blocks import SparseResBlock3d
from pipeline.nn.condition import Condition, encode_condition
from pipeline.nn.dense_blocks import HEAD_EPS, ModulatedCrossBlock, modulation
from pipeline.nn.embeddings import TimestepEmbedder, position_embedding
from pipeline.nn.precision import set_precision
from pipeline.nn.sparse_conv import Sparse
from pipeline.ops.sparse import per_row
from pipeline.ops.voxels import VoxelSet


class SLatFlowModel(nn.Module):
    """Residual blocks with downsampling, a transformer over the coarse cells, residual blocks with upsampling."""

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
        num_io_res_blocks: int = 2,
        io_block_channels: list[int] | None = None,
        pe_mode: Literal["ape"] = "ape",
        use_fp16: bool = False,
        use_skip_connection: bool = True,
        share_mod: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
    ) -> None:
        """Build the layers; the arguments are those of the released configuration files.

        Raises:
            ValueError: `pe_mode` is not supported, or `patch_size` is not 2 to the number of `io_block_channels`.
        """
        super().__init__()
        widths = io_block_channels or []
        if pe_mode != "ape":
            raise ValueError(f"pe_mode must be 'ape', got {pe_mode!r}")
        if patch_size != 2 ** len(widths):
            raise ValueError(f"patch_size must be {2 ** len(widths)} for {len(widths)} input widths, got {patch_size}")
        self.resolution = resolution
        self.in_channels = in_channels
        self.use_skip_connection = use_skip_connection
        num_heads = num_heads or model_channels // num_head_channels
        ends = widths[0] if widths else model_channels
        self.t_embedder = TimestepEmbedder(model_channels)
        self.adaLN_modulation = modulation(model_channels, 6) if share_mod else None
        self.input_layer = nn.Linear(in_channels, ends)
        inner = [*widths[1:], model_channels]  # output width of each downsampling block
        self.input_blocks = nn.ModuleList()
        for width, next_width in zip(widths, inner, strict=False):
            for _ in range(num_io_res_blocks - 1):
                self.input_blocks.append(SparseResBlock3d(width, model_channels))
            self.input_blocks.append(SparseResBlock3d(width, model_channels, next_width, downsample=True))
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
        skip = 2 if use_skip_connection else 1
        self.out_blocks = nn.ModuleList()
        for width, before in reversed(list(zip(widths, inner, strict=False))):
            self.out_blocks.append(SparseResBlock3d(before * skip, model_channels, width, upsample=True))
            for _ in range(num_io_res_blocks - 1):
                self.out_blocks.append(SparseResBlock3d(width * skip, model_channels, width))
        self.out_layer = nn.Linear(ends, out_channels)
        self.set_dtype(torch.float16 if use_fp16 else torch.float32)

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Set the type of all blocks; the embeddings and the outermost layers stay float32."""
        self.dtype = dtype
        set_precision((self.input_blocks, self.blocks, self.out_blocks), dtype)

    def encode_condition(self, tokens: Tensor, *, negative: Tensor | None = None) -> Condition:
        """Compute keys and values of (P, L, E) tokens, or (P, B, L, E) if batch elements differ, and of a negative."""
        negative = None if negative is None else negative.to(self.dtype)
        return encode_condition(self.blocks, tokens.to(self.dtype), negative=negative)

    def forward(self, feats: Tensor, voxels: VoxelSet, t: Tensor, condition: Condition) -> Tensor:
        """Compute the velocity.

        Args:
            feats: (P, N, C) latents of the passes of `condition`, which share the voxels.
            voxels: the N voxels.
            t: (B,) time in [0, 1000] of each batch element, or (1,) if they share it.
            condition: from `encode_condition`.

        Returns:
            (P, N, D), in the row order of `voxels`.
        """
        emb = self.t_embedder(t)  # (B,) -> (B, M)
        mod = emb if self.adaLN_modulation is None else self.adaLN_modulation(emb)
        emb, mod = emb.to(self.dtype), mod.to(self.dtype)
        h = Sparse(self.input_layer(feats).to(self.dtype), voxels)  # (P, N, C) -> (P, N, W)
        skips: list[Sparse] = []
        finer: list[VoxelSet] = []  # the voxels before each downsampling block, restored by the upsampling blocks
        for block in self.input_blocks:
            if block.downsample:
                finer.append(h.voxels)
            h = block(h, emb)
            skips.append(h)
        tokens, cells = h  # (P, N', M) on the N' coarse cells
        key = ("position", tokens.shape[-1], self.dtype)
        tokens = tokens + cells.remember(key, lambda: self._positions(cells, tokens.shape[-1]))
        row_mod = per_row(mod, cells)
        for block, context in zip(self.blocks, condition.layers, strict=True):
            tokens = block(tokens, row_mod, context, cells)
        h = Sparse(tokens, cells)
        for block in self.out_blocks:
            skip = skips.pop()
            if self.use_skip_connection:
                h = Sparse(torch.cat([h.feats, skip.feats], dim=-1), h.voxels)  # (P, N, W) + (P, N, W) -> (P, N, 2W)
            h = block(h, emb, finer=finer.pop() if block.upsample else None)
        # The type of the blocks is left before the output layer, not before the norm, as in the release.
        out = F.layer_norm(h.feats, h.feats.shape[-1:], eps=HEAD_EPS)
        return self.out_layer(out.to(feats.dtype))

    def _positions(self, cells: VoxelSet, width: int) -> Tensor:  # (N', width)
        return position_embedding(cells.coords[:, 1:], width).to(self.dtype)
