"""All numbers of the released TRELLIS model and of the tiny test model, one literal row each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REFERENCE_RESOLUTION = 256  # the grid of the released mesh decoder; a request's `resolution` is relative to it


@dataclass(frozen=True)
class EncoderSpec:
    """The image encoder and where its weights are published.

    Attributes:
        repo_id: repository on the model hub.
        revision: full commit hash there.
        file_name: file there.
        image_size: side of the input image in pixels.
    """

    repo_id: str
    revision: str
    file_name: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    registers: int


@dataclass(frozen=True)
class TextEncoderSpec:
    """The text encoder of a text model and where its weights are published.

    Attributes:
        repo_id: repository on the model hub.
        revision: full commit hash there.
        file_name: file there, which holds the text tower among other networks.
        size_bytes: size of that file; None if nothing is published.
        sha256: digests of the published files by name.
        vocabulary: number of tokens; the last two are the start and the end of a text.
    """

    repo_id: str
    revision: str
    file_name: str
    size_bytes: int | None
    sha256: Mapping[str, str]
    width: int
    depth: int
    heads: int
    vocabulary: int


@dataclass(frozen=True)
class CheckpointSpec:
    """One of the six files of a model.

    Attributes:
        file_name: path relative to the model's folder and to the published repository alike.
        size_bytes: size of the published file; None if nothing is published.
        args: constructor arguments of the published configuration.
    """

    file_name: str
    size_bytes: int | None
    args: Mapping[str, Any]


@dataclass(frozen=True)
class SamplerSpec:
    """The settings of a sampling stage that a request does not set; see `Guidance` and `flow_times`."""

    cfg_interval: tuple[float, float]
    rescale_t: float


@dataclass(frozen=True)
class DeterministicWeights:
    """Parameters of the deterministic test weights.

    Attributes:
        seed: seed of the whole set.
        occupancy_shift: added to the occupancy logits, so that about a tenth of the voxels is occupied.
        distance_shift: added to the signed distances, so that occupied voxels are mostly solid and the surface closed.
    """

    seed: int
    occupancy_shift: float
    distance_shift: float


@dataclass(frozen=True)
class ModelSpec:
    """A model: its architecture, sampling, and where its weights are published.

    Attributes:
        slat_mean: the structured latent is sampled normalised and decoded as x * std + mean.
        slat_std: see `slat_mean`.
        mesh_resolution: cubes along the side of the mesh decoder's grid.
        turntable_size: side of a turntable frame in pixels.
        turntable_ssaa: rays along the side of a pixel (supersampling).
        turntable_frames: frames of a turntable.
        deterministic_weights: parameters of the test weights; None for a model whose weights are read from files.
    """

    name: str
    repo_id: str
    revision: str
    encoder: EncoderSpec | TextEncoderSpec
    structure_flow: CheckpointSpec
    structure_decoder: CheckpointSpec
    latent_flow: CheckpointSpec
    gaussian_decoder: CheckpointSpec
    radiance_decoder: CheckpointSpec
    mesh_decoder: CheckpointSpec
    structure_sampler: SamplerSpec
    latent_sampler: SamplerSpec
    slat_mean: tuple[float, ...]
    slat_std: tuple[float, ...]
    mesh_resolution: int
    turntable_size: int
    turntable_ssaa: int
    turntable_frames: int
    turntable_fps: int
    deterministic_weights: DeterministicWeights | None

    @property
    def checkpoints(self) -> dict[str, CheckpointSpec]:
        """The six files by the name of their network."""
        return {
            "structure_flow": self.structure_flow,
            "structure_decoder": self.structure_decoder,
            "latent_flow": self.latent_flow,
            "gaussian_decoder": self.gaussian_decoder,
            "radiance_decoder": self.radiance_decoder,
            "mesh_decoder": self.mesh_decoder,
        }


SLAT_MEAN = (
    -2.1687545776367188,
    -0.004347046371549368,
    -0.13352349400520325,
    -0.08418072760105133,
    -0.5271206498146057,
    0.7238689064979553,
    -1.1414450407028198,
    1.2039363384246826,
)
SLAT_STD = (
    2.377650737762451,
    2.386378288269043,
    2.124418020248413,
    2.1748552322387695,
    2.663944721221924,
    2.371192216873169,
    2.6217446327209473,
    2.684523105621338,
)


def _gaussian_config(count: int) -> dict[str, Any]:
    return {
        "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
        "perturb_offset": True,
        "voxel_size": 1.5,
        "num_gaussians": count,
        "2d_filter_kernel_size": 0.1,
        "3d_filter_kernel_size": 0.0009,
        "scaling_bias": 0.004,
        "opacity_bias": 0.1,
        "scaling_activation": "softplus",
    }


LARGE_FLOW = {
    "in_channels": 8,
    "out_channels": 8,
    "model_channels": 1024,
    "cond_channels": 1024,
    "num_blocks": 24,
    "num_heads": 16,
    "mlp_ratio": 4,
    "pe_mode": "ape",
    "qk_rms_norm": True,
    "use_fp16": True,
}
LARGE_DECODER = {
    "resolution": 64,
    "model_channels": 768,
    "latent_channels": 8,
    "num_blocks": 12,
    "num_heads": 12,
    "mlp_ratio": 4,
    "attn_mode": "swin",
    "window_size": 8,
    "use_fp16": True,
}

IMAGE_LARGE = ModelSpec(
    name="TRELLIS-image-large",
    repo_id="microsoft/TRELLIS-image-large",
    revision="25e0d31ffbebe4b5a97464dd851910efc3002d96",
    encoder=EncoderSpec(
        repo_id="facebook/dinov2-with-registers-large",
        revision="e4c89a4e05589de9b3e188688a303d0f3c04d0f3",
        file_name="model.safetensors",
        image_size=518,
        patch_size=14,
        width=1024,
        depth=24,
        heads=16,
        registers=4,
    ),
    structure_flow=CheckpointSpec(
        "ckpts/ss_flow_img_dit_L_16l8_fp16.safetensors",
        1130770840,
        {**LARGE_FLOW, "resolution": 16, "patch_size": 1},
    ),
    structure_decoder=CheckpointSpec(
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
    ),
    latent_flow=CheckpointSpec(
        "ckpts/slat_flow_img_dit_L_64l8p2_fp16.safetensors",
        1203755136,
        {**LARGE_FLOW, "resolution": 64, "patch_size": 2, "num_io_res_blocks": 2, "io_block_channels": [128]},
    ),
    gaussian_decoder=CheckpointSpec(
        "ckpts/slat_dec_gs_swin8_B_64l8gs32_fp16.safetensors",
        171450952,
        {**LARGE_DECODER, "representation_config": _gaussian_config(32)},
    ),
    radiance_decoder=CheckpointSpec(
        "ckpts/slat_dec_rf_swin8_B_64l8r16_fp16.safetensors",
        171450488,
        {**LARGE_DECODER, "representation_config": {"rank": 16, "dim": 8}},
    ),
    mesh_decoder=CheckpointSpec(
        "ckpts/slat_dec_mesh_swin8_B_64l8m256c_fp16.safetensors",
        181903412,
        {**LARGE_DECODER, "representation_config": {"use_color": True}},
    ),
    structure_sampler=SamplerSpec(cfg_interval=(0.5, 1.0), rescale_t=3.0),
    latent_sampler=SamplerSpec(cfg_interval=(0.5, 1.0), rescale_t=3.0),
    slat_mean=SLAT_MEAN,
    slat_std=SLAT_STD,
    mesh_resolution=256,
    turntable_size=512,
    turntable_ssaa=4,  # with 2, a quarter of the pixels change visibly
    turntable_frames=120,
    turntable_fps=30,
    deterministic_weights=None,
)

TINY_FLOW = {
    "in_channels": 8,
    "out_channels": 8,
    "model_channels": 48,
    "cond_channels": 48,
    "num_blocks": 2,
    "num_heads": 3,
    "mlp_ratio": 2,
    "pe_mode": "ape",
    "qk_rms_norm": True,
}
TINY_DECODER = {
    "resolution": 8,
    "model_channels": 256,  # the mesh decoder's last group norm has 32 groups over an eighth of this
    "latent_channels": 8,
    "num_blocks": 1,
    "num_heads": 4,
    "mlp_ratio": 1,
    "attn_mode": "swin",
    "window_size": 4,
}

TINY = ModelSpec(
    name="TRELLIS-tiny",
    repo_id="",
    revision="",
    encoder=EncoderSpec(
        repo_id="", revision="", file_name="", image_size=112, patch_size=14, width=48, depth=1, heads=3, registers=4
    ),
    structure_flow=CheckpointSpec("", None, {**TINY_FLOW, "resolution": 4, "patch_size": 1}),
    structure_decoder=CheckpointSpec(
        "",
        None,
        {
            "out_channels": 1,
            "latent_channels": 8,
            "num_res_blocks": 1,
            "num_res_blocks_middle": 1,
            "channels": [16, 8],
        },
    ),
    latent_flow=CheckpointSpec(
        "", None, {**TINY_FLOW, "resolution": 8, "patch_size": 2, "num_io_res_blocks": 1, "io_block_channels": [32]}
    ),
    gaussian_decoder=CheckpointSpec("", None, {**TINY_DECODER, "representation_config": _gaussian_config(4)}),
    radiance_decoder=CheckpointSpec("", None, {**TINY_DECODER, "representation_config": {"rank": 4, "dim": 4}}),
    mesh_decoder=CheckpointSpec("", None, {**TINY_DECODER, "representation_config": {"use_color": True}}),
    structure_sampler=SamplerSpec(cfg_interval=(0.5, 1.0), rescale_t=3.0),
    latent_sampler=SamplerSpec(cfg_interval=(0.5, 1.0), rescale_t=3.0),
    slat_mean=SLAT_MEAN,
    slat_std=SLAT_STD,
    mesh_resolution=32,
    turntable_size=128,
    turntable_ssaa=1,
    turntable_frames=24,
    turntable_fps=12,
    deterministic_weights=DeterministicWeights(seed=20241202, occupancy_shift=-1.0, distance_shift=-3.0),
)
