"""A service with the tiny TRELLIS.2: every format, every field, through the HTTP API of a real server process."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import trimesh

from pipeline.formats.reading import read_3mf
from tests.e2e.test_engine_services import Service, download, tiny_service
from tests.fakes.images import draw_disc, draw_figure, encode
from tests.gltf import document_of, issues_of

pytest.importorskip("torch")
FORMATS = ("glb", "obj", "stl", "ply", "usdz", "3mf")
IMAGES = [base64.b64encode(encode(image)).decode() for image in (draw_figure(96), draw_disc())]
FEW_STEPS = {"ss_sampling_steps": 2, "slat_sampling_steps": 2, "tex_sampling_steps": 2}
FIELDS: dict[str, Any] = {
    "image": IMAGES[0],
    "seed": 7,
    "detail": 512,
    "texture_size": 512,
    "target_faces": 600,
    **FEW_STEPS,
}
TWO_VIEWS = {"image": IMAGES, "multi_image": True}
OF_SHAPE: dict[str, dict[str, Any]] = {
    "seed": {"seed": 8},
    "ss_guidance_strength": {"ss_guidance_strength": 1},
    "ss_sampling_steps": {"ss_sampling_steps": 3},
    "slat_guidance_strength": {"slat_guidance_strength": 1},
    "slat_sampling_steps": {"slat_sampling_steps": 3},
    "foreground_ratio": {"foreground_ratio": 0.7},
    "another image": {"image": IMAGES[1]},
    "stochastic": {**TWO_VIEWS, "multi_image_mode": "stochastic"},
    "multidiffusion": {**TWO_VIEWS, "multi_image_mode": "multidiffusion"},
    "target_faces": {"target_faces": 400},
    "detail": {"detail": 1024},
}
OF_TEXTURE: dict[str, dict[str, Any]] = {
    "tex_guidance_strength": {"tex_guidance_strength": 4},
    "tex_sampling_steps": {"tex_sampling_steps": 3},
}
WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "again": {"track_id": "again"},
    "resolution": {"resolution": 128},
    "splat": {"splat": True},
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with tiny_service(tmp_path_factory.mktemp("service"), ENGINE="trellis2", TRELLIS2_DETAIL="512") as service:
        yield service


def positions(content: bytes) -> bytes:
    """The vertices of a GLB."""
    mesh: Any = trimesh.load(io.BytesIO(content), file_type="glb", force="mesh", process=False)
    return np.asarray(mesh.vertices, np.float32).tobytes()


def files_of(result: dict[str, Any]) -> dict[str, bytes]:
    """The files of a job by what follows its prefix; an OBJ names its companions, by names with the prefix."""
    prefix = result["meta"]["file_prefix"]
    links = [*result["output"], *result["extra_assets"]]
    return {
        link.split("?")[0].rsplit("/", 1)[1].removeprefix(prefix): download(link).replace(prefix.encode(), b"asset")
        for link in links
    }


def test_a_job_delivers_every_format_valid_and_the_same_bytes_again(service: Service, tmp_path: Path) -> None:
    fields = {**FIELDS, "output_formats": list(FORMATS), "render": True}

    submitted = [service.submit(**fields) for _ in range(2)]
    results = [service.result_of(body) for body in submitted]
    first, second = (files_of(result) for result in results)

    assert first == second
    assert {f".{name}" for name in FORMATS} | {".mp4"} <= first.keys()
    meta = results[0]["meta"]
    assert (meta["engine"], meta["detail"], meta["turntable"]) == ("trellis2", 512, "mesh")
    assert meta["slat_guidance_strength"] == 7.5
    (tmp_path / "asset.glb").write_bytes(first[".glb"])
    (material,) = document_of(first[".glb"])["materials"]
    assert "metallicRoughnessTexture" in material["pbrMetallicRoughness"] and material["doubleSided"]
    stl = trimesh.load(io.BytesIO(first[".stl"]), file_type="stl", force="mesh")
    for body in (stl, *read_3mf(first[".3mf"]).geometry.values()):  # whatever the surface is
        assert body.is_watertight and body.volume > 0
    for name in ("obj", "ply"):
        assert len(trimesh.load(io.BytesIO(first[f".{name}"]), file_type=name, force="mesh").faces) > 100
    issues = issues_of(tmp_path / "asset.glb")
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


def models_of(service: Service, changes: dict[str, dict[str, Any]], **fields: Any) -> tuple[dict[str, bytes], Any]:
    """The GLB of each change to the fields, and the final bodies."""
    submitted = {name: service.submit(**{**FIELDS, **fields, **change}) for name, change in changes.items()}
    results = {name: service.result_of(body) for name, body in submitted.items()}
    return {name: download(result["output"][0]) for name, result in results.items()}, results


def test_each_field_of_the_shape_has_its_effect_and_the_others_have_none(service: Service) -> None:
    models, results = models_of(service, {"first": {}, **OF_SHAPE, **WITHOUT_EFFECT}, no_texture=True)

    for name in WITHOUT_EFFECT:
        assert models[name] == models["first"], name
    assert "splat" in results["splat"]["warning"]
    assert len({positions(models[name]) for name in ("first", *OF_SHAPE)}) == 1 + len(OF_SHAPE)
    assert abs(results["target_faces"]["meta"]["mesh"]["faces"] - 400) <= 4


def test_each_field_of_the_texture_changes_the_materials_alone(service: Service) -> None:
    models, _ = models_of(service, {"first": {}, **OF_TEXTURE})

    assert len(set(models.values())) == 1 + len(OF_TEXTURE)
    assert len({positions(content) for content in models.values()}) == 1


def test_a_request_that_would_hold_a_gpu_too_long_is_refused_at_once(service: Service) -> None:
    fields = {**FIELDS, "detail": 1536, "tex_guidance_strength": 5}
    steps = dict.fromkeys(FEW_STEPS, 50)

    with pytest.raises(HTTPError) as refused:
        service.submit(**{**fields, **steps})

    message = json.loads(refused.value.read())["message"]
    assert message.startswith("ss_sampling_steps 50, slat_sampling_steps 50, tex_sampling_steps 50, detail 1536 would")
