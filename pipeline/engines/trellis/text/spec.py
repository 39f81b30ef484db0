"""All numbers of the three released TRELLIS-text models and of the tiny test model. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.engines.trellis.spec import (
    IMAGE_LARGE,
    LARGE_FLOW,
    TINY,
    TINY_FLOW,
    CheckpointSpec,
    DeterministicWeights,
    ModelSpec,
    SamplerSpec,
    TextEncoderSpec,
)

SAMPLER = SamplerSpec(cfg_interval=(0.5, 0.95), rescale_t=3.0)
"""Of both stages. Unlike in the image model, the interval ends below 1: the first steps are unguided."""

CLIP_LARGE = TextEncoderSpec(
    repo_id="openai/clip-vit-large-patch14",
    revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
    file_name="model.safetensors",
    size_bytes=1_710_540_580,  # of which 492 MB are the text tower
    sha256={
        "model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        "vocab.json": "3f0c4f7d2086b61b38487075278ea9ed04edb53a03cbb045b86c27190fa8fb69",
        "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
    },
    width=768,
    depth=12,
    heads=12,
    vocabulary=49408,
)


def _released(
    size: str,
    letter: str,
    revision: str,
    *,
    bytes_published: tuple[int, int] | None,
    flow: dict[str, Any],
    structure: dict[str, Any] | None = None,
    latent: dict[str, Any] | None = None,
) -> ModelSpec:
    """Return the row of one released model; its decoders are those of the image model, to the byte."""
    flow = {**LARGE_FLOW, "cond_channels": CLIP_LARGE.width, **flow}
    structure_bytes, latent_bytes = bytes_published or (None, None)
    return replace(
        IMAGE_LARGE,
        name=f"TRELLIS-text-{size}",
        repo_id=f"microsoft/TRELLIS-text-{size}",
        revision=revision,
        encoder=CLIP_LARGE,
        structure_flow=CheckpointSpec(
            f"ckpts/ss_flow_txt_dit_{letter}_16l8_fp16.safetensors",
            structure_bytes,
            {**flow, "resolution": 16, "patch_size": 1, **(structure or {})},
        ),
        latent_flow=CheckpointSpec(
            f"ckpts/slat_flow_txt_dit_{letter}_64l8p2_fp16.safetensors",
            latent_bytes,
            {
                **flow,
                "resolution": 64,
                "patch_size": 2,
                "num_io_res_blocks": 2,
                "io_block_channels": [128],
                **(latent or {}),
            },
        ),
        structure_sampler=SAMPLER,
        latent_sampler=SAMPLER,
    )


SIZES: dict[str, ModelSpec] = {
    "base": _released(
        "base",
        "B",
        "f8e8cf00c40d53dea26b718e49169ce83cf24c67",
        bytes_published=None,
        flow={"model_channels": 768, "num_blocks": 12, "num_heads": 12},
    ),
    "large": _released(
        "large",
        "L",
        "4aad9f4a110329a410974d7f41ce5333a9a1fc87",
        bytes_published=None,
        flow={"model_channels": 1024, "num_blocks": 24, "num_heads": 16},
    ),
    "xlarge": _released(
        "xlarge",
        "XL",
        "e0b00432b8e3a8ecee0df806ab1df9f7281f2be4",
        bytes_published=(1_976_327_512, 2_151_142_688),
        flow={"model_channels": 1280, "num_blocks": 28, "num_heads": 16},
        structure={"qk_rms_norm_cross": True},  # of this first stage alone
        latent={"num_io_res_blocks": 3, "io_block_channels": [256]},
    ),
}
"""The released models by size, smallest first: 342 million, 1.1 and 2.0 billion parameters."""
DEFAULT_SIZE = "xlarge"

TINY_CLIP = TextEncoderSpec(
    repo_id="", revision="", file_name="", size_bytes=None, sha256={}, width=48, depth=1, heads=3, vocabulary=514
)
_TINY_FLOW = {**TINY_FLOW, "model_channels": 80, "num_heads": 2, "cond_channels": TINY_CLIP.width}  # 40 wide heads
TINY_TEXT = replace(
    TINY,
    name="TRELLIS-text-tiny",
    encoder=TINY_CLIP,
    structure_flow=CheckpointSpec(
        "", None, {**_TINY_FLOW, "resolution": 4, "patch_size": 1, "qk_rms_norm_cross": True}
    ),
    latent_flow=CheckpointSpec(
        "", None, {**_TINY_FLOW, "resolution": 8, "patch_size": 2, "num_io_res_blocks": 3, "io_block_channels": [32]}
    ),
    structure_sampler=SAMPLER,
    latent_sampler=SAMPLER,
    deterministic_weights=DeterministicWeights(seed=20250601, occupancy_shift=-1.0, distance_shift=-3.0),
)
