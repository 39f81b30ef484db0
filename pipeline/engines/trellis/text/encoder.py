"""The text encoder: the text tower of CLIP, whose 77 last hidden states, padding included, condition the flow models.

Source: Radford et al. 2021, arXiv 2103.00020; microsoft/TRELLIS@6b0d647, trellis_text_to_3d.py, encode_text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.engines.trellis.spec import TextEncoderSpec
from pipeline.engines.trellis.text.tokenizer import CONTEXT_LENGTH, PromptTokenizer
from pipeline.nn.checkpoint import module_entries, read_chosen_tensors

TOWER = "text_model."
"""Beginning of the tower's keys in the published file; transformers 5.24 names the module's parameters without it."""


def text_config(spec: TextEncoderSpec) -> CLIPTextConfig:
    """Return the configuration of a tower; values that are not in the spec are those of the released one."""
    return CLIPTextConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=4 * spec.width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        bos_token_id=spec.vocabulary - 2,
        eos_token_id=spec.vocabulary - 1,
    )


class TextEncoder(nn.Module):
    """Prompts to tokens."""

    def __init__(self, model: CLIPTextModel, tokenizer: PromptTokenizer) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    def forward(self, ids: Tensor) -> Tensor:
        """Encode token ids: (P, 77) -> (P, 77, C), behind the final norm.

        Only the causal mask acts: padding tokens are tokens like any other, as when the flow models were trained.
        """
        return self.model(input_ids=ids).last_hidden_state

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode texts: (P, 77, C) float32 on the device of the tower."""
        return self(self.tokenizer.ids(texts).to(next(self.model.parameters()).device))


def load_text_encoder(spec: TextEncoderSpec, folder: Path, device: torch.device, *, copy: bool) -> TextEncoder:
    """Load the tower and its vocabulary.

    Args:
        spec: the tower.
        folder: holds the published file, vocab.json and merges.txt.
        device: target device.
        copy: copy the tensors into memory of their own instead of mapping them from the file.

    Raises:
        WeightsUnusable: a file is missing, damaged, or does not match.
    """
    path = folder / spec.file_name
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = CLIPTextModel(text_config(spec))
    entries = module_entries(model)
    published = {key: TOWER + key.removeprefix(TOWER) for key in entries}
    chosen = {published[key]: entry for key, entry in entries.items()}
    tensors = read_chosen_tensors(path, chosen, device=device, copy=copy)
    model.load_state_dict({key: tensors[name] for key, name in published.items()}, strict=True, assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:  # the positions 0 to 76, which the file of a module without it does not hold
                setattr(module, name, torch.arange(CONTEXT_LENGTH, device=device)[None])
    return TextEncoder(model, PromptTokenizer.from_folder(folder)).to(device)
