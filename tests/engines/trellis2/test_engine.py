"""The TRELLIS.2 engine with tiny weights: what each option does, and what comes out."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.engines.base import Generation, GenerationOptions, ignore_steps
from pipeline.engines.conformance import draw_vase
from pipeline.engines.trellis2.engine import Trellis2Engine
from pipeline.errors import InvalidRequest, UnreadableImage, WeightsUnusable
from pipeline.stages.export import export
from schemas.request import parse_request
from tests.gltf import document_of, issues_of

OPTIONS = GenerationOptions(seed=3, detail=512, ss_sampling_steps=2, slat_sampling_steps=2, tex_sampling_steps=2)
VIEWS = [draw_vase(), draw_vase(80, 90)[:, ::-1].copy()]


@pytest.fixture(scope="module")
def engine() -> Trellis2Engine:
    made = Trellis2Engine(weights="tiny", device="cpu")
    made.load()
    return made


@pytest.fixture(scope="module")
def base(engine: Trellis2Engine) -> Generation:
    return engine.generate(VIEWS[:1], OPTIONS)


def attributes(generation: Generation) -> np.ndarray:
    """Colour, alpha, metallic and roughness at the vertices: (V, 6)."""
    found = generation.attribute_source.attributes_at(
        generation.mesh.vertices[:500], generation.mesh.vertex_normals()[:500]
    )
    assert found.alpha is not None and found.metallic is not None and found.roughness is not None
    return np.column_stack([found.base_colour, found.alpha, found.metallic, found.roughness])


def test_the_same_seed_gives_the_same_surface_and_materials(engine: Trellis2Engine, base: Generation) -> None:
    again = engine.generate(VIEWS[:1], OPTIONS)
    assert np.array_equal(again.mesh.vertices, base.mesh.vertices)
    assert np.array_equal(attributes(again), attributes(base))
    assert not base.is_closed and len(base.mesh.faces) > 100


@pytest.mark.parametrize("change", [{"seed": 4}, {"ss_guidance_strength": 1.0}, {"ss_sampling_steps": 3}])
def test_options_of_the_structure_change_the_surface(
    engine: Trellis2Engine, base: Generation, change: dict[str, float]
) -> None:
    other = engine.generate(VIEWS[:1], replace(OPTIONS, **change))
    assert not np.array_equal(other.mesh.vertices, base.mesh.vertices)


@pytest.mark.parametrize("change", [{"slat_guidance_strength": 1.0}, {"slat_sampling_steps": 3}])
def test_options_of_the_shape_change_the_surface(
    engine: Trellis2Engine, base: Generation, change: dict[str, float]
) -> None:
    other = engine.generate(VIEWS[:1], replace(OPTIONS, **change))
    assert not np.array_equal(other.mesh.vertices, base.mesh.vertices)


@pytest.mark.parametrize("change", [{"tex_guidance_strength": 4.0}, {"tex_sampling_steps": 3}])
def test_options_of_the_texture_change_the_materials_alone(
    engine: Trellis2Engine, base: Generation, change: dict[str, float]
) -> None:
    other = engine.generate(VIEWS[:1], replace(OPTIONS, **change))
    assert np.array_equal(other.mesh.vertices, base.mesh.vertices)
    assert not np.array_equal(attributes(other), attributes(base))


def test_several_images_and_how_they_are_combined_matter(engine: Trellis2Engine, base: Generation) -> None:
    made = [
        engine.generate(VIEWS, replace(OPTIONS, multi_image_mode=mode)) for mode in ("stochastic", "multidiffusion")
    ]
    surfaces = [base.mesh.vertices, *(each.mesh.vertices for each in made)]
    assert not any(np.array_equal(surfaces[a], surfaces[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_more_detail_gives_finer_voxels(engine: Trellis2Engine, base: Generation) -> None:
    fine = engine.generate(VIEWS[:1], replace(OPTIONS, detail=1024))
    assert len(fine.mesh.vertices) > 2 * len(base.mesh.vertices)


def test_networks_that_wait_in_host_memory_give_the_same(base: Generation) -> None:
    made = Trellis2Engine(weights="tiny", device="cpu", offload=True).generate(VIEWS[:1], OPTIONS)
    assert np.array_equal(made.mesh.vertices, base.mesh.vertices)


def test_a_split_load_gives_the_same(base: Generation) -> None:
    split = Trellis2Engine(weights="tiny", device="cpu")
    split.load_weights()
    split.to_device()
    assert np.array_equal(split.generate(VIEWS[:1], OPTIONS).mesh.vertices, base.mesh.vertices)


def test_a_generation_pickles_with_its_materials(base: Generation) -> None:
    before = attributes(base)
    assert np.array_equal(attributes(pickle.loads(pickle.dumps(base))), before)


def test_every_format_has_the_materials(base: Generation, tmp_path: Path) -> None:
    formats = ["glb", "obj", "usdz", "ply", "stl", "3mf"]
    request = parse_request(
        {"image": "x", "output_formats": formats, "texture_size": 512, "mesh_simplify": 0.9}
    ).request
    done = export(base, request=request, file_prefix="vase", folder=tmp_path, on_step=ignore_steps)
    names = {file.path.name for file in done.files}
    assert {f"vase.{name}" for name in formats} <= names
    assert {"vase_roughness.png", "vase_metallic.png", "vase_alpha.png"} <= names
    (material,) = document_of((tmp_path / "vase.glb").read_bytes())["materials"]
    assert "metallicRoughnessTexture" in material["pbrMetallicRoughness"] and material["doubleSided"]
    issues = issues_of(tmp_path / "vase.glb")
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


def test_what_cannot_be_used_is_refused(engine: Trellis2Engine, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="at least one view"):
        engine.generate([], OPTIONS)
    with pytest.raises(UnreadableImage, match="no subject"):
        engine.generate([np.zeros((20, 20, 4), np.uint8)], OPTIONS)
    with pytest.raises(InvalidRequest, match="detail must be one of 512, 1024, 1536"):
        Trellis2Engine(weights="tiny", detail=700)
    with pytest.raises(WeightsUnusable, match="ss_flow_img_dit"):
        Trellis2Engine(weights=tmp_path).load()
