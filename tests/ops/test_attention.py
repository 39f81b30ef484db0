"""Attention over sequences, batch elements and windows, against one query and one head at a time."""

from __future__ import annotations

import pytest
import torch

from pipeline.ops.attention import attend, attend_in_windows, attend_per_element
from pipeline.ops.voxels import VoxelSet
from tests.reference.attention import attention, grouped_attention
from tests.reference.voxels import random_coords, windows_of

EXACT = 1e-12  # float64: both sum the same products in another order


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (1, 1), (5, 7)])
def test_attention_equals_the_reference(queries: int, keys: int) -> None:
    q, k, v = normal(2, queries, 3, 4, seed=0), normal(2, keys, 3, 4, seed=1), normal(2, keys, 3, 4, seed=2)

    out = attend(q, k, v)

    for b in range(2):
        torch.testing.assert_close(out[b], attention(q[b], k[b], v[b]), rtol=0, atol=EXACT)


def test_masked_keys_have_no_influence() -> None:
    q, k, v = (normal(1, 6, 2, 4, seed=seed) for seed in range(3))
    allowed = torch.rand((6, 6), generator=torch.Generator().manual_seed(3)) < 0.5
    allowed |= torch.eye(6, dtype=torch.bool)

    out = attend(q, k, v, mask=allowed)

    torch.testing.assert_close(out[0], attention(q[0], k[0], v[0], allowed.tolist()), rtol=0, atol=EXACT)


def test_one_set_of_keys_serves_every_batch_element() -> None:
    q, k, v = normal(3, 4, 2, 4, seed=0), normal(1, 5, 2, 4, seed=1), normal(1, 5, 2, 4, seed=2)

    out = attend(q, k, v)

    for b in range(3):
        torch.testing.assert_close(out[b], attention(q[b], k[0], v[0]), rtol=0, atol=EXACT)


def test_permuting_keys_and_values_together_changes_nothing() -> None:
    q, k, v = (normal(1, 8, 2, 4, seed=seed) for seed in range(3))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(attend(q, k[:, order], v[:, order]), attend(q, k, v), rtol=0, atol=EXACT)


@pytest.mark.parametrize(("count", "side", "batch"), [(0, 1, 1), (1, 1, 1), (12, 6, 2)])
@pytest.mark.parametrize("shift", [0, 1])
def test_windowed_attention_equals_attention_within_each_window(count: int, side: int, batch: int, shift: int) -> None:
    coords = random_coords(count, side, seed=2, batch=batch)
    q, k, v = (normal(1, len(coords), 2, 4, seed=seed) for seed in range(3))

    out = attend_in_windows(q, k, v, VoxelSet(coords, batch_size=batch), size=2, shift=shift)

    expected = grouped_attention(q[0], k[0], v[0], windows_of(coords, 2, shift))
    torch.testing.assert_close(out[0], expected, rtol=0, atol=EXACT)


def test_permuting_voxels_permutes_windowed_attention() -> None:
    coords = random_coords(30, 5, seed=4)
    q, k, v = (normal(1, 30, 2, 4, seed=seed) for seed in range(3))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))

    out = attend_in_windows(q, k, v, VoxelSet(coords), size=3, shift=1)
    permuted = attend_in_windows(q[:, order], k[:, order], v[:, order], VoxelSet(coords[order]), size=3, shift=1)

    torch.testing.assert_close(permuted, out[:, order], rtol=0, atol=EXACT)


def test_passes_that_share_voxels_do_not_attend_to_each_other() -> None:
    voxels = VoxelSet(random_coords(30, 4, seed=2))
    q, k, v = (normal(3, 30, 2, 4, seed=seed) for seed in range(3))

    together = attend_in_windows(q, k, v, voxels, size=4, shift=2)

    for one in range(3):
        alone = attend_in_windows(q[one, None], k[one, None], v[one, None], voxels, size=4, shift=2)
        torch.testing.assert_close(together[one], alone[0], rtol=0, atol=EXACT)


@pytest.mark.parametrize(("count", "side", "batch"), [(0, 1, 1), (1, 1, 1), (10, 4, 2)])
def test_batch_elements_do_not_attend_to_each_other(count: int, side: int, batch: int) -> None:
    coords = random_coords(count, side, seed=5, batch=batch)
    q, k, v = (normal(1, len(coords), 2, 4, seed=seed) for seed in range(3))

    out = attend_per_element(q, k, v, VoxelSet(coords, batch_size=batch))

    expected = grouped_attention(q[0], k[0], v[0], coords[:, 0].tolist())
    torch.testing.assert_close(out[0], expected, rtol=0, atol=EXACT)
