from __future__ import annotations

import errno
import itertools
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import WeightsUnusable
from pipeline.nn import checkpoint
from pipeline.nn.checkpoint import TORCH_DTYPES, load_strictly, module_entries, read_tensors
from pipeline.nn.tensor_files import Entry, check_entries, read_entries

os_open = os.open


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


def test_a_matching_file_fills_the_module(tmp_path: Path) -> None:
    source = Model()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    module = on_meta()

    load_strictly(module, tmp_path / "model.safetensors", device="cpu")

    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key])
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_half_precision_file_is_widened_while_it_is_loaded(tmp_path: Path) -> None:
    half = Model().half()
    save_file(half.state_dict(), tmp_path / "model.safetensors")
    module = on_meta()

    load_strictly(module, tmp_path / "model.safetensors", device="cpu", stored=module_entries(half))

    assert module.first.weight.dtype == torch.float32
    assert torch.equal(module.first.weight, half.first.weight.float())


@pytest.mark.parametrize("copy", [False, True], ids=["mapped", "read"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"second__weight": None}, r"model\.safetensors lacks the tensor second\.weight"),
        ({"third": torch.zeros(1)}, r"model\.safetensors has a tensor that the model does not have: third"),
        ({"first__bias": torch.zeros(5)}, r"first\.bias is F32 \[5\], expected F32 \[4\]"),
        ({"first__bias": torch.zeros(4).half()}, r"first\.bias is F16 \[4\], expected F32 \[4\]"),
    ],
)
def test_a_file_that_does_not_match_is_refused_and_the_first_wrong_key_is_named(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str, copy: bool
) -> None:
    module = on_meta()

    with pytest.raises(WeightsUnusable, match=message):
        load_strictly(module, saved(tmp_path, **changes), device="cpu", copy=copy)

    assert all(parameter.is_meta for parameter in module.parameters())


def bits_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    return {k: (t.dtype, t.shape, t.reshape(-1).view(torch.uint8).numpy().tobytes()) for k, t in tensors.items()}


def open_without_direct_io(path: Path, flags: int) -> int:
    """`os.open` on a file system that does not support O_DIRECT."""
    if flags & os.O_DIRECT:
        raise OSError(errno.EINVAL, "Invalid argument")
    return os_open(path, flags)


@pytest.mark.parametrize("has_direct", [True, False])
def test_every_type_and_shape_is_read_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_direct: bool
) -> None:
    monkeypatch.setattr(checkpoint, "BLOCK_BYTES", 1 << 16)
    if not has_direct:
        monkeypatch.setattr(os, "open", open_without_direct_io)
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "scalar": (),
        "one": (1,),
        "odd": (3, 5),
        "none": (0, 7),
        "large": (700, 1100),
    }
    tensors = {
        f"{name} {file_dtype}": (100 * torch.randn(shape, generator=generator)).to(dtype)
        for file_dtype, dtype in TORCH_DTYPES.items()
        for name, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "all.safetensors")

    read = read_tensors(tmp_path / "all.safetensors")

    assert bits_of(read) == bits_of(load_file(tmp_path / "all.safetensors")) == bits_of(tensors)


@pytest.mark.parametrize("at_read", [1, 4], ids=["before its size is read", "after"])
def test_a_file_that_shrinks_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_read: int
) -> None:
    path, preadv, reads = saved(tmp_path), os.preadv, itertools.count(1)

    def truncating(*arguments: Any) -> int:
        if next(reads) == at_read:
            os.truncate(path, 0)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", truncating)
    with pytest.raises(WeightsUnusable, match=r"^model\.safetensors cannot be read: the file shrank while it was read"):
        read_tensors(path)


def written(path: Path, entries: dict[str, tuple[str, list[int], tuple[int, int]]], content: bytes) -> Path:
    """Write a file with the given header."""
    header = json.dumps({k: {"dtype": d, "shape": s, "data_offsets": o} for k, (d, s, o) in entries.items()}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)
    return path


def test_types_in_any_order_and_at_unaligned_offsets_are_read(tmp_path: Path) -> None:
    content = b"\x07" + struct.pack("<2f", 1.5, -2.0) + struct.pack("<e", 0.25) + struct.pack("<f", 8.0)
    entries = {
        "d": ("F32", [1], (11, 15)),
        "b": ("F32", [2], (1, 9)),
        "a": ("U8", [1], (0, 1)),
        "c": ("F16", [], (9, 11)),
    }

    read = read_tensors(written(tmp_path / "odd.safetensors", entries, content))

    assert {key: tensor.tolist() for key, tensor in read.items()} == {"a": [7], "b": [1.5, -2.0], "c": 0.25, "d": [8.0]}


def test_a_file_with_a_gap_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "gap.safetensors", {"a": ("U8", [1], (0, 1)), "b": ("U8", [1], (2, 3))}, b"abc")

    with pytest.raises(WeightsUnusable, match=r"^gap\.safetensors cannot be read: "):
        read_tensors(path)


def test_copied_tensors_do_not_depend_on_the_file(tmp_path: Path) -> None:
    path, module = saved(tmp_path), on_meta()

    load_strictly(module, path, device="cpu", copy=True)

    before = bits_of(module.state_dict())
    path.write_bytes(b"\xff" * path.stat().st_size)  # in place, so that a memory mapping would see it
    assert bits_of(module.state_dict()) == before


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnusable, match=r"^gone\.safetensors is missing in "):
        read_entries(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 30, 200, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(WeightsUnusable, match=r"^model\.safetensors is (truncated or damaged|not a safetensors file)"):
        read_entries(path)


@pytest.mark.parametrize(
    "content",
    [b"x" * 100, struct.pack("<Q", 4) + b"[12]", struct.pack("<Q", 15) + json.dumps({"a": {"b": 1}}).encode()],
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)

    with pytest.raises(WeightsUnusable, match=r"^odd\.safetensors is "):
        read_entries(path)


def test_an_entry_computes_its_size_in_bytes() -> None:
    assert Entry("F16", (3, 4)).size_bytes == 24
    check_entries("file", {"a": Entry("F16", (1,))}, {"a": Entry("F16", (1,))})
