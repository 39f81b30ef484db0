from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines.base import Generation, GenerationOptions
from pipeline.engines.registry import make_engine
from pipeline.engines.trellis.engine import TrellisEngine
from pipeline.engines.trellis.preprocess import FOREGROUND_RATIO
from pipeline.errors import Cancelled, InvalidRequest, UnreadableImage
from pipeline.settings import Settings
from tests.fakes.images import draw_disc

OPTIONS = GenerationOptions(seed=7, ss_sampling_steps=3, slat_sampling_steps=3, splat=True)


@pytest.fixture(scope="module")
def engine() -> TrellisEngine:
    engine = make_engine("trellis", weights="tiny", device="cpu")
    assert isinstance(engine, TrellisEngine)
    engine.load()
    return engine


@pytest.fixture(scope="module")
def generation(engine: TrellisEngine) -> Generation:
    """The generation of `draw_disc()` with `OPTIONS`."""
    return engine.generate([draw_disc()], OPTIONS)


def same(a: Generation, b: Generation) -> bool:
    arrays = [(a.mesh.vertices, b.mesh.vertices), (a.mesh.faces, b.mesh.faces)]
    return all(np.array_equal(x, y) for x, y in arrays) and dict(a.extra_files) == dict(b.extra_files)


def test_an_image_becomes_a_mesh_with_colours_and_a_splat_file(engine: TrellisEngine, generation: Generation) -> None:
    mesh = generation.mesh
    assert len(mesh.faces) > 1000
    assert mesh.volume() > 0
    assert np.abs(mesh.bounds()).max() < 0.52  # a vertex may leave the cube by less than half of the grid's cubes
    assert len(np.unique(mesh.faces)) == len(mesh.vertices)
    colours = generation.attribute_source.attributes_at(mesh.vertices[:50], mesh.vertex_normals()[:50]).base_colour
    assert colours.dtype == np.float32
    assert 0 <= colours.min() <= colours.max() <= 1
    assert colours.std() > 0
    assert generation.extra_files["splat.ply"].startswith(b"ply\n")
    assert (generation.engine, generation.seed, generation.gpu_seconds) == ("trellis", 7, 0.0)
    assert not engine.is_on_accelerator


def test_a_generation_pickles_without_torch(generation: Generation) -> None:
    data = pickle.dumps(generation)

    assert b"torch" not in data
    assert same(pickle.loads(data), generation)


def test_a_seed_reproduces_every_byte_and_another_seed_does_not(engine: TrellisEngine, generation: Generation) -> None:
    torch.rand(5)  # the global generator must not matter

    assert same(generation, engine.generate([draw_disc()], OPTIONS))
    assert same(generation, TrellisEngine(weights="tiny", device="cpu").generate([draw_disc()], OPTIONS))
    assert not same(generation, engine.generate([draw_disc()], replace(OPTIONS, seed=8)))


def test_the_first_half_of_a_split_load_uses_no_accelerator() -> None:
    code = """if True:
        import torch
        queries = []
        torch.cuda.is_available = lambda: bool(queries.append(1))
        from pipeline.engines.trellis.engine import TrellisEngine
        engine = TrellisEngine(weights="tiny")
        engine.load_weights()
        print(len(queries), torch.cuda.is_initialized())
        engine.to_device()
        print(len(queries))
    """

    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout

    assert output.split() == ["0", "False", "1"]


def test_an_engine_with_a_split_load_generates_the_same(generation: Generation) -> None:
    split = TrellisEngine(weights="tiny", device="cpu")
    with pytest.raises(RuntimeError, match="call load_weights before to_device"):
        split.to_device()

    split.load_weights()
    split.to_device()

    assert same(split.generate([draw_disc()], OPTIONS), generation)


def test_a_configured_precision_is_kept_when_the_weights_move_to_a_device() -> None:
    engine = TrellisEngine(weights="tiny", dtype="float16")
    engine.load_weights()
    engine.to_device("cpu")

    assert engine._models is not None
    assert engine._models.latent_flow.dtype == torch.float16
    assert engine._models.latent_flow.blocks[0].mlp.mlp[0].weight.dtype == torch.float16
    assert engine._models.latent_flow.input_layer.weight.dtype == torch.float32


def test_a_generation_does_not_touch_the_global_generator(engine: TrellisEngine) -> None:
    before = torch.get_rng_state()

    TrellisEngine(weights="tiny", device="cpu").load()
    engine.generate([draw_disc()], OPTIONS)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        {"ss_sampling_steps": 4},
        {"slat_sampling_steps": 4},
        {"ss_guidance_strength": 2.0},
        {"slat_guidance_strength": 7.0},
        {"resolution": 128},
        {"resolution": 512},
    ],
    ids=str,
)
def test_an_option_changes_the_result(engine: TrellisEngine, generation: Generation, change: dict[str, float]) -> None:
    assert not same(generation, engine.generate([draw_disc()], replace(OPTIONS, **change)))


@pytest.mark.parametrize("resolution", [256, 100])
@pytest.mark.parametrize("chunk_size", [1, 333])
def test_the_chunk_size_does_not_change_the_result(engine: TrellisEngine, chunk_size: int, resolution: int) -> None:
    options = replace(OPTIONS, resolution=resolution)

    whole, chunked = (engine.generate([draw_disc()], replace(options, chunk_size=n)) for n in (8192, chunk_size))

    assert same(whole, chunked)


def test_a_higher_resolution_gives_a_finer_surface(engine: TrellisEngine) -> None:
    faces = [
        len(engine.generate([draw_disc()], replace(OPTIONS, resolution=r)).mesh.faces) for r in (64, 128, 256, 512)
    ]

    assert faces == sorted(faces)
    assert faces[0] * 4 < faces[2]


def test_another_image_changes_the_result(engine: TrellisEngine, generation: Generation) -> None:
    assert not same(generation, engine.generate([draw_disc(red=0)], OPTIONS))


def test_several_views_differ_from_one_and_the_modes_from_each_other(
    engine: TrellisEngine, generation: Generation
) -> None:
    views = [draw_disc(), draw_disc(red=0), draw_disc()[:, ::-1]]

    stochastic = engine.generate(views, replace(OPTIONS, multi_image_mode="stochastic"))
    multidiffusion = engine.generate(views, replace(OPTIONS, multi_image_mode="multidiffusion"))

    assert not same(generation, stochastic)
    assert not same(generation, multidiffusion)
    assert not same(stochastic, multidiffusion)
    with_angles = engine.generate(views, replace(OPTIONS, view_angles=(0.0, 90.0, 180.0)))
    assert same(stochastic, with_angles)  # the default of the engine, which has no use for angles
    assert with_angles.warnings == ("The TRELLIS engine ignores view_angles.",) and with_angles.view_angles is None


def test_the_mode_of_a_request_overrides_that_of_the_engine() -> None:
    views = [draw_disc(), draw_disc(red=0)]
    deployed = TrellisEngine(weights="tiny", device="cpu", multi_image_mode="multidiffusion")

    by_default = deployed.generate(views, OPTIONS)
    by_request = deployed.generate(views, replace(OPTIONS, multi_image_mode="stochastic"))

    assert not same(by_default, by_request)


@pytest.mark.parametrize(
    "numbers",
    [
        {"ss_cfg_interval": (0.9, 1.0)},
        {"slat_cfg_interval": (0.9, 1.0)},
        {"ss_rescale_t": 1.0},
        {"slat_rescale_t": 1.0},
    ],
    ids=str,
)
def test_configured_sampler_settings_reach_their_stage(
    engine: TrellisEngine, generation: Generation, numbers: dict[str, Any]
) -> None:
    tuned = TrellisEngine(weights="tiny", device="cpu", **numbers)
    tuned._models = engine._models

    assert not same(tuned.generate([draw_disc()], OPTIONS), generation)


def test_unset_sampler_settings_leave_those_of_the_model(engine: TrellisEngine) -> None:
    arguments = Settings(_env_file=None).engine_arguments["trellis"]  # pyright: ignore[reportCallIssue]
    tuned = TrellisEngine(weights="tiny", device="cpu", **arguments)

    assert tuned.spec == engine.spec


def test_without_a_texture_the_colour_source_is_the_vertex_colours(engine: TrellisEngine) -> None:
    generation = engine.generate([draw_disc()], replace(OPTIONS, no_texture=True, splat=False))

    assert type(generation.attribute_source).__name__ == "VertexColours"
    assert dict(generation.extra_files) == {}


def test_progress_rises_to_one_and_a_cancellation_stops_the_generation(engine: TrellisEngine) -> None:
    shares: list[float] = []
    engine.generate([draw_disc()], OPTIONS, on_step=shares.append)
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (1 + 3 + 3 + 2, 1.0)

    def stop(share: float) -> None:
        if share > 0.5:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        engine.generate([draw_disc()], OPTIONS, on_step=stop)


def test_a_turntable_is_rendered_from_the_field_and_does_not_depend_on_the_chunk_size(engine: TrellisEngine) -> None:
    short = TrellisEngine(weights="tiny", device="cpu")
    short._models = engine._models
    short.spec = replace(engine.spec, turntable_frames=3, turntable_size=48)
    options = replace(OPTIONS, render=True)

    first = short.generate([draw_disc()], options).turntable_mp4
    second = short.generate([draw_disc()], replace(options, chunk_size=700)).turntable_mp4

    assert first is not None
    assert first[4:8] == b"ftyp"
    assert first == second


def test_a_cpu_leaves_a_turntable_of_the_released_size_to_the_mesh_and_says_so(engine: TrellisEngine) -> None:
    large = TrellisEngine(weights="tiny", device="cpu")
    large._models = engine._models
    large.spec = replace(engine.spec, turntable_frames=120, turntable_size=512, turntable_ssaa=4)

    generation = large.generate([draw_disc()], replace(OPTIONS, render=True, splat=False, no_texture=True))

    assert generation.turntable_mp4 is None  # the export stage renders one of the mesh
    assert generation.warnings == (
        "The turntable shows the textured mesh: without a GPU, rendering the radiance field takes hours.",
    )


def test_unknown_names_and_missing_subjects_are_refused(engine: TrellisEngine) -> None:
    with pytest.raises(InvalidRequest, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        TrellisEngine(weights="tiny", dtype="int8")
    with pytest.raises(InvalidRequest, match="multi_image_mode must be one of stochastic, multidiffusion, got 'mean'"):
        TrellisEngine(weights="tiny", multi_image_mode="mean")
    with pytest.raises(InvalidRequest, match="multi_image_mode must be one of"):
        engine.generate([draw_disc()], replace(OPTIONS, multi_image_mode="mean"))
    with pytest.raises(InvalidRequest, match="at least one view is needed"):
        engine.generate([], OPTIONS)
    with pytest.raises(UnreadableImage):
        engine.generate([np.zeros((8, 8, 4), np.uint8)], OPTIONS)


def test_foreground_ratio_changes_the_frame_of_every_view_and_its_default_changes_nothing(
    engine: TrellisEngine, generation: Generation
) -> None:
    usual = replace(OPTIONS, foreground_ratio=FOREGROUND_RATIO)
    assert same(engine.generate([draw_disc()], usual), generation)
    assert not same(engine.generate([draw_disc()], replace(OPTIONS, foreground_ratio=0.5)), generation)
