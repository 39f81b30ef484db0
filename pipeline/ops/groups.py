"""Sums over small groups of rows in a fixed order, so that the same input gives the same bits on every device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows sorted by the group that they belong to.

    Attributes:
        order: (N,) int64 rows, those of one group next to each other in ascending order.
        starts: (M,) int64 first place of each group in `order`.
        counts: (M,) int64 rows in each group, at least 1.
    """

    order: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def of(cls, group_of_row: Tensor, counts: Tensor) -> Groups:
        """Sort the rows: (N,) group numbers and (M,) sizes, as `torch.unique` returns them."""
        return cls(torch.argsort(group_of_row, stable=True), torch.cumsum(counts, 0) - counts, counts)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of each group's rows: (..., N, C) -> (..., M, C)."""
        total = values.new_zeros((*values.shape[:-2], len(self.counts), values.shape[-1]))
        if len(self.counts) == 0:
            return total
        for place in range(int(self.counts.max())):
            has = self.counts > place
            rows = self.order[self.starts[has] + place]
            total[..., has, :] += values.index_select(-2, rows)
        return total
