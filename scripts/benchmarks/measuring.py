"""Shared by the measurements of networks: seconds, peak memory, arithmetic, and the device's best rates."""

from __future__ import annotations

import resource
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = Callable[[], object]

PAGE_BYTES = resource.getpagesize()
POLL_S = 0.002  # between two readings of the process's memory


@dataclass(frozen=True)
class Measured:
    """One stage on one device.

    Attributes:
        first_s: seconds of the first run.
        seconds: the best of the runs after it, as the rates are; the first where there is no other.
        peak_bytes: most memory in use during one more run: all that PyTorch holds on a GPU, what the process gained on
            a CPU.
    """

    first_s: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Work:
    """Arithmetic of a stage.

    Attributes:
        flops: of its matrix products, convolutions and attention.
        moved_bytes: inputs and outputs of the same, each touched once, as if all that lies between were fused.
    """

    flops: int
    moved_bytes: int


@dataclass(frozen=True)
class Rates:
    """The device's best rates in a large matrix product and a large copy."""

    flops_per_s: float
    bytes_per_s: float

    def best_of(self, other: Rates) -> Rates:
        """The better of two measurements, rate by rate."""
        return Rates(
            max(self.flops_per_s, other.flops_per_s),
            max(self.bytes_per_s, other.bytes_per_s),
        )

    def floor_s(self, work: Work) -> float:
        """The fewest seconds that the work can take here: arithmetic or traffic, whichever takes longer."""
        return max(work.flops / self.flops_per_s, work.moved_bytes / self.bytes_per_s)


def seconds_of(step: Step, device: torch.device) -> float:
    """Wall seconds of one run; on a GPU between two events on its stream, everything before it done."""
    if device.type != "cuda":
        started = time.perf_counter()
        step()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def measure(step: Step, device: torch.device, *, repeats: int) -> Measured:
    """Run a step `repeats` times, and once more for its memory unless one run is all that is wanted."""
    if repeats == 1:
        times: list[float] = []
        peak = peak_memory(lambda: times.append(seconds_of(step, device)), device)
    else:
        times = [seconds_of(step, device) for _ in range(repeats)]
        peak = peak_memory(step, device)
    return Measured(times[0], min(times[1:] or times), peak)


def peak_memory(step: Step, device: torch.device) -> int:
    """Bytes; see `Measured`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    before = _resident_bytes()
    seen, has_ended = [before], threading.Event()

    def sample_memory() -> None:
        while not has_ended.wait(POLL_S):
            seen.append(_resident_bytes())

    sampler = threading.Thread(target=sample_memory)
    sampler.start()
    try:
        step()
    finally:
        has_ended.set()
        sampler.join()
    return max(seen) - before


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


class WorkCounter(TorchDispatchMode):
    """Counts the arithmetic of all that runs inside; use under `torch.no_grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.moved_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        flops = _flops(func.overloadpacket.__name__, args, out)
        if flops:
            self.flops += flops
            self.moved_bytes += sum(x.nbytes for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
        return out


def _flops(name: str, args: tuple[Any, ...], out: Any) -> int:
    """Multiplications and additions of one operation; 0 if it is no product."""
    if name in ("mm", "bmm"):
        return 2 * out.numel() * args[0].shape[-1]
    if name in ("addmm", "baddbmm"):
        return 2 * out.numel() * args[1].shape[-1]
    if name == "convolution":
        return 2 * out.numel() * args[1][0].numel()
    if name.startswith("_scaled_dot_product"):
        q, k = args[:2]
        return 4 * q.numel() * k.shape[-2]
    return 0


def count_work(step: Step) -> Work:
    """Arithmetic of one run."""
    counter = WorkCounter()
    with torch.no_grad(), counter:
        step()
    return Work(counter.flops, counter.moved_bytes)


def best_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure the device: the best of several products of large square matrices, and of several large copies."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones((1 << 30 if device.type == "cuda" else 1 << 28) // 4, device=device)
    target = torch.empty_like(source)
    runs = 10 if device.type == "cuda" else 6
    multiply = min(seconds_of(lambda: torch.mm(a, b, out=product), device) for _ in range(runs))
    copy = min(seconds_of(lambda: target.copy_(source), device) for _ in range(runs))
    return Rates(2 * side**3 / multiply, 2 * source.nbytes / copy)


def ratio_of(before: Step, after: Step, device: torch.device, *, rounds: int) -> float:
    """How many times as long `before` takes as `after`: the median over interleaved rounds, after one of each."""
    before(), after()
    return statistics.median(seconds_of(before, device) / seconds_of(after, device) for _ in range(rounds))


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU cores"
