"""A deployment of TRELLIS with tiny weights, as a caller meets it: the whole call, on a CPU, through the endpoint."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from tests.e2e.test_serve_command import WAIT_S, serving
from tests.fakes.images import disc_as_base64

pytest.importorskip("torch")
SPLAT_HEADER = b"ply\nformat binary_little_endian 1.0\nelement vertex "


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


def test_a_call_with_tiny_weights_gives_every_file_and_the_same_bytes_again(tmp_path: Path) -> None:
    fields = {
        "image": disc_as_base64(),
        "render": True,
        "splat": True,
        "seed": 11,
        "texture_size": 512,
        "resolution": 128,
    }
    with serving(tmp_path / "data", "--engine", "trellis", "--weights", "tiny") as (_, port, said):
        shown = re.search(r"shown this once: (\S+)", "\n".join(said))
        assert shown is not None
        files: list[dict[str, bytes]] = []
        for _ in range(2):
            answer = ask(f"http://127.0.0.1:{port}/api/v6/3d/image_to_3d", {"key": shown[1], **fields})
            deadline = time.monotonic() + WAIT_S
            while answer["status"] == "processing":
                assert time.monotonic() < deadline, answer
                answer = ask(answer["fetch_result"], {"key": shown[1]})
            assert answer["status"] == "success", answer
            links = [*answer["output"], *answer["extra_assets"]]
            files.append({result_of(link): download(link) for link in links})

    first, second = files
    assert answer["meta"]["engine"] == "trellis"
    assert first == second
    assert {".glb", ".mp4", ".splat.ply"} <= first.keys()
    mesh: Any = trimesh.load(BytesIO(first[".glb"]), file_type="glb", force="mesh")
    assert len(mesh.faces) > 100
    assert mesh.visual.material.baseColorTexture.size == (512, 512)
    assert first[".mp4"][4:8] == b"ftyp"
    assert first[".splat.ply"].startswith(SPLAT_HEADER)
    rows = np.frombuffer(first[".splat.ply"].split(b"end_header\n", 1)[1], "<f4").reshape(-1, 17)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows[:, 13:], axis=1), 1, atol=1e-5)


def result_of(link: str) -> str:
    """What follows the prefix in a file's name: `.glb`, `.splat.ply`, `_thumbnail.png`."""
    name = link.split("?")[0].rsplit("/", 1)[1]
    return name[re.search(r"[._](?=[a-z])", name).start() :]  # type: ignore[union-attr]
