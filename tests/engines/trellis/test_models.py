from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Dinov2WithRegistersModel

from pipeline.engines.trellis.image_encoder import ImageEncoder
from pipeline.engines.trellis.models import _config, _load_encoder, _load_part, make_part
from pipeline.engines.trellis.spec import TINY, CheckpointSpec, EncoderSpec, ModelSpec
from pipeline.engines.trellis.weights import ENCODER_FOLDER
from pipeline.errors import WeightsUnusable
from pipeline.nn.deterministic_weights import fill_deterministic

ENCODER = EncoderSpec(
    "", "", "model.safetensors", image_size=56, patch_size=14, width=32, depth=2, heads=2, registers=4
)
PUBLISHED_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state under the names of the published file, which transformers has renamed since."""
    renamed = {}
    for key, tensor in state.items():
        name = key
        for new, old in PUBLISHED_NAMES.items():
            name = name.replace(new, old)
        renamed[name] = tensor.contiguous()
    return renamed


def write_encoder(folder: Path, **changes: torch.Tensor | None) -> Dinov2WithRegistersModel:
    model = Dinov2WithRegistersModel(_config(ENCODER))
    fill_deterministic(model, seed=1)
    state = published(model.state_dict())
    for key, tensor in changes.items():
        state.pop(key, None)
        if tensor is not None:
            state[key] = tensor
    (folder / ENCODER_FOLDER).mkdir()
    save_file(state, folder / ENCODER_FOLDER / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize("copy", [False, True], ids=["mapped", "read"])
def test_the_encoder_reads_the_published_names(tmp_path: Path, copy: bool) -> None:
    model = write_encoder(tmp_path)
    images = torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    encoder = _load_encoder(ENCODER, tmp_path, torch.device("cpu"), copy=copy)

    with torch.inference_mode():
        tokens = encoder(images)
        assert tokens.shape == (2, 1 + 4 + 16, 32)
        assert torch.equal(tokens, ImageEncoder(model)(images))


@pytest.mark.parametrize("copy", [False, True], ids=["mapped", "read"])
@pytest.mark.parametrize(
    "changes", [{"layernorm.weight": None}, {"surplus": torch.zeros(1)}, {"layernorm.bias": torch.zeros(7)}], ids=str
)
def test_an_encoder_that_does_not_match_is_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], copy: bool
) -> None:
    write_encoder(tmp_path, **changes)

    with pytest.raises(WeightsUnusable, match=r"^model\.safetensors does not match the encoder"):
        _load_encoder(ENCODER, tmp_path, torch.device("cpu"), copy=copy)


@pytest.mark.parametrize("name", ["structure_decoder", "encoder"])
def test_copied_weights_do_not_depend_on_their_files(tmp_path: Path, name: str) -> None:
    if name == "encoder":
        write_encoder(tmp_path)
        path = tmp_path / ENCODER_FOLDER / "model.safetensors"
        loaded: torch.nn.Module = _load_encoder(ENCODER, tmp_path, torch.device("cpu"), copy=True)
    else:
        spec, path = with_file(name, use_fp16=True), tmp_path / "part.safetensors"
        part = make_part(spec, name)
        fill_deterministic(part, seed=2)
        save_file({k: v.contiguous() for k, v in part.state_dict().items()}, path)
        loaded = _load_part(spec, name, tmp_path, torch.device("cpu"), None)
        assert {t.dtype for t in loaded.state_dict().values()} == {torch.float16, torch.float32}  # as stored
    before = {key: value.clone() for key, value in loaded.state_dict().items()}

    with path.open("r+b") as file:  # in place, so that a memory mapping would see it
        file.write(b"\xff" * path.stat().st_size)

    for key, value in loaded.state_dict().items():
        assert torch.equal(value, before[key]), key


def with_file(name: str, **more: object) -> ModelSpec:
    from dataclasses import replace

    checkpoint = TINY.checkpoints[name]
    return replace(TINY, **{name: CheckpointSpec("part.safetensors", None, {**checkpoint.args, **more})})


@pytest.mark.parametrize("name", sorted(TINY.checkpoints))
def test_a_network_in_published_types_loads_and_widens(tmp_path: Path, name: str) -> None:
    spec = with_file(name, use_fp16=True)
    part = make_part(spec, name)
    fill_deterministic(part, seed=2)
    save_file({k: v.contiguous() for k, v in part.state_dict().items()}, tmp_path / "part.safetensors")

    loaded = _load_part(spec, name, tmp_path, torch.device("cpu"), torch.float32)

    assert {t.dtype for t in part.state_dict().values()} == {torch.float16, torch.float32}
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, part.state_dict()[key].float())
