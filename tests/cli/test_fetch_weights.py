"""`image-to-3d fetch-weights` where nothing is downloaded; tests/nn covers the downloads."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli import fetch_weights
from pipeline.cli.fetch_weights import fetch_on_first_use
from pipeline.engines.registry import ENGINES
from pipeline.engines.trellis import weights as trellis_weights
from pipeline.engines.trellis.text import weights as text_weights
from pipeline.engines.triposr import weights as triposr_weights
from pipeline.nn import remover_weights
from pipeline.nn.hub_download import fetch_files
from tests.fakes.model_hub import CONTENT, REVISION, serving


def command() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    fetch_weights.register(app)
    return app


def test_fetching_for_an_engine_without_weights_says_that_it_needs_none() -> None:
    result = CliRunner().invoke(command(), ["fetch-weights", "--engine", "preview"])

    assert (result.exit_code, result.output) == (0, "preview needs no weights\n")


def test_an_unknown_engine_is_refused_in_one_sentence() -> None:
    result = CliRunner().invoke(command(), ["fetch-weights", "--engine", "nonsense"])

    assert result.exit_code == 1
    assert result.output == f"engine must be one of {', '.join(spec.name for spec in ENGINES)}, got 'nonsense'\n"


def test_a_size_is_for_the_engine_that_has_several() -> None:
    refused = CliRunner().invoke(command(), ["fetch-weights", "--engine", "triposr", "--size", "base"])
    unknown = CliRunner().invoke(command(), ["fetch-weights", "--engine", "trellis-text", "--size", "huge"])

    assert (refused.exit_code, refused.output) == (1, "triposr has one size; --size is for trellis-text\n")
    assert (unknown.exit_code, unknown.output) == (1, "the size must be one of base, large, xlarge, got 'huge'\n")


def test_a_size_says_what_it_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_weights, "fetch_weights", lambda folder, **_: folder)
    words = ["fetch-weights", "--engine", "trellis-text", "--dir", str(tmp_path), "--size"]

    said = {size: CliRunner().invoke(command(), [*words, size]).output.splitlines()[0] for size in ("base", "xlarge")}

    assert said == {
        "base": "trellis-text: 3.09 GB to download",
        "xlarge": "trellis-text: 6.51 GB to download",
    }


@pytest.mark.parametrize(("has_driver", "is_told"), [(False, True), (True, False)])
def test_the_first_use_of_weights_for_a_gpu_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_driver: bool, is_told: bool
) -> None:
    said: list[str] = []
    monkeypatch.setenv("PATH", str(tmp_path))
    if has_driver:
        (tmp_path / "nvidia-smi").touch(mode=0o755)
    for module in (trellis_weights, triposr_weights):
        monkeypatch.setattr(module, "fetch_weights", lambda folder, **_: said.append("downloading"))

    for engine in ("trellis", "triposr"):  # TripoSR is made for CPUs too
        fetch_on_first_use(engine, str(tmp_path / "w"), say=said.append, on_bytes=lambda name, done, size: None)

    told = "trellis needs 4.4 GB of weights and a GPU with 16 GB, and this machine has no NVIDIA driver"
    assert [line for line in said if "driver" in line] == (
        [f"{told}: on a CPU it runs, very slowly"] if is_told else []
    )
    assert [line.startswith(told) for line in said[:3]] == [False, is_told, False] and said.count("downloading") == 2


def test_one_remover_is_fetched_alone_after_its_size_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = hashlib.sha256(CONTENT).hexdigest()
    for name, spec in remover_weights.REMOVERS.items():
        pinned = replace(spec, repo_id="someone/model", revision=REVISION, size_bytes=len(CONTENT), sha256=published)
        monkeypatch.setitem(remover_weights.REMOVERS, name, pinned)
    words = ["fetch-weights", "--dir", str(tmp_path), "--remover"]

    for name, file in (("u2netp", "u2netp.onnx"), ("birefnet", "onnx/model.onnx")):
        with serving(file) as hub:
            monkeypatch.setattr(
                remover_weights, "fetch_files", lambda *a, hub=hub, **k: fetch_files(*a, **k | {"endpoint": hub})
            )
            result = CliRunner().invoke(command(), [*words, name])

        assert result.exit_code == 0, result.output
        assert result.output.splitlines()[0] == f"{name}: 17 MB to download"
        assert (tmp_path / remover_weights.REMOVERS[name].file).read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["matting"]


def test_an_unknown_remover_is_refused_with_the_names_that_there_are() -> None:
    result = CliRunner().invoke(command(), ["fetch-weights", "--remover", "magic"])

    assert result.exit_code == 1
    assert result.output == "the remover must be one of u2netp, u2net, birefnet, got 'magic'\n"
