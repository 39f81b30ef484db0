"""The files of the released sizes, their headers alone: what loads and what is refused, before a tensor is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.engines.trellis2.models import CPU, ENCODER, Models
from pipeline.engines.trellis2.spec import RELEASED, networks_for, networks_up_to
from pipeline.engines.trellis2.weights import ENCODER_FOLDER, WEIGHTS_FOLDER, check_weights, manifest, missing_bytes
from pipeline.errors import WeightsUnusable
from pipeline.nn.tensor_files import Entry
from schemas.request import DETAILS
from tests.fakes.sparse_files import spoilt, write_sparse

NETWORKS = (*RELEASED.checkpoints, ENCODER)


def path_of(folder: Path, name: str) -> Path:
    if name == ENCODER:
        return folder / ENCODER_FOLDER / RELEASED.encoder.file_name
    return folder / RELEASED.checkpoints[name].file_name


def entries_of(name: str) -> dict[str, Entry]:
    return manifest(name if name == ENCODER else Path(RELEASED.checkpoints[name].file_name).stem)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All files of the model, 16 GB that take none."""
    folder = tmp_path / WEIGHTS_FOLDER
    for name in NETWORKS:
        write_sparse(path_of(folder, name), entries_of(name), metadata=name == ENCODER)
    return folder


def test_a_whole_set_has_the_published_sizes_to_the_byte(folder: Path) -> None:
    check_weights(folder)

    sizes = {name: path_of(folder, name).stat().st_size for name in RELEASED.checkpoints}
    assert sizes == {name: checkpoint.size_bytes for name, checkpoint in RELEASED.checkpoints.items()}


@pytest.mark.parametrize("detail", DETAILS)
def test_a_set_up_to_a_detail_has_what_lower_ones_need_and_nothing_else(folder: Path, detail: int) -> None:
    remover_bytes = missing_bytes(folder.parent, detail=detail)
    for name in set(RELEASED.checkpoints) - set(networks_up_to(detail)):
        path_of(folder, name).unlink()

    for lower in DETAILS[: DETAILS.index(detail) + 1]:
        check_weights(folder, names=networks_for(lower))
    assert missing_bytes(folder.parent, detail=detail) == remover_bytes
    for name in networks_up_to(detail):
        path_of(folder, name).unlink()
    sizes = [RELEASED.checkpoints[name].size_bytes or 0 for name in networks_up_to(detail)]
    assert missing_bytes(folder.parent, detail=detail) == remover_bytes + sum(sizes)
    assert sum(sizes) / 1e9 == pytest.approx(9.80 if detail == DETAILS[0] else 14.97, abs=0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_spoilt_file_is_refused_by_its_name_and_the_key(folder: Path, name: str) -> None:
    path, entries = path_of(folder, name), entries_of(name)
    for fault, held in spoilt(entries).items():
        write_sparse(path, held)
        (wrong,) = {key for key in entries if held.get(key) != entries[key]} or held.keys() - entries.keys()
        with pytest.raises(WeightsUnusable) as refused:
            check_weights(folder)
        assert path.name in str(refused.value) and wrong in str(refused.value), fault

    write_sparse(path, entries, cut_bytes=1)
    with pytest.raises(WeightsUnusable, match="truncated or damaged"):
        check_weights(folder)
    path.unlink()
    with pytest.raises(WeightsUnusable, match=f"{path.name} is missing"):
        check_weights(folder)


def test_an_encoder_with_the_keys_of_earlier_releases_is_the_same_one(folder: Path) -> None:
    entries = {key.removeprefix("model."): entry for key, entry in entries_of(ENCODER).items()}
    assert any(key.startswith("layer.") for key in entries)
    write_sparse(path_of(folder, ENCODER), entries)

    check_weights(folder)


def test_weights_wait_for_their_device_in_the_types_of_their_file(tmp_path: Path) -> None:
    """In host memory before a snapshot: float32 would take twice the memory."""
    folder = tmp_path / WEIGHTS_FOLDER
    for name in ("structure_decoder", ENCODER):
        write_sparse(path_of(folder, name), entries_of(name))
    waiting = Models(RELEASED, folder, device=CPU, device_is_known=False)
    waiting.load(("structure_decoder",))

    stored = waiting.use("structure_decoder").state_dict()
    halves = {key for key, entry in entries_of("structure_decoder").items() if entry.dtype == "F16"}
    assert halves == {key for key, tensor in stored.items() if tensor.dtype == torch.float16}
    waiting.move_to(CPU)
    moved = waiting.use("structure_decoder").state_dict()
    assert {tensor.dtype for tensor in moved.values()} == {torch.float32}
