"""Engines of the released sizes on the pretended device, without values in their weights.

What the host looks at has values: the occupied voxels, the decoded surface and the Gaussians are those of a ball. Each
network still runs before its result is replaced, so that its kernels are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTextModel, Dinov2WithRegistersModel

from pipeline.engines.trellis.engine import TrellisEngine
from pipeline.engines.trellis.image_encoder import ImageEncoder
from pipeline.engines.trellis.models import PART_CLASSES, Models, _config, make_part
from pipeline.engines.trellis.spec import IMAGE_LARGE, EncoderSpec, ModelSpec, TextEncoderSpec
from pipeline.engines.trellis.text.encoder import TextEncoder, text_config
from pipeline.engines.trellis.text.engine import TrellisTextEngine
from pipeline.engines.trellis.text.spec import DEFAULT_SIZE, SIZES
from pipeline.engines.trellis.text.tokenizer import CONTEXT_LENGTH, PromptTokenizer
from pipeline.engines.triposr.engine import TripoSREngine
from pipeline.engines.triposr.model import TSR
from pipeline.engines.triposr.spec import ISO_DENSITY, RELEASED
from pipeline.engines.triposr.triplane import NeRFMLP
from pipeline.nn.deterministic_weights import fill_deterministic
from pipeline.nn.sparse_conv import Sparse
from pipeline.ops.voxels import VoxelSet
from tests.fakes.cuda.device import without_values

CUDA = torch.device("cuda:0")
SHELL = 1.5
"""Voxels between a ball's surface and the farthest occupied one."""
FULL_SHARE = 0.12
"""Of TripoSR's box that is inside, as an object's image gives."""


class Replaced:
    """A network whose result is replaced after it has run."""

    def __init__(self, network: Any, result: Callable[..., Any]) -> None:
        self._network, self._result = network, result

    def __call__(self, *args: Any) -> Any:
        self._network(*args)
        return self._result(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def ball_voxels(side: int, radius: float) -> Tensor:
    """(N, 4) int32 voxels `[0, x, y, z]` near the surface of a ball around the grid's centre, ascending."""
    along = torch.arange(side, dtype=torch.int32)
    coords = torch.cartesian_prod(torch.zeros(1, dtype=torch.int32), along, along, along)
    away = (coords[:, 1:] + 0.5 - side / 2).norm(dim=1) - radius
    return coords[away.abs() < SHELL]


def ball_channels(voxels: VoxelSet, side: int, radius: float) -> Tensor:
    """(1, N, 101) channels of the mesh decoder whose surface is a ball: distances at the corners, neutral elsewhere."""
    corner = torch.tensor([(i & 1, i >> 1 & 1, i >> 2 & 1) for i in range(8)])
    places = voxels.coords[:, None, 1:] + corner
    channels = torch.zeros((1, len(voxels), 101))
    channels[0, :, :8] = ((places - side / 2).norm(dim=-1) - radius) / side
    return channels


def trellis_engine(*, radius: float, dtype: torch.dtype = torch.float16) -> TrellisEngine:
    """TRELLIS of the released size on a ball of `radius` voxels of 64."""
    spec = IMAGE_LARGE
    engine = TrellisEngine(weights="tiny", device=str(CUDA))
    engine.spec = spec
    engine._models = _with_a_ball(_models(spec, dtype), radius)
    engine._is_ready = True
    return engine


def trellis_text_engine(*, radius: float, dtype: torch.dtype = torch.float16) -> TrellisTextEngine:
    """The largest text model on the same ball."""
    engine = TrellisTextEngine(weights="tiny", device=str(CUDA))
    engine.spec = SIZES[DEFAULT_SIZE]
    engine._models = _with_a_ball(_models(engine.spec, dtype), radius)
    width = engine.spec.structure_flow.args["cond_channels"]
    engine._null_context = torch.ones((1, CONTEXT_LENGTH, width)).to(CUDA)  # the host looks whether it is zero
    engine._is_ready = True
    return engine


def _models(spec: ModelSpec, dtype: torch.dtype) -> Models:
    with torch.device("meta"):
        parts: dict[str, Any] = {name: make_part(spec, name) for name in PART_CLASSES}
    for part in parts.values():
        part.set_dtype(dtype)
        part.requires_grad_(False)
        without_values(part.eval())
    return Models(encoder=_encoder(spec.encoder), **parts)


def _encoder(spec: EncoderSpec | TextEncoderSpec) -> ImageEncoder | TextEncoder:
    with torch.device("meta"):
        tower = Dinov2WithRegistersModel(_config(spec)) if isinstance(spec, EncoderSpec) else None
        model: Any = tower or CLIPTextModel(text_config(cast(TextEncoderSpec, spec)))
    without_values(model.requires_grad_(False).eval())
    return ImageEncoder(model) if tower else TextEncoder(model, PromptTokenizer.of_bytes())


def _with_a_ball(models: Models, radius: float) -> Models:
    side = models.latent_flow.resolution
    coords = ball_voxels(side, radius)
    logits = torch.full((1, 1, side, side, side), -1.0)
    logits[0, 0][tuple(coords[:, 1:].long().unbind(1))] = 1.0
    finest = VoxelSet(coords, batch_size=1).subdivide().subdivide()
    channels = ball_channels(finest, 4 * side, 4 * radius).to(CUDA)
    on_device = logits.to(CUDA)
    gaussians = torch.zeros((1, len(coords), models.gaussian_decoder.out_layer.out_features)).to(CUDA)
    mesh_decoder = models.mesh_decoder

    def decoded(slat: Tensor, voxels: VoxelSet) -> Sparse:
        return Sparse(channels, voxels.subdivide().subdivide())

    replaced: dict[str, Any] = {
        "structure_decoder": Replaced(models.structure_decoder, lambda latent: on_device),
        "mesh_decoder": Replaced(mesh_decoder, decoded),
        "gaussian_decoder": Replaced(models.gaussian_decoder, lambda slat, voxels: gaussians),
    }
    return replace(models, **replaced)


def triposr_engine() -> TripoSREngine:
    """TripoSR of the released size over smooth planes, whose surface is like an object's."""
    engine = TripoSREngine(weights="tiny", device=str(CUDA))
    engine.spec = RELEASED
    decoder = NeRFMLP(RELEASED.decoder).requires_grad_(False)
    fill_deterministic(decoder, seed=1, key_prefix="decoder.", scale={"decoder.layers.*.weight": 1.5})
    planes = F.interpolate(
        torch.randn((3, 40, 3, 3), generator=torch.Generator().manual_seed(7)), (64, 64), mode="bicubic"
    )
    with torch.device("meta"):
        model = TSR(RELEASED)
    model.requires_grad_(False).eval()
    model.decoder = decoder
    field = model.field(planes)
    points = torch.rand((20_000, 3), generator=torch.Generator().manual_seed(7)) * 1.74 - 0.87
    level = field.at(points, chunk_size=20_000).density_act.log().quantile(1 - FULL_SHARE)
    shift = float(torch.tensor(ISO_DENSITY).log() - level)
    model.renderer = replace(model.renderer, density_bias=model.renderer.density_bias + shift)
    without_values(model)
    on_device = planes[None].to(CUDA)
    # Not a module, so it takes the place of one in the instance's own attributes.
    post_processor = model._modules.pop("post_processor")
    model.__dict__["post_processor"] = Replaced(post_processor, lambda tokens: on_device)
    engine._model = model
    engine._is_ready = True
    return engine
