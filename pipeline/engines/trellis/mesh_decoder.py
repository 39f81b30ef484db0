"""The mesh decoder: signed distances, deformations, weights and colours at four times the resolution of the latent.

Source: Xiang et al. 2024, arXiv 2412.01506, section 3.2; microsoft/TRELLIS@6b0d647, decoder_mesh.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.engines.trellis.latent_decoder import LatentTransformer
from pipeline.engines.trellis.sparse_blocks import SparseSubdivideBlock3d
from pipeline.nn.sparse_conv import Sparse
from pipeline.ops.voxels import VoxelSet

GEOMETRY_CHANNELS = 8 + 8 * 3 + 21  # signed distances and deformations of 8 corners, FlexiCubes weights of the cube
COLOUR_CHANNELS = 8 * 6  # rgb and normal of 8 corners


class SLatMeshDecoder(LatentTransformer):
    """The shared transformer, two subdivisions and a linear layer, without a norm between them."""

    def __init__(self, *, representation_config: Mapping[str, Any], **transformer: Any) -> None:
        super().__init__(**transformer)
        self.use_color = bool(representation_config.get("use_color", False))
        width = self.input_layer.out_features
        self.upsample = nn.ModuleList(
            [SparseSubdivideBlock3d(width, width // 4), SparseSubdivideBlock3d(width // 4, width // 8)]
        )
        self.out_layer = nn.Linear(width // 8, GEOMETRY_CHANNELS + (COLOUR_CHANNELS if self.use_color else 0))
        self.set_dtype(self.dtype)  # again: the base class did so before `upsample` existed

    def heavy_parts(self) -> list[nn.Module]:
        """See `LatentTransformer.heavy_parts`; `upsample` is absent while the base class initialises."""
        return [self.blocks, *getattr(self, "upsample", ())]

    def forward(self, feats: Tensor, voxels: VoxelSet) -> Sparse:
        """(P, N, C) latents -> (P, 64 N, 101 or 53) channels on voxels of four times the resolution."""
        h = Sparse(self.transform(feats, voxels), voxels)  # (P, N, M)
        for block in self.upsample:
            h = block(h)  # (P, N, M) -> (P, 8 N, M/4) -> (P, 64 N, M/8)
        return Sparse(self.out_layer(h.feats.to(feats.dtype)), h.voxels)
