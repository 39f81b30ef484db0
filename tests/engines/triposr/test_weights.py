from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.engines.triposr.engine import TripoSREngine
from pipeline.engines.triposr.model import make_model
from pipeline.engines.triposr.spec import RELEASED, TINY
from pipeline.engines.triposr.weights import FILE_NAME, WEIGHTS_FOLDER, convert_checkpoint, manifest, missing_bytes
from pipeline.errors import WeightsUnusable
from pipeline.nn.checkpoint import load_strictly, module_entries

EXPECTED = module_entries(make_model(TINY))


class Hostile:
    """Runs a command when an unrestricted unpickler loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def state() -> dict[str, Any]:
    return {key: torch.full(entry.shape, 0.5) for key, entry in EXPECTED.items()}


def converted(folder: Path, content: Any, *, legacy: bool = False) -> Path:
    torch.save(content, folder / "model.ckpt", _use_new_zipfile_serialization=not legacy)
    convert_checkpoint(folder / "model.ckpt", folder / FILE_NAME, expected=EXPECTED)
    return folder / FILE_NAME


def test_the_packaged_manifest_lists_the_released_model_key_by_key() -> None:
    assert module_entries(make_model(RELEASED)) == manifest()
    assert len(manifest()) == 549


def test_a_pickled_checkpoint_becomes_a_file_that_loads_strictly(tmp_path: Path) -> None:
    path = converted(tmp_path, state())

    model = make_model(TINY)
    load_strictly(model, path, device="cpu")

    assert set(load_file(path)) == set(EXPECTED)
    assert all(bool((parameter == 0.5).all()) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda s: s.pop("decoder.layers.0.bias"), "lacks the tensor decoder.layers.0.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "has a tensor that the model does not have: extra"),
        (lambda s: s.update({"backbone.norm.bias": torch.zeros(2)}), "backbone.norm.bias is F32"),
        (lambda s: s.update({"backbone.norm.bias": torch.zeros(64).half()}), "backbone.norm.bias is F16"),
        (lambda s: s.update(step=3), "is not one plain dictionary of tensors"),
    ],
    ids=["missing", "surplus", "wrong shape", "wrong type", "a number"],
)
def test_a_checkpoint_that_does_not_match_is_refused_in_one_sentence(tmp_path: Path, tamper: Any, message: str) -> None:
    tampered = state()
    tamper(tampered)

    with pytest.raises(WeightsUnusable, match=message) as refused:
        converted(tmp_path, tampered)

    assert "\n" not in str(refused.value)
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    mark = tmp_path / "ran"

    with pytest.raises(
        WeightsUnusable, match=r"^model\.ckpt is damaged, or contains other objects than tensors"
    ) as refused:
        converted(tmp_path, {**state(), "extra": Hostile(mark)}, legacy=legacy)

    assert "\n" not in str(refused.value)
    assert not mark.exists()
    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1})])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.ckpt").write_bytes(content)

    with pytest.raises(WeightsUnusable, match=r"^model\.ckpt is "):
        convert_checkpoint(tmp_path / "model.ckpt", tmp_path / FILE_NAME)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:-2000])

    with pytest.raises(WeightsUnusable, match="is damaged"):
        convert_checkpoint(path, tmp_path / FILE_NAME, expected=EXPECTED)


def test_an_engine_without_weights_names_the_missing_file_and_opens_no_pickle(tmp_path: Path) -> None:
    folder = tmp_path / WEIGHTS_FOLDER
    folder.mkdir()
    assert missing_bytes(tmp_path) == RELEASED.size_bytes
    torch.save({"extra": Hostile(tmp_path / "ran")}, folder / "model.ckpt")

    with pytest.raises(WeightsUnusable, match=r"^model\.safetensors is missing in .*triposr$"):
        TripoSREngine(weights=tmp_path, device="cpu").load()

    assert not (tmp_path / "ran").exists()
