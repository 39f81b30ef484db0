from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions
from pipeline.engines.registry import make_engine
from pipeline.engines.trellis.cuda_warm_up import warm_up_cuda
from pipeline.engines.trellis.engine import TrellisEngine
from pipeline.engines.trellis.stages import latent_velocities, one_pass_at_a_time, structure_velocities
from pipeline.errors import Cancelled, InvalidRequest, UnreadableImage
from pipeline.ops.voxels import VoxelSet
from pipeline.settings import Settings
from tests.reference.voxels import random_coords

OPTIONS = GenerationOptions(seed=7, ss_sampling_steps=3, slat_sampling_steps=3, splat=True)


def disc(*, red: int = 200) -> ForegroundImage:
    y, x = np.mgrid[:64, :64]
    view = np.zeros((64, 64, 4), np.uint8)
    view[..., 0] = red
    view[..., 1] = 4 * x
    view[..., 2] = 4 * y
    view[..., 3] = 255 * (np.hypot(x - 32, y - 30) < 24)
    return view


@pytest.fixture(scope="module")
def engine() -> TrellisEngine:
    engine = make_engine("trellis", weights="tiny", device="cpu")
    assert isinstance(engine, TrellisEngine)
    engine.load()
    return engine


def same(a: Generation, b: Generation) -> bool:
    arrays = [(a.mesh.vertices, b.mesh.vertices), (a.mesh.faces, b.mesh.faces)]
    return all(np.array_equal(x, y) for x, y in arrays) and dict(a.extra_files) == dict(b.extra_files)


def test_a_picture_becomes_a_mesh_with_colours_and_a_splat_file(engine: TrellisEngine) -> None:
    generation = engine.generate([disc()], OPTIONS)

    mesh = generation.mesh
    assert len(mesh.faces) > 1000
    assert mesh.volume() > 0
    assert np.abs(mesh.bounds()).max() < 0.52  # a vertex may leave the cube by less than half of the grid's cubes
    assert len(np.unique(mesh.faces)) == len(mesh.vertices)
    colours = generation.colour_source.colours_at(mesh.vertices[:50], mesh.vertex_normals()[:50])
    assert colours.dtype == np.float32
    assert 0 <= colours.min() <= colours.max() <= 1
    assert colours.std() > 0
    assert generation.extra_files["splat.ply"].startswith(b"ply\n")
    assert (generation.engine, generation.seed, generation.gpu_seconds) == ("trellis", 7, 0.0)
    assert not engine.is_on_accelerator


def test_what_crosses_the_border_is_small_and_free_of_torch(engine: TrellisEngine) -> None:
    data = pickle.dumps(engine.generate([disc()], OPTIONS))

    assert b"torch" not in data
    assert same(pickle.loads(data), engine.generate([disc()], OPTIONS))


def test_a_seed_reproduces_every_byte_and_another_seed_does_not(engine: TrellisEngine) -> None:
    first = engine.generate([disc()], OPTIONS)
    torch.rand(5)  # whatever happens to the global generator

    assert same(first, engine.generate([disc()], OPTIONS))
    assert same(first, TrellisEngine(weights="tiny", device="cpu").generate([disc()], OPTIONS))
    assert not same(first, engine.generate([disc()], replace(OPTIONS, seed=8)))


def test_loading_in_two_halves_gives_the_same_engine_and_asks_for_no_accelerator_in_the_first() -> None:
    code = """if True:
        import torch
        asked = []
        torch.cuda.is_available = lambda: bool(asked.append(1))
        from pipeline.engines.trellis.engine import TrellisEngine
        engine = TrellisEngine(weights="tiny")
        engine.load_weights()
        print(len(asked), torch.cuda.is_initialized())
        engine.to_device()
        print(len(asked))
    """

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout

    assert said.split() == ["0", "False", "1"]


def test_an_engine_whose_loading_was_split_generates_the_same(engine: TrellisEngine) -> None:
    split = TrellisEngine(weights="tiny", device="cpu")
    with pytest.raises(RuntimeError, match="call load_weights before to_device"):
        split.to_device()

    split.load_weights()
    split.to_device()

    assert same(split.generate([disc()], OPTIONS), engine.generate([disc()], OPTIONS))


def test_the_precision_follows_the_device_and_survives_the_move() -> None:
    engine = TrellisEngine(weights="tiny", dtype="float16")
    engine.load_weights()
    engine.to_device("cpu")

    assert engine._models is not None
    assert engine._models.latent_flow.dtype == torch.float16
    assert engine._models.latent_flow.blocks[0].mlp.mlp[0].weight.dtype == torch.float16
    assert engine._models.latent_flow.input_layer.weight.dtype == torch.float32


def test_warming_up_runs_every_network(engine: TrellisEngine) -> None:
    assert engine._models is not None
    ran: set[str] = set()
    hooks = [
        part.register_forward_hook(lambda module, inputs, output: ran.add(type(module).__name__))
        for part in vars(engine._models).values()
    ]

    warm_up_cuda(engine._models, torch.device("cpu"))

    for hook in hooks:
        hook.remove()
    assert ran == {type(part).__name__ for part in vars(engine._models).values()}


def test_a_request_leaves_the_global_generator_alone(engine: TrellisEngine) -> None:
    before = torch.get_rng_state()

    TrellisEngine(weights="tiny", device="cpu").load()
    engine.generate([disc()], OPTIONS)

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
def test_an_option_changes_the_result(engine: TrellisEngine, change: dict[str, float]) -> None:
    assert not same(engine.generate([disc()], OPTIONS), engine.generate([disc()], replace(OPTIONS, **change)))


@pytest.mark.parametrize("resolution", [256, 100])
@pytest.mark.parametrize("chunk_size", [1, 333])
def test_the_chunk_size_changes_nothing(engine: TrellisEngine, chunk_size: int, resolution: int) -> None:
    options = replace(OPTIONS, resolution=resolution)

    assert same(engine.generate([disc()], options), engine.generate([disc()], replace(options, chunk_size=chunk_size)))


def test_resolution_sets_how_fine_the_surface_is(engine: TrellisEngine) -> None:
    faces = [len(engine.generate([disc()], replace(OPTIONS, resolution=r)).mesh.faces) for r in (64, 128, 256, 512)]

    assert faces == sorted(faces)
    assert faces[0] * 4 < faces[2]


def test_the_picture_matters(engine: TrellisEngine) -> None:
    assert not same(engine.generate([disc()], OPTIONS), engine.generate([disc(red=0)], OPTIONS))


def test_several_views_differ_from_one_and_the_modes_from_each_other(engine: TrellisEngine) -> None:
    views = [disc(), disc(red=0), disc()[:, ::-1]]

    one = engine.generate(views[:1], OPTIONS)
    stochastic = engine.generate(views, replace(OPTIONS, multi_image_mode="stochastic"))
    multidiffusion = engine.generate(views, replace(OPTIONS, multi_image_mode="multidiffusion"))

    assert not same(one, stochastic)
    assert not same(one, multidiffusion)
    assert not same(stochastic, multidiffusion)
    assert same(stochastic, engine.generate(views, OPTIONS))  # the engine's own default


def test_the_request_overrules_the_deployments_mode() -> None:
    views = [disc(), disc(red=0)]
    deployed = TrellisEngine(weights="tiny", device="cpu", multi_image_mode="multidiffusion")

    by_setting = deployed.generate(views, OPTIONS)
    by_request = deployed.generate(views, replace(OPTIONS, multi_image_mode="stochastic"))

    assert not same(by_setting, by_request)


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
def test_the_deployments_sampling_numbers_reach_their_stage(engine: TrellisEngine, numbers: dict[str, Any]) -> None:
    tuned = TrellisEngine(weights="tiny", device="cpu", **numbers)
    tuned._models = engine._models

    assert not same(tuned.generate([disc()], OPTIONS), engine.generate([disc()], OPTIONS))


def test_the_models_own_sampling_numbers_are_the_default(engine: TrellisEngine) -> None:
    given = Settings(_env_file=None).engine_arguments["trellis"]  # type: ignore[call-arg]
    tuned = TrellisEngine(weights="tiny", device="cpu", **given)

    assert tuned.spec == engine.spec


def test_without_texture_the_vertex_colours_are_enough(engine: TrellisEngine) -> None:
    generation = engine.generate([disc()], replace(OPTIONS, no_texture=True, splat=False))

    assert type(generation.colour_source).__name__ == "VertexColours"
    assert dict(generation.extra_files) == {}


def test_progress_rises_to_one_and_a_cancel_gets_through(engine: TrellisEngine) -> None:
    shares: list[float] = []
    engine.generate([disc()], OPTIONS, on_step=shares.append)
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (1 + 3 + 3 + 2, 1.0)

    def stop(share: float) -> None:
        if share > 0.5:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        engine.generate([disc()], OPTIONS, on_step=stop)


def test_a_turntable_comes_from_the_field_and_the_chunk_size_does_not_show(engine: TrellisEngine) -> None:
    pytest.importorskip("pipeline.formats.mp4")
    options = replace(OPTIONS, render=True)

    first = engine.generate([disc()], options).turntable_mp4
    second = engine.generate([disc()], replace(options, chunk_size=700)).turntable_mp4

    assert first is not None
    assert first[4:8] == b"ftyp"
    assert first == second


def test_wrong_names_are_refused_before_anything_is_read(engine: TrellisEngine) -> None:
    with pytest.raises(InvalidRequest, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        TrellisEngine(weights="tiny", dtype="int8")
    with pytest.raises(InvalidRequest, match="multi_image_mode must be one of stochastic, multidiffusion, got 'mean'"):
        TrellisEngine(weights="tiny", multi_image_mode="mean")
    with pytest.raises(InvalidRequest, match="multi_image_mode must be one of"):
        engine.generate([disc()], replace(OPTIONS, multi_image_mode="mean"))
    with pytest.raises(InvalidRequest, match="at least one view"):
        engine.generate([], OPTIONS)
    with pytest.raises(UnreadableImage):
        engine.generate([np.zeros((8, 8, 4), np.uint8)], OPTIONS)


def test_half_precision_in_the_blocks_gives_nearly_the_same_velocities(engine: TrellisEngine) -> None:
    half = TrellisEngine(weights="tiny", device="cpu", dtype="bfloat16")
    half.load()
    assert half._models is not None
    assert engine._models is not None
    voxels = VoxelSet(random_coords(40, 8, seed=0))
    tokens, noise = torch.randn(1, 9, 48), torch.randn(1, 40, 8)

    with torch.inference_mode():
        exact, rough = (
            latent_velocities(models.latent_flow, voxels, tokens)(noise, 0.7, [0], True)
            for models in (engine._models, half._models)
        )

    assert half._models.latent_flow.blocks[0].mlp.mlp[0].weight.dtype == torch.bfloat16
    assert float((rough - exact).norm() / exact.norm()) < 0.03  # bfloat16 keeps 8 bits


def test_passes_in_one_batch_equal_passes_one_by_one_and_a_context_of_zeros(engine: TrellisEngine) -> None:
    assert engine._models is not None
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 9, 48, generator=generator)
    dense, sparse = torch.randn(1, 8, 4, 4, 4, generator=generator), torch.randn(1, 40, 8, generator=generator)
    voxels = VoxelSet(random_coords(40, 8, seed=0))
    zeros = torch.zeros_like(tokens[:1])

    with torch.inference_mode():
        for x, evaluate, plain in (
            (
                dense,
                structure_velocities(engine._models.structure_flow, tokens),
                structure_velocities(engine._models.structure_flow, zeros),
            ),
            (
                sparse,
                latent_velocities(engine._models.latent_flow, voxels, tokens),
                latent_velocities(engine._models.latent_flow, voxels, zeros),
            ),
        ):
            together = evaluate(x, 0.7, [0, 1], True)
            separate = one_pass_at_a_time(evaluate)(x, 0.7, [0, 1], True)
            torch.testing.assert_close(separate, together, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together[2], plain(x, 0.7, [0], False)[0], rtol=1e-5, atol=1e-5)
