"""Prompts to the token ids of CLIP: 77 of them, the start token, at most 75 of the text, the end token, padded with it.

The ids are those of the published tokenizer.json; its vocabulary is read from vocab.json and merges.txt, which the
weights' repository holds beside it. Nothing else is done to a text: no ftfy, no HTML entities, no accents removed.

Source: Radford et al. 2021, arXiv 2103.00020, section 2.4; Sennrich et al. 2016, arXiv 1508.07909.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AddedToken, CLIPTokenizer

from pipeline.errors import WeightsUnusable

CONTEXT_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_FILES = ("vocab.json", "merges.txt")
SPECIAL_TOKENS = {
    # As in the published tokenizer.json; the defaults of the constructor differ where a prompt holds such a text.
    "bos_token": AddedToken(START, normalized=True, special=True),
    **dict.fromkeys(("eos_token", "unk_token", "pad_token"), AddedToken(END, normalized=False, special=True)),
}
Merges = list[tuple[str, str]]


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the text tower reads it.

    Attributes:
        ids: (77,) int64.
        tokens: how many tokens the whole prompt has, without start and end.
        unread: the end of the prompt that the tower does not read; "" if it reads all.
    """

    ids: Tensor
    tokens: int
    unread: str


class PromptTokenizer:
    """CLIP's byte-pair encoding over one vocabulary."""

    def __init__(self, vocabulary: dict[str, int], merges: Merges) -> None:
        self._tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, **SPECIAL_TOKENS)

    @classmethod
    def from_folder(cls, folder: Path) -> PromptTokenizer:
        """Read vocab.json and merges.txt.

        Raises:
            WeightsUnusable: a file is missing or damaged.
        """
        vocabulary_path, merges_path = (folder / name for name in VOCABULARY_FILES)
        try:
            vocabulary = json.loads(vocabulary_path.read_text(encoding="utf-8"))
            lines = merges_path.read_text(encoding="utf-8").split("\n")[1:]  # the first line is a header
            merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
            return cls(vocabulary, merges)
        except FileNotFoundError as error:
            raise WeightsUnusable(f"{Path(error.filename).name} is missing in {folder}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise WeightsUnusable(f"the vocabulary in {folder} is damaged: {error}") from error

    @classmethod
    def of_bytes(cls) -> PromptTokenizer:
        """Return the tokenizer of the test weights: the 512 byte tokens of CLIP's vocabulary, and no merge."""
        return cls(vocabulary_of([]), [])

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Return the ids that the text tower reads: (P, 77) int64."""
        return torch.stack([self.tokenize(text).ids for text in texts])

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Return the ids of a prompt, and the part of it that does not fit into them."""
        encoded = self._tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
        tokens: list[int] = encoded["input_ids"]
        room = CONTEXT_LENGTH - 2
        start, end = self._tokenizer.convert_tokens_to_ids([START, END])
        ids = [start, *tokens[:room], end]
        ids += [end] * (CONTEXT_LENGTH - len(ids))
        unread = prompt[encoded["offset_mapping"][room][0] :].strip() if len(tokens) > room else ""
        return TokenizedPrompt(torch.tensor(ids), len(tokens), unread)


def byte_characters() -> list[str]:
    """Return the printable characters that stand for the 256 bytes in the vocabulary, in its order.

    Source: Radford et al. 2019 (GPT-2), byte-level encoding: printable Latin-1 bytes stand for themselves, the others
        follow from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]


def vocabulary_of(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return CLIP's vocabulary over a list of merges: bytes, bytes that end a word, merged pairs, specials."""
    characters = byte_characters()
    words = [*characters, *(f"{each}</w>" for each in characters), *(left + right for left, right in merges)]
    return {word: number for number, word in enumerate([*words, START, END])}
