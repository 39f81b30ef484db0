from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines.trellis.engine import TrellisEngine
from pipeline.engines.trellis.spec import IMAGE_LARGE
from pipeline.engines.trellis.weights import (
    ENCODER_FOLDER,
    WEIGHTS_FOLDER,
    check_weights,
    manifest,
)
from pipeline.errors import WeightsUnusable
from pipeline.nn.tensor_files import Entry
from tests.fakes.sparse_files import write_sparse

SMALL = "ckpts/ss_dec_conv3d_16l8_fp16.safetensors"


def write_all(folder: Path) -> None:
    for checkpoint in IMAGE_LARGE.checkpoints.values():
        write_sparse(folder / checkpoint.file_name, manifest(Path(checkpoint.file_name).stem))
    write_sparse(folder / ENCODER_FOLDER / IMAGE_LARGE.encoder.file_name, manifest("encoder"))


def test_the_packaged_manifests_have_the_published_sizes(tmp_path: Path) -> None:
    write_all(tmp_path)

    check_weights(tmp_path)

    assert len(manifest("encoder")) == 344 + 24 * 4  # q, k and v are separate tensors, each with a bias


def test_a_renamed_tensor_is_named(tmp_path: Path) -> None:
    write_all(tmp_path)
    entries = dict(manifest(Path(SMALL).stem))
    entries["blocks.0.norm1.gain"] = entries.pop("blocks.0.norm1.weight")
    write_sparse(tmp_path / SMALL, entries)

    with pytest.raises(WeightsUnusable, match=r"^ss_dec_conv3d_16l8_fp16\.safetensors lacks the tensor blocks\.0\."):
        check_weights(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_all(tmp_path)
    write_sparse(tmp_path / SMALL, manifest(Path(SMALL).stem), cut_bytes=100)

    with pytest.raises(WeightsUnusable, match=r"^ss_dec_conv3d_16l8_fp16\.safetensors is truncated or damaged"):
        check_weights(tmp_path)


def test_an_engine_without_weights_names_the_missing_file(tmp_path: Path) -> None:
    engine = TrellisEngine(weights=tmp_path, device="cpu")

    with pytest.raises(WeightsUnusable, match=r"safetensors is missing in .*trellis"):
        engine.load()


def test_a_surplus_tensor_leaves_no_partly_loaded_engine(tmp_path: Path) -> None:
    folder = tmp_path / WEIGHTS_FOLDER
    write_all(folder)
    write_sparse(folder / SMALL, {**manifest(Path(SMALL).stem), "extra": Entry("F32", (1,))})
    engine = TrellisEngine(weights=tmp_path, device="cpu")

    with pytest.raises(WeightsUnusable, match=r"has a tensor that the model does not have: extra$"):
        engine.load()

    assert engine._models is None
