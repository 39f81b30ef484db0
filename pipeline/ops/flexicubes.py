"""Dual surface extraction from cubes with displaced corners and per-cube weights (FlexiCubes).

It takes only the cubes that the surface crosses: no tensor has the size of the grid. Knows no features and no model.

Departures from the released code: the case tables are derived from two rules (`case_tables`), quads are split
along a diagonal in every use (the released training code adds a vertex at the centre), and sums run in a fixed order.

Source: Shen et al. 2023, arXiv 2308.05371, sections 4.1 to 4.3.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.ops.blocks import rows_at_once
from pipeline.ops.constants import constant, constant_array

CORNERS = tuple((i & 1, i >> 1 & 1, i >> 2 & 1) for i in range(8))  # x fastest
EDGES = ((0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4))
FACES = tuple((axis, side) for axis in range(3) for side in (0, 1))
MAX_DUALS = 4  # dual vertices in one cube: four inside corners of which no two are adjacent
CUBES_AT_ONCE = 1 << 16  # upper bound of `chunk_size` on a CPU: larger chunks use more memory and are not faster
BYTES_OF_CUBE = 12 * 12 * 4 * 6  # up to twelve values on twelve edges, with the temporaries of their interpolation


@dataclass(frozen=True)
class CaseTables:
    """Tables by case, the sign pattern of a cube's corners: bit i of a case is set if corner i is inside.

    Attributes:
        dual_count: (256,) int64 number of dual vertices.
        dual_of_edge: (256, 12) int64 number of the dual vertex that an edge belongs to, -1 if it is not crossed.
        ambiguous_side: (256, 3) int64 direction of the only ambiguous face of a flagged case, zeros elsewhere.
        flagged: (256,) bool, see `case_tables`.
    """

    dual_count: NDArray[np.int64]
    dual_of_edge: NDArray[np.int64]
    ambiguous_side: NDArray[np.int64]
    flagged: NDArray[np.bool_]


@functools.cache
def case_tables() -> CaseTables:
    """Derive the tables.

    (1) The dual vertices of a case are the connected components of its crossed edges. A face of the cube with two
    crossed edges joins them; an ambiguous face (four crossed edges) joins the two that meet at each inside corner.
    (2) A case is flagged when it has exactly one ambiguous face and one dual vertex. Where two flagged cubes share
    an ambiguous face, both use the dual vertices of the complementary case; otherwise the surface would touch itself
    in a non-manifold edge.
    """
    count = np.zeros(256, np.int64)
    of_edge = np.full((256, 12), -1, np.int64)
    side = np.zeros((256, 3), np.int64)
    flagged = np.zeros(256, bool)
    for case in range(256):
        inside = [bool(case >> corner & 1) for corner in range(8)]
        links, ambiguous = _face_links(inside)
        components = _components([e for e, (a, b) in enumerate(EDGES) if inside[a] != inside[b]], links)
        count[case] = len(components)
        for number, component in enumerate(components):
            of_edge[case, component] = number
        if len(ambiguous) == 1 and len(components) == 1:
            axis, high = ambiguous[0]
            side[case, axis] = 1 if high else -1
            flagged[case] = True
    return CaseTables(count, of_edge, side, flagged)


def _face_links(inside: list[bool]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs of crossed edges that a face joins, and the ambiguous faces, for one sign pattern."""
    links: list[tuple[int, int]] = []
    ambiguous: list[tuple[int, int]] = []
    for axis, side in FACES:
        corners = {i for i, corner in enumerate(CORNERS) if corner[axis] == side}
        crossed = [e for e, (a, b) in enumerate(EDGES) if {a, b} <= corners and inside[a] != inside[b]]
        if len(crossed) == 2:
            links.append((crossed[0], crossed[1]))
        elif len(crossed) == 4:
            ambiguous.append((axis, side))
            for corner in corners:
                if inside[corner]:
                    first, second = (e for e in crossed if corner in EDGES[e])
                    links.append((first, second))
    return links, ambiguous


def _components(nodes: list[int], links: list[tuple[int, int]]) -> list[list[int]]:
    """Connected components, in the order of their smallest node."""
    label = {node: node for node in nodes}
    for _ in nodes:  # minimum labels spread along a chain of n nodes within n rounds
        for a, b in links:
            label[a] = label[b] = min(label[a], label[b])
    return [[n for n in nodes if label[n] == root] for root in sorted(set(label.values()))]


def _dual_counts() -> NDArray[np.int64]:
    return case_tables().dual_count


def _duals_of_edges() -> NDArray[np.int8]:
    return case_tables().dual_of_edge.astype(np.int8)


def _flagged() -> NDArray[np.bool_]:
    return case_tables().flagged


def _ambiguous_sides() -> NDArray[np.int64]:
    return case_tables().ambiguous_side


@dataclass(frozen=True, eq=False)
class CornerTable:
    """Values at V grid vertices, and in the last row the values of vertices without data.

    Attributes:
        sdf: (V + 1,) signed distance, negative inside.
        offset: (V + 1, 3) displacement of the vertex from its grid position.
        attributes: (V + 1, A) further values to interpolate, or None.
    """

    sdf: Tensor
    offset: Tensor
    attributes: Tensor | None


@dataclass(frozen=True, eq=False)
class DualMesh:
    """A surface whose vertices lie inside cubes.

    Attributes:
        vertices: (D, 3) in the cube [-0.5, 0.5]; where the surface leaves the grid, some have no face.
        faces: (F, 3) int64, counter-clockwise seen from the positive side.
        attributes: (D, A) or None.
    """

    vertices: Tensor
    faces: Tensor
    attributes: Tensor | None


@dataclass(frozen=True, eq=False)
class CubeWeights:
    """FlexiCubes' weights of S cubes.

    Attributes:
        beta: (S, 12) weights of the crossings in the dual vertex.
        alpha: (S, 8) scale of the corners' distances in the crossings.
        gamma: (S,) weight in the choice of a quad's diagonal.
    """

    beta: Tensor
    alpha: Tensor
    gamma: Tensor

    @classmethod
    def from_raw(cls, raw: Tensor) -> CubeWeights:
        """Bound the raw numbers of each cube, (S, 21): beta and alpha to (0.01, 1.99), gamma to (0.005, 0.995)."""
        beta, alpha, gamma = raw.split([12, 8, 1], dim=1)
        return cls(0.99 * beta.tanh() + 1, 0.99 * alpha.tanh() + 1, (0.99 * gamma.sigmoid() + 0.005)[:, 0])


def extract_dual_mesh(
    cubes: Tensor, corners: Tensor, table: CornerTable, weights: CubeWeights, *, resolution: int, chunk_size: int
) -> DualMesh:
    """Extract the dual surface: one vertex or more per cube, one quad (two triangles) per crossed edge.

    Args:
        cubes: (S, 3) int64 grid positions, ascending by (x, y, z), each with corners inside and outside.
        corners: (S, 8) int64 rows of `table` for the corners in the order of `CORNERS`.
        table: values of the grid vertices.
        weights: of the same S cubes.
        resolution: cubes along the grid's side.
        chunk_size: cubes whose dual vertices are computed at once; the result does not depend on it.
    """
    inside = table.sdf[corners] < 0  # (S, 8)
    keys = linear_cube_key(cubes, resolution)
    case = _resolved_cases(keys, inside, resolution)
    count = constant_array(_dual_counts, cubes.device)[case]
    dual_of_edge = constant_array(_duals_of_edges, cubes.device)[case]  # (S, 12)
    first_dual = torch.cumsum(count, 0) - count
    vertices, attributes = [], []
    most = CUBES_AT_ONCE if cubes.device.type == "cpu" else len(cubes)
    chunk_size = max(1, min(rows_at_once(cubes.device, chunk_size=chunk_size, bytes_each=BYTES_OF_CUBE), most))
    for start in range(0, len(cubes), chunk_size):
        part = slice(start, start + chunk_size)
        crossing = _crossings(cubes[part], corners[part], table, weights.alpha[part], resolution)
        at, extra = _dual_vertices(crossing, weights.beta[part], dual_of_edge[part], count[part])
        vertices.append(at)
        attributes.append(extra)
    if not vertices:
        return _empty_mesh(table)
    faces = _faces(keys, inside, dual_of_edge, first_dual, weights.gamma, resolution)
    has_attributes = table.attributes is not None
    return DualMesh(torch.cat(vertices), faces, torch.cat(attributes) if has_attributes else None)


def _empty_mesh(table: CornerTable) -> DualMesh:
    none = table.offset.new_zeros((0, 3))
    attributes = None if table.attributes is None else table.attributes.new_zeros((0, table.attributes.shape[1]))
    return DualMesh(none, torch.zeros((0, 3), dtype=torch.int64, device=none.device), attributes)


def linear_cube_key(cubes: Tensor, resolution: int) -> Tensor:
    """Pack grid positions -1 to `resolution` + 1 into one int64 that ascends in (x, y, z): (..., 3) -> (...)."""
    x, y, z = cubes.long().unbind(-1)
    side = resolution + 3
    return torch.add(z, torch.add(y, x, alpha=side), alpha=side) + key_step((1, 1, 1), resolution)


def key_step(step: Sequence[int], resolution: int) -> int:
    """What `linear_cube_key` grows by over a step along x, y, z."""
    side = resolution + 3
    return (step[0] * side + step[1]) * side + step[2]


def corner_key_steps(device: torch.device, resolution: int) -> Tensor:
    """Return the (8,) int64 differences between the keys of a cube's corners and the key of the cube."""
    return constant(tuple(key_step(corner, resolution) for corner in CORNERS), device)


def find_sorted(keys: Tensor, wanted: Tensor) -> Tensor:
    """Index of each wanted key, (M,), in the ascending keys, (N,); `len(keys)` if it is absent."""
    if len(keys) == 0:
        return torch.zeros_like(wanted)
    place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return torch.where(keys[place] == wanted, place, len(keys))


def _resolved_cases(keys: Tensor, inside: Tensor, resolution: int) -> Tensor:
    """Case of each cube, (S,), complemented where its ambiguous face is shared with another flagged cube.

    A flagged neighbour across that face has the same ambiguous face, because both see the same four corners.
    """
    case = (inside.long() << torch.arange(8, device=keys.device)).sum(dim=1)
    flagged = constant_array(_flagged, keys.device)[case]
    asking = flagged.nonzero()[:, 0]
    own = case[asking]
    x, y, z = constant_array(_ambiguous_sides, keys.device)[own].unbind(1)
    side = resolution + 3
    step = torch.add(z, torch.add(y, x, alpha=side), alpha=side)
    neighbour = find_sorted(keys, keys[asking] + step)
    flagged_or_none = torch.cat([flagged, flagged.new_zeros(1)])
    case[asking] = torch.where(flagged_or_none[neighbour], 255 - own, own)
    return case


def _crossings(cubes: Tensor, corners: Tensor, table: CornerTable, alpha: Tensor, resolution: int) -> Tensor:
    """Crossing points and attributes on the twelve edges: (B, 12, 3 + A); undefined on edges that are not crossed.

    Linear interpolation to the zero of alpha * sdf.
    """
    grid = constant(CORNERS, cubes.device)
    # Grid position plus displacement: (B, 8, 3).
    place = (cubes[:, None] + grid).to(table.offset.dtype) / resolution - 0.5  # (B, 8, 3)
    values = place + table.offset[corners]
    if table.attributes is not None:
        values = torch.cat([values, table.attributes[corners]], dim=-1)  # (B, 8, 3 + A)
    scaled = (table.sdf[corners] * alpha)[..., None]  # (B, 8, 1)
    a, b = _edge_ends(cubes.device)
    scaled_a, scaled_b = scaled[:, a], scaled[:, b]
    return (values[:, a] * scaled_b - values[:, b] * scaled_a) / (scaled_b - scaled_a)


def _edge_ends(device: torch.device) -> tuple[Tensor, Tensor]:
    """The corners at both ends of `EDGES`, (12,) int64 each."""
    a, b = constant(tuple(zip(*EDGES, strict=True)), device).unbind(0)
    return a, b


def _dual_vertices(crossing: Tensor, beta: Tensor, dual_of_edge: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Means of each dual vertex's crossings weighted by beta: positions (D, 3) and attributes (D, A), cube by cube."""
    wanted = torch.arange(MAX_DUALS, device=count.device) < count[:, None]  # (B, 4)
    cube, number = wanted.nonzero().unbind(1)
    mine = (dual_of_edge[cube] == number[:, None])[..., None]  # (D, 12, 1)
    share = beta[cube][..., None]
    terms = torch.where(mine, torch.cat([crossing[cube] * share, share], dim=-1), 0.0)  # (D, 12, 3 + A + 1)
    total = terms[:, 0]
    for edge in range(1, 12):  # in a fixed order, so that a sum's rounding does not depend on the chunk
        total = total + terms[:, edge]
    mean = total[:, :-1] / total[:, -1:]
    return mean[:, :3], mean[:, 3:]


def _edge_numbers(resolution: int) -> tuple[int, ...]:
    """Global number of each of `EDGES` of the cube with key 0: three times the key of its lower end, plus its axis."""
    ends = [(CORNERS[a], CORNERS[b]) for a, b in EDGES]
    lows = [tuple(map(min, *pair)) for pair in ends]
    axes = [next(axis for axis in range(3) if first[axis] != second[axis]) for first, second in ends]
    return tuple(3 * key_step(low, resolution) + axis for low, axis in zip(lows, axes, strict=True))


def _faces(
    keys: Tensor, inside: Tensor, dual_of_edge: Tensor, first_dual: Tensor, gamma: Tensor, resolution: int
) -> Tensor:
    """Two triangles for every crossed edge with four cubes around it: (F, 3) int64.

    An edge on the grid's border has fewer cubes and gives no face.
    """
    a, b = _edge_ends(keys.device)
    cube, edge = (inside[:, a] != inside[:, b]).nonzero().unbind(1)  # ascending by cube
    # Equal numbers are the cubes around one edge.
    key = torch.add(constant(_edge_numbers(resolution), keys.device)[edge], keys[cube], alpha=3)
    _, edge_number, sharing = torch.unique(key, return_inverse=True, return_counts=True)
    kept = (sharing[edge_number] == 4).nonzero()[:, 0]
    kept = kept[torch.argsort(edge_number[kept], stable=True)].view(
        -1, 4
    )  # the four cubes ascending by their offsets: -- -+ +- ++
    cube, edge = cube[kept], edge[kept]
    dual = first_dual[cube] + dual_of_edge[cube, edge]
    g = gamma[cube]
    # The side of the edge that is inside decides the winding, so that the front faces the positive side.
    inside_first = inside[cube[:, 0], a[edge[:, 0]]][:, None]
    turn = torch.where(inside_first, constant((2, 3, 1, 0), g.device), constant((0, 1, 3, 2), g.device))
    quad, g = dual.gather(1, turn), g.gather(1, turn)
    # Split along the diagonal whose product of gammas is larger.
    along_02 = (g[:, 0] * g[:, 2] > g[:, 1] * g[:, 3])[:, None]
    corners_02, corners_13 = (constant(split, g.device) for split in ((0, 1, 2, 0, 2, 3), (0, 1, 3, 1, 2, 3)))
    return quad.gather(1, torch.where(along_02, corners_02, corners_13)).view(-1, 3)
