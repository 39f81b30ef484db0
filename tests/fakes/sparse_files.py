"""Files of the released sizes that take no disk: a safetensors header, and a hole where the tensors would be."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from pipeline.nn.tensor_files import BYTES, Entry


def write_sparse(path: Path, entries: Mapping[str, Entry], *, cut_bytes: int = 0, metadata: bool = False) -> None:
    """Write a file whose tensors read as zeros.

    Args:
        path: its folder is created.
        entries: what the file holds.
        cut_bytes: how much of its end is missing.
        metadata: name the framework in the header, as files that transformers wrote do.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if metadata else {}
    end = 0
    # The order of the library that writes such files: offsets of another order may have other numbers of digits.
    for key, entry in sorted(entries.items(), key=lambda item: (-BYTES[item[1].dtype], item[0])):
        header[key] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.size_bytes],
        }
        end += entry.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end - cut_bytes)


def spoilt(entries: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    """Sets of tensors that a model with these must refuse, by what is wrong with them."""
    first, entry = next(iter(entries.items()))
    *others, last = entries
    other_type = {"F32": "F16", "F16": "BF16", "BF16": "F16"}[entry.dtype]
    return {
        "missing": {key: entries[key] for key in others},
        "surplus": {**entries, "surplus": Entry("F32", (1,))},
        "renamed": {**{key: entries[key] for key in others}, f"{last}.renamed": entries[last]},
        "reshaped": {**entries, first: Entry(entry.dtype, (1, *entry.shape))},
        "of another type": {**entries, first: Entry(other_type, entry.shape)},
    }
