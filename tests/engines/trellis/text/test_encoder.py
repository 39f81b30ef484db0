"""Loading the text tower from a file that holds other networks too, as the published one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel

from pipeline.engines.trellis.spec import TextEncoderSpec
from pipeline.engines.trellis.text.encoder import TOWER, TextEncoder, load_text_encoder, text_config
from pipeline.engines.trellis.text.tokenizer import PromptTokenizer, vocabulary_of
from pipeline.errors import WeightsUnusable
from pipeline.nn.deterministic_weights import fill_deterministic

SPEC = TextEncoderSpec("", "", "model.safetensors", None, {}, width=48, depth=2, heads=3, vocabulary=514)
CPU = torch.device("cpu")


def write_encoder(folder: Path, **changes: torch.Tensor | None) -> TextEncoder:
    """Write a file with the published names, and the vocabulary; return the encoder that it holds."""
    model = CLIPTextModel(text_config(SPEC))
    fill_deterministic(model, seed=3, key_prefix=TOWER)
    state: dict[str, Any] = {TOWER + key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    state[f"{TOWER}embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.post_layernorm.weight"] = torch.ones(4)
    for key, tensor in changes.items():
        state.pop(key, None)
        if tensor is not None:
            state[key] = tensor
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    words = ",".join(f'"{escaped(word)}": {number}' for word, number in vocabulary_of([]).items())
    (folder / "vocab.json").write_text(f"{{{words}}}", encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return TextEncoder(model, PromptTokenizer.of_bytes())


def escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')


@pytest.mark.parametrize("copy", [False, True], ids=["mapped", "read"])
def test_the_tower_is_read_out_of_a_larger_file(tmp_path: Path, copy: bool) -> None:
    written = write_encoder(tmp_path)

    loaded = load_text_encoder(SPEC, tmp_path, CPU, copy=copy)

    with torch.inference_mode():
        tokens = loaded.encode(["A robot", ""])
        assert tokens.shape == (2, 77, 48)
        assert torch.equal(tokens, written.encode(["A robot", ""]))
        assert not torch.equal(tokens[0], tokens[1])
    assert all(not each.is_meta for each in (*loaded.parameters(), *loaded.buffers()))


def test_a_copied_tower_does_not_depend_on_its_file(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    loaded = load_text_encoder(SPEC, tmp_path, CPU, copy=True)
    before = {key: value.clone() for key, value in loaded.state_dict().items()}

    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:  # in place, so that a memory mapping would see it
        file.write(b"\xff" * path.stat().st_size)

    for key, value in loaded.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{TOWER}final_layer_norm.bias": None}, "lacks the tensor text_model.final_layer_norm.bias"),
        ({f"{TOWER}final_layer_norm.bias": torch.zeros(7)}, r"final_layer_norm.bias is F32 \[7\], expected F32 \[48\]"),
        (
            {f"{TOWER}final_layer_norm.bias": torch.zeros(48, dtype=torch.float16)},
            r"final_layer_norm.bias is F16 \[48\], expected F32 \[48\]",
        ),
    ],
    ids=["missing", "another shape", "another type"],
)
def test_a_tower_that_does_not_match_is_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    write_encoder(tmp_path, **changes)

    with pytest.raises(WeightsUnusable, match=message):
        load_text_encoder(SPEC, tmp_path, CPU, copy=False)


def test_padding_tokens_are_attended_to_and_only_earlier_tokens_count(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path)
    ids = encoder.tokenizer.ids(["abc"])
    changed = ids.clone()
    changed[0, 40] = 7

    with torch.inference_mode():
        one, other = encoder(ids), encoder(changed)

    assert torch.equal(one[:, :40], other[:, :40])
    assert not torch.allclose(one[:, 76], other[:, 76])
