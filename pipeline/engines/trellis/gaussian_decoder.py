"""The Gaussian decoder: several 3D Gaussians for each voxel of the structured latent.

Source: Xiang et al. 2024, arXiv 2412.01506, section 3.2; Kerbl et al. 2023, arXiv 2308.04079;
microsoft/TRELLIS@6b0d647, decoder_gs.py and gaussian_model.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.engines.trellis.latent_decoder import LatentTransformer
from pipeline.nn.dense_blocks import HEAD_EPS
from pipeline.ops.constants import constant
from pipeline.ops.voxels import VoxelSet


@dataclass(frozen=True, eq=False)
class Gaussians:
    """3D Gaussians after their activations, in the model's frame: +Z up, the cube [-0.5, 0.5].

    Attributes:
        xyz: (G, 3) centres.
        scaling: (G, 3) standard deviations along the axes of each Gaussian.
        rotation: (G, 4) unit quaternions, w first.
        opacity: (G, 1) in (0, 1).
        features_dc: (G, 3) coefficients of the constant spherical harmonic.
    """

    xyz: Tensor  # (G, 3)
    scaling: Tensor  # (G, 3)
    rotation: Tensor  # (G, 4)
    opacity: Tensor  # (G, 1)
    features_dc: Tensor  # (G, 3)


@dataclass(frozen=True, eq=False)
class RawGaussians:
    """Gaussians before their activations."""

    xyz: Tensor  # (G, 3)
    features_dc: Tensor  # (G, 3)
    scaling: Tensor  # (G, 3)
    rotation: Tensor  # (G, 4)
    opacity: Tensor  # (G, 1)


def radical_inverse(base: int, n: int) -> float:
    """Return entry n of the van der Corput sequence: the digits of n, mirrored at the radix point."""
    value, weight = 0.0, 1.0 / base
    while n:
        n, digit = divmod(n, base)
        value += digit * weight
        weight /= base
    return value


def hammersley(i: int, count: int) -> tuple[float, float, float]:
    """Return point i of the three-dimensional Hammersley set of `count` points in [0, 1)^3."""
    return i / count, radical_inverse(2, i), radical_inverse(3, i)


class SLatGaussianDecoder(LatentTransformer):
    """G = `num_gaussians` Gaussians for each voxel, spread by fixed low-discrepancy offsets."""

    def __init__(self, *, representation_config: Mapping[str, Any], **transformer: Any) -> None:
        super().__init__(**transformer)
        self.config = dict(representation_config)
        self.widths = {
            "xyz": 3,
            "features_dc": 3,
            "scaling": 3,
            "rotation": 4,
            "opacity": 1,
        }  # in channel order, 14 in all
        count = self.config["num_gaussians"]
        self.out_layer = nn.Linear(self.input_layer.out_features, count * sum(self.widths.values()))
        points = torch.tensor([hammersley(i, count) for i in range(count)], dtype=torch.float32)
        self.offset_perturbation: Tensor
        # `raw_gaussians` applies tanh to the sum, so the atanh here makes zero channels yield the Hammersley points.
        self.register_buffer("offset_perturbation", torch.atanh((points * 2 - 1) / self.config["voxel_size"]))

    def forward(self, feats: Tensor, voxels: VoxelSet) -> Tensor:
        """(P, N, C) latents -> (P, N, 14 G) channels."""
        h = self.transform(feats, voxels).to(feats.dtype)  # (P, N, C) -> (P, N, M)
        return self.out_layer(F.layer_norm(h, h.shape[-1:], eps=HEAD_EPS))

    def raw_gaussians(self, channels: Tensor, coords: Tensor) -> RawGaussians:
        """Split the channels of one batch element into Gaussians.

        Args:
            channels: (N, 14 G).
            coords: (N, 3) voxels.

        Returns:
            (N G, k) tensors, the Gaussians of a voxel in consecutive rows; `xyz` in [0, 1].
        """
        count, rates = self.config["num_gaussians"], self.config["lr"]
        parts = channels.split([count * width for width in self.widths.values()], dim=-1)  # (N, G k) each
        # The factors `lr` scaled learning rates in training; the weights are only valid with them.
        raw = {}
        for (name, width), part in zip(self.widths.items(), parts, strict=True):
            rate = rates[f"_{name}"]
            raw[name] = part.unflatten(-1, (count, width)) * rate if rate != 1 else part.unflatten(-1, (count, width))
        offset = raw["xyz"] + self.offset_perturbation if self.config["perturb_offset"] else raw["xyz"]
        # A Gaussian stays within 0.75 voxels of its voxel's centre (`voxel_size` is 1.5).
        offset = offset.tanh() / self.resolution * 0.5 * self.config["voxel_size"]
        raw["xyz"] = (coords[:, None].float() + 0.5) / self.resolution + offset
        return RawGaussians(**{name: value.flatten(0, 1) for name, value in raw.items()})  # (N, G, k) -> (N G, k)

    def activate(self, raw: RawGaussians) -> Gaussians:
        """Apply the activations: world position, standard deviation, unit quaternion, opacity."""
        bias = self.config["scaling_bias"]
        if self.config["scaling_activation"] == "softplus":
            # The shift is the inverse of softplus at `bias`, so that zero channels yield `bias`.
            scaling = F.softplus(raw.scaling + (bias + math.log(-math.expm1(-bias))))
        else:
            scaling = torch.exp(raw.scaling + math.log(bias))
        kernel = self.config["3d_filter_kernel_size"]
        identity = constant((1.0, 0.0, 0.0, 0.0), raw.rotation.device)
        opacity_bias = self.config["opacity_bias"]
        return Gaussians(
            xyz=raw.xyz - 0.5,
            scaling=(scaling**2 + kernel**2).sqrt(),  # 3D smoothing filter of Mip-Splatting, arXiv 2311.16493
            rotation=F.normalize(raw.rotation + identity, dim=-1),
            opacity=torch.sigmoid(raw.opacity + math.log(opacity_bias / (1 - opacity_bias))),
            features_dc=raw.features_dc,
        )
