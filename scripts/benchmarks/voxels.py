"""Time and memory of the sparse operations for 10^4, 10^5 and 10^6 voxels: they must grow with the voxels alone.

Random weights of a reduced width, on the CPU: `python -m scripts.benchmarks voxels`. Each size runs in a process of its
own, after a warm-up. The memory of an operation is the process's peak in it above what it began with, its result
included; Linux with glibc only. With `--full-width` one convolution of `--width` channels instead; the released
TRELLIS.2 has 128 at a million voxels.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pipeline.ops.sparse import gather_conv3, merge_octants, take_octants
from pipeline.ops.voxels import VoxelSet

COUNTS = (10_000, 100_000, 1_000_000)
WIDTH = 16
WARM_UP = 100_000
"""Voxels of a run before, which is not measured: libraries load at their first use, and the allocator of a process that
has worked keeps blocks of some megabytes for the next."""
ROUNDS = 3  # the best of them
Row = tuple[str, float, float]  # operation, microseconds a voxel, bytes a voxel


def shell(count: int) -> torch.Tensor:
    """About `count` voxels of a hollow ball, two voxels thick, in ascending order: (N, 4) int32."""
    radius = (count / (8 * torch.pi)) ** 0.5
    side = int(2 * radius) + 8
    axis = torch.arange(side, dtype=torch.float32) - side / 2
    parts = []
    for x in range(side):  # a slice at a time: no dense grid
        distance = (axis[x] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
        y, z = ((distance >= radius) & (distance < radius + 2)).nonzero(as_tuple=True)
        parts.append(torch.stack([torch.zeros_like(y), torch.full_like(y, x), y, z], dim=1))
    return torch.cat(parts).int()


def measure(count: int, width: int) -> list[Row]:
    """Rows of one size; in a process of its own."""
    torch.set_num_threads(1)
    _measure_operations(WARM_UP, width)
    return _measure_operations(count, width)


def _measure_operations(count: int, width: int) -> list[Row]:
    coords = shell(count)
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn((1, len(coords), width), generator=generator)
    weight = torch.randn((width, 3, 3, 3, width), generator=generator)
    rows = []

    def add(name: str, work: Callable[[], object]) -> None:
        most = _peak_bytes(work)
        best = min(_seconds(work) for _ in range(ROUNDS))
        rows.append((name, best / len(coords) * 1e6, most / len(coords)))

    with torch.inference_mode():
        voxels = VoxelSet(coords, batch_size=1)
        add("coarser set", lambda: VoxelSet(coords, batch_size=1).coarsen(2))
        add("neighbours", lambda: VoxelSet(coords, batch_size=1).neighbours)
        cells = voxels.coarsen(2).cells
        merged = merge_octants(feats, voxels)
        exists = torch.zeros((len(cells), 8), dtype=torch.bool)
        xyz = voxels.coords[:, 1:] % 2
        exists[voxels.coarsen(2).cell_of_row, xyz[:, 0] + 2 * xyz[:, 1] + 4 * xyz[:, 2]] = True
        children = cells.subdivide_where(exists)
        add("space to channel", lambda: merge_octants(feats, voxels))
        add("channel to space", lambda: take_octants(merged, children))
        _ = voxels.neighbours
        add("convolution", lambda: gather_conv3(feats, voxels, weight, None))
    return [*rows, ("together", sum(row[1] for row in rows), max(row[2] for row in rows))]


def _peak_bytes(work: Callable[[], object]) -> int:
    """The most memory of this process while it works, above what it had before."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept would not be counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is in use now
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _seconds(work: Callable[[], object]) -> float:
    """Processor time of this thread: other processes share the machine."""
    started = time.thread_time()
    work()
    return time.thread_time() - started


def measure_full_width(count: int, width: int) -> list[Row]:
    """One convolution of `width` channels in float32; the memory includes features and result."""
    coords = shell(count)
    seconds = 0.0

    def convolve() -> None:
        nonlocal seconds
        feats, weight = torch.zeros((1, len(coords), width)), torch.zeros((width, 3, 3, 3, width))
        seconds = _seconds(lambda: gather_conv3(feats, VoxelSet(coords, batch_size=1), weight, None))

    with torch.inference_mode():
        most = _peak_bytes(convolve)
    return [(f"convolution of {width} channels", seconds / len(coords) * 1e6, most / len(coords))]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="voxels", description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--full-width", action="store_true", help="one convolution of --width channels alone")
    options = parser.parse_args(arguments)
    work = measure_full_width if options.full_width else measure
    tables = {}
    for count in options.counts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            tables[count] = pool.apply(work, (count, options.width))
    print("| operation | " + " | ".join(f"{count:,}: µs, bytes a voxel" for count in tables) + " |")
    print("| --- |" + " ---: |" * len(tables))
    for rows in zip(*tables.values(), strict=True):
        cells = " | ".join(f"{microseconds:.3f}, {memory:.0f}" for _, microseconds, memory in rows)
        print(f"| {rows[0][0]} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
