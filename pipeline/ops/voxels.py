"""A set of voxels and the tables that follow from it: neighbours, windows, coarser and finer sets.

Every table is made once, kept, and used by all layers and steps that see the same set. Knows no features and no model.
Features beside a set are (..., N, C): leading axes are passes that share the coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pipeline.ops.groups import Groups

T = TypeVar("T")

MAX_WINDOW_PADDING = 1.25  # windows share a padded attention call when the longest has at most this many times the rows

OCTANTS = [(i >> 2 & 1, i >> 1 & 1, i & 1) for i in range(8)]  # z fastest, as the released decoder was trained
NEIGHBOUR_OFFSETS = [(i // 9 - 1, i // 3 % 3 - 1, i % 3 - 1) for i in range(27)]  # the order of a kernel's taps


@dataclass(frozen=True, eq=False)
class WindowGroup:
    """Windows of similar length, padded to the longest.

    Attributes:
        rows: (W, L) int64 row of each place; 0 where the place is padding.
        valid: (W, L) bool, or None where no place is padding.
    """

    rows: Tensor
    valid: Tensor | None


@dataclass(frozen=True, eq=False)
class Coarsening:
    """A set of cells and how the finer voxels fall into them.

    Attributes:
        cells: the coarser set, sorted by (batch, x, y, z).
        cell_of_row: (N,) int64 index of each finer voxel's cell.
        groups: the finer rows of each cell.
    """

    cells: VoxelSet
    cell_of_row: Tensor
    groups: Groups


class VoxelSet:
    """Distinct voxels with their derived tables.

    Attributes:
        coords: (N, 4) int32 `[batch, x, y, z]`, the rows of one batch element next to each other.
        batch_size: number of batch elements.
    """

    def __init__(self, coords: Tensor, *, batch_size: int | None = None, neighbours: Tensor | None = None) -> None:
        """Wrap coordinates; nothing is computed before it is asked for.

        Args:
            coords: (N, 4) integer `[batch, x, y, z]`, none negative.
            batch_size: number of batch elements; by default what the last row says.
            neighbours: (27, N) table where the caller knows it already.

        Raises:
            ValueError: the shape is another one, or the rows of one batch element are apart.
        """
        if coords.ndim != 2 or coords.shape[1] != 4:
            raise ValueError(f"coords are (N, 4) [batch, x, y, z], got {tuple(coords.shape)}")
        self.coords = coords.int()
        batch = self.coords[:, 0]
        if bool((batch[1:] < batch[:-1]).any()):
            raise ValueError("the rows of one batch element must lie next to each other, in ascending order")
        self.batch_size = batch_size if batch_size is not None else (int(batch[-1]) + 1 if len(batch) else 1)
        self._derived: dict[Hashable, object] = {} if neighbours is None else {"neighbours": neighbours}

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def device(self) -> torch.device:
        return self.coords.device

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned the first time it was asked for under this key."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]  # type: ignore[return-value]

    @property
    def segments(self) -> list[slice]:
        """Rows of each batch element."""
        return self.remember("segments", self._make_segments)

    @property
    def neighbours(self) -> Tensor:
        """(27, N) int32 row of the voxel at each of `NEIGHBOUR_OFFSETS` from each voxel; N where there is none."""
        return self.remember("neighbours", self._make_neighbours)

    def windows(self, size: int, shift: int) -> list[WindowGroup]:
        """Voxels by the window that holds them: window id = floor((coords + shift) / size), per batch element."""
        return self.remember(("windows", size, shift), lambda: self._make_windows(size, shift))

    def coarsen(self, factor: int) -> Coarsening:
        """Cells of `factor` voxels a side that hold at least one voxel."""
        return self.remember(("coarsen", factor), lambda: self._make_coarsening(factor))

    def subdivide(self) -> VoxelSet:
        """Eight voxels for each: row r becomes rows 8r to 8r + 7 in the order of `OCTANTS`."""
        return self.remember("subdivide", self._make_subdivision)

    def _make_segments(self) -> list[slice]:
        if self.batch_size == 1:
            return [slice(0, len(self))]
        lengths = torch.bincount(self.coords[:, 0].long(), minlength=self.batch_size).tolist()
        starts = [sum(lengths[:i]) for i in range(self.batch_size)]
        return [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]

    def _linear_keys(self, coords: Tensor) -> Tensor:
        """One int64 for each (…, 4) coordinate, ascending in (batch, x, y, z); room for offsets of -1 and +1."""
        side = self.remember("side", lambda: int(self.coords[:, 1:].max()) + 3 if len(self) else 3)
        b, x, y, z = coords.long().unbind(-1)
        return ((b * side + x + 1) * side + y + 1) * side + z + 1

    def _make_neighbours(self) -> Tensor:
        count = len(self)
        table = torch.full((27, count), count, dtype=torch.int32, device=self.device)
        if count == 0:
            return table
        keys = self._linear_keys(self.coords)
        sorted_keys, order = torch.sort(keys)
        rows = torch.arange(count, dtype=torch.int32, device=self.device)
        table[13] = rows
        for tap in range(13):  # tap 26 - t is the opposite direction of tap t
            offset = torch.tensor((0, *NEIGHBOUR_OFFSETS[tap]), dtype=torch.int32, device=self.device)
            wanted = self._linear_keys(self.coords + offset)
            place = torch.searchsorted(sorted_keys, wanted).clamp_(max=count - 1)
            found = sorted_keys[place] == wanted
            there = order[place[found]]
            table[tap, found] = there.int()
            table[26 - tap, there] = rows[found]
        return table

    def _make_windows(self, size: int, shift: int) -> list[WindowGroup]:
        ids = self.coords.clone()
        ids[:, 1:] = torch.div(ids[:, 1:] + shift, size, rounding_mode="floor")
        window_of_row, counts = torch.unique(self._linear_keys(ids), return_inverse=True, return_counts=True)[1:]
        rows_by_window = torch.argsort(window_of_row, stable=True)
        starts = torch.cumsum(counts, 0) - counts
        by_length = torch.argsort(counts, descending=True, stable=True)
        lengths = counts[by_length].tolist()
        groups, first = [], 0
        while first < len(lengths):
            longest, last = lengths[first], first
            while last < len(lengths) and lengths[last] * MAX_WINDOW_PADDING >= longest:
                last += 1
            chosen = by_length[first:last]
            place = torch.arange(longest, device=self.device)
            valid = place < counts[chosen, None]  # (W, L)
            rows = rows_by_window[torch.where(valid, starts[chosen, None] + place, 0)]
            groups.append(WindowGroup(torch.where(valid, rows, 0), None if lengths[last - 1] == longest else valid))
            first = last
        return groups

    def _make_coarsening(self, factor: int) -> Coarsening:
        coarse = self.coords.clone()
        coarse[:, 1:] = torch.div(coarse[:, 1:], factor, rounding_mode="floor")
        _, cell_of_row, counts = torch.unique(self._linear_keys(coarse), return_inverse=True, return_counts=True)
        cells = torch.empty((len(counts), 4), dtype=torch.int32, device=self.device)
        cells[cell_of_row] = coarse  # rows of one cell all write the same
        coarser = VoxelSet(cells, batch_size=self.batch_size)
        return Coarsening(coarser, cell_of_row, Groups.of(cell_of_row, counts))

    def _make_subdivision(self) -> VoxelSet:
        octants = torch.tensor([(0, *octant) for octant in OCTANTS], dtype=torch.int32, device=self.device)
        scale = torch.tensor((1, 2, 2, 2), dtype=torch.int32, device=self.device)
        coords = (self.coords * scale)[:, None] + octants  # (N, 8, 4)
        return VoxelSet(coords.flatten(0, 1), batch_size=self.batch_size, neighbours=self._subdivided_neighbours())

    def _subdivided_neighbours(self) -> Tensor:
        """The finer set's neighbours by arithmetic: a child's neighbour is a child of the parent's neighbour."""
        parents = torch.cat([self.neighbours, self.neighbours.new_full((27, 1), len(self))], dim=1)  # (27, N + 1)
        table = self.neighbours.new_empty((27, len(self), 8))
        for tap, offset in enumerate(NEIGHBOUR_OFFSETS):
            for child, octant in enumerate(OCTANTS):
                moved = [o + d for o, d in zip(octant, offset, strict=True)]  # -1 to 2
                parent_tap = sum((m // 2 + 1) * w for m, w in zip(moved, (9, 3, 1), strict=True))
                sibling = sum((m % 2) * w for m, w in zip(moved, (4, 2, 1), strict=True))
                parent = parents[parent_tap, :-1]
                table[tap, :, child] = torch.where(parent == len(self), 8 * len(self), parent * 8 + sibling)
        return table.flatten(1)
