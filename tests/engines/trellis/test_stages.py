"""Velocities of the tiny networks: their precision, and passes in one batch against passes one by one."""

from __future__ import annotations

import pytest
import torch

from pipeline.engines.trellis.models import Models, load_models
from pipeline.engines.trellis.spec import TINY
from pipeline.ops.voxels import VoxelSet
from pipeline.sampling.contexts import Contexts, latent_velocities, one_pass_at_a_time, structure_velocities
from tests.reference.voxels import random_coords

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models(TINY, None, device=CPU, dtype=None)


def image_contexts(tokens: torch.Tensor) -> Contexts:
    return Contexts(tokens, torch.zeros_like(tokens[:1]))


def test_half_precision_in_the_blocks_gives_nearly_the_same_velocities(models: Models) -> None:
    half = load_models(TINY, None, device=CPU, dtype=torch.bfloat16)
    voxels = VoxelSet(random_coords(40, 8, seed=0))
    contexts, noise = image_contexts(torch.randn(1, 9, 48)), torch.randn(1, 40, 8)

    with torch.inference_mode():
        exact, rough = (
            latent_velocities(networks.latent_flow, voxels, contexts)(noise, 0.7, [0], True)
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
                structure_velocities(models.structure_flow, image_contexts(tokens)),
                structure_velocities(models.structure_flow, image_contexts(zeros)),
            ),
            (
                sparse,
                latent_velocities(models.latent_flow, voxels, image_contexts(tokens)),
                latent_velocities(models.latent_flow, voxels, image_contexts(zeros)),
            ),
        ):
            together = evaluate(x, 0.7, [0, 1], True)
            separate = one_pass_at_a_time(evaluate)(x, 0.7, [0, 1], True)
            torch.testing.assert_close(separate, together, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together[2], plain(x, 0.7, [0], False)[0], rtol=1e-5, atol=1e-5)


def test_a_negative_context_that_is_not_zero_is_attended_to_like_a_guided_one(models: Models) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, negative = torch.randn(2, 1, 9, 48, generator=generator)
    negative[:, :-1] = 0  # zeros in part are not a context of zeros
    dense, sparse = torch.randn(1, 8, 4, 4, 4, generator=generator), torch.randn(1, 40, 8, generator=generator)
    voxels = VoxelSet(random_coords(40, 8, seed=0))

    with torch.inference_mode():
        for x, velocities in (
            (dense, lambda contexts: structure_velocities(models.structure_flow, contexts)),
            (sparse, lambda contexts: latent_velocities(models.latent_flow, voxels, contexts)),
        ):
            evaluate = velocities(Contexts(tokens, negative))
            together, alone = evaluate(x, 0.7, [0], True), evaluate(x, 0.7, [0], False)
            as_guided = velocities(image_contexts(negative))(x, 0.7, [0], False)
            zero = velocities(image_contexts(tokens))(x, 0.7, [0], True)
            torch.testing.assert_close(together[0], alone[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together[1], as_guided[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(one_pass_at_a_time(evaluate)(x, 0.7, [0], True), together, rtol=1e-5, atol=1e-5)
            assert float((together[1] - zero[1]).norm() / zero[1].norm()) > 1e-3


def test_only_a_context_of_zeros_is_replaced_by_a_constant(models: Models) -> None:
    tokens = torch.randn(1, 9, 48, generator=torch.Generator().manual_seed(0))
    almost = torch.zeros_like(tokens)
    almost[0, 8, 47] = 1e-3

    for flow in (models.structure_flow, models.latent_flow):
        shortcut, attended = (flow.encode_condition(tokens, negative=each) for each in (almost * 0, almost))
        assert shortcut.negative_pass is None and all(layer.unguided is not None for layer in shortcut.layers)
        assert attended.negative_pass == 1 and all(layer.unguided is None for layer in attended.layers)
