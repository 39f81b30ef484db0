"""Marching cubes for a field that is expensive to evaluate: coarse search, then full evaluation near the surface.

The field is first evaluated at every fourth (or second) grid point. A coarse cell may contain surface if its corners
lie on both sides of the level, or if a corner's value is closer to the level than the field may change within half a
cell, estimated from the changes along the edges around it. Only these cells are evaluated in full, in bricks. Then the
surface is tracked: where it leaves the evaluated part through a cell's face, the cell behind that face is added, until
none is left. The result can miss a component that lies entirely in coarse cells around which the field shows no sign
of it; apart from that it equals the surface of the full grid bit for bit. Knows no model and no colours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.ops.blocks import DEFAULT_CHUNK_SIZE, rows_at_once
from pipeline.ops.cell_table import CORNERS, EDGES, face_rings, triangle_table
from pipeline.ops.constants import constant, constant_array

Evaluate = Callable[[Tensor], Tensor]
"""(N, 3, B) int64 grid indices of N bricks along x, y, z -> (N, B, B, B) positive values, x slowest."""

FINE, COARSE = 96, 192  # least resolutions for a first pass over every second and every fourth point
FULL_BRICK = 4  # points along a brick's side if the whole grid is evaluated
CELLS_AT_ONCE = 1 << 19  # bounds the memory of the extraction on a CPU
BYTES_OF_CELL = 8 * 4 * 4  # of its corners, gathered, stacked and compared
LARGEST_LOG = 80.0  # keeps logarithms of 0 and infinity finite; exp(80) is near the largest float32


@dataclass(frozen=True, eq=False)
class IsoSurface:
    """A surface on a grid.

    Attributes:
        vertices: (V, 3) float32 in units of the grid's cells.
        faces: (F, 3) int64, counter-clockwise seen from the side of smaller values.
        edges: (V, 4) int64 grid edge of each vertex: x, y, z of its lower end, and its axis; rows ascending.
        evaluations: number of points at which the field was evaluated, repeated ones counted again.
    """

    vertices: Tensor
    faces: Tensor
    edges: Tensor
    evaluations: int


def extract_isosurface(
    evaluate: Evaluate, *, resolution: int, level: float, device: torch.device | str = "cpu", step: int | None = None
) -> IsoSurface:
    """Extract the surface on which a field equals a level.

    Args:
        evaluate: evaluates the field at grid points; it is greater than `level` inside.
        resolution: grid points along each side.
        level: positive value on the surface.
        device: of the grid and the result.
        step: distance in points of the first, coarse pass; 1 evaluates the whole grid. By default it follows from the
            resolution.
    """
    if step is None:
        step = 1 if resolution < FINE else 2 if resolution < COARSE else 4
    bricks = _Bricks(evaluate, resolution, FULL_BRICK if step == 1 else step, level, device)
    if step == 1:
        active = bricks.every_cell()
        bricks.add(active)
    else:
        active = bricks.cells_that_may_cross()
        bricks.add(active)
        fresh = active
        # Invariant: only the faces of `fresh` cells may be open; it ends because the grid has finitely many cells.
        while len(fresh) > 0:
            fresh = bricks.cells_behind_open_faces(fresh, active)
            bricks.add(fresh)
            active = torch.cat([active, fresh])
    return _extract(bricks, active)


class _Bricks:
    """Evaluated parts of the grid: bricks of side^3 points, indexed by their position in the coarse grid.

    A coarse cell has side + 1 points along each axis: it spans from its brick's first point to the first point of the
    next, so it needs up to eight bricks. Points beyond the end of the grid repeat the last one.
    """

    def __init__(
        self, evaluate: Evaluate, resolution: int, side: int, level: float, device: torch.device | str
    ) -> None:
        self.evaluate, self.resolution, self.side, self.level = evaluate, resolution, side, level
        self.cells = -(-(resolution - 1) // side)  # coarse cells along a side
        self.device = torch.device(device)
        shape = [self.cells + 1] * 3
        self.row = torch.full(shape, -1, dtype=torch.int64, device=self.device)
        self.values = torch.empty((0, side, side, side), device=self.device)
        self.evaluations = 0

    def every_cell(self) -> Tensor:
        """All coarse cells: (N, 3)."""
        return torch.cartesian_prod(*[torch.arange(self.cells, device=self.device)] * 3)

    def add(self, cells: Tensor) -> None:
        """Evaluate the missing ones of the bricks that coarse cells, (N, 3), need."""
        wanted = torch.zeros_like(self.row, dtype=torch.bool)
        wanted[(cells[:, None] + constant(CORNERS, self.device)).unbind(2)] = True
        places = (wanted & (self.row < 0)).nonzero()
        if len(places) == 0:
            return
        x, y, z = places.unbind(1)
        self.row[x, y, z] = torch.arange(len(places), device=self.device) + len(self.values)
        self.values = torch.cat([self.values, self._evaluate(places * self.side, 1)])

    def _evaluate(self, first: Tensor, stride: int) -> Tensor:
        """Evaluate bricks with points `stride` apart: (N, 3) first points -> (N, side, side, side) values."""
        along = torch.arange(self.side, device=self.device) * stride
        indices = (first[:, :, None] + along).clamp(max=self.resolution - 1)
        self.evaluations += len(first) * self.side**3
        return self.evaluate(indices)

    def cells_that_may_cross(self) -> Tensor:
        """Coarse cells, (N, 3), whose corners do not rule out that the surface crosses them."""
        values = self._coarse_values()
        logs = (values / self.level).log().clamp(-LARGEST_LOG, LARGEST_LOG)
        # Logarithms: a density is the exponential of a network's output, which changes about linearly. `reach` bounds
        # the change from a corner to the middle of a cell.
        reach = torch.zeros([self.cells] * 3, device=self.device)
        for axis in range(3):
            # The largest change along this axis between adjacent coarse points, over the cell and its neighbours.
            steps = logs.diff(dim=axis).abs()
            size = [3 if k == axis else 4 for k in range(3)]
            padding = [1, 1, 1, 1, 1, 1]
            widened = F.max_pool3d(F.pad(steps[None, None], padding), size, stride=1)[0, 0]
            reach += widened / 2
        corners = torch.stack([self._shifted(logs, corner) for corner in CORNERS])
        crossed = (corners > 0).any(dim=0) & (corners <= 0).any(dim=0)
        return (crossed | (corners.abs().amin(dim=0) <= reach)).nonzero()

    def _coarse_values(self) -> Tensor:
        """Values at the first points of all bricks, the corners of the C^3 coarse cells: (C + 1, C + 1, C + 1)."""
        count, side = self.cells + 1, self.side
        blocks = -(-count // side)
        places = torch.cartesian_prod(*[torch.arange(blocks, device=self.device)] * 3)
        values = self._evaluate(places * side * side, side).view(blocks, blocks, blocks, side, side, side)
        # (n, n, n, side, side, side) -> (n side, n side, n side), cropped to the grid
        return values.permute(0, 3, 1, 4, 2, 5).reshape([blocks * side] * 3)[:count, :count, :count]

    def _shifted(self, grid: Tensor, corner: tuple[int, ...]) -> Tensor:
        """Values at one corner of every coarse cell: (C + 1, C + 1, C + 1) -> (C, C, C)."""
        x, y, z = (slice(k, k + self.cells) for k in corner)
        return grid[x, y, z]

    def points_of(self, cells: Tensor) -> Tensor:
        """Values at all points of coarse cells, both ends included: (N, 3) -> (N, side + 1, side + 1, side + 1)."""
        side = self.side
        out = self.values.new_empty((len(cells), *[side + 1] * 3))
        rows = self.row[(cells[:, None] + constant(CORNERS, self.device)).unbind(2)]  # (N, 8)
        for number, corner in enumerate(CORNERS):
            to = [slice(side, None) if k else slice(0, side) for k in corner]
            source = [slice(0, 1) if k else slice(None) for k in corner]
            out[:, to[0], to[1], to[2]] = self.values[:, source[0], source[1], source[2]][rows[:, number]]
        return out

    def cells_behind_open_faces(self, fresh: Tensor, active: Tensor) -> Tensor:
        """Inactive coarse cells that the surface enters from fresh ones: (M, 3), (A, 3) -> (N, 3)."""
        count = self.cells**3
        known = torch.zeros([self.cells] * 3, dtype=torch.bool, device=self.device)
        known[active.unbind(1)] = True
        # An element beyond the last cell takes what is written for closed faces: nothing waits for their number.
        found = torch.zeros(count + 1, dtype=torch.bool, device=self.device)
        for cells in fresh.split(self._cells_at_once()):
            inside = self.points_of(cells) > self.level
            place = (cells[:, 0] * self.cells + cells[:, 1]) * self.cells + cells[:, 2]
            for axis in range(3):
                step = self.cells ** (2 - axis)
                for end, direction in ((0, -1), (self.side, 1)):
                    face = inside.select(1 + axis, end).flatten(1)
                    is_open = face.any(dim=1) & ~face.all(dim=1)
                    is_open &= cells[:, axis] != (0 if direction < 0 else self.cells - 1)  # nothing is behind the grid
                    found[torch.where(is_open, place + direction * step, count)] = True
        return (found[:count].view_as(known) & ~known).nonzero()

    def _cells_at_once(self) -> int:
        """Coarse cells per chunk, for at most `CELLS_AT_ONCE` grid cells."""
        cells = CELLS_AT_ONCE
        if self.device.type != "cpu":
            cells = rows_at_once(self.device, chunk_size=DEFAULT_CHUNK_SIZE, bytes_each=BYTES_OF_CELL)
        return max(1, cells // self.side**3)

    def crossed_cells(self, active: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Grid cells with corners on both sides, in chunks: (M, 3) first points and (M, 8) values."""
        side = self.side
        along = torch.cartesian_prod(*[torch.arange(side, device=self.device)] * 3)
        for cells in active.split(self._cells_at_once()):
            points = self.points_of(cells)
            views = [points[:, x : x + side, y : y + side, z : z + side].flatten(1) for x, y, z in CORNERS]
            corners = torch.stack(views)  # (8, N, side^3)
            count = (corners > self.level).sum(dim=0)
            which, place = ((count > 0) & (count < len(CORNERS))).nonzero().unbind(1)
            first = cells[which] * side + along[place]
            # The others lie beyond the grid and repeat its last point.
            real = (first < self.resolution - 1).all(dim=1).nonzero()[:, 0]
            yield first[real], corners[:, which[real], place[real]].mT.contiguous()


def _rows_of_cases() -> NDArray[np.int64]:
    """`_Tables.row`."""
    row = np.zeros(1 << 14, np.int64)
    for number, (case, joined) in enumerate(triangle_table()):
        row[case + sum(1 << (8 + face) for face in joined)] = number
    return row


def _triangles_of_rows() -> NDArray[np.int64]:
    """`_Tables.triangles`."""
    table = triangle_table()
    longest = max(len(triangles) for triangles in table.values())
    return np.array([[*triangles, *[(-1, -1, -1)] * (longest - len(triangles))] for triangles in table.values()])


@dataclass(frozen=True, eq=False)
class _Tables:
    """The triangle table as tensors.

    Attributes:
        row: (16384,) int64 row in `triangles` by case: 8 bits for inside corners, 6 for joined faces.
        triangles: (rows, T, 3) int64 numbers of edges, -1 where there are fewer triangles.
        rings: (6, 4) int64 corners of the faces.
        near, far: (12,) int64 corners at the lower and upper end of each edge.
        axis: (12,) int64.
        offsets: (8, 3) int64 corners.
    """

    row: Tensor
    triangles: Tensor
    rings: Tensor
    near: Tensor
    far: Tensor
    axis: Tensor
    offsets: Tensor

    @classmethod
    def on(cls, device: torch.device) -> _Tables:
        near, axis = (constant(column, device) for column in zip(*EDGES, strict=True))
        return cls(
            row=constant_array(_rows_of_cases, device),
            triangles=constant_array(_triangles_of_rows, device),
            rings=constant(face_rings(), device),
            near=near,
            far=near + constant((4, 2, 1), device)[axis],
            axis=axis,
            offsets=constant(CORNERS, device),
        )

    def triangles_of(self, values: Tensor, level: float) -> Tensor:
        """Triangles of cells as numbers of edges, -1 for none: (M, 8) values at corners -> (M, T, 3)."""
        above = values.double() - level  # in double, the products below neither overflow nor round
        inside = above > 0
        a, b, c, d = above[:, self.rings].unbind(-1)  # (M, 6) each
        first = inside[:, self.rings[:, 0]]
        is_ambiguous = first & inside[:, self.rings[:, 2]] & ~inside[:, self.rings[:, 1]] & ~inside[:, self.rings[:, 3]]
        is_ambiguous |= (
            ~first & ~inside[:, self.rings[:, 2]] & inside[:, self.rings[:, 1]] & inside[:, self.rings[:, 3]]
        )
        # The asymptotic decider: at its saddle the bilinear interpolant is inside if the product of the inside corners
        # is greater than that of the outside ones.
        joined = is_ambiguous & torch.where(first, a * c > b * d, b * d > a * c)
        bits = torch.arange(14, device=values.device)
        return self.triangles[self.row[(torch.cat([inside, joined], dim=1).long() << bits).sum(dim=1)]]


def _extract(bricks: _Bricks, active: Tensor) -> IsoSurface:
    """Extract the surface in the active coarse cells, (A, 3)."""
    device, resolution = bricks.device, bricks.resolution
    tables = _Tables.on(device)
    keys, shares, corners, count = [], [], [], 0
    for first, values in bricks.crossed_cells(active):
        triangles = tables.triangles_of(values, bricks.level)
        cell, number = (triangles[..., 0] >= 0).nonzero().unbind(1)
        edge, cell = triangles[cell, number], cell[:, None]  # (K, 3), (K, 1)
        start = first[cell] + tables.offsets[tables.near[edge]]  # (K, 3, 3)
        point = (start[..., 0] * resolution + start[..., 1]) * resolution + start[..., 2]
        key, row = torch.unique(point * 3 + tables.axis[edge], return_inverse=True)
        share = values.new_empty(len(key))  # every cell around an edge writes the same value
        share[row] = _crossing(values[cell, tables.near[edge]], values[cell, tables.far[edge]], bricks.level)
        corners.append(row + count)
        keys.append(key)
        shares.append(share)
        count += len(key)
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    edges, row = torch.unique(torch.cat([nothing, *keys]), return_inverse=True)
    share = bricks.values.new_empty(len(edges))
    share[row] = torch.cat([share[:0], *shares])
    axis, point = edges % 3, edges // 3
    start = torch.stack([point // resolution**2, point // resolution % resolution, point % resolution], dim=1)
    vertices = start.float()
    vertices[torch.arange(len(vertices), device=device), axis] += share
    faces = row[torch.cat([nothing.view(0, 3), *corners])]
    return IsoSurface(vertices, faces, torch.cat([start, axis[:, None]], dim=1), bricks.evaluations)


def _crossing(near: Tensor, far: Tensor, level: float) -> Tensor:
    """Position of the crossing along an edge, 0 at `near` and 1 at `far`, by linear interpolation: (K,), (K,) -> (K,).

    Computed from the end below the level, so that an infinite value at the other end gives a finite result.
    """
    low, high = torch.minimum(near, far), torch.maximum(near, far)
    from_low = (level - low) / (high - low)
    return torch.where(near <= far, from_low, 1 - from_low)
