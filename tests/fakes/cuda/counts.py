"""What a device was asked for: kernel launches, host waits and memory, by operation, stage and line of the package."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

PACKAGE = str(Path(__file__).resolve().parents[3] / "pipeline")
OUTSIDE = "outside"
"""The stage of what runs in no function that belongs to a stage."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch; a library's kernel counts once, whatever it launches itself.

    Attributes:
        op: name of the operation, such as `addmm`.
        stage: see `Counts`.
        line: `file:line` of the package that asked for it.
        flops: multiplications and additions of products, convolutions and attention; 0 of others.
        moved_bytes: bytes of its inputs and outputs, each touched once.
        precision: type of the numbers that are multiplied, such as `float16`; "" where `flops` is 0.
    """

    op: str
    stage: str
    line: str
    flops: int
    moved_bytes: int
    precision: str


@dataclass(frozen=True)
class Wait:
    """One time that the host waits for the device: a value that it reads, or a copy that is not asynchronous."""

    cause: str
    stage: str
    line: str


class Memory:
    """Bytes of the storages that tensors of the device hold.

    Attributes:
        live_bytes: of all of them, without what kernels use inside and what an allocator keeps.
    """

    def __init__(self) -> None:
        self.live_bytes = 0
        self._holders: Counter[int] = Counter()
        self._replacements: dict[int, torch.UntypedStorage] = {}

    def hold(self, tensor: torch.Tensor, inner: torch.Tensor) -> None:
        """Count the storage of `inner` until the last tensor that holds it is gone.

        Args:
            tensor: the holder.
            inner: its values, or a meta tensor.
        """
        storage = inner.untyped_storage()
        identity, size = storage._cdata, storage.nbytes()
        if identity in self._replacements:
            return
        if identity not in self._holders:
            self.live_bytes += size
        self._holders[identity] += 1
        # The finalizer keeps the storage, so that no other one gets its identity while it is counted.
        weakref.finalize(tensor, self._drop, storage, identity, size).atexit = False

    def replace(self, inner: torch.Tensor) -> None:
        """Do not count a storage: it takes the place of one that its holder still counts."""
        storage = inner.untyped_storage()
        self._replacements[storage._cdata] = storage

    def _drop(self, storage: torch.UntypedStorage, identity: int, size: int) -> None:
        self._holders[identity] -= 1
        if not self._holders[identity]:
            del self._holders[identity]
            self.live_bytes -= size


class Counts:
    """Everything since `reset`.

    A stage is named by a function that is running: the innermost one on the stack that `stage_of_function` knows by its
    qualified name, such as `GenerationRun._sample_voxels`.
    """

    def __init__(self, stage_of_function: Mapping[str, str] | None = None) -> None:
        self.stage_of_function = dict(stage_of_function or {})
        self.out_of_memory_in: set[str] = set()
        """Stages whose next kernel finds no memory; each fails once."""
        self.memory = Memory()
        self.reset()

    def reset(self) -> None:
        """Forget what was counted; what lies in the device's memory stays there."""
        self.launched: list[Launch] = []
        self.waited: list[Wait] = []
        self.most_bytes: dict[str, int] = {}

    def add_launch(self, op: str, *, flops: int = 0, moved_bytes: int = 0, precision: str = "") -> None:
        """Count a kernel, whose results lie in memory already."""
        stage, line = self._place()
        if stage in self.out_of_memory_in:
            self.out_of_memory_in.remove(stage)
            raise torch.OutOfMemoryError(f"CUDA out of memory, as asked for in {stage}")
        self.launched.append(Launch(op, stage, line, flops, moved_bytes, precision if flops else ""))
        self.most_bytes[stage] = max(self.most_bytes.get(stage, 0), self.memory.live_bytes)

    def add_wait(self, cause: str) -> None:
        """Count a wait."""
        self.waited.append(Wait(cause, *self._place()))

    def launches(self, *stages: str) -> int:
        """Number of kernels, of some stages or of all."""
        return sum(1 for each in self.launched if not stages or each.stage in stages)

    def waits(self, *stages: str) -> int:
        """Number of waits, of some stages or of all."""
        return sum(1 for each in self.waited if not stages or each.stage in stages)

    def peak_bytes(self, *stages: str) -> int:
        """Most memory that tensors took while a kernel ran, of some stages or of all."""
        return max((most for stage, most in self.most_bytes.items() if not stages or stage in stages), default=0)

    def stages(self) -> list[str]:
        """Stages in the order of their first kernel or wait."""
        return list(dict.fromkeys(each.stage for each in [*self.launched, *self.waited]))

    def report(self, *, most: int = 12) -> str:
        """The lines with the most launches and waits: what a failed budget prints."""
        launches = Counter(f"{each.stage}: {each.line} {each.op}" for each in self.launched)
        waits = Counter(f"{each.stage}: {each.line} {each.cause}" for each in self.waited)
        parts = [f"{len(self.launched)} launches", *_lines(launches.most_common(most))]
        parts += [f"{len(self.waited)} waits", *_lines(waits.most_common(most))]
        return "\n".join(parts)

    def _place(self) -> tuple[str, str]:
        """The stage and the innermost line of the package, from the stack."""
        line, frame = OUTSIDE, sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(PACKAGE):
                if line == OUTSIDE:
                    line = f"{code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
                if code.co_qualname in self.stage_of_function:
                    return self.stage_of_function[code.co_qualname], line
            frame = frame.f_back
        return OUTSIDE, line


def _lines(rows: Iterable[tuple[str, int]]) -> list[str]:
    return [f"  {count:6d} {what}" for what, count in rows]
