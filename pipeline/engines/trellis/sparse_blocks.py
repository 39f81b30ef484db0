"""Blocks over voxels. Attribute names follow the released checkpoints.

Source: microsoft/TRELLIS@6b0d647, trellis/modules/sparse and trellis/models/structured_latent_vae.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.attention import SelfAttention
from pipeline.nn.dense_blocks import BLOCK_EPS, FeedForward
from pipeline.nn.norms import LayerNorm32, SparseGroupNorm32
from pipeline.nn.sparse_conv import Sparse, SparseConv3d
from pipeline.ops.fused import modulate
from pipeline.ops.sparse import per_row, pool_cells, repeat_octants, spread_cells
from pipeline.ops.voxels import VoxelSet, WindowOrder


class SparseTransformerBlock(nn.Module):
    """Pre-norm self-attention, in windows or over the whole batch element, and feed-forward."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        window_size: int | None = None,
        shift_window: int = 0,
        qk_rms_norm: bool = False,
        qkv_bias: bool = True,
        ln_affine: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm32(channels, eps=BLOCK_EPS, elementwise_affine=ln_affine)
        self.norm2 = LayerNorm32(channels, eps=BLOCK_EPS, elementwise_affine=ln_affine)
        self.attn = SelfAttention(
            channels,
            num_heads,
            qkv_bias=qkv_bias,
            qk_rms_norm=qk_rms_norm,
            window_size=window_size,
            shift_window=shift_window,
        )
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(self, x: Tensor, voxels: VoxelSet, order: WindowOrder | None = None) -> Tensor:
        """(P, N, C) -> (P, N, C), the rows in the order of the voxels, or in an `order` of their windows."""
        x = x + self.attn(self.norm1(x), voxels, order=order)
        return x + self.mlp(self.norm2(x))


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, voxels: VoxelSet) -> Tensor:
    """Apply `SparseTransformerBlock`s one after the other: (P, N, C) -> (P, N, C).

    Between two blocks that attend in different windows the rows go from one order to the other, so that a block needs
    one copy of its features instead of four.
    """
    at: WindowOrder | None = None
    for block in blocks:
        assert isinstance(block, SparseTransformerBlock)
        order = block.attn.order_of_rows(voxels)
        x, at = _reordered(x, voxels, at, order), order
        x = block(x, voxels, order)
    return _reordered(x, voxels, at, None)


def _reordered(x: Tensor, voxels: VoxelSet, before: WindowOrder | None, after: WindowOrder | None) -> Tensor:
    """Bring rows from one order to another; None is that of the voxels."""
    if before is after:
        return x
    if before is None or after is None:
        rows = after.rows if after is not None else before.place if before is not None else None
        assert rows is not None
        return x.index_select(-2, rows)
    return x.index_select(-2, voxels.remember(("reordered", before, after), lambda: before.place[after.rows]))


class SparseResBlock3d(nn.Module):
    """Optional resampling by 2, then two convolutions modulated by the time, with a skip connection."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int | None = None,
        *,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        """Build the layers.

        Raises:
            ValueError: both `downsample` and `upsample` are set.
        """
        super().__init__()
        if downsample and upsample:
            raise ValueError("a block resamples down or up, not both")
        out_channels = out_channels or channels
        self.downsample = downsample
        self.upsample = upsample
        self.norm1 = LayerNorm32(channels, eps=BLOCK_EPS)
        self.norm2 = LayerNorm32(out_channels, eps=BLOCK_EPS, elementwise_affine=False)
        self.conv1 = SparseConv3d(channels, out_channels, 3)
        self.conv2 = SparseConv3d(out_channels, out_channels, 3)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.skip_connection = nn.Linear(channels, out_channels) if channels != out_channels else nn.Identity()

    def forward(self, x: Sparse, emb: Tensor, *, finer: VoxelSet | None = None) -> Sparse:
        """Apply the block.

        Args:
            x: (P, N, C) features on their voxels.
            emb: (B, E) time embedding of each batch element; B is 1 if all share it.
            finer: for an upsampling block, the M voxels of which the voxels of `x` are the cells.

        Returns:
            (P, M, D) features on the resampled voxels.

        Raises:
            ValueError: an upsampling block got no `finer`.
        """
        feats, voxels = x
        if self.downsample:
            feats, voxels = pool_cells(feats, voxels, 2), voxels.coarsen(2).cells  # (P, N, C) -> (P, M, C)
        elif self.upsample:
            if finer is None:
                raise ValueError("an upsampling block needs the finer voxels of its cells")
            feats, voxels = spread_cells(feats, finer, 2), finer
        scale, shift = per_row(self.emb_layers(emb), voxels).chunk(2, dim=-1)  # (B, E) -> (M, 2D) -> (M, D) each
        h = self.conv1(F.silu(self.norm1(feats)), voxels)  # (P, M, C) -> (P, M, D)
        h = modulate(self.norm2(h), 1 + scale, shift)
        h = self.conv2(F.silu(h), voxels)
        return Sparse(h + self.skip_connection(feats), voxels)


class SparseSubdivideBlock3d(nn.Module):
    """Norm, SiLU, subdivision and two convolutions, with a skip connection."""

    def __init__(self, channels: int, out_channels: int | None = None, *, num_groups: int = 32) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.act_layers = nn.ModuleList([SparseGroupNorm32(num_groups, channels)])
        self.out_layers = nn.ModuleList(
            [
                SparseConv3d(channels, out_channels, 3),
                SparseGroupNorm32(num_groups, out_channels),
                nn.SiLU(),
                SparseConv3d(out_channels, out_channels, 3),
            ]
        )
        self.skip_connection = None if channels == out_channels else SparseConv3d(channels, out_channels, 1)

    def forward(self, x: Sparse) -> Sparse:  # (P, N, C) -> (P, 8 N, D)
        feats, voxels = x
        finer = voxels.subdivide()
        conv1, norm, act, conv2 = self.out_layers
        h = repeat_octants(F.silu(self.act_layers[0](feats, voxels)))
        h = conv2(act(norm(conv1(h, finer), finer)), finer)
        # A kernel of 1 acts on each voxel alone, so the skip runs before the features are repeated eight times.
        skip = feats if self.skip_connection is None else self.skip_connection(feats, voxels)
        return Sparse(h + repeat_octants(skip), finer)
