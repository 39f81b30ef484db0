"""Headers of safetensors files: which tensors a file holds, and whether it is complete.

Reads no tensor and imports no torch.

Source: the safetensors format, github.com/huggingface/safetensors, README "Format".
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import WeightsUnusable

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
MAX_HEADER_BYTES = 100 << 20  # the limit of the format


@dataclass(frozen=True)
class Entry:
    """Type and shape of one stored tensor; `dtype` is the name in the format, such as F32 or F16."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return BYTES.get(self.dtype, 1) * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read_entries(path: Path) -> dict[str, Entry]:
    """Return the tensors of a file by key.

    Raises:
        WeightsUnusable: the file is missing, truncated, or not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise WeightsUnusable(f"{path.name} is not a safetensors file")
            text = file.read(length)
    except FileNotFoundError as error:
        raise WeightsUnusable(f"{path.name} is missing in {path.parent}") from error
    except OSError as error:
        raise WeightsUnusable(f"{path.name} cannot be read: {error.strerror}") from error
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {key: Entry(value["dtype"], tuple(value["shape"])) for key, value in header.items()}
        end = 8 + length + max((value["data_offsets"][1] for value in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsUnusable(f"{path.name} is truncated or damaged: its header cannot be parsed") from error
    size = path.stat().st_size
    if size != end:
        raise WeightsUnusable(f"{path.name} is truncated or damaged: {size} bytes, its header declares {end}")
    return entries


def check_entries(name: str, found: Mapping[str, Entry], expected: Mapping[str, Entry]) -> None:
    """Check that a file holds exactly the tensors of a model.

    Args:
        name: name of the file, for the message.
        found: tensors of the file.
        expected: tensors of the model.

    Raises:
        WeightsUnusable: names the first key, in the model's order, that is missing or of another type or shape, or the
            first surplus key.
    """
    for key, entry in expected.items():
        if key not in found:
            raise WeightsUnusable(f"{name} lacks the tensor {key}")
        if found[key] != entry:
            raise WeightsUnusable(f"{name}: {key} is {found[key]}, expected {entry}")
    for key in found:
        if key not in expected:
            raise WeightsUnusable(f"{name} has a tensor that the model does not have: {key}")
