"""The decoders: a sparse U-Net's upward half, whose shape branch also says which children of a voxel exist.

Attribute names follow the released checkpoints.

Source: Xiang et al. 2025 (TRELLIS.2); microsoft/TRELLIS.2@5565d24, trellis2/models/sc_vaes; the block without a time:
    Liu et al. 2022 (ConvNeXt), arXiv 2201.03545.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.dense_blocks import BLOCK_EPS, HEAD_EPS
from pipeline.nn.norms import LayerNorm32
from pipeline.nn.precision import set_precision
from pipeline.nn.sparse_conv import Sparse, SubmanifoldConv3
from pipeline.ops.sparse import merge_octants, take_octants
from pipeline.ops.voxels import VoxelSet

OCTANTS = 8


class SparseConvNeXtBlock3d(nn.Module):
    """Convolution, norm and a two-layer perceptron, with a skip connection."""

    def __init__(self, channels: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm = LayerNorm32(channels, eps=BLOCK_EPS)
        self.conv = SubmanifoldConv3(channels, channels)
        hidden = int(channels * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels))

    def forward(self, x: Sparse) -> Sparse:  # (P, N, C) -> (P, N, C)
        feats, voxels = x
        return Sparse(feats + self.mlp(self.norm(self.conv(feats, voxels))), voxels)


class SparseResBlockC2S3d(nn.Module):
    """Splits voxels into those of their eight children that exist: channel to space, with a skip connection.

    Each voxel's channels are cut into eight equal parts, one for each child. Child j lies at the offset
    (j & 1, j >> 1 & 1, j >> 2 & 1): x is the fastest.
    """

    def __init__(self, channels: int, out_channels: int | None = None, *, pred_subdiv: bool = True) -> None:
        """Build the layers.

        Args:
            channels: of the voxels.
            out_channels: of their children.
            pred_subdiv: the block itself says which children exist.
        """
        super().__init__()
        out_channels = out_channels or channels
        self.out_channels = out_channels
        self.norm1 = LayerNorm32(channels, eps=BLOCK_EPS)
        self.norm2 = LayerNorm32(out_channels, eps=BLOCK_EPS, elementwise_affine=False)
        self.conv1 = SubmanifoldConv3(channels, OCTANTS * out_channels)
        self.conv2 = SubmanifoldConv3(out_channels, out_channels)
        self.to_subdiv = nn.Linear(channels, OCTANTS) if pred_subdiv else None

    def subdivision(self, feats: Tensor) -> Tensor:
        """Logits of the children: (N, C) -> (N, 8) float32; a child exists where its logit is positive.

        Raises:
            ValueError: the block does not predict them.
        """
        if self.to_subdiv is None:
            raise ValueError("this block takes the subdivision from another decoder")
        return self.to_subdiv(feats).float()

    def forward(self, x: Sparse, exists: Tensor) -> Sparse:
        """Apply the block.

        Args:
            x: (P, N, C) features on their voxels.
            exists: (N, 8) bool, which children exist.

        Returns:
            (P, M, D) features on the children, those of a voxel in ascending order.
        """
        feats, voxels = x
        children = voxels.subdivide_where(exists)
        h = take_octants(self.conv1(F.silu(self.norm1(feats)), voxels), children)
        h = self.conv2(F.silu(self.norm2(h)), children.voxels)
        skip = take_octants(feats, children)
        skip = skip.repeat_interleave(self.out_channels // skip.shape[-1], dim=-1)
        return Sparse(h + skip, children.voxels)


class SparseResBlockS2C3d(nn.Module):
    """The inverse of `SparseResBlockC2S3d`: merges voxels into cells, space to channel, with a skip connection."""

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.out_channels = out_channels
        self.norm1 = LayerNorm32(channels, eps=BLOCK_EPS)
        self.norm2 = LayerNorm32(out_channels, eps=BLOCK_EPS, elementwise_affine=False)
        self.conv1 = SubmanifoldConv3(channels, out_channels // OCTANTS)
        self.conv2 = SubmanifoldConv3(out_channels, out_channels)

    def forward(self, x: Sparse) -> Sparse:  # (P, N, C) -> (P, M, D) on the cells
        feats, voxels = x
        cells = voxels.coarsen(2).cells
        h = merge_octants(self.conv1(F.silu(self.norm1(feats)), voxels), voxels)
        h = self.conv2(F.silu(self.norm2(h)), cells)
        skip = merge_octants(feats, voxels)
        return Sparse(h + skip.unflatten(-1, (self.out_channels, -1)).mean(dim=-1), cells)


class Decoded(NamedTuple):
    """What a decoder computes.

    Attributes:
        channels: (N, C) float32 on the finest voxels.
        voxels: the finest voxels.
        subdivisions: (N_i, 8) of each level: logits where the decoder predicts them, else what it was given.
    """

    channels: Tensor
    voxels: VoxelSet
    subdivisions: tuple[Tensor, ...]


class SparseUnetVaeDecoder(nn.Module):
    """From latents on voxels to channels on voxels that are finer by 2 for each upsampling block."""

    def __init__(
        self,
        out_channels: int,
        model_channels: Sequence[int],
        latent_channels: int,
        num_blocks: Sequence[int],
        block_type: Sequence[str],
        up_block_type: Sequence[str],
        block_args: Sequence[dict[str, Any]],
        use_fp16: bool = False,
        pred_subdiv: bool = True,
    ) -> None:
        """Build the layers; the arguments are those of the released configuration files.

        Args:
            block_args: options of training, not used.

        Raises:
            ValueError: another kind of block is asked for.
        """
        super().__init__()
        if {*block_type, *up_block_type} - {"SparseConvNeXtBlock3d", "SparseResBlockC2S3d"}:
            raise ValueError(f"unknown blocks: {[*block_type, *up_block_type]}")
        self.pred_subdiv = pred_subdiv
        self.from_latent = nn.Linear(latent_channels, model_channels[0])
        self.blocks = nn.ModuleList()
        for level, (width, count) in enumerate(zip(model_channels, num_blocks, strict=True)):
            blocks: list[nn.Module] = [SparseConvNeXtBlock3d(width) for _ in range(count)]
            if level + 1 < len(model_channels):
                blocks.append(SparseResBlockC2S3d(width, model_channels[level + 1], pred_subdiv=pred_subdiv))
            self.blocks.append(nn.ModuleList(blocks))
        self.output_layer = nn.Linear(model_channels[-1], out_channels)
        self.set_dtype(torch.float16 if use_fp16 else torch.float32)

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Set the type of the blocks' heavy layers; everything else stays float32."""
        self.dtype = dtype
        set_precision(self.blocks, dtype)

    def forward(
        self,
        feats: Tensor,
        voxels: VoxelSet,
        *,
        subdivisions: Sequence[Tensor] | None = None,
        levels: int | None = None,
    ) -> Decoded:
        """Decode latents.

        Args:
            feats: (N, C) latents in their original scale.
            voxels: their voxels.
            subdivisions: (N_i, 8) of each level, positive where a child exists; for a decoder that predicts none.
            levels: how many upsampling blocks are applied, without the output layer afterwards; None for all.

        Raises:
            ValueError: the decoder needs subdivisions and got none.
        """
        if subdivisions is None and not self.pred_subdiv:
            raise ValueError("this decoder needs the subdivisions of the shape")
        h = Sparse(self.from_latent(feats).to(self.dtype), voxels)
        found: list[Tensor] = []
        for blocks in self.blocks:
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                if not isinstance(block, SparseResBlockC2S3d):
                    h = block(h)
                    continue
                logits = block.subdivision(h.feats) if subdivisions is None else subdivisions[len(found)]
                found.append(logits)
                h = block(h, logits > 0)
                if len(found) == levels:
                    return Decoded(h.feats, h.voxels, tuple(found))
        out = F.layer_norm(h.feats.to(feats.dtype), h.feats.shape[-1:], eps=HEAD_EPS)
        return Decoded(self.output_layer(out), h.voxels, tuple(found))


class FlexiDualGridVaeDecoder(SparseUnetVaeDecoder):
    """The shape decoder: seven channels for each voxel, see `pipeline.ops.dual_grid`."""

    def __init__(self, resolution: int, **options: Any) -> None:
        """Build the layers; the arguments are those of the released configuration files.

        Args:
            resolution: of the finest grid in training; a run has its own.
            options: of `SparseUnetVaeDecoder`.
        """
        super().__init__(out_channels=7, **options)
        self.resolution = resolution
