"""Sums over groups of rows, against a loop over the rows."""

from __future__ import annotations

import pytest
import torch

from pipeline.ops.groups import Groups
from tests.reference.voxels import group_sums


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("group_of_row", [[], [0], [2, 0, 2, 2, 1, 0], [0] * 9])
def test_sums_equal_the_reference_bit_for_bit(group_of_row: list[int]) -> None:
    rows, count = torch.tensor(group_of_row, dtype=torch.int64), len(set(group_of_row))
    values = normal(2, len(group_of_row), 3, seed=0)

    total = Groups.of(rows, torch.bincount(rows, minlength=count)).sum(values)

    assert total.shape == (2, count, 3)
    for leading in range(2):
        assert torch.equal(total[leading], group_sums(values[leading], group_of_row, count))


def test_permuting_rows_together_with_their_groups_changes_no_sum() -> None:
    group, values = torch.tensor([2, 0, 2, 2, 1, 0]), normal(6, 3, seed=1)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    counts = torch.bincount(group)

    first, second = Groups.of(group, counts).sum(values), Groups.of(group[order], counts).sum(values[order])

    torch.testing.assert_close(second, first, rtol=0, atol=1e-15)  # float64: at most three terms in another order
