"""TripoSR at its released size on this CPU, deterministic weights: seconds of each stage, and what is saved.

Compares the whole generation with one whose surface comes from a dense, unchunked evaluation of the same field, and the
surface stage at two chunk sizes: the bytes have to be equal, the peak of memory lower. The field that is meshed is the
released decoder over smooth planes, so that it has a surface like an object's; time does not depend on the values.
The dense evaluation takes 20 GB.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.spatial import KDTree
from torch import Tensor

from pipeline.engines.triposr.engine import colours_of
from pipeline.engines.triposr.field import PLANE_AXES, TriplaneField
from pipeline.engines.triposr.model import TSR
from pipeline.engines.triposr.preprocess import resize_images
from pipeline.engines.triposr.spec import ISO_DENSITY, RELEASED
from pipeline.engines.triposr.surface import extract_surface, to_mesh
from pipeline.nn.deterministic_weights import fill_deterministic
from pipeline.ops.isosurface import IsoSurface, extract_isosurface
from tests.reference.triposr_grid import density_on_grid

REFERENCE_S = {"image encoder": 4.5, "backbone": 47.5, "surface": 57.7}  # one thread, the kit's README
CHUNKS = 1_000, 12_000
PEAK_RESOLUTION = 96  # of the grid on whose evaluation the peaks are measured: what it returns is small
MOST_SHARE = 0.5
FULL_SHARE = 0.12  # of the box that is inside
SCALE = {"decoder.layers.*.weight": 1.5}


def peak_mib_of(run: Callable[[], Any]) -> float:
    """By how much a function raises the peak of this process's resident memory (Linux with glibc)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # returns freed memory to the system, so that its reuse is counted
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_mib("VmRSS")
    run()
    return _status_mib("VmHWM") - before


def _status_mib(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a function returns, its seconds of CPU, all threads together, and of the clock."""
    started, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.process_time() - cpu, time.perf_counter() - started


def smooth_field(model: TSR) -> tuple[TriplaneField, Tensor]:
    """The released decoder over planes without detail, `FULL_SHARE` of whose box is inside."""
    generator = torch.Generator().manual_seed(7)
    planes = F.interpolate(torch.randn((3, 40, 3, 3), generator=generator), (64, 64), mode="bicubic")
    field = model.field(planes)
    samples = field.at(torch.rand((20_000, 3), generator=generator) * 1.74 - 0.87, chunk_size=max(CHUNKS))
    level = samples.density_act.log().quantile(1 - FULL_SHARE)
    shift = float(torch.tensor(ISO_DENSITY).log() - level)
    return replace(field, renderer=replace(field.renderer, density_bias=field.renderer.density_bias + shift)), planes


def dense_surface(model: TSR, field: TriplaneField, planes: Tensor, resolution: int) -> IsoSurface:
    """The surface from all points at once: sampled features, then the decoder as it is written in the checkpoint."""
    axis = torch.linspace(-1, 1, resolution)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
    places = torch.stack([points[:, pair] for pair in PLANE_AXES])[:, None]
    features = F.grid_sample(planes, places, mode="bilinear", align_corners=False)[:, :, 0]  # (3, C, N)
    del places, points
    density = model.decoder(features.movedim(2, 0).flatten(1))[:, :1]
    del features
    grid = field.activate_density(density).view(*[resolution] * 3)
    return extract_isosurface(
        lambda i: grid[i[:, 0, :, None, None], i[:, 1, None, :, None], i[:, 2, None, None, :]],
        resolution=resolution,
        level=ISO_DENSITY,
        step=1,
    )


def digest_of(surface: IsoSurface, field: TriplaneField) -> str:
    """Hash of the results of the surface stage."""
    parts = (surface.vertices.numpy(), surface.faces.numpy(), colours_of(field).table)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def main(argv: list[str]) -> int:
    """Print the table; 0 when the targets are met."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks triposr", description=__doc__)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    resolution = arguments.resolution
    cpu: dict[str, float] = {}
    clock: dict[str, float] = {}

    def stage(name: str, run: Callable[[], Any]) -> Any:
        result, cpu[name], clock[name] = timed(run)
        return result

    with torch.inference_mode():
        model = TSR(RELEASED).eval()
        fill_deterministic(model, seed=1, scale=SCALE)
        image = resize_images(torch.full((1, 300, 300, 3), 128, dtype=torch.uint8), size=RELEASED.cond_image_size)
        tokens = stage("image encoder", lambda: model.image_tokenizer(image.permute(0, 3, 1, 2)))
        stage("backbone", lambda: model.backbone(model.tokenizer(1), tokens))
        field, planes = smooth_field(model)
        surface = stage("surface", lambda: extract_surface(field, resolution=resolution, chunk_size=8192))
        dense = stage("dense surface", lambda: dense_surface(model, field, planes, resolution))
        apart = compare(surface, dense)
        del dense
        found = [extract_surface(field, resolution=resolution, chunk_size=size) for size in CHUNKS]
        same = len({digest_of(each, field) for each in (surface, *found)}) == 1
        del found
        density_on_grid(field, resolution=PEAK_RESOLUTION, chunk_size=max(CHUNKS))
        small_mib, large_mib = (
            peak_mib_of(lambda size=size: density_on_grid(field, resolution=PEAK_RESOLUTION, chunk_size=size))
            for size in CHUNKS
        )
    for name, cpu_s in cpu.items():
        reference = f"   the reference elsewhere, one thread: {REFERENCE_S[name]:5.1f} s" if name in REFERENCE_S else ""
        print(f"{name:<16} {cpu_s:7.1f} s of CPU {clock[name]:7.1f} s{reference}")
    encoding = clock["image encoder"] + clock["backbone"]
    ours, dense_s = encoding + clock["surface"], encoding + clock["dense surface"]
    faces = len(to_mesh(surface, resolution=resolution).faces)
    print(f"surface          {faces} faces, {surface.evaluations / resolution**3:.3f} of the grid's points evaluated")
    print(f"dense and sparse are apart by {apart:.1e} cells")
    print(f"whole generation {ours:7.1f} s, dense {dense_s:7.1f} s, ratio {ours / dense_s:.2f}")
    print(f"surface alone    ratio {clock['surface'] / clock['dense surface']:.2f}")
    print(f"evaluation peaks at {small_mib:.1f} MiB with chunks of {CHUNKS[0]}, {large_mib:.1f} MiB with {CHUNKS[1]}")
    print(f"same bytes with both: {same}")
    return 0 if same and small_mib < large_mib and ours <= MOST_SHARE * dense_s and apart < 0.5 else 1


def compare(surface: IsoSurface, dense: IsoSurface) -> float:
    """Largest distance, in cells, of a vertex of either from the nearest one of the other."""
    trees = [KDTree(found.vertices.numpy()) for found in (surface, dense)]
    return max(
        float(tree.query(other.vertices.numpy(), workers=-1)[0].max())
        for tree, other in zip(trees, (dense, surface), strict=True)
    )
