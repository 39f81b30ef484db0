"""Background removal by a model: from the fetched file without a download, and it says what it needs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MissingExtra
from pipeline.imaging.rembg_matter import REMOVER_FILE, RembgMatter, choose_matter


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(MissingExtra, match=r"image-to-3d\[matting\]"):
        RembgMatter("isnet-general-use")


def test_without_a_fetched_file_no_model_is_used(tmp_path: Path) -> None:
    assert choose_matter(None, str(tmp_path)) is None


def test_a_fetched_file_without_the_package_leaves_the_way_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    (tmp_path / REMOVER_FILE).parent.mkdir()
    (tmp_path / REMOVER_FILE).write_bytes(b"")

    assert choose_matter(None, str(tmp_path)) is None
    with pytest.raises(MissingExtra):
        choose_matter("u2net", str(tmp_path))


def test_a_file_is_refused_for_another_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a file holds u2net"):
        RembgMatter("isnet-general-use", file=tmp_path / "u2net.onnx")


def test_the_fetched_file_removes_backgrounds(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("rembg")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["picture"], ["alpha"], axes=[1], keepdims=1)],
        "brightness",
        [helper.make_tensor_value_info("picture", kind, [1, 3, 320, 320])],
        [helper.make_tensor_value_info("alpha", kind, [1, 1, 320, 320])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / REMOVER_FILE).parent.mkdir()
    onnx.save(model, str(tmp_path / REMOVER_FILE))
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[:, 30:] = 255

    matter = choose_matter(None, str(tmp_path))

    assert matter is not None
    alpha = matter(rgb)
    assert alpha.shape == (40, 60)
    assert (alpha[:, :25] == 0).all()
    assert (alpha[:, 35:] == 255).all()
