"""The engine with tiny weights: a text to a generation, and a given shape to a variant of it."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.engines.base import Generation, GenerationOptions
from pipeline.engines.registry import make_engine
from pipeline.engines.trellis.text.engine import TrellisTextEngine
from pipeline.errors import Cancelled, EngineFailed, InvalidRequest
from pipeline.mesh.voxelize import voxelize
from pipeline.settings import Settings
from tests.engines.trellis.test_engine import same
from tests.fakes.images import draw_disc
from tests.mesh.shapes import cuboid

OPTIONS = GenerationOptions(seed=7, ss_sampling_steps=3, slat_sampling_steps=3, splat=True, prompt="a robot")


@pytest.fixture(scope="module")
def engine() -> TrellisTextEngine:
    engine = make_engine("trellis-text", weights="tiny", device="cpu")
    assert isinstance(engine, TrellisTextEngine)
    engine.load()
    return engine


@pytest.fixture(scope="module")
def generation(engine: TrellisTextEngine) -> Generation:
    return engine.generate([], OPTIONS)


def test_a_text_becomes_a_mesh_with_colours_and_a_splat_file(generation: Generation) -> None:
    mesh = generation.mesh
    assert len(mesh.faces) > 1000
    assert mesh.volume() > 0
    assert np.abs(mesh.bounds()).max() < 0.52
    colours = generation.attribute_source.attributes_at(mesh.vertices[:50], mesh.vertex_normals()[:50]).base_colour
    assert colours.std() > 0
    assert generation.extra_files["splat.ply"].startswith(b"ply\n")
    assert (generation.engine, generation.seed, generation.gpu_seconds) == ("trellis-text", 7, 0.0)
    assert generation.warnings == ()
    assert b"torch" not in pickle.dumps(generation)


def test_a_seed_reproduces_every_byte_and_another_seed_does_not(
    engine: TrellisTextEngine, generation: Generation
) -> None:
    torch.rand(5)  # the global generator must not matter

    assert same(generation, engine.generate([], OPTIONS))
    assert same(generation, TrellisTextEngine(weights="tiny", device="cpu").generate([], OPTIONS))
    assert not same(generation, engine.generate([], replace(OPTIONS, seed=8)))


def test_a_split_load_generates_the_same(generation: Generation) -> None:
    split = TrellisTextEngine(weights="tiny", device="cpu")
    split.load_weights()
    split.to_device()

    assert same(split.generate([], OPTIONS), generation)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a robots"},
        {"negative_prompt": "blurry"},
        {"ss_sampling_steps": 4},
        {"slat_sampling_steps": 4},
        {"ss_guidance_strength": 2.0},
        {"slat_guidance_strength": 7.0},
        {"resolution": 128},
    ],
    ids=str,
)
def test_an_option_changes_the_result(
    engine: TrellisTextEngine, generation: Generation, change: dict[str, object]
) -> None:
    changed = engine.generate([], replace(OPTIONS, **change))  # type: ignore[arg-type]

    assert not same(generation, changed)


def test_without_guidance_a_negative_prompt_has_no_effect(engine: TrellisTextEngine) -> None:
    unguided = replace(OPTIONS, ss_guidance_strength=0.0, slat_guidance_strength=0.0)

    assert same(engine.generate([], unguided), engine.generate([], replace(unguided, negative_prompt="blurry")))


def test_what_the_model_does_not_read_changes_nothing_and_is_told(engine: TrellisTextEngine) -> None:
    read = "x" * 75  # one token each in the vocabulary of bytes
    texts = [read + " end", read + " another end"]

    one, other = (engine.generate([], replace(OPTIONS, prompt=text, negative_prompt=text)) for text in texts)

    assert same(one, other)
    assert one.warnings == (
        "The model reads the first 75 tokens of prompt, which has 78; this end of it had no effect: “end”.",
        "The model reads the first 75 tokens of negative_prompt, which has 78; this end of it had no effect: “end”.",
    )


@pytest.mark.parametrize("prompt", ["👨‍👩‍👧 ❤️", "木製の椅子\nwith a line break", "\u202eabc", "<|endoftext|>", "&amp;"])
def test_any_text_becomes_an_asset(engine: TrellisTextEngine, prompt: str) -> None:
    assert len(engine.generate([], replace(OPTIONS, prompt=prompt)).mesh.faces) > 100


def test_a_view_or_a_missing_text_is_refused(engine: TrellisTextEngine) -> None:
    for views, options in (([draw_disc()], OPTIONS), ([], replace(OPTIONS, prompt=None))):
        with pytest.raises(InvalidRequest, match="engine trellis-text takes a text and no image"):
            engine.generate(views, options)


def test_a_model_without_an_occupied_voxel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TrellisTextEngine(weights="tiny", device="cpu")
    engine.load()
    assert engine._models is not None
    with torch.no_grad():
        engine._models.structure_decoder.out_layer[2].bias -= 1000.0  # type: ignore[index,operator]

    with pytest.raises(EngineFailed, match="no voxel is occupied"):
        engine.generate([], OPTIONS)


def test_a_given_shape_is_kept(engine: TrellisTextEngine) -> None:
    mesh = cuboid((1.0, 0.5, 0.25))
    options = replace(OPTIONS, init_voxels=voxelize(mesh.vertices, mesh.faces))

    one, other = engine.generate([], options), engine.generate([], replace(options, prompt="gold"))

    assert not same(one, other)  # its details differ
    lowest, highest = one.mesh.bounds()
    # The box lies on z in the frame of the voxels, which is y here; tiny cells are an eighth of the cube.
    np.testing.assert_allclose(highest - lowest, [1.0, 0.25, 0.5], atol=0.26)
    assert (highest - lowest)[0] > (highest - lowest)[2] > (highest - lowest)[1]


def test_a_given_shape_is_not_sampled(engine: TrellisTextEngine) -> None:
    mesh = cuboid((1.0, 0.5, 0.25))
    options = replace(OPTIONS, init_voxels=voxelize(mesh.vertices, mesh.faces))

    # No noise of stage 1 is drawn, so its fields change nothing.
    assert same(engine.generate([], options), engine.generate([], replace(options, ss_sampling_steps=9)))


def test_a_generation_can_be_cancelled_at_a_step(engine: TrellisTextEngine) -> None:
    shares: list[float] = []

    def cancel(share: float) -> None:
        shares.append(share)
        if share > 0.3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        engine.generate([], OPTIONS, on_step=cancel)
    assert shares == sorted(shares)


def test_settings_choose_precision_and_size() -> None:
    settings = Settings(trellis_dtype="bfloat16", trellis_text_size="base")
    engine = make_engine("trellis-text", weights="nowhere", **settings.engine_arguments["trellis-text"])
    assert isinstance(engine, TrellisTextEngine)

    assert engine.spec.name == "TRELLIS-text-base"
    with pytest.raises(InvalidRequest, match="the size must be one of base, large, xlarge, got 'huge'"):
        TrellisTextEngine(weights="nowhere", size="huge")
