"""TRELLIS.2 of its released size on the pretended device, without values in its weights, on a ball.

Every network runs; what the host looks at has values: the occupied voxels, the children of each voxel and the edges
that the surface crosses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

from pipeline.engines.trellis2.engine import Trellis2Engine
from pipeline.engines.trellis2.image_encoder import ImageEncoder
from pipeline.engines.trellis2.models import DECODER_DTYPE, ENCODER, FLOW_DTYPE, Models, make_part
from pipeline.engines.trellis2.spec import RELEASED, networks_for
from pipeline.engines.trellis2.unet import Decoded, SparseResBlockC2S3d
from pipeline.nn.sparse_conv import Sparse
from pipeline.ops.voxels import VoxelSet
from tests.fakes.cuda.device import without_values
from tests.fakes.cuda.full_size import CUDA, Replaced

RADIUS = 0.45
"""Of the ball, in sides of the grid: 3,900 voxels of latents at 512 and 15,600 at 1024"""
SHELL = 0.75
"""Voxels whose centre is within this distance of the surface exist: 1.5 for each voxel's side squared of it."""


def trellis2_engine(detail: int) -> Trellis2Engine:
    """The engine with the networks of one `detail`, on the device, in the types of the release."""
    engine = Trellis2Engine(weights="tiny", device=str(CUDA), detail=detail)
    engine.spec = RELEASED
    models = Models(RELEASED, Path(), device=CUDA)  # every network is given below
    parts: dict[str, Any] = {name: _part(name) for name in (*networks_for(detail), ENCODER)}
    logits = _ball_logits(2 * RELEASED.checkpoints["shape_flow_512"].args["resolution"]).to(CUDA)
    parts["structure_decoder"] = Movable(parts["structure_decoder"], lambda latent: logits)
    for name in ("shape_decoder", "texture_decoder"):
        for block in parts[name].modules():
            if isinstance(block, SparseResBlockC2S3d):
                block.forward = MethodType(_with_children_of_the_ball, block)
    parts["shape_decoder"] = Movable(parts["shape_decoder"], None)
    models._parts = parts
    engine._models = models
    return engine


class Movable(Replaced):
    """A network that is on the device already; `None` in place of a result gives the surface of the ball."""

    def __init__(self, network: Any, result: Callable[..., Any] | None) -> None:
        super().__init__(network, result or (lambda *args: None))
        self._is_shape = result is None

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not self._is_shape:
            return super().__call__(*args)
        decoded: Decoded = self._network(*args, **options)
        if "levels" in options:
            return decoded
        return decoded._replace(channels=_ball_channels(decoded.voxels))

    def to(self, device: torch.device) -> Movable:
        return self


def _part(name: str) -> nn.Module:
    with torch.device("meta"):
        if name == ENCODER:
            part: Any = ImageEncoder(DINOv3ViTModel(DINOv3ViTConfig(**RELEASED.encoder.args)))
        else:
            part = make_part(RELEASED, name)
            part.set_dtype(FLOW_DTYPE if "flow" in name else DECODER_DTYPE)
    return without_values(part.requires_grad_(False).eval())


def _ball_logits(side: int) -> Tensor:
    """(1, 1, S, S, S) logits, positive at the voxels of the ball's surface on a grid of half the side."""
    along = torch.arange(side // 2) + 0.5 - side / 4
    away = (along[:, None, None] ** 2 + along[:, None] ** 2 + along**2).sqrt() - RADIUS * side / 2
    exists = (away.abs() < SHELL).float() * 2 - 1
    return exists.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)[None, None]


def _with_children_of_the_ball(block: SparseResBlockC2S3d, x: Sparse, exists: Tensor) -> Sparse:
    """The block with children that have values."""
    side = 2 * x.voxels.side
    octant = torch.arange(8)
    offset = torch.stack([octant & 1, octant >> 1 & 1, octant >> 2 & 1], dim=-1)
    coords = _on_host(x.voxels.coords)
    away = _distance(coords[:, None, 1:] * 2 + offset + 0.5, side)
    return SparseResBlockC2S3d.forward(block, x, (away.abs() < SHELL).to(exists.device))


def _ball_channels(voxels: VoxelSet) -> Tensor:
    """(N, 7) channels: vertices in the middle of their voxels, and the edges marked that the ball's surface crosses."""
    coords, side = _on_host(voxels.coords)[:, 1:], voxels.side
    channels = torch.zeros((len(coords), 7))
    inside = _distance(coords + 1.0, side) < 0  # the corner at which the three edges of a voxel end
    for axis in range(3):
        other = coords + 1.0
        other[:, axis] -= 1
        channels[:, 3 + axis] = torch.where((_distance(other, side) < 0) != inside, 1.0, -1.0)
    return channels.to(voxels.device)


def _distance(places: Tensor, side: int) -> Tensor:
    return (places - side / 2).norm(dim=-1) - RADIUS * side


def _on_host(tensor: Tensor) -> Tensor:
    """The values of a tensor of the device, without a count."""
    return getattr(tensor, "inner", tensor)
