"""Attention layers against products and sums in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.nn.attention import CrossAttention, SelfAttention
from pipeline.nn.deterministic_weights import fill_deterministic
from pipeline.ops.voxels import VoxelSet
from tests.reference.voxels import random_coords

C, H, E = 12, 3, 5  # channels, heads, channels of the context


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def self_attention(**options: object) -> SelfAttention:
    module = SelfAttention(C, H, **options).double()  # type: ignore[arg-type]
    fill_deterministic(module, seed=1)
    return module


def cross_attention(**options: object) -> CrossAttention:
    module = CrossAttention(C, H, E, **options).double()  # type: ignore[arg-type]
    fill_deterministic(module, seed=2)
    return module


def unit_rms(x: Tensor, gain: Tensor) -> Tensor:
    return x / x.pow(2).mean().sqrt() * gain


def reference(q: Tensor, k: Tensor, v: Tensor, module: SelfAttention | CrossAttention) -> Tensor:
    """Attention of (N, C) to (M, C), head by head and row by row."""
    width = C // H
    out = torch.zeros_like(q)
    for head in range(H):
        part = slice(head * width, (head + 1) * width)
        for row in range(len(q)):
            query, keys = q[row, part], k[:, part]
            if module.q_rms_norm is not None and module.k_rms_norm is not None:
                query = unit_rms(query, module.q_rms_norm.gamma[head])
                keys = torch.stack([unit_rms(key, module.k_rms_norm.gamma[head]) for key in keys])
            scores = torch.stack([query @ key for key in keys]) / math.sqrt(width)
            weights = scores.exp() / scores.exp().sum()
            out[row, part] = (weights[:, None] * v[:, part]).sum(dim=0)
    return module.to_out(out)


@pytest.mark.parametrize("qk_rms_norm", [False, True])
@pytest.mark.parametrize("count", [1, 4])
def test_self_attention_equals_the_reference_implementation(count: int, qk_rms_norm: bool) -> None:
    module, x = self_attention(qk_rms_norm=qk_rms_norm), normal(2, count, C)

    out = module(x)

    for row in range(2):
        q, k, v = module.to_qkv(x[row]).chunk(3, dim=-1)
        # float32 norms inside: the heads are normalised in float32 whatever the type around them
        torch.testing.assert_close(out[row], reference(q, k, v, module), rtol=1e-5, atol=1e-6)


def test_permuting_tokens_permutes_the_result() -> None:
    module, x = self_attention(), normal(1, 6, C)
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    torch.testing.assert_close(module(x[:, order]), module(x)[:, order])


def test_windows_as_large_as_the_grid_equal_full_attention_of_each_batch_element() -> None:
    voxels, x = VoxelSet(random_coords(5, 4, seed=0, batch=2)), normal(1, 10, C)

    windowed = self_attention(window_size=4)(x, voxels)

    torch.testing.assert_close(windowed, self_attention()(x, voxels))
    torch.testing.assert_close(windowed[:, :5], self_attention()(x[:, :5]))


def test_no_voxels_give_no_rows() -> None:
    voxels = VoxelSet(torch.zeros((0, 4), dtype=torch.int32))

    assert self_attention(window_size=2)(normal(1, 0, C), voxels).shape == (1, 0, C)


@pytest.mark.parametrize("qk_rms_norm", [False, True])
@pytest.mark.parametrize("count", [1, 4])
def test_cross_attention_equals_the_reference_implementation(count: int, qk_rms_norm: bool) -> None:
    module, x, context = cross_attention(qk_rms_norm=qk_rms_norm), normal(1, count, C), normal(1, 1, 3, E, seed=4)

    out = module(x, module.cache(context))[0]

    k, v = module.to_kv(context[0, 0]).chunk(2, dim=-1)
    torch.testing.assert_close(out, reference(module.to_q(x[0]), k, v, module), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_the_unguided_pass_equals_attention_to_a_context_of_zeros(qkv_bias: bool) -> None:
    module, x = cross_attention(qkv_bias=qkv_bias), normal(2, 4, C)
    zeros = torch.zeros((1, 1, 3, E), dtype=torch.float64)

    out = module(x, module.cache(normal(1, 1, 3, E, seed=4), unguided=True))

    torch.testing.assert_close(out[1], module(x[1:], module.cache(zeros))[0])


def test_selecting_passes_equals_caching_their_contexts_alone() -> None:
    module, x, contexts = cross_attention(), normal(2, 4, C), normal(3, 1, 2, E, seed=4)

    chosen = module.cache(contexts, unguided=True).select([2, 0], unguided=False)

    torch.testing.assert_close(module(x, chosen), module(x, module.cache(contexts[[2, 0]])))


def test_each_batch_element_of_a_voxel_set_attends_to_its_own_context() -> None:
    module, voxels = cross_attention(), VoxelSet(random_coords(3, 4, seed=0, batch=2))
    x, contexts = normal(1, 6, C), normal(1, 2, 4, E, seed=4)

    out = module(x, module.cache(contexts), voxels)

    for element, rows in enumerate(voxels.segments):
        alone = module(x[:, rows], module.cache(contexts[:, element : element + 1]))
        torch.testing.assert_close(out[:, rows], alone)
