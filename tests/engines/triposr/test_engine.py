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
from pipeline.engines.triposr.preprocess import composite_on_grey, frame_foreground, resize_images
from pipeline.engines.triposr.surface import extract_surface
from pipeline.errors import Cancelled, InvalidRequest, UnreadableImage
from tests.fakes.images import draw_disc

OPTIONS = GenerationOptions(seed=7, resolution=64)


@pytest.fixture(scope="module")
def engine() -> TripoSREngine:
    engine = make_engine("triposr", weights="tiny", device="cpu")
    assert isinstance(engine, TripoSREngine)
    engine.load()
    return engine


@pytest.fixture(scope="module")
def generation(engine: TripoSREngine) -> Generation:
    """The generation of `draw_disc()` with `OPTIONS`."""
    return engine.generate([draw_disc()], OPTIONS)


def same(a: Generation, b: Generation) -> bool:
    points, normals = a.mesh.vertices[:2000], a.mesh.vertex_normals()[:2000]
    return (
        np.array_equal(a.mesh.vertices, b.mesh.vertices)
        and np.array_equal(a.mesh.faces, b.mesh.faces)
        and np.array_equal(
            a.attribute_source.attributes_at(points, normals).base_colour,
            b.attribute_source.attributes_at(points, normals).base_colour,
        )
    )


def test_a_body_that_reaches_the_box_is_closed_there(generation: Generation) -> None:
    faces = generation.mesh.faces
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    _, shared = np.unique(np.sort(edges, axis=1), axis=0, return_counts=True)
    assert (shared % 2 == 0).all()


def test_an_image_becomes_a_mesh_with_colours(engine: TripoSREngine, generation: Generation) -> None:
    mesh = generation.mesh
    assert len(mesh.faces) > 1000
    assert mesh.volume() > 0
    assert np.abs(mesh.bounds()).max() <= 0.5
    colours = generation.attribute_source.attributes_at(mesh.vertices, mesh.vertex_normals()).base_colour
    assert colours.dtype == np.float32
    assert 0 <= colours.min() <= colours.max() <= 1
    assert colours.std() > 0
    assert (generation.engine, generation.seed, generation.gpu_seconds) == ("triposr", 7, 0.0)
    assert not engine.is_on_accelerator


def test_a_generation_pickles_without_torch(generation: Generation) -> None:
    data = pickle.dumps(generation)

    assert b"torch" not in data
    assert same(pickle.loads(data), generation)


def test_colours_import_no_torch() -> None:
    code = "import sys, pipeline.engines.triposr.colours; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_generation_is_reproducible_and_another_image_gives_another_shape(
    engine: TripoSREngine, generation: Generation
) -> None:
    before = torch.get_rng_state()

    again = TripoSREngine(weights="tiny", device="cpu").generate([draw_disc()], OPTIONS)

    assert same(generation, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(generation, engine.generate([draw_disc(red=0)], OPTIONS))


@pytest.mark.parametrize("chunk_size", [1, 1_000, 12_000, 5_000])
def test_the_chunk_size_does_not_change_the_generation(
    engine: TripoSREngine, generation: Generation, chunk_size: int
) -> None:
    assert same(generation, engine.generate([draw_disc()], replace(OPTIONS, chunk_size=chunk_size)))


@pytest.mark.parametrize("resolution", [100, 136])
def test_the_chunk_size_does_not_change_the_surface(engine: TripoSREngine, resolution: int) -> None:
    assert engine._model is not None
    image = torch.from_numpy(composite_on_grey(frame_foreground(draw_disc())))[None]

    with torch.inference_mode():
        field = engine._model.field(engine._model(resize_images(image, size=engine.spec.cond_image_size))[0])
        first, *others = (
            extract_surface(field, resolution=resolution, chunk_size=size, is_closed=True)
            for size in (1, 12_000, 5_000)
        )

    assert len(first.faces) > 1000
    for other in others:
        assert torch.equal(first.vertices, other.vertices) and torch.equal(first.faces, other.faces)


def test_progress_rises_to_one_and_a_cancellation_stops_the_generation(engine: TripoSREngine) -> None:
    short = TripoSREngine(weights="tiny", device="cpu")
    short._model = engine._model
    short.spec = replace(engine.spec, turntable_frames=4, turntable_size=32)
    shares: list[float] = []
    generation = short.generate([draw_disc()], replace(OPTIONS, render=True), on_step=shares.append)
    assert generation.turntable_mp4 is not None and generation.turntable_mp4[4:8] == b"ftyp"
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (engine.spec.backbone.num_layers + 2 + 4 + 1, 1.0)

    def stop(share: float) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        engine.generate([draw_disc()], OPTIONS, on_step=stop)


def test_an_engine_with_a_split_load_generates_the_same(generation: Generation) -> None:
    other = TripoSREngine(weights="tiny", device="cpu")
    with pytest.raises(RuntimeError, match="call load_weights before to_device"):
        other.to_device()
    other.load_weights()
    other.to_device("cpu")

    assert same(other.generate([draw_disc()], OPTIONS), generation)


def test_options_without_an_effect_are_named(engine: TripoSREngine) -> None:
    options = replace(OPTIONS, view_angles=(90.0,), splat=True)
    assert engine.generate([draw_disc()], options).warnings == ("The TripoSR engine ignores splat, view_angles.",)


def test_two_views_and_views_without_a_subject_are_refused(engine: TripoSREngine) -> None:
    empty, line = np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 4), np.uint8)
    line[2:5, 3] = 255
    with pytest.raises(InvalidRequest, match="takes one view, got 2"):
        engine.generate([draw_disc(), draw_disc()], OPTIONS)
    for view in (empty, line):
        with pytest.raises(UnreadableImage, match="holds no subject"):
            engine.generate([view], OPTIONS)


@pytest.mark.parametrize("ratio", [0.5, 0.7, 1.0])
def test_the_subject_fills_the_share_of_the_frame_that_is_asked_for(ratio: float) -> None:
    view = np.zeros((300, 300, 4), np.uint8)
    view[50:250, 100:180] = 255

    framed = frame_foreground(view, ratio=ratio)

    assert np.ptp(np.argwhere(framed[..., 3])[:, 0]) + 1 == pytest.approx(ratio * len(framed), abs=1)


def test_foreground_ratio_changes_the_result_and_its_default_changes_nothing(
    engine: TripoSREngine, generation: Generation
) -> None:
    assert same(engine.generate([draw_disc()], replace(OPTIONS, foreground_ratio=0.85)), generation)
    assert not same(engine.generate([draw_disc()], replace(OPTIONS, foreground_ratio=0.5)), generation)
