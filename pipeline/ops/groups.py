"""Sums over groups of rows in a fixed order, so that equal inputs give equal bits on every device.

A scatter-add would be shorter; on a GPU its atomic additions run in any order. Knows nothing of voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """N rows sorted by their group, M groups.

    Attributes:
        order: (N,) int64 rows by group, ascending within a group.
        starts: (M,) int64 first index of each group in `order`.
        counts: (M,) int64 rows in each group, at least 1.
    """

    order: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def of(cls, group_of_row: Tensor, counts: Tensor) -> Groups:
        """Sort the rows.

        Args:
            group_of_row: (N,) int64 group numbers from 0 to M - 1.
            counts: (M,) int64 rows in each group, as `torch.unique` returns them.
        """
        return cls(torch.argsort(group_of_row, stable=True), torch.cumsum(counts, 0) - counts, counts)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of each group's rows: (..., N, C) -> (..., M, C)."""
        total = values.new_zeros((*values.shape[:-2], len(self.counts), values.shape[-1]))
        if len(self.counts) == 0:
            return total
        # One vectorised addition per position within the groups: quick, because a group has few rows.
        for place in range(int(self.counts.max())):
            has = self.counts > place
            rows = self.order[self.starts[has] + place]
            total[..., has, :] += values.index_select(-2, rows)
        return total
