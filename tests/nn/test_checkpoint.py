from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import WeightsUnusable
from pipeline.nn.checkpoint import load_strictly, module_entries
from pipeline.nn.tensor_files import Entry, check_entries, read_entries


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)


def on_meta() -> Model:
    with torch.device("meta"):
        return Model()


def saved(folder: Path, **changes: torch.Tensor | None) -> Path:
    state = dict(Model().state_dict())
    for key, tensor in changes.items():
        state.pop(key.replace("__", "."), None)
        if tensor is not None:
            state[key.replace("__", ".")] = tensor
    path = folder / "model.safetensors"
    save_file(state, path)
    return path


def test_a_file_that_fits_gives_the_module_its_tensors(tmp_path: Path) -> None:
    source = Model()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    module = on_meta()

    load_strictly(module, tmp_path / "model.safetensors", device="cpu")

    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key])
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_half_precision_files_are_widened_on_the_way_in(tmp_path: Path) -> None:
    half = Model().half()
    save_file(half.state_dict(), tmp_path / "model.safetensors")
    module = on_meta()

    load_strictly(module, tmp_path / "model.safetensors", device="cpu", stored=module_entries(half))

    assert module.first.weight.dtype == torch.float32
    assert torch.equal(module.first.weight, half.first.weight.float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"second__weight": None}, r"model\.safetensors lacks the tensor second\.weight"),
        ({"third": torch.zeros(1)}, r"model\.safetensors has a tensor that the model does not know: third"),
        ({"first__bias": torch.zeros(5)}, r"first\.bias is F32 \[5\], expected F32 \[4\]"),
        ({"first__bias": torch.zeros(4).half()}, r"first\.bias is F16 \[4\], expected F32 \[4\]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_first_key(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    module = on_meta()

    with pytest.raises(WeightsUnusable, match=message):
        load_strictly(module, saved(tmp_path, **changes), device="cpu")

    assert all(parameter.is_meta for parameter in module.parameters())


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnusable, match=r"^gone\.safetensors is missing in "):
        read_entries(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 30, 200, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(WeightsUnusable, match=r"^model\.safetensors is (cut short or damaged|not a safetensors file)"):
        read_entries(path)


@pytest.mark.parametrize(
    "content",
    [b"x" * 100, struct.pack("<Q", 4) + b"[12]", struct.pack("<Q", 15) + json.dumps({"a": {"b": 1}}).encode()],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)

    with pytest.raises(WeightsUnusable, match=r"^odd\.safetensors is "):
        read_entries(path)


def test_an_entry_knows_its_size() -> None:
    assert Entry("F16", (3, 4)).size_bytes == 24
    check_entries("file", {"a": Entry("F16", (1,))}, {"a": Entry("F16", (1,))})
