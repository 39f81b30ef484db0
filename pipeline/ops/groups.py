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
        most: a bound of the counts that is known without looking at them; None if there is none.
    """

    order: Tensor
    starts: Tensor
    counts: Tensor
    most: int | None = None

    @classmethod
    def of(cls, group_of_row: Tensor, counts: Tensor, *, most: int | None = None) -> Groups:
        """Sort the rows.

        Args:
            group_of_row: (N,) int64 group numbers from 0 to M - 1.
            counts: (M,) int64 rows in each group, as `torch.unique` returns them.
            most: see `Groups`.
        """
        return cls(torch.argsort(group_of_row, stable=True), torch.cumsum(counts, 0) - counts, counts, most)

    def table(self) -> Tensor:
        """Rows of each group in columns, N where a group has fewer: (K, M) int64 for groups of at most K rows."""
        most = self.most if self.most is not None else int(self.counts.max()) if len(self.counts) else 0
        place = torch.arange(most, device=self.order.device)[:, None]
        rows = self.order[(self.starts + place).clamp_(max=len(self.order) - 1)]
        return torch.where(place < self.counts, rows, len(self.order))

    def sum(self, values: Tensor, table: Tensor | None = None) -> Tensor:
        """Sum of each group's rows: (..., N, C) -> (..., M, C).

        Args:
            values: (..., N, C).
            table: from `table`, if the caller keeps it.
        """
        if len(self.counts) == 0:
            return values.new_zeros((*values.shape[:-2], 0, values.shape[-1]))
        table = self.table() if table is None else table
        # A row of zeros at index N: adding it changes no bit of a sum that began with zero.
        padded = torch.cat([values, values.new_zeros((*values.shape[:-2], 1, values.shape[-1]))], dim=-2)
        total = values.new_zeros((*values.shape[:-2], len(self.counts), values.shape[-1]))
        # One vectorised addition per position within the groups: quick, because a group has few rows.
        for rows in table:
            total += padded.index_select(-2, rows)
        return total
