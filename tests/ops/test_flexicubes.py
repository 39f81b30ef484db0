"""FlexiCubes: the case tables, the extraction against the reference, and surfaces of known solids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.engines.trellis.mesh_extraction import VertexField, extract_mesh, gather_field
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.ops.flexicubes import (
    CORNERS,
    EDGES,
    CornerTable,
    CubeWeights,
    DualMesh,
    case_tables,
    extract_dual_mesh,
    find_sorted,
    linear_cube_key,
)
from tests.reference.flexicubes import crossing_cubes, dual_mesh

SIDE = 16
Distance = Callable[[torch.Tensor], torch.Tensor]


def shell(distance: Distance, *, side: int = SIDE, band: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Cubes near the zero level of a function of (…, 3) points in [-0.5, 0.5], and their 101 channels."""
    cubes = torch.cartesian_prod(*[torch.arange(side)] * 3)
    corners = (cubes[:, None] + torch.tensor(CORNERS)) / side - 0.5
    sdf = distance(corners) + 1 / side  # extraction takes it off again
    near = (distance(corners).abs() < band).any(dim=1)
    channels = torch.zeros((int(near.sum()), 101))
    channels[:, :8] = sdf[near]
    channels[:, 53:] = torch.logit(torch.cat([corners + 0.5, corners + 0.5], dim=-1).clamp(0.01, 0.99))[near].flatten(1)
    return cubes[near], channels


def field_of(distance: Distance, *, band: float) -> VertexField:
    cubes, channels = shell(distance, band=band)
    return gather_field(cubes, channels, resolution=SIDE, use_color=True)


def ball(points: torch.Tensor) -> torch.Tensor:
    return points.norm(dim=-1) - 0.3


def solid_ball() -> VertexField:
    return field_of(ball, band=2.0)


def as_mesh(mesh: DualMesh) -> TriMesh:
    return TriMesh(mesh.vertices.numpy(), mesh.faces.numpy().astype(np.int32))


def edge_counts(mesh: TriMesh) -> dict[tuple[int, int], int]:
    counts: dict[tuple[int, int], int] = {}
    for face in mesh.faces.tolist():
        for a, b in zip(face, [*face[1:], face[0]], strict=True):
            counts[(a, b)] = counts.get((a, b), 0) + 1
    return counts


def test_thirty_six_cases_are_flagged() -> None:
    assert int(case_tables().flagged.sum()) == 36


def test_every_crossed_edge_belongs_to_exactly_one_dual_vertex() -> None:
    tables = case_tables()

    for case in range(256):
        crossed = [(case >> a & 1) != (case >> b & 1) for a, b in EDGES]
        assert [dual >= 0 for dual in tables.dual_of_edge[case].tolist()] == crossed
        numbers = set(tables.dual_of_edge[case].tolist()) - {-1}
        assert numbers == set(range(int(tables.dual_count[case])))


def test_a_dual_vertex_has_at_least_three_edges_and_a_cube_at_most_four_of_them() -> None:
    tables = case_tables()

    assert int(tables.dual_count.max()) == 4
    for case in range(1, 255):
        sizes = np.bincount(tables.dual_of_edge[case][tables.dual_of_edge[case] >= 0])
        assert sizes.min() >= 3


def test_cases_without_an_ambiguous_face_equal_their_complement() -> None:
    tables = case_tables()

    checked = 0
    for case in range(256):
        inside = [case >> i & 1 for i in range(8)]
        faces = [
            [i for i, corner in enumerate(CORNERS) if corner[axis] == side] for axis in range(3) for side in (0, 1)
        ]
        ambiguous = any(inside[a] == inside[d] != inside[b] == inside[c] for a, b, c, d in faces)
        if not ambiguous:
            checked += 1
            assert tables.dual_of_edge[case].tolist() == tables.dual_of_edge[255 - case].tolist()
    assert checked > 100


def test_a_ball_comes_out_closed_facing_outward_and_of_its_size() -> None:
    mesh = as_mesh(extract_mesh(solid_ball()))

    counts = edge_counts(mesh)
    assert all(count == 1 and counts.get((b, a)) == 1 for (a, b), count in counts.items())
    assert mesh.volume() == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.06)  # a mean of crossings lies inside
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.3).max() < 0.5 / SIDE


def test_colours_are_interpolated_where_the_surface_is() -> None:
    mesh = extract_mesh(solid_ball())

    assert mesh.attributes is not None
    torch.testing.assert_close(mesh.attributes[:, :3], mesh.vertices + 0.5, rtol=0, atol=0.02)


@pytest.mark.parametrize("resolution", [SIDE, 11, 24])
@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_the_chunk_size_changes_no_bit(resolution: int, chunk_size: int) -> None:
    field = solid_ball()
    whole = extract_mesh(field, resolution=resolution)

    chunked = extract_mesh(field, resolution=resolution, chunk_size=chunk_size)

    assert torch.equal(chunked.vertices, whole.vertices)
    assert torch.equal(chunked.faces, whole.faces)
    assert chunked.attributes is not None and whole.attributes is not None
    assert torch.equal(chunked.attributes, whole.attributes)


@pytest.mark.parametrize("resolution", [8, 13, 32, 37])
def test_another_resolution_sees_the_same_surface(resolution: int) -> None:
    field = solid_ball()
    own = as_mesh(extract_mesh(field))

    mesh = as_mesh(extract_mesh(field, resolution=resolution))

    counts = edge_counts(mesh)
    assert all(counts.get((b, a)) == 1 for a, b in counts)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.3).max() < 0.6 / min(resolution, SIDE)
    assert (len(mesh.faces) > len(own.faces)) == (resolution > SIDE)


def test_sampling_at_the_own_resolution_changes_nothing() -> None:
    from pipeline.engines.trellis.mesh_extraction import _extract_resampled, surface_cubes

    field = solid_ball()
    own = extract_mesh(field)

    resampled = _extract_resampled(field, surface_cubes(field)[0], SIDE, 1000)

    torch.testing.assert_close(resampled.vertices, own.vertices, rtol=0, atol=1e-6)  # float32 sums of eight terms
    assert torch.equal(resampled.faces, own.faces)


def test_displaced_vertices_move_the_surface() -> None:
    cubes, channels = shell(ball, band=2.0)
    channels[:, 8:32] = torch.tensor([0.5, 0.0, 0.0]).repeat(8)

    moved = extract_mesh(gather_field(cubes, channels, resolution=SIDE, use_color=True))

    still = extract_mesh(solid_ball())
    shift = (moved.vertices - still.vertices).mean(dim=0)
    torch.testing.assert_close(
        shift, torch.tensor([np.tanh(0.5) / (2 * SIDE), 0, 0], dtype=torch.float32), atol=1e-5, rtol=0
    )


def test_a_shell_without_data_inside_is_extracted_on_both_sides() -> None:
    mesh = as_mesh(extract_mesh(field_of(ball, band=0.08)))

    radii = np.linalg.norm(mesh.vertices, axis=1)
    assert (radii > 0.28).sum() > 50
    assert (radii < 0.25).sum() > 50


def test_nothing_inside_gives_an_empty_mesh() -> None:
    mesh = extract_mesh(field_of(lambda p: p.norm(dim=-1) + 0.1, band=2.0))

    assert mesh.vertices.shape == (0, 3)
    assert mesh.faces.shape == (0, 3)
    assert mesh.attributes is not None
    assert mesh.attributes.shape == (0, 6)


def test_no_cubes_give_an_empty_mesh_at_any_resolution() -> None:
    field = gather_field(torch.zeros((0, 3), dtype=torch.int64), torch.zeros((0, 101)), resolution=8, use_color=True)

    for resolution in (8, 5, 16):
        assert len(extract_mesh(field, resolution=resolution).faces) == 0


def test_keys_ascend_with_the_coordinates() -> None:
    cubes = torch.cartesian_prod(*[torch.arange(-1, 6)] * 3)

    keys = linear_cube_key(cubes, 4)

    assert torch.equal(keys, keys.sort().values)
    assert len(keys.unique()) == len(cubes)


def random_case(side: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signed distances and values (R + 1, R + 1, R + 1, 5) at grid vertices, and the raw weights of crossing cubes."""
    rng = np.random.default_rng(seed)
    sdf = rng.uniform(-1, 1, [side + 1] * 3)
    grid = np.stack(np.meshgrid(*[np.arange(side + 1)] * 3, indexing="ij"), axis=-1)
    offset = rng.uniform(-0.4, 0.4, grid.shape) / side
    values = np.concatenate([grid / side - 0.5 + offset, rng.uniform(size=(*grid.shape[:3], 2))], axis=-1)
    return sdf, values, rng.normal(size=(len(crossing_cubes(sdf)), 21))


def extracted(sdf: np.ndarray, values: np.ndarray, raw: np.ndarray) -> DualMesh:
    side = sdf.shape[0] - 1
    cubes = torch.tensor(crossing_cubes(sdf), dtype=torch.int64).view(-1, 3)
    at = cubes[:, None] + torch.tensor(CORNERS)
    corners = (at[..., 0] * (side + 1) + at[..., 1]) * (side + 1) + at[..., 2]
    flat = torch.from_numpy(values).view(-1, 5)
    place = torch.cartesian_prod(*[torch.arange(side + 1)] * 3) / side - 0.5
    table = CornerTable(torch.from_numpy(sdf).flatten(), flat[:, :3] - place, flat[:, 3:])
    weights = CubeWeights.from_raw(torch.from_numpy(raw))
    return extract_dual_mesh(cubes, corners, table, weights, resolution=side, chunk_size=5)


def rotated(faces: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Faces in ascending order, each with its smallest vertex first."""
    return sorted(face[k:] + face[:k] for face in faces for k in [face.index(min(face))])


@pytest.mark.parametrize(("side", "seed"), [(1, 0), (2, 1), (3, 2), (4, 3)])
def test_noise_gives_the_surface_of_the_reference(side: int, seed: int) -> None:
    sdf, values, raw = random_case(side, seed=seed)

    mesh = extracted(sdf, values, raw)

    weights = CubeWeights.from_raw(torch.from_numpy(raw))
    vertices, faces = dual_mesh(sdf, values, weights.alpha.numpy(), weights.beta.numpy(), weights.gamma.numpy())
    assert mesh.attributes is not None
    seen = torch.cat([mesh.vertices, mesh.attributes], dim=1).numpy()
    np.testing.assert_allclose(seen, np.stack(vertices), rtol=0, atol=1e-6)  # grid positions pass through float32
    assert rotated([tuple(face) for face in mesh.faces.tolist()]) == rotated(list(faces))


def test_grid_keys_and_searches_equal_a_dictionary() -> None:
    cubes = torch.cartesian_prod(*[torch.arange(3)] * 3)[::2]
    keys = linear_cube_key(cubes, 3)
    wanted = torch.cartesian_prod(*[torch.arange(-1, 4)] * 3)

    found = find_sorted(keys, linear_cube_key(wanted, 3))

    rows = {tuple(cube): row for row, cube in enumerate(cubes.tolist())}
    assert found.tolist() == [rows.get(tuple(cube), len(cubes)) for cube in wanted.tolist()]
    assert find_sorted(keys[:0], keys[:2]).tolist() == [0, 0]
