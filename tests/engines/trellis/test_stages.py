"""Velocities of the tiny networks: their precision, and passes in one batch against passes one by one."""

from __future__ import annotations

import pytest
import torch

from pipeline.engines.trellis.models import Models, load_models
from pipeline.engines.trellis.spec import TINY
from pipeline.engines.trellis.stages import latent_velocities, one_pass_at_a_time, structure_velocities
from pipeline.ops.voxels import VoxelSet
from tests.reference.voxels import random_coords

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models(TINY, None, device=CPU, dtype=None)


def test_half_precision_in_the_blocks_gives_nearly_the_same_velocities(models: Models) -> None:
    half = load_models(TINY, None, device=CPU, dtype=torch.bfloat16)
    voxels = VoxelSet(random_coords(40, 8, seed=0))
    tokens, noise = torch.randn(1, 9, 48), torch.randn(1, 40, 8)

    with torch.inference_mode():
        exact, rough = (
            latent_velocities(networks.latent_flow, voxels, tokens)(noise, 0.7, [0], True)
            for networks in (models, half)
        )

    assert half.latent_flow.blocks[0].mlp.mlp[0].weight.dtype == torch.bfloat16
    assert float((rough - exact).norm() / exact.norm()) < 0.03  # bfloat16 keeps 8 bits


def test_passes_in_one_batch_equal_passes_one_by_one_and_a_context_of_zeros(models: Models) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 9, 48, generator=generator)
    dense, sparse = torch.randn(1, 8, 4, 4, 4, generator=generator), torch.randn(1, 40, 8, generator=generator)
    voxels = VoxelSet(random_coords(40, 8, seed=0))
    zeros = torch.zeros_like(tokens[:1])

    with torch.inference_mode():
        for x, evaluate, plain in (
            (
                dense,
                structure_velocities(models.structure_flow, tokens),
                structure_velocities(models.structure_flow, zeros),
            ),
            (
                sparse,
                latent_velocities(models.latent_flow, voxels, tokens),
                latent_velocities(models.latent_flow, voxels, zeros),
            ),
        ):
            together = evaluate(x, 0.7, [0, 1], True)
            separate = one_pass_at_a_time(evaluate)(x, 0.7, [0, 1], True)
            torch.testing.assert_close(separate, together, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together[2], plain(x, 0.7, [0], False)[0], rtol=1e-5, atol=1e-5)
