"""The mesh decoder: signed distances, deformations, weights and colours on voxels four times as fine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.engines.trellis.latent_decoder import LatentTransformer
from pipeline.engines.trellis.sparse_blocks import SparseSubdivideBlock3d
from pipeline.nn.sparse_conv import Sparse
from pipeline.ops.voxels import VoxelSet

GEOMETRY_CHANNELS = 8 + 8 * 3 + 21  # signed distance and deformation of 8 corners, FlexiCubes weights of the cube
COLOUR_CHANNELS = 8 * 6  # rgb and normal of 8 corners


class SLatMeshDecoder(LatentTransformer):
    """The shared transformer, two subdivisions, and a linear layer; no norm before either."""

    def __init__(self, *, representation_config: Mapping[str, Any], **transformer: Any) -> None:
        super().__init__(**transformer)
        self.use_color = bool(representation_config.get("use_color", False))
        width = self.input_layer.out_features
        self.upsample = nn.ModuleList(
            [SparseSubdivideBlock3d(width, width // 4), SparseSubdivideBlock3d(width // 4, width // 8)]
        )
        self.out_layer = nn.Linear(width // 8, GEOMETRY_CHANNELS + (COLOUR_CHANNELS if self.use_color else 0))
        self.set_dtype(self.dtype)

    def heavy_parts(self) -> list[nn.Module]:
        return [self.blocks, *getattr(self, "upsample", ())]

    def forward(self, feats: Tensor, voxels: VoxelSet) -> Sparse:
        """(P, N, C) latents -> (P, 64 N, 101 or 53) channels on the voxels of four times the resolution."""
        h = Sparse(self.transform(feats, voxels), voxels)
        for block in self.upsample:
            h = block(h)
        return Sparse(self.out_layer(h.feats.to(feats.dtype)), h.voxels)
