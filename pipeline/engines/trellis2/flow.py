"""The two kinds of flow model: over the cells of a dense latent, and over the latents of a set of voxels.

One token for each cell or voxel, rotary positions, one modulation for all blocks. Attribute names follow the released
checkpoints.

Source: Xiang et al. 2025 (TRELLIS.2); microsoft/TRELLIS.2@5565d24, trellis2/models/sparse_structure_flow.py and
    structured_latent_flow.py.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.condition import Condition, encode_condition
from pipeline.nn.dense_blocks import HEAD_EPS, ModulatedCrossBlock, modulation
from pipeline.nn.embeddings import TimestepEmbedder, position_embedding
from pipeline.nn.precision import set_precision
from pipeline.nn.rotary import rotary_phases
from pipeline.ops.sparse import per_row
from pipeline.ops.voxels import VoxelSet

PositionMode = Literal["rope", "ape"]


class FlowTransformer(nn.Module):
    """The layers that both kinds share: an embedding, modulated blocks, and the output."""

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
        pe_mode: PositionMode = "ape",
        share_mod: bool = False,
        initialization: str = "vanilla",
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        dtype: str = "float32",
    ) -> None:
        """Build the layers; the arguments are those of the released configuration files.

        Args:
            initialization: how weights start before training; not used.
            dtype: type of the blocks' heavy layers.
        """
        super().__init__()
        self.resolution = resolution
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.pe_mode = pe_mode
        heads = num_heads or model_channels // num_head_channels
        self.head_dim = model_channels // heads
        self._dense_phases: Tensor | None = None
        self.t_embedder = TimestepEmbedder(model_channels)
        self.adaLN_modulation = modulation(model_channels, 6) if share_mod else None
        self.input_layer = nn.Linear(in_channels, model_channels)
        self.blocks = nn.ModuleList(
            ModulatedCrossBlock(
                model_channels,
                cond_channels,
                heads,
                mlp_ratio=mlp_ratio,
                share_mod=share_mod,
                offset_shared=True,
                qk_rms_norm=qk_rms_norm,
                qk_rms_norm_cross=qk_rms_norm_cross,
            )
            for _ in range(num_blocks)
        )
        self.out_layer = nn.Linear(model_channels, out_channels)
        self.set_dtype(getattr(torch, dtype))

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Set the type of the blocks' heavy layers; everything else stays float32."""
        self.dtype = dtype
        set_precision(self.blocks, dtype)

    def encode_condition(self, tokens: Tensor, *, negative: Tensor | None = None) -> Condition:
        """Compute keys and values of (P, L, E) tokens, one context for each guided pass, and of the (1, L, E) negative.

        (P, B, L, E) tokens have a context for each pass and batch element.
        """
        negative = None if negative is None else negative.to(self.dtype)
        return encode_condition(self.blocks, tokens.to(self.dtype), negative=negative)

    def _velocity(
        self,
        tokens: Tensor,
        positions: Tensor,
        mod: Tensor,
        condition: Condition,
        voxels: VoxelSet | None,
    ) -> Tensor:
        """Velocities of (B, N, C) tokens with (N, 3) positions and a modulation broadcastable to (B, N, ...)."""
        h = self.input_layer(tokens)
        phases = None
        if self.pe_mode == "rope":
            phases = self._phases(positions, voxels)
        else:
            h = h + position_embedding(positions, h.shape[-1])
        h = h.to(self.dtype)
        for block, context in zip(self.blocks, condition.layers, strict=True):
            h = block(h, mod, context, voxels, phases)
        return self.out_layer(F.layer_norm(h.to(tokens.dtype), h.shape[-1:], eps=HEAD_EPS))

    def _phases(self, positions: Tensor, voxels: VoxelSet | None) -> Tensor:
        """The rotations of the tokens, the same at every step: those of voxels are kept with them."""
        if voxels is not None:
            return voxels.remember(("rotary", self.head_dim), lambda: rotary_phases(positions, self.head_dim))
        if self._dense_phases is None or self._dense_phases.device != positions.device:
            self._dense_phases = rotary_phases(positions, self.head_dim)
        return self._dense_phases

    def _modulation(self, t: Tensor) -> Tensor:
        """(B,) times in [0, 1000] -> (B, 6C) if all blocks share the modulation, else (B, C)."""
        embedded = self.t_embedder(t)
        if self.adaLN_modulation is None:
            return embedded.to(self.dtype)
        return self.adaLN_modulation(embedded)  # float32: each block adds its own vector to it


class SparseStructureFlowModel(FlowTransformer):
    """Velocity of the dense latent from which the occupied voxels are decoded."""

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Compute the velocity.

        Args:
            x: (B, C, R, R, R); several passes of `condition` are stacked along B, passes slowest.
            t: (B,) or (1,) time in [0, 1000].
            condition: from `encode_condition`.

        Returns:
            (B, D, R, R, R) in the type of `x`.
        """
        side = torch.arange(self.resolution, dtype=torch.int32, device=x.device)
        positions = torch.cartesian_prod(side, side, side).reshape(-1, 3)  # x slowest
        mod = self._modulation(t)[:, None]  # (B, C) -> (B, 1, C)
        v = self._velocity(x.flatten(2).mT, positions, mod, condition, None)
        return v.mT.unflatten(-1, x.shape[2:])  # (B, N, D) -> (B, D, R, R, R)


class SLatFlowModel(FlowTransformer):
    """Velocity of the latents of a set of voxels, such as the shape's or, beside a shape latent, the texture's."""

    def forward(
        self,
        feats: Tensor,
        voxels: VoxelSet,
        t: Tensor,
        condition: Condition,
        concat: Tensor | None = None,
    ) -> Tensor:
        """Compute the velocity.

        Args:
            feats: (P, N, C) latents of the passes of `condition`, which share the voxels.
            voxels: the N voxels; their coordinates are the positions.
            t: (B,) time in [0, 1000] of each batch element, or (1,) if they share it.
            condition: from `encode_condition`.
            concat: (N, E) latents that are appended to the channels of every pass.

        Returns:
            (P, N, D), in the row order of `voxels`.
        """
        if concat is not None:
            feats = torch.cat([feats, concat.expand(len(feats), -1, -1)], dim=-1)
        mod = per_row(self._modulation(t), voxels)
        return self._velocity(feats, voxels.coords[:, 1:], mod, condition, voxels)
