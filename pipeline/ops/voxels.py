"""A set of voxels and the tables derived from it: neighbours, windows, coarser and finer sets.

Every table is computed once, cached, and shared by all layers and sampling steps on the same set. Knows no features and
no model. Features of a set are (..., N, C): the leading axes are passes that share the coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.ops.constants import constant, constant_array
from pipeline.ops.groups import Groups

T = TypeVar("T")

MAX_WINDOW_PADDING = 1.25
"""Windows are padded to one length and share an attention call if the longest has at most this many times the rows of
the shortest: fewer calls at the price of at most a quarter more rows."""

OCTANTS = [
    (i >> 2 & 1, i >> 1 & 1, i & 1) for i in range(8)
]  # z fastest, the order that the released decoder was trained with
TABLE_LIMIT = 1 << 26
"""Elements of a table that are computed at once: bounds the memory and does not change the result."""
CACHED_ROWS = 1 << 14
"""Rows whose neighbours are searched at once on a CPU, whose caches hold what is computed on the way."""
NEIGHBOUR_OFFSETS = [(i // 9 - 1, i // 3 % 3 - 1, i % 3 - 1) for i in range(27)]  # the order of a kernel's taps


@dataclass(frozen=True, eq=False)
class WindowGroup:
    """Windows of similar length, padded to the longest.

    Attributes:
        rows: (W, L) int64 row of each position; 0 for padding.
        valid: (W, L) bool, False for padding; None if there is no padding.
        kept: numbers of the positions that are no padding; None if there is no padding.
    """

    rows: Tensor
    valid: Tensor | None
    kept: Tensor | None


@dataclass(frozen=True, eq=False)
class WindowOrder:
    """Rows in the order of their windows, each window a run.

    Attributes:
        rows: (N,) int64 row at each place of the order.
        place: (N,) int64 place of each row; the inverse of `rows`.
        starts: (W + 1,) int32 place at which each window begins, and N; windows without voxels have no length.
        longest: a bound of the voxels in a window.
    """

    rows: Tensor
    place: Tensor
    starts: Tensor
    longest: int


@dataclass(frozen=True, eq=False)
class Coarsening:
    """A coarser set of M cells and the assignment of the N finer voxels to them.

    Attributes:
        cells: the coarser set, sorted by (batch, x, y, z).
        cell_of_row: (N,) int64 index of each finer voxel's cell.
        groups: the finer rows of each cell.
    """

    cells: VoxelSet
    cell_of_row: Tensor
    groups: Groups


@dataclass(frozen=True, eq=False)
class Children:
    """Some of the eight children of each of N voxels.

    Attributes:
        voxels: the M children, in the order of their parents and then of their octants.
        parent: (M,) int64 row of each child's parent.
        octant: (M,) int64 number of each child: x + 2 y + 4 z of its offset.
    """

    voxels: VoxelSet
    parent: Tensor
    octant: Tensor


class VoxelSet:
    """N distinct voxels with their derived tables.

    Attributes:
        coords: (N, 4) int32 `[batch, x, y, z]`, rows sorted by batch element.
        batch_size: number of batch elements.
    """

    def __init__(
        self,
        coords: Tensor,
        *,
        batch_size: int | None = None,
        side: int | None = None,
        neighbours: Tensor | None = None,
        is_sorted: bool = False,
    ) -> None:
        """Wrap coordinates; every table is computed on first use.

        Args:
            coords: (N, 4) integer `[batch, x, y, z]`, none negative.
            batch_size: number of batch elements; by default one more than the last row's.
            side: a bound of the coordinates, as the grid's resolution is: all are below. By default the largest one
                is looked up, for which the host waits for the device.
            neighbours: (27, N) int32 table, if the caller has it already.
            is_sorted: the caller knows that the rows are sorted by batch element; a single element always is.

        Raises:
            ValueError: the shape is not (N, 4), or the rows are not sorted by batch element.
        """
        if coords.ndim != 2 or coords.shape[1] != 4:
            raise ValueError(f"coords must be (N, 4) [batch, x, y, z], got {tuple(coords.shape)}")
        self.coords = coords.int()
        batch = self.coords[:, 0]
        if batch_size != 1 and not is_sorted and bool((batch[1:] < batch[:-1]).any()):
            raise ValueError("coords must be sorted by batch element, so that its rows are contiguous")
        self.batch_size = batch_size if batch_size is not None else (int(batch[-1]) + 1 if len(batch) else 1)
        self._side = side
        self._derived: dict[Hashable, object] = {} if neighbours is None else {"neighbours": neighbours}

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def device(self) -> torch.device:
        return self.coords.device

    @property
    def side(self) -> int:
        """A bound of the coordinates: all are below."""
        if self._side is None:
            self._side = int(self.coords[:, 1:].max()) + 1 if len(self) else 1
        return self._side

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the cached result of `make` under this key; call it the first time."""
        if key not in self._derived:
            self._derived[key] = make()
        return cast(T, self._derived[key])  # a key always stands for the same maker, hence the same type

    @property
    def segments(self) -> list[slice]:
        """Rows of each batch element, one slice each."""
        return self.remember("segments", self._make_segments)

    @property
    def neighbours(self) -> Tensor:
        """(27, N) int32 row of each voxel's neighbour at each of `NEIGHBOUR_OFFSETS`; N if there is none."""
        return self.remember("neighbours", self._make_neighbours)

    def windows(self, size: int, shift: int) -> list[WindowGroup]:
        """Rows by window, floor((coords + shift) / size) within a batch element, in groups of similar length."""
        return self.remember(("windows", size, shift), lambda: self._make_windows(size, shift))

    def window_order(self, size: int, shift: int) -> WindowOrder:
        """The windows of `windows` one after the other, found without waiting for the device if `side` is known."""
        return self.remember(("window order", size, shift), lambda: self._make_window_order(size, shift))

    def coarsen(self, factor: int) -> Coarsening:
        """Cells of `factor` voxels along each side that contain at least one voxel."""
        return self.remember(("coarsen", factor), lambda: self._make_coarsening(factor))

    def subdivide(self) -> VoxelSet:
        """Split every voxel into eight: row r becomes rows 8r to 8r + 7, in the order of `OCTANTS`."""
        return self.remember("subdivide", self._make_subdivision)

    def subdivide_where(self, exists: Tensor) -> Children:
        """Split every voxel into some of its eight children.

        Args:
            exists: (N, 8) bool by octant x + 2 y + 4 z, x the fastest, unlike `OCTANTS`.
        """
        parent, octant = exists.nonzero(as_tuple=True)
        offset = torch.stack([octant & 1, octant >> 1 & 1, octant >> 2 & 1], dim=-1).int()
        coords = self.coords[parent]
        coords = torch.cat([coords[:, :1], coords[:, 1:] * 2 + offset], dim=-1)
        finer = VoxelSet(coords, batch_size=self.batch_size, side=2 * self.side, is_sorted=True)
        return Children(finer, parent, octant)

    def _make_segments(self) -> list[slice]:
        if self.batch_size == 1:
            return [slice(0, len(self))]
        lengths = torch.bincount(self.coords[:, 0].long(), minlength=self.batch_size).tolist()
        starts = [sum(lengths[:i]) for i in range(self.batch_size)]
        return [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]

    def _linear_keys(self, coords: Tensor) -> Tensor:
        """Pack coordinates into ascending int64 keys, with room for offsets of -1 and +1: (..., 4) -> (...)."""
        side = self.side + 2
        margin = (side + 1) * side + 1  # of each axis
        return _number(coords, side) + margin

    def _make_neighbours(self) -> Tensor:
        count = len(self)
        if count == 0:
            return torch.full((27, 0), 0, dtype=torch.int32, device=self.device)
        keys = self._linear_keys(self.coords)
        sorted_keys, order = torch.sort(keys)
        # A key that no voxel has, and the row that stands for none.
        sorted_keys = torch.nn.functional.pad(sorted_keys, (0, 1), value=1 << 62)
        order = torch.nn.functional.pad(order.int(), (0, 1), value=count)
        rows = torch.arange(count, dtype=torch.int32, device=self.device)
        # The place beyond the table takes what is written for neighbours that do not exist, so that nothing waits for
        # their number.
        flat = torch.full((27 * count + 1,), count, dtype=torch.int32, device=self.device)
        table = flat[:-1].view(27, count)
        table[13] = rows
        offsets = self._linear_keys(_neighbour_offsets(self.device))
        steps = (offsets - offsets[13])[0:13:3, None]  # of taps 0, 3, 6, 9 and 12
        at_once = CACHED_ROWS if self.device.type == "cpu" else max(1, TABLE_LIMIT // len(steps))
        for start in range(0, count, at_once):
            some = slice(start, start + at_once)
            wanted = keys[some] + steps  # (5, B)
            place = torch.searchsorted(sorted_keys, wanted)
            # Taps t, t + 1 and t + 2 are one above the other along z, and so are their keys: one search for the three.
            for z in range(3):
                if z == 1:  # tap 12 is the last below the voxel's own
                    wanted, place = wanted[:4], place[:4]
                there = sorted_keys[place] == wanted
                neighbour = torch.where(there, order[place], count)
                table[z:13:3, some] = neighbour
                # Tap 26 - t has the opposite offset of tap t: the search fills two rows of the table.
                opposite = (26 - z) * count - 3 * count * torch.arange(len(wanted), device=self.device)
                opposite = torch.where(there, opposite[:, None] + neighbour, 27 * count)
                flat.scatter_(0, opposite.flatten(), rows[some].repeat(len(wanted)))
                wanted, place = wanted + 1, place + there
        return table

    def _make_windows(self, size: int, shift: int) -> list[WindowGroup]:
        ids = self.coords.clone()
        ids[:, 1:] = torch.div(ids[:, 1:] + shift, size, rounding_mode="floor")
        window_of_row, counts = torch.unique(self._linear_keys(ids), return_inverse=True, return_counts=True)[1:]
        rows_by_window = torch.argsort(window_of_row, stable=True)
        starts = torch.cumsum(counts, 0) - counts
        # Longest first, so that each group is a run of similar lengths.
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
            if lengths[last - 1] == longest:
                groups.append(WindowGroup(rows, None, None))
            else:
                groups.append(WindowGroup(torch.where(valid, rows, 0), valid, valid.flatten().nonzero()[:, 0]))
            first = last
        return groups

    def _make_window_order(self, size: int, shift: int) -> WindowOrder:
        along = (self.side - 1 + shift) // size + 1  # windows along an axis
        window = torch.div(self.coords[:, 1:] + shift, size, rounding_mode="floor")
        number = _number(window, along)
        if self.batch_size > 1:
            number = number.add(self.coords[:, 0], alpha=along**3)
        windows = self.batch_size * along**3
        ordered, rows = torch.sort(number, stable=True)
        bounds = torch.arange(windows + 1, dtype=ordered.dtype, device=self.device)
        starts = torch.searchsorted(ordered, bounds, out_int32=True)
        place = torch.empty_like(rows).scatter_(0, rows, torch.arange(len(self), device=self.device))
        return WindowOrder(rows, place, starts, min(size**3, max(1, len(self))))

    def _make_coarsening(self, factor: int) -> Coarsening:
        coarse = self.coords.clone()
        coarse[:, 1:] = torch.div(coarse[:, 1:], factor, rounding_mode="floor")
        _, cell_of_row, counts = torch.unique(self._linear_keys(coarse), return_inverse=True, return_counts=True)
        cells = torch.empty((len(counts), 4), dtype=torch.int32, device=self.device)
        cells[cell_of_row] = coarse  # all rows of a cell write the same value
        side = -(-self.side // factor)
        coarser = VoxelSet(cells, batch_size=self.batch_size, side=side, is_sorted=True)
        return Coarsening(coarser, cell_of_row, Groups.of(cell_of_row, counts, most=factor**3))

    def _make_subdivision(self) -> VoxelSet:
        octants = constant(tuple((0, *octant) for octant in OCTANTS), self.device, dtype=torch.int32)
        scale = constant((1, 2, 2, 2), self.device, dtype=torch.int32)
        coords = (self.coords * scale)[:, None] + octants  # (N, 8, 4)
        return VoxelSet(
            coords.flatten(0, 1),
            batch_size=self.batch_size,
            side=2 * self.side,
            neighbours=self._subdivided_neighbours(),
            is_sorted=True,
        )

    def _subdivided_neighbours(self) -> Tensor:
        """Neighbours of the subdivided set, (27, 8N), without a search.

        A child's neighbour is a sibling, or a child of a neighbour of the parent.
        """
        parent_tap, sibling = constant_array(_child_taps, self.device).unbind(0)  # (27, 8) each
        count = len(self)
        table = self.neighbours.new_empty((27, count, 8))
        at_once = max(1, TABLE_LIMIT // max(8 * count, 1))
        for first in range(0, 27, at_once):
            part = slice(first, first + at_once)
            parent = self.neighbours[parent_tap[part]]  # (T, 8, N)
            # A parent that does not exist has row N: its children come to 8 N or more, which stands for none.
            child = torch.add(sibling[part, :, None], parent, alpha=8).clamp_(max=8 * count)
            table[part] = child.mT
        return table.flatten(1)


def _child_taps() -> NDArray[np.int32]:
    """For each tap and octant the tap of the parent that has the neighbour, and its octant there: (2, 27, 8)."""
    moved = np.array(NEIGHBOUR_OFFSETS)[:, None] + np.array(OCTANTS)  # (27, 8, 3), -1 to 2
    taps, siblings = (moved // 2 + 1) @ [9, 3, 1], (moved % 2) @ [4, 2, 1]
    return np.stack([taps, siblings]).astype(np.int32)


def _neighbour_offsets(device: torch.device) -> Tensor:
    """`NEIGHBOUR_OFFSETS` as (27, 4) int32 with a leading 0, computed on the device."""
    tap = torch.arange(27, dtype=torch.int32, device=device)
    axes = [tap.div(unit, rounding_mode="floor").remainder(3) - 1 for unit in (9, 3, 1)]
    return torch.stack([torch.zeros_like(tap), *axes], dim=-1)


def _number(digits: Tensor, base: int) -> Tensor:
    """int64 numbers from their digits, the most significant first: (..., D) -> (...)."""
    number, *others = digits.long().unbind(-1)
    for digit in others:
        number = torch.add(digit, number, alpha=base)
    return number
