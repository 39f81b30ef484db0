"""The radiance-field decoder: a sum of products of three vectors for each voxel of the structured latent.

Source: Xiang et al. 2024, arXiv 2412.01506, section 3.2; the CP decomposition: Gao et al. 2023 (Strivec),
arXiv 2307.13226; microsoft/TRELLIS@6b0d647, decoder_rf.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.engines.trellis.latent_decoder import LatentTransformer
from pipeline.nn.dense_blocks import HEAD_EPS
from pipeline.ops.voxels import VoxelSet
from pipeline.render.radiance_field import RadianceField


class SLatRadianceFieldDecoder(LatentTransformer):
    """For each voxel R products of three vectors of D entries, with a density and a colour for each product."""

    def __init__(self, *, representation_config: Mapping[str, Any], **transformer: Any) -> None:
        super().__init__(**transformer)
        self.rank = int(representation_config["rank"])
        self.dim = int(representation_config["dim"])
        self.out_layer = nn.Linear(self.input_layer.out_features, self.rank * (3 * self.dim + 1 + 3))

    def forward(self, feats: Tensor, voxels: VoxelSet) -> Tensor:
        """(P, N, C) latents -> (P, N, R (3 D + 4)) channels."""
        h = self.transform(feats, voxels).to(feats.dtype)  # (P, N, C) -> (P, N, M)
        return self.out_layer(F.layer_norm(h, h.shape[-1:], eps=HEAD_EPS))

    def radiance_field(self, channels: Tensor, coords: Tensor) -> RadianceField:
        """Split the channels of one batch element into a radiance field.

        Args:
            channels: (N, R (3 D + 4)).
            coords: (N, 3) voxels.
        """
        # (N, R (3D + 4)) -> (N, 3RD), (N, R), (N, 3R)
        trivec, density, colour = channels.split([self.rank * 3 * self.dim, self.rank, self.rank * 3], dim=-1)
        depth = round(math.log2(self.resolution))  # octree level at which a cell is one voxel
        return RadianceField(
            position=(coords.float() + 0.5) / self.resolution,
            depth=torch.full((len(coords),), depth, dtype=torch.uint8, device=coords.device),
            # The network predicts the difference from 1, so that zero channels yield the neutral product.
            trivec=trivec.unflatten(-1, (self.rank, 3, self.dim)) + 1,  # (N, R, 3, D)
            density=density,
            features_dc=colour.unflatten(-1, (self.rank, 3)),  # (N, R, 3)
        )
