"""All numbers of the released TRELLIS.2 model and of the tiny test model. Imports no torch.

Source: microsoft/TRELLIS.2@5565d24; the sizes are those of microsoft/TRELLIS.2-4B at the pinned revision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.request import DETAILS

MAX_VOXELS = 49152
"""A cascade whose fine latents have as many voxels gets a coarser grid, see `cascade_voxels`."""


@dataclass(frozen=True)
class CheckpointSpec:
    """One of the files of a model.

    Attributes:
        file_name: path relative to the model's folder.
        size_bytes: size of the published file; None if nothing is published.
        args: constructor arguments of the published configuration.
        repo_id: repository on the model hub.
        revision: full commit hash there.
        remote_name: path there.
    """

    file_name: str
    size_bytes: int | None
    args: Mapping[str, Any]
    repo_id: str = ""
    revision: str = ""
    remote_name: str = ""


@dataclass(frozen=True)
class EncoderSpec:
    """The image encoder, DINOv3 ViT.

    Attributes:
        repo_id: repository on the model hub; its owner asks for consent, so a deployment may name a mirror.
        file_name: file there.
        size_bytes: of its weights in float32.
        args: of its configuration in transformers.
        revision: full commit hash there.
    """

    repo_id: str
    file_name: str
    size_bytes: int
    args: Mapping[str, Any]
    revision: str = ""


@dataclass(frozen=True)
class StageSpec:
    """The settings of a sampling stage that a request does not set; see `StageSettings`."""

    rescale: float
    interval: tuple[float, float]
    rescale_t: float


@dataclass(frozen=True)
class DeterministicWeights:
    """Parameters of the deterministic test weights.

    Attributes:
        seed: seed of the whole set.
        added: constants that are added to tensors, or to their leading rows, by the name of a network and a key.
    """

    seed: int
    added: Mapping[str, Mapping[str, float | tuple[float, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """A model: its architecture, sampling, and where its weights are published.

    Attributes:
        checkpoints: the networks by name.
        image_size: side of the images that the encoder reads, of the coarse and of the fine stages.
        shape_mean: the latents are sampled normalised and decoded as x * std + mean.
        shape_std: see `shape_mean`.
        texture_mean: see `shape_mean`.
        texture_std: see `shape_mean`.
        deterministic_weights: parameters of the test weights; None for a model whose weights are read from files.
    """

    name: str
    encoder: EncoderSpec
    checkpoints: Mapping[str, CheckpointSpec]
    image_size: tuple[int, int]
    shape_mean: tuple[float, ...]
    shape_std: tuple[float, ...]
    texture_mean: tuple[float, ...]
    texture_std: tuple[float, ...]
    structure_stage: StageSpec = StageSpec(0.7, (0.6, 1.0), 5.0)
    shape_stage: StageSpec = StageSpec(0.5, (0.6, 1.0), 3.0)
    texture_stage: StageSpec = StageSpec(0.0, (0.6, 0.9), 3.0)
    deterministic_weights: DeterministicWeights | None = None


def networks_for(detail: int) -> tuple[str, ...]:
    """The networks that a detail needs beside the encoder, in the order of their use."""
    shared = ("structure_flow", "structure_decoder", "shape_flow_512")
    if detail == DETAILS[0]:
        return (*shared, "texture_flow_512", "shape_decoder", "texture_decoder")
    return (*shared, "shape_decoder", "shape_flow_1024", "texture_flow_1024", "texture_decoder")


def networks_up_to(detail: int) -> tuple[str, ...]:
    """The networks that requests of this detail and of any lower one need: what a deployment keeps on its disk."""
    lower = [networks_for(each) for each in DETAILS if each <= detail]
    return tuple(dict.fromkeys(name for names in lower for name in names))


FLOW = {
    "model_channels": 1536,
    "cond_channels": 1024,
    "num_blocks": 30,
    "num_heads": 12,
    "mlp_ratio": 5.3334,
    "pe_mode": "rope",
    "share_mod": True,
    "initialization": "scaled",
    "qk_rms_norm": True,
    "qk_rms_norm_cross": True,
}
DECODER = {
    "model_channels": [1024, 512, 256, 128, 64],
    "latent_channels": 32,
    "num_blocks": [4, 16, 8, 4, 0],
    "block_type": ["SparseConvNeXtBlock3d"] * 5,
    "up_block_type": ["SparseResBlockC2S3d"] * 4,
    "block_args": [{"use_checkpoint": True}] * 5,
    "use_fp16": True,
}
REPO, REVISION = "microsoft/TRELLIS.2-4B", "af44b45f2e35a493886929c6d786e563ec68364d"


def _published(name: str, size_bytes: int, args: Mapping[str, Any]) -> CheckpointSpec:
    path = f"ckpts/{name}.safetensors"
    return CheckpointSpec(path, size_bytes, args, REPO, REVISION, path)


RELEASED = ModelSpec(
    name="TRELLIS.2-4B",
    encoder=EncoderSpec(
        "facebook/dinov3-vitl16-pretrain-lvd1689m",
        "model.safetensors",
        1_212_518_400,
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "patch_size": 16,
            "image_size": 224,
            "num_register_tokens": 4,
        },
        revision="ea8dc2863c51be0a264bab82070e3e8836b02d51",
    ),
    checkpoints={
        "structure_flow": _published(
            "ss_flow_img_dit_1_3B_64_bf16",
            2584426920,
            {**FLOW, "resolution": 16, "in_channels": 8, "out_channels": 8},
        ),
        # The file of TRELLIS' first release.
        "structure_decoder": CheckpointSpec(
            "ckpts/ss_dec_conv3d_16l8_fp16.safetensors",
            147591972,
            {
                "out_channels": 1,
                "latent_channels": 8,
                "num_res_blocks": 2,
                "num_res_blocks_middle": 2,
                "channels": [512, 128, 32],
                "use_fp16": True,
            },
            "microsoft/TRELLIS-image-large",
            "25e0d31ffbebe4b5a97464dd851910efc3002d96",
            "ckpts/ss_dec_conv3d_16l8_fp16.safetensors",
        ),
        "shape_flow_512": _published(
            "slat_flow_img2shape_dit_1_3B_512_bf16",
            2584574424,
            {**FLOW, "resolution": 32, "in_channels": 32, "out_channels": 32},
        ),
        "shape_flow_1024": _published(
            "slat_flow_img2shape_dit_1_3B_1024_bf16",
            2584574424,
            {**FLOW, "resolution": 64, "in_channels": 32, "out_channels": 32},
        ),
        "texture_flow_512": _published(
            "slat_flow_imgshape2tex_dit_1_3B_512_bf16",
            2584672728,
            {**FLOW, "resolution": 32, "in_channels": 64, "out_channels": 32},
        ),
        "texture_flow_1024": _published(
            "slat_flow_imgshape2tex_dit_1_3B_1024_bf16",
            2584672728,
            {**FLOW, "resolution": 64, "in_channels": 64, "out_channels": 32},
        ),
        "shape_decoder": _published("shape_dec_next_dc_f16c32_fp16", 948490494, {**DECODER, "resolution": 512}),
        "texture_decoder": _published(
            "tex_dec_next_dc_f16c32_fp16", 948458812, {**DECODER, "out_channels": 6, "pred_subdiv": False}
        ),
    },
    image_size=(512, 1024),
    shape_mean=(
        0.781296,
        0.018091,
        -0.495192,
        -0.558457,
        1.06053,
        0.093252,
        1.518149,
        -0.933218,
        -0.732996,
        2.604095,
        -0.118341,
        -2.143904,
        0.495076,
        -2.179512,
        -2.130751,
        -0.996944,
        0.261421,
        -2.217463,
        1.260067,
        -0.150213,
        3.790713,
        1.481266,
        -1.046058,
        -1.523667,
        -0.059621,
        2.22078,
        1.621212,
        0.87723,
        0.567247,
        -3.175944,
        -3.186688,
        1.578665,
    ),
    shape_std=(
        5.972266,
        4.706852,
        5.44501,
        5.209927,
        5.32022,
        4.547237,
        5.020802,
        5.444004,
        5.226681,
        5.683095,
        4.831436,
        5.286469,
        5.652043,
        5.367606,
        5.525084,
        4.730578,
        4.805265,
        5.124013,
        5.530808,
        5.619001,
        5.10393,
        5.41767,
        5.269677,
        5.547194,
        5.634698,
        5.235274,
        6.110351,
        5.511298,
        6.237273,
        4.879207,
        5.347008,
        5.405691,
    ),
    texture_mean=(
        3.501659,
        2.212398,
        2.226094,
        0.251093,
        -0.026248,
        -0.687364,
        0.439898,
        -0.928075,
        0.029398,
        -0.339596,
        -0.869527,
        1.038479,
        -0.972385,
        0.126042,
        -1.129303,
        0.455149,
        -1.209521,
        2.069067,
        0.544735,
        2.569128,
        -0.323407,
        2.293,
        -1.925608,
        -1.217717,
        1.213905,
        0.971588,
        -0.023631,
        0.10675,
        2.021786,
        0.250524,
        -0.662387,
        -0.768862,
    ),
    texture_std=(
        2.665652,
        2.743913,
        2.765121,
        2.595319,
        3.037293,
        2.291316,
        2.144656,
        2.911822,
        2.969419,
        2.501689,
        2.154811,
        3.163343,
        2.621215,
        2.381943,
        3.186697,
        3.021588,
        2.295916,
        3.234985,
        3.233086,
        2.26014,
        2.874801,
        2.810596,
        3.29272,
        2.674999,
        2.680878,
        2.372054,
        2.451546,
        2.353556,
        2.995195,
        2.379849,
        2.786195,
        2.77519,
    ),
)

TINY_FLOW = {
    **FLOW,
    "model_channels": 48,
    "cond_channels": 32,
    "num_blocks": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
    "in_channels": 8,
    "out_channels": 8,
}
TINY_DECODER = {
    **DECODER,
    "model_channels": [32, 16, 16, 16, 8],
    "latent_channels": 8,
    "num_blocks": [1, 1, 1, 1, 0],
    "use_fp16": False,
}


def _tiny(args: Mapping[str, Any]) -> CheckpointSpec:
    return CheckpointSpec("", None, args)


TINY = ModelSpec(
    name="TRELLIS.2-tiny",
    encoder=EncoderSpec(
        "",
        "",
        0,
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "patch_size": 16,
            "image_size": 64,
            "num_register_tokens": 4,
        },
    ),
    checkpoints={
        "structure_flow": _tiny({**TINY_FLOW, "resolution": 4}),
        "structure_decoder": _tiny(
            {
                "out_channels": 1,
                "latent_channels": 8,
                "num_res_blocks": 1,
                "num_res_blocks_middle": 1,
                "channels": [16, 16, 8, 8, 8],
            }
        ),
        "shape_flow_512": _tiny({**TINY_FLOW, "resolution": 32}),
        "shape_flow_1024": _tiny({**TINY_FLOW, "resolution": 64}),
        "texture_flow_512": _tiny({**TINY_FLOW, "resolution": 32, "in_channels": 16}),
        "texture_flow_1024": _tiny({**TINY_FLOW, "resolution": 64, "in_channels": 16}),
        "shape_decoder": _tiny({**TINY_DECODER, "resolution": 512}),
        "texture_decoder": _tiny({**TINY_DECODER, "out_channels": 6, "pred_subdiv": False}),
    },
    image_size=(64, 128),
    shape_mean=(0.0,) * 8,
    shape_std=(1.0,) * 8,
    texture_mean=(0.0,) * 8,
    texture_std=(1.0,) * 8,
    # A few voxels, of which nearly all children exist, crossed by sheets along one axis: an open surface.
    deterministic_weights=DeterministicWeights(
        seed=20260401,
        added={
            "structure_decoder": {"out_layer.2.bias": -2.1},
            "shape_decoder": {
                "output_layer.bias": (0.0, 0.0, 0.0, -4.0, 4.0, -4.0),
                **{f"blocks.{level}.1.to_subdiv.bias": (2.5,) * 8 for level in range(4)},
            },
        },
    ),
)
