"""A service with the tiny models of the engines with weights: whole jobs on a CPU, through the HTTP API."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from pipeline.client import Client
from tests.e2e.test_serve_command import WAIT_S, serving
from tests.fakes.images import draw_disc, draw_figure, encode
from tests.schemas.test_text import EXAMPLE

pytest.importorskip("torch")
SPLAT_HEADER = b"ply\nformat binary_little_endian 1.0\nelement vertex "
POLL_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Service:
    """A running service and an API key."""

    url: str
    key: str

    def submit(self, **fields: Any) -> dict[str, Any]:
        return self.post(f"{self.url}/api/v6/3d/image_to_3d", **fields)

    def result_of(self, body: dict[str, Any]) -> dict[str, Any]:
        """Poll a job until it succeeds."""
        deadline = time.monotonic() + 2 * WAIT_S
        while body["status"] == "processing" and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
            body = self.post(body["fetch_result"])
        assert body["status"] == "success", body
        return body

    def post(self, url: str, **fields: Any) -> dict[str, Any]:
        content = json.dumps({"key": self.key, **fields}).encode()
        request = urllib.request.Request(url, content, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=WAIT_S) as response:
            return json.load(response)


@contextmanager
def tiny_service(folder: Path, **settings: str) -> Iterator[Service]:
    """A service with tiny weights and the given settings, by the ends of their names."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"WEIGHTS": "tiny", **settings}.items():
            patch.setenv(f"IMAGE_TO_3D_{name}", value)
        with serving(folder / "data") as (_, port, said):
            key = next(match[1] for line in said if (match := re.search(r"shown this once: (\S+)", line)))
            yield Service(f"http://127.0.0.1:{port}", key)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with tiny_service(folder, ENGINE="triposr", ENGINES="trellis,trellis-text", INIT_MESH="1") as service:
        yield service


def download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=WAIT_S) as response:
        return response.read()


def suffix_of(link: str) -> str:
    """Return what follows the prefix in a file's name: `.glb`, `.splat.ply`, `_thumbnail.png`."""
    name = link.split("?")[0].rsplit("/", 1)[1]
    match = re.search(r"[._](?=[a-z])", name)
    assert match is not None
    return name[match.start() :]


def test_a_trellis_job_delivers_every_file_and_the_same_bytes_again(service: Service) -> None:
    image = base64.b64encode(encode(draw_disc())).decode()
    fields = {"engine": "trellis", "render": True, "splat": True, "seed": 11, "texture_size": 512, "resolution": 128}

    submitted = [service.submit(image=image, **fields) for _ in range(2)]
    results = [service.result_of(body) for body in submitted]
    first, second = (
        {suffix_of(link): download(link) for link in [*result["output"], *result["extra_assets"]]} for result in results
    )

    assert results[0]["meta"]["engine"] == "trellis"
    assert first == second
    assert {".glb", ".mp4", ".splat.ply"} <= first.keys()
    mesh: Any = trimesh.load(io.BytesIO(first[".glb"]), file_type="glb", force="mesh")
    assert len(mesh.faces) > 100
    assert mesh.visual.material.baseColorTexture.size == (512, 512)
    assert first[".mp4"][4:8] == b"ftyp"
    assert first[".splat.ply"].startswith(SPLAT_HEADER)
    rows = np.frombuffer(first[".splat.ply"].split(b"end_header\n", 1)[1], "<f4").reshape(-1, 17)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows[:, 13:], axis=1), 1, atol=1e-5)


def test_triposr_jobs_deliver_every_format_and_the_same_bytes_again(service: Service) -> None:
    image = base64.b64encode(encode(draw_figure(96))).decode()
    fields = {"image": image, "resolution": 64, "texture_size": 512, "seed": 5}

    submitted = {kind: service.submit(**fields, output_format=kind) for kind in ("glb", "obj", "stl", "ply")}
    submitted["again"] = service.submit(**fields, output_format="glb", track_id="again")
    results = {kind: service.result_of(body) for kind, body in submitted.items()}
    files = {kind: download(result["output"][0]) for kind, result in results.items()}

    assert results["glb"]["meta"]["engine"] == "triposr"
    assert files.pop("again") == files["glb"]
    for kind, content in files.items():
        loaded = trimesh.load(io.BytesIO(content), file_type=kind, process=False)
        (part,) = loaded.geometry.values() if isinstance(loaded, trimesh.Scene) else [loaded]
        assert len(part.faces) > 100, kind


STEPS = {"ss_sampling_steps": 3, "slat_sampling_steps": 3}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("enterprise", [True, False])
def test_modelslabs_own_client_makes_a_model_from_a_text(service: Service, enterprise: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client is written for pydantic 1, which pydantic 2 warns of
        from modelslab_py.core.apis.three_d import Three_D
        from modelslab_py.core.client import Client
        from modelslab_py.schemas.threed import Text23D
    client = Client(api_key=service.key, fetch_retry=30, fetch_timeout=2)
    client.base_url = f"{service.url}/api/"
    three_d = Three_D(client=client, enterprise=enterprise)
    text = Text23D(prompt="a robot 🤖", negative_prompt="blurry", resolution="64", output_format="glb", seed=5)
    text.num_inference_steps = 3

    answer = three_d.text_to_3d(text)
    final = answer if answer["status"] == "success" else three_d.fetch(str(answer["id"]))

    assert final["status"] == "success" and final["meta"]["prompt"] == "a robot 🤖"
    assert (final["meta"]["engine"], final["meta"]["ss_sampling_steps"]) == ("trellis-text", 3)
    mesh: Any = trimesh.load(io.BytesIO(download(final["output"][0])), file_type="glb", force="mesh")
    assert len(mesh.faces) > 20


def test_a_texts_job_delivers_every_file_the_same_bytes_again_and_each_field_has_its_effect(service: Service) -> None:
    url = f"{service.url}/api/v6/3d/text_to_3d"
    fields = {"prompt": "a robot", "seed": 11, "texture_size": 512, "resolution": 128, "splat": True, **STEPS}
    changes: dict[str, dict[str, Any]] = {
        "again": {"track_id": "again"},
        "prompt": {"prompt": "a chair"},
        "negative_prompt": {"negative_prompt": "blurry"},
        "guidance_scale": {"guidance_scale": 2},
        "seed": {"seed": 12},
        "resolution": {"resolution": 64},
    }

    first = service.result_of(service.post(url, **fields, render=True))
    submitted = {name: service.post(url, **{**fields, **change}) for name, change in changes.items()}
    models = {name: download(service.result_of(body)["output"][0]) for name, body in submitted.items()}
    files = {suffix_of(link): download(link) for link in [*first["output"], *first["extra_assets"]]}

    assert {".glb", ".mp4", ".splat.ply"} <= files.keys()
    assert models.pop("again") == files[".glb"]
    for name, content in models.items():
        assert content != files[".glb"], name
    assert len(set(models.values())) == len(models)


def test_the_documented_examples_of_a_text_give_models(service: Service) -> None:
    for path in ("v6/3d", "v1/enterprise/3d"):
        body = {name: value for name, value in EXAMPLE.items() if name != "key"} | STEPS | {"resolution": 128}

        result = service.result_of(service.post(f"{service.url}/api/{path}/text_to_3d", **body))

        assert result["output"][0].split("?")[0].endswith(".glb")
        assert result["meta"]["ss_guidance_strength"] == result["meta"]["guidance_scale"] == 3


def test_a_result_is_the_shape_of_a_variant(service: Service) -> None:
    url = f"{service.url}/api/v6/3d/text_to_3d"
    fields = {"seed": 3, "texture_size": 512, "resolution": 128, **STEPS}
    first = service.result_of(service.post(url, prompt="a robot", **fields))

    variants = [
        service.result_of(service.post(url, prompt=prompt, init_mesh=first["output"][0], **fields))
        for prompt in ("gold", "wood")
    ]

    models = [download(each["output"][0]) for each in variants]
    assert models[0] != models[1]
    failed = service.post(url, prompt="gold", init_mesh="bm8gbWVzaA==", **fields)
    while failed["status"] == "processing":
        time.sleep(POLL_INTERVAL_S)
        failed = service.post(failed["fetch_result"])
    assert (failed["status"], failed["error_code"]) == ("failed", "invalid_request")
    assert failed["message"].startswith("init_mesh ")


def test_the_client_submits_a_text_and_a_mesh_of_its_own_machine(service: Service, tmp_path: Path) -> None:
    fields = {"seed": 3, "texture_size": 512, "resolution": 128, **STEPS}
    with Client(service.url, service.key) as client:
        first = client.generate_from_text("a robot", output_format="stl", **fields)  # type: ignore[arg-type]
        path, *_ = client.download(first, tmp_path)
        variants = [
            client.generate_from_text("gold", init_mesh=mesh, **fields)  # type: ignore[arg-type]
            for mesh in (path, path.read_bytes(), first.output[0])
        ]

    contents = {download(each.output[0]) for each in variants}
    assert len(contents) == 1
    assert variants[0].meta["prompt"] == "gold" and "init_mesh" not in variants[0].meta


def test_a_long_prompt_is_made_and_its_unread_end_told(service: Service) -> None:
    prompt = "x" * 75 + " and a hat"

    result = service.result_of(service.post(f"{service.url}/api/v6/3d/text_to_3d", prompt=prompt, seed=1, **STEPS))

    assert "this end of it had no effect: “and a hat”" in result["warning"]
