"""TripoSR behind the service: every format of it comes out of a running `serve`, and opens elsewhere."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trimesh

from tests.e2e.test_serve_command import WAIT_S, serving
from tests.fakes.images import draw_figure, encode

FIELDS = {"engine": "triposr", "resolution": 64, "texture_size": 512, "seed": 5}


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
        return json.load(answer)


def made(base: str, key: str, **fields: Any) -> bytes:
    """The model's file, once the service has made it."""
    image = base64.b64encode(encode(draw_figure(96))).decode()
    body = post(f"{base}/api/v6/3d/image_to_3d", {"key": key, "image": image, **FIELDS, **fields})
    until = time.monotonic() + 2 * WAIT_S
    while body["status"] == "processing" and time.monotonic() < until:
        time.sleep(0.2)
        body = post(body["fetch_result"], {"key": key})
    assert body["status"] == "success", body
    with urllib.request.urlopen(body["output"][0], timeout=WAIT_S) as file:
        return file.read()


def test_every_format_comes_from_the_service_and_the_same_seed_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_ENGINE", "triposr")
    monkeypatch.setenv("IMAGE_TO_3D_WEIGHTS", "tiny")
    with serving(tmp_path / "data") as (_, port, said):
        key = next(match[1] for line in said if (match := re.search(r"shown this once: (\S+)", line)))
        files = {
            kind: made(f"http://127.0.0.1:{port}", key, output_format=kind) for kind in ("glb", "obj", "stl", "ply")
        }
        again = made(f"http://127.0.0.1:{port}", key, output_format="glb", track_id="again")

    for kind, content in files.items():
        loaded = trimesh.load(io.BytesIO(content), file_type=kind, process=False)
        (part,) = loaded.geometry.values() if isinstance(loaded, trimesh.Scene) else [loaded]
        assert len(part.faces) > 100, kind
    assert again == files["glb"]
