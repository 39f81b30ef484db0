"""A service with the tiny models of both engines with weights: whole jobs on a CPU, through the HTTP API."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import trimesh

from tests.e2e.test_serve_command import WAIT_S, serving
from tests.fakes.images import draw_disc, draw_figure, encode

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


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGE_TO_3D_ENGINE", "triposr")
        patch.setenv("IMAGE_TO_3D_ENGINES", "trellis")
        patch.setenv("IMAGE_TO_3D_WEIGHTS", "tiny")
        with serving(tmp_path_factory.mktemp("service") / "data") as (_, port, said):
            key = next(match[1] for line in said if (match := re.search(r"shown this once: (\S+)", line)))
            yield Service(f"http://127.0.0.1:{port}", key)


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
