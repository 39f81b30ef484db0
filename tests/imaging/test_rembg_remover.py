"""Background removal with a model: from the downloaded file, and with a message about what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MissingExtra
from pipeline.imaging.rembg_remover import (
    BIREFNET_FILE,
    REMOVER_FILE,
    U2NETP_FILE,
    RembgRemover,
    select_background_remover,
)
from tests.fakes.brightness_model import write_brightness_model


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(MissingExtra, match=r"image-to-3d\[matting\]"):
        RembgRemover("isnet-general-use")


def test_without_a_downloaded_file_no_model_is_selected(tmp_path: Path) -> None:
    assert select_background_remover(None, str(tmp_path)) is None


def test_a_downloaded_file_without_the_package_selects_grabcut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    (tmp_path / REMOVER_FILE).parent.mkdir()
    (tmp_path / REMOVER_FILE).write_bytes(b"")

    assert select_background_remover(None, str(tmp_path)) is None
    with pytest.raises(MissingExtra):
        select_background_remover("u2net", str(tmp_path))


def test_a_file_is_refused_for_another_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a file holds u2net"):
        RembgRemover("isnet-general-use", file=tmp_path / "u2net.onnx")


def test_the_downloaded_file_removes_backgrounds(tmp_path: Path) -> None:
    pytest.importorskip("rembg")
    write_brightness_model(tmp_path / REMOVER_FILE)
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[:, 30:] = 255

    remover = select_background_remover(None, str(tmp_path))

    assert remover is not None
    alpha = remover(rgb).alpha
    assert alpha.shape == (40, 60)
    assert (alpha[:, :25] == 0).all()
    assert (alpha[:, 35:] == 255).all()


def test_the_model_is_loaded_for_the_first_image_and_then_cached(tmp_path: Path) -> None:
    pytest.importorskip("rembg")
    write_brightness_model(tmp_path / REMOVER_FILE)
    first, second = (select_background_remover(None, str(tmp_path)) for _ in range(2))
    assert first is not None and second is not None
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[:, 4:] = 255

    alpha = first(rgb).alpha
    (tmp_path / REMOVER_FILE).unlink()

    assert np.array_equal(second(rgb).alpha, alpha)


def test_the_best_of_the_fetched_files_is_selected(tmp_path: Path) -> None:
    pytest.importorskip("rembg")
    for file in (U2NETP_FILE, REMOVER_FILE, BIREFNET_FILE):
        write_brightness_model(tmp_path / file)
        remover = select_background_remover(None, str(tmp_path))
        assert remover is not None and remover.file == tmp_path / file

    chosen = select_background_remover("u2netp", str(tmp_path))
    best = select_background_remover("birefnet", str(tmp_path))

    assert chosen is not None and (chosen.model, chosen.file) == ("u2netp", tmp_path / U2NETP_FILE)
    assert best is not None and (best.model, best.file) == ("birefnet-general-lite", tmp_path / BIREFNET_FILE)


@pytest.mark.parametrize(("file", "side"), [(U2NETP_FILE, 320), (BIREFNET_FILE, 1024)])
def test_each_fetched_model_runs_with_the_input_size_of_its_kind(tmp_path: Path, file: str, side: int) -> None:
    pytest.importorskip("rembg")
    write_brightness_model(tmp_path / file, side=side)
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[:, 30:] = 255

    remover = select_background_remover(None, str(tmp_path))

    assert remover is not None
    separation = remover(rgb)
    assert (
        separation.confidence is None and separation.alpha[:, :25].max() == 0 and separation.alpha[:, 35:].min() == 255
    )
