"""The background remover is downloaded with the weights, and only the pinned file is accepted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.errors import WeightsUnusable
from pipeline.imaging.rembg_remover import REMOVER_FILE
from pipeline.nn.remover_weights import RemoverSpec, fetch_remover, missing_remover_bytes
from tests.fakes.model_hub import CONTENT, REVISION, Hub, serving

SPEC = RemoverSpec("someone/model", REVISION, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_the_remover_is_downloaded_once_to_the_folder_that_workers_read(tmp_path: Path) -> None:
    before = missing_remover_bytes(tmp_path, SPEC)

    with serving("u2net.onnx") as hub:
        for _ in range(2):
            fetch_remover(tmp_path, spec=SPEC, endpoint=hub)

    assert (before, missing_remover_bytes(tmp_path, SPEC)) == (len(CONTENT), 0)
    assert (tmp_path / REMOVER_FILE).read_bytes() == CONTENT
    assert [method for method, _, _ in Hub.asked].count("GET") == 1


def test_another_file_under_the_same_name_is_refused_and_removed(tmp_path: Path) -> None:
    other = RemoverSpec(SPEC.repo_id, SPEC.revision, SPEC.size_bytes, "0" * 64)

    with serving("u2net.onnx") as hub, pytest.raises(WeightsUnusable, match=r"^u2net\.onnx is not the published file"):
        fetch_remover(tmp_path, spec=other, endpoint=hub)

    assert not (tmp_path / REMOVER_FILE).exists()
