"""The structure decoder: from the dense latent to the occupancy logits.

Source: Xiang et al. 2024, arXiv 2412.01506, section 3.3; microsoft/TRELLIS@6b0d647, sparse_structure_vae.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.nn.dense_blocks import NormType, ResBlock3d, UpsampleBlock3d, channel_norm
from pipeline.nn.precision import set_precision


class SparseStructureDecoder(nn.Module):
    """Residual blocks, with an upsampling by 2 between successive widths."""

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: list[int],
        num_res_blocks_middle: int = 2,
        norm_type: NormType = "layer",
        use_fp16: bool = False,
    ) -> None:
        """Build the layers; `norm_type` applies to the output layer only, as in the released code."""
        super().__init__()
        self.input_layer = nn.Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(*(ResBlock3d(channels[0]) for _ in range(num_res_blocks_middle)))
        blocks: list[nn.Module] = []
        for i, width in enumerate(channels):
            blocks += [ResBlock3d(width) for _ in range(num_res_blocks)]
            if i + 1 < len(channels):
                blocks.append(UpsampleBlock3d(width, channels[i + 1]))
        self.blocks = nn.ModuleList(blocks)
        self.out_layer = nn.Sequential(
            channel_norm(norm_type, channels[-1]), nn.SiLU(), nn.Conv3d(channels[-1], out_channels, 3, padding=1)
        )
        self.set_dtype(torch.float16 if use_fp16 else torch.float32)

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Set the type of the blocks; input and output layers stay float32."""
        self.dtype = dtype
        set_precision((self.middle_block, self.blocks), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, R, R, R) latent -> (B, D, S, S, S) logits."""
        h = self.input_layer(x).to(self.dtype)
        h = self.middle_block(h)
        for block in self.blocks:
            h = block(h)
        return self.out_layer(h.to(x.dtype))


def occupied_coords(logits: Tensor) -> Tensor:
    """Return the voxels `[batch, x, y, z]` whose logit is positive, sorted: (B, 1, S, S, S) -> (N, 4) int32."""
    element, _, x, y, z = torch.argwhere(logits > 0).unbind(1)  # column 1 is the channel
    return torch.stack([element, x, y, z], dim=1).int()


def coarsened_occupancy(logits: Tensor, *, side: int) -> Tensor:
    """Voxels whose logit is positive, on a grid that may be coarser: (B, 1, S, S, S) -> (N, 4) int32, sorted.

    A voxel of the coarser grid is occupied if any of its finer ones is.
    """
    factor = logits.shape[-1] // side
    if factor > 1:
        logits = torch.nn.functional.max_pool3d((logits > 0).float(), factor)
    return occupied_coords(logits)
