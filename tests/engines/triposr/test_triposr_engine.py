from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.engines.base import Generation, GenerationOptions
from pipeline.engines.registry import make_engine
from pipeline.engines.triposr.engine import TripoSREngine
from pipeline.engines.triposr.field import TriplaneField
from pipeline.engines.triposr.rendering import Occupancy, render_rays, turntable_frames
from pipeline.engines.triposr.spec import RELEASED, RendererSpec
from pipeline.engines.triposr.surface import to_project_frame
from pipeline.engines.triposr.triplane import NeRFMLP
from pipeline.errors import Cancelled, InvalidRequest, UnreadableImage
from pipeline.nn.deterministic_weights import fill_deterministic
from pipeline.render.orbit import level_orbit, pixel_rays
from tests.engines.trellis.test_trellis_engine import disc

OPTIONS = GenerationOptions(seed=7, resolution=64)


@pytest.fixture(scope="module")
def engine() -> TripoSREngine:
    engine = make_engine("triposr", weights="tiny", device="cpu")
    assert isinstance(engine, TripoSREngine)
    engine.load()
    return engine


@pytest.fixture(scope="module")
def field() -> TriplaneField:
    """The released decoder over small planes."""
    decoder = NeRFMLP(RELEASED.decoder)
    fill_deterministic(decoder, seed=3, scale={"*.weight": 1.6})
    planes = torch.randn((3, 40, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return TriplaneField.of(decoder, planes, renderer=RendererSpec(radius=0.87, density_bias=2.0))


def same(a: Generation, b: Generation) -> bool:
    points, normals = a.mesh.vertices[:2000], a.mesh.vertex_normals()[:2000]
    return (
        np.array_equal(a.mesh.vertices, b.mesh.vertices)
        and np.array_equal(a.mesh.faces, b.mesh.faces)
        and np.array_equal(a.colour_source.colours_at(points, normals), b.colour_source.colours_at(points, normals))
    )


def test_a_body_that_reaches_the_box_ends_there_and_is_closed(engine: TripoSREngine) -> None:
    faces = engine.generate([disc()], OPTIONS).mesh.faces
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    _, shared = np.unique(np.sort(edges, axis=1), axis=0, return_counts=True)
    assert (shared % 2 == 0).all()


def test_a_picture_becomes_a_mesh_with_colours(engine: TripoSREngine) -> None:
    generation = engine.generate([disc()], OPTIONS)

    mesh = generation.mesh
    assert len(mesh.faces) > 1000
    assert mesh.volume() > 0
    assert np.abs(mesh.bounds()).max() <= 0.5
    colours = generation.colour_source.colours_at(mesh.vertices, mesh.vertex_normals())
    assert colours.dtype == np.float32
    assert 0 <= colours.min() <= colours.max() <= 1
    assert colours.std() > 0
    assert (generation.engine, generation.seed, generation.gpu_seconds) == ("triposr", 7, 0.0)
    assert not engine.is_on_accelerator


def test_what_crosses_the_border_is_small_and_free_of_torch(engine: TripoSREngine) -> None:
    generation = engine.generate([disc()], OPTIONS)

    data = pickle.dumps(generation)

    assert b"torch" not in data
    assert same(pickle.loads(data), generation)


def test_reading_colours_imports_no_torch() -> None:
    code = "import sys, pipeline.engines.triposr.colours; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_calls_repeat_and_another_picture_gives_another_shape(engine: TripoSREngine) -> None:
    first = engine.generate([disc()], OPTIONS)
    before = torch.get_rng_state()

    again = TripoSREngine(weights="tiny", device="cpu").generate([disc()], OPTIONS)

    assert same(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(first, engine.generate([disc(red=0)], OPTIONS))


@pytest.mark.parametrize("resolution", [64, 100, 200])
def test_the_chunk_size_changes_no_byte(engine: TripoSREngine, resolution: int) -> None:
    options = replace(OPTIONS, resolution=resolution)

    first, *others = (
        engine.generate([disc()], replace(options, chunk_size=size)) for size in (1, 1_000, 12_000, 5_000)
    )

    assert all(same(first, other) for other in others)


def test_neither_the_chunk_size_nor_the_number_of_threads_changes_a_bit_of_the_released_decoder(
    field: TriplaneField,
) -> None:
    points = torch.rand((5_000, 3), generator=torch.Generator().manual_seed(0)) * 2 - 1
    bricks = points[:3_000].view(250, 12, 3)[:, :4].mT.contiguous()
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            for chunk_size in (1, 1_000, 12_000):
                samples = field.at(points, chunk_size=chunk_size)
                results.append((samples.density, samples.color, field.on_bricks(bricks, chunk_size=chunk_size)))
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)

    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_colours_of_texels_do_not_depend_on_how_many_are_asked_for(engine: TripoSREngine) -> None:
    source = engine.generate([disc()], OPTIONS).colour_source
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (3_000, 3)).astype(np.float32)

    whole = np.round(source.colours_at(points, points) * 255)
    parts = [source.colours_at(points[start : start + 700], points) for start in range(0, 3_000, 700)]

    assert np.array_equal(np.round(np.concatenate(parts) * 255), whole)


def test_colours_are_those_of_the_field(engine: TripoSREngine) -> None:
    assert engine._model is not None
    with torch.inference_mode():
        scene = torch.randn((3, 10, 2, 2), generator=torch.Generator().manual_seed(2))
        field = engine._model.field(scene)
        points = np.random.default_rng(0).uniform(-1, 1, (500, 3)).astype(np.float32)
        expected = field.at(torch.from_numpy(points), chunk_size=100).color.numpy()
    from pipeline.engines.triposr.engine import colours_of

    found = colours_of(field).colours_at(to_project_frame(points) / (2 * 0.87), points)

    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_the_frame_turns_the_cameras_side_to_the_front() -> None:
    towards_camera_right_and_up = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)

    assert to_project_frame(towards_camera_right_and_up).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_leaving_out_what_does_not_show_changes_a_picture_by_less_than_a_step_of_8_bits(field: TriplaneField) -> None:
    (camera,) = level_orbit(1, elevation_deg=10, distance=1.9, fovy_deg=40, height=16, width=16)
    rays = [
        torch.from_numpy(part.astype(np.float32)).reshape(-1, 3) for part in pixel_rays(camera, height=16, width=16)
    ]
    with torch.inference_mode():
        exact = render_rays(field, *rays, chunk_size=8192)
        occupancy = Occupancy(field, chunk_size=8192)
        quick = render_rays(field, *rays, chunk_size=8192, occupancy=occupancy, min_transmittance=1e-3)

    assert float((exact - quick).abs().max()) < 1.5 / 255


def test_a_turntable_does_not_depend_on_the_chunk_size(field: TriplaneField) -> None:
    with torch.inference_mode():
        first, second = (
            np.stack(list(turntable_frames(field, frames=2, size=12, chunk_size=size))) for size in (1, 12_000)
        )

    assert np.array_equal(first, second)
    assert first.std() > 0


def test_progress_rises_to_one_and_a_cancel_gets_through(engine: TripoSREngine) -> None:
    shares: list[float] = []
    generation = engine.generate([disc()], replace(OPTIONS, render=True), on_step=shares.append)
    assert generation.turntable_mp4 is not None and generation.turntable_mp4[4:8] == b"ftyp"
    assert shares == sorted(shares)
    assert shares[-1] == 1.0

    def stop(share: float) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        engine.generate([disc()], OPTIONS, on_step=stop)


def test_loading_in_two_halves_is_loading(engine: TripoSREngine) -> None:
    other = TripoSREngine(weights="tiny", device="cpu")
    with pytest.raises(RuntimeError, match="call load_weights before to_device"):
        other.to_device()
    other.load_weights()
    other.to_device("cpu")

    assert same(other.generate([disc()], OPTIONS), engine.generate([disc()], OPTIONS))


def test_wrong_input_is_refused(engine: TripoSREngine) -> None:
    empty, line = np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 4), np.uint8)
    line[2:5, 3] = 255
    with pytest.raises(InvalidRequest, match="takes one view, got 2"):
        engine.generate([disc(), disc()], OPTIONS)
    for view in (empty, line):
        with pytest.raises(UnreadableImage, match="holds no subject"):
            engine.generate([view], OPTIONS)
