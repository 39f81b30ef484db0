"""Every format that the command line writes with this engine, checked by third-party readers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.cli.fetch_weights import fetch_on_first_use
from pipeline.engines.base import GenerationOptions
from pipeline.engines.registry import ENGINES
from pipeline.engines.triposr import weights as triposr_weights
from pipeline.errors import InvalidRequest
from pipeline.stages.generate import LocalEngines
from tests.fakes.images import draw_figure, encode
from tests.gltf import issues_of
from tests.parity.harness import KITS

ASSET_CHECKER = KITS / "tools" / "check_asset.py"
COMMON = ["--engine", "triposr", "--weights", "tiny", "--resolution", "64", "--texture-size", "512", "--seed", "5"]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one asset in every format, and one generated twice."""
    folder = tmp_path_factory.mktemp("assets")
    (folder / "figure.png").write_bytes(encode(draw_figure(128)))
    for name in ("a.glb", "again/a.glb", "b.obj", "c.stl", "d.ply"):
        arguments = ["generate", str(folder / "figure.png"), "-o", str(folder / name), *COMMON, "--json"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)["meta"]["engine"] == "triposr"
    return folder


@pytest.mark.parametrize("name", ["a.glb", "b.obj", "c.stl", "d.ply"])
def test_every_format_opens_in_trimesh_as_a_closed_body(assets: Path, name: str) -> None:
    loaded = trimesh.load(assets / name, process=False)
    (part,) = loaded.geometry.values() if isinstance(loaded, trimesh.Scene) else [loaded]
    part.merge_vertices(merge_tex=True, merge_norm=True)

    assert part.is_watertight and part.is_winding_consistent and part.volume > 0
    if name == "d.ply":
        assert part.visual.vertex_colors[:, :3].std() > 5


@pytest.mark.parametrize("name", ["a.glb", "b.obj", "c.stl", "d.ply"])
def test_the_shared_checker_accepts_every_format(assets: Path, name: str) -> None:
    if not ASSET_CHECKER.is_file():
        pytest.skip("the shared asset checker is not next to this checkout")
    if name == "a.glb":
        assert (issues_of(assets / name)["numErrors"], issues_of(assets / name)["numWarnings"]) == (0, 0)
        return
    run = subprocess.run([sys.executable, ASSET_CHECKER, assets / name], capture_output=True, text=True, timeout=120)

    assert run.returncode == 0, run.stdout + run.stderr


def test_the_same_seed_gives_the_same_bytes(assets: Path) -> None:
    assert (assets / "a.glb").read_bytes() == (assets / "again" / "a.glb").read_bytes()


def test_several_views_are_refused_naming_the_engines_that_take_them() -> None:
    engines = LocalEngines("triposr", weights="tiny")
    view = np.asarray(draw_figure(64))

    others = ", ".join(spec.name for spec in ENGINES if spec.max_views > 1)

    with pytest.raises(InvalidRequest, match=rf"takes one view, got 2; {others} would take them$"):
        engines.generate("triposr", [view, view], GenerationOptions(seed=1), lambda share: None)


def test_the_first_use_reports_the_size_of_the_download_and_a_second_use_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []

    def download(weights: Path, **_: object) -> None:
        messages.append("downloading")
        folder = weights / triposr_weights.WEIGHTS_FOLDER
        folder.mkdir(parents=True)
        (folder / triposr_weights.FILE_NAME).write_bytes(b"weights")

    monkeypatch.setattr(triposr_weights, "fetch_weights", download)
    for _ in range(2):
        fetch_on_first_use("triposr", str(tmp_path), say=messages.append, on_bytes=lambda name, done, size: None)
    fetch_on_first_use("triposr", "tiny", say=messages.append, on_bytes=lambda name, done, size: None)
    fetch_on_first_use("preview", str(tmp_path), say=messages.append, on_bytes=lambda name, done, size: None)

    assert "1.68 GB" in messages[0]
    assert messages[2:] == ["downloading"]


def test_the_list_of_engines_shows_the_missing_bytes_of_each(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["engines", "--weights", str(tmp_path), "--json"])

    listed = {row["name"]: row for row in json.loads(result.output)["engines"]}
    assert list(listed) == [spec.name for spec in ENGINES]
    assert (listed["preview"]["missing_bytes"], listed["triposr"]["missing_bytes"]) == (0, 1677246742)
    assert all(row["installed"] for row in listed.values())
    assert "1.7 GB to fetch" in CliRunner().invoke(app, ["engines", "--weights", str(tmp_path)]).output
