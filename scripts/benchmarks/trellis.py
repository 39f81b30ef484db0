"""TRELLIS stage by stage: seconds and peak memory beside the arithmetic floor, with random weights.

Without --full the tiny model, and one block of each transformer at its real width; with --full everything at its real
size, on the occupancy of a mesh. --changes: what caching repeated work gains, as ratios of one run.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor, nn
from transformers import Dinov2WithRegistersModel

from pipeline.engines.trellis.cuda_warm_up import warm_up_cuda
from pipeline.engines.trellis.image_encoder import ImageEncoder
from pipeline.engines.trellis.latent_flow import SLatFlowModel
from pipeline.engines.trellis.mesh_extraction import corner_offsets, extract_mesh, gather_field
from pipeline.engines.trellis.models import PART_CLASSES, Models, _config, load_models
from pipeline.engines.trellis.spec import IMAGE_LARGE, TINY, EncoderSpec, ModelSpec
from pipeline.engines.trellis.stages import SamplerSettings, run_sampler
from pipeline.engines.trellis.structure_flow import SparseStructureFlowModel
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.nn.structure_decoder import occupied_coords
from pipeline.ops.flexicubes import linear_cube_key
from pipeline.ops.voxels import VoxelSet
from pipeline.render.orbit import orbit_cameras
from pipeline.render.radiance_field import render_field
from pipeline.sampling.contexts import Contexts, latent_velocities, model_time, one_pass_at_a_time, structure_velocities
from scripts.benchmarks.export import organic_mesh, sample
from scripts.benchmarks.measuring import (
    Measured,
    Rates,
    Work,
    best_rates,
    count_work,
    describe,
    measure,
    peak_memory,
    ratio_of,
)

STEPS = (12, 25)
STRENGTHS = 7.5, 3.0
MOST_OVER_FLOOR, MOST_DECODE_S, MOST_BYTES, MOST_FIRST = 2.0, 0.5, 10e9, 1.5  # the targets of a GPU
SURFACE_SAMPLES = 2_000_000
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    stage: str
    measured: Measured
    work: Work


def random_models(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Models:
    """All networks of a released size, made on the device and filled so that activations stay of order one."""
    with torch.device(device):
        assert isinstance(spec.encoder, EncoderSpec)
        parts: dict[str, Any] = {name: PART_CLASSES[name](**spec.checkpoints[name].args) for name in PART_CLASSES}
        encoder = Dinov2WithRegistersModel(_config(spec.encoder))
    for part in (*parts.values(), encoder):
        fill_randomly(part)
    models = Models(encoder=ImageEncoder(encoder), **parts)
    models.move_to(device, dtype=dtype)
    return models


@torch.no_grad()
def fill_randomly(module: nn.Module) -> None:
    """The deterministic weights' scales, with the device's own random numbers."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.05)
        elif name.endswith("gamma") or parameter.ndim == 1:
            parameter.normal_(1, 0.1)
        else:
            parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()))
    module.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Shape:
    """A surface in the unit cube: points on it with their normals, and the voxels that it crosses."""

    points: NDArray[np.float64]
    normals: NDArray[np.float64]

    @classmethod
    def of(cls, path: Path | None) -> Shape:
        """A mesh's file, or a lumpy ball, scaled to fill the cube."""
        mesh = organic_mesh(120)
        if path is not None:
            import trimesh

            loaded: Any = trimesh.load(path, force="mesh")
            mesh = TriMesh(np.asarray(loaded.vertices, np.float32), np.asarray(loaded.faces, np.int32))
        low, high = mesh.bounds()
        scale = 0.999 / float((high - low).max())
        points, normals = sample(mesh, SURFACE_SAMPLES, 0)
        return cls((points - (low + high) / 2) * scale, normals)

    def voxels(self, resolution: int) -> Tensor:
        """(N, 4) int32, ascending."""
        cells = np.unique(((self.points + 0.5) * resolution).astype(np.int32), axis=0)
        return torch.from_numpy(np.concatenate([np.zeros((len(cells), 1), np.int32), cells], axis=1))

    def distances(self, vertices: NDArray[np.float64]) -> NDArray[np.float32]:
        """Signed distance of points from the tangent plane of the nearest point of the surface."""
        nearest = cKDTree(self.points[::8]).query(vertices, workers=-1)[1]
        away = vertices - self.points[::8][nearest]
        return (away * self.normals[::8][nearest]).sum(axis=1).astype(np.float32)


def give_surface(channels: Tensor, coords: Tensor, shape: Shape, resolution: int) -> None:
    """Write the shape's signed distances over those of random weights, whose surface would be noise everywhere."""
    corners = coords[:, None].long() + corner_offsets(coords.device)
    _, place = torch.unique(linear_cube_key(corners, resolution), return_inverse=True)
    vertices = torch.empty((int(place.max()) + 1, 3), dtype=torch.int64, device=coords.device)
    vertices[place.flatten()] = corners.flatten(0, 1)
    distances = shape.distances(vertices.cpu().numpy() / resolution - 0.5)
    channels[:, :8] = torch.from_numpy(distances).to(channels)[place] + 1 / resolution
    channels[:, 8:53] *= 0.1


def image_contexts(tokens: Tensor) -> Contexts:
    """The contexts of one image, as the engine makes them."""
    return Contexts(tokens, torch.zeros_like(tokens[:1]))


class Bench:
    """The stages of one model on one device."""

    def __init__(self, spec: ModelSpec, models: Models, shape: Shape, device: torch.device, *, repeats: int) -> None:
        self.spec, self.models, self.shape, self.device, self.repeats = spec, models, shape, device, repeats
        generator = torch.Generator().manual_seed(0)
        assert isinstance(models.encoder, ImageEncoder)
        size, flow = models.encoder.image_size, models.structure_flow
        images = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8, generator=generator)
        self.images = images.to(device)
        self.coords = shape.voxels(models.latent_flow.resolution).to(device)
        self.noise = torch.randn((1, flow.in_channels, *[flow.resolution] * 3), generator=generator).to(device)
        channels = models.latent_flow.in_channels
        self.slat_noise = torch.randn((1, len(self.coords), channels), generator=generator).to(device)

    def voxels(self) -> VoxelSet:
        """The occupied voxels without any cached table, as at the start of each job."""
        return VoxelSet(self.coords, batch_size=1)

    def contexts(self) -> Contexts:
        """Encode the image."""
        return image_contexts(self.models.encoder(self.images))

    def rows(self) -> Iterator[Row]:
        """Measure stage after stage."""
        models, spec = self.models, self.spec
        contexts = self.contexts()
        yield self._row("encode", self.contexts)
        for steps in STEPS:
            yield self._row(f"structure sampling, {steps} steps", partial(self._structure, contexts, steps))
        latent = self.noise * 0.5
        yield self._row("structure decode", lambda: occupied_coords(models.structure_decoder(latent)))
        for steps in STEPS:
            yield self._row(f"latent sampling, {steps} steps", partial(self._latents, contexts, steps))
        slat = self.slat_noise
        yield self._row("gaussian decoder", lambda: models.gaussian_decoder(slat, self.voxels()))
        yield self._row("radiance decoder", lambda: models.radiance_decoder(slat, self.voxels()))
        yield self._row("mesh decoder", lambda: models.mesh_decoder(slat, self.voxels()))
        fine = models.mesh_decoder(slat, self.voxels())
        coords, channels = fine.voxels.coords[:, 1:], fine.feats[0]
        del fine
        give_surface(channels, coords, self.shape, spec.mesh_resolution)
        yield self._row("extraction", partial(self._extract, coords, channels))
        del coords, channels
        voxels = self.voxels()
        field = models.radiance_decoder.radiance_field(models.radiance_decoder(slat, voxels)[0], voxels.coords[:, 1:])
        camera = orbit_cameras(3)[1]
        frame = partial(
            render_field,
            field,
            camera,
            resolution=spec.turntable_size,
            chunk_size=8192,
            ssaa=spec.turntable_ssaa,
        )
        yield self._row(f"turntable, 1 of {spec.turntable_frames} frames", frame)

    def _row(self, stage: str, step: Callable[[], object]) -> Row:
        return Row(stage, measure(step, self.device, repeats=self.repeats), count_work(step))

    def _structure(self, contexts: Contexts, steps: int) -> Tensor:
        sampler = self.spec.structure_sampler
        settings = SamplerSettings(steps, STRENGTHS[0], sampler.cfg_interval, sampler.rescale_t)
        return run_sampler(self.noise, structure_velocities(self.models.structure_flow, contexts), settings)

    def _latents(self, contexts: Contexts, steps: int) -> Tensor:
        sampler = self.spec.latent_sampler
        settings = SamplerSettings(steps, STRENGTHS[1], sampler.cfg_interval, sampler.rescale_t)
        evaluate = latent_velocities(self.models.latent_flow, self.voxels(), contexts)
        return run_sampler(self.slat_noise, evaluate, settings)

    def _extract(self, coords: Tensor, channels: Tensor) -> object:
        field = gather_field(coords, channels, resolution=self.spec.mesh_resolution, use_color=True)
        return extract_mesh(field, chunk_size=8192)


def print_table(rows: list[Row], rates: Rates) -> None:
    print(
        f"{'stage':32s} {'first s':>9s} {'s':>9s} {'GFLOP':>10s} {'GB moved':>9s} {'floor s':>9s} {'x floor':>8s}  peak"
    )
    for row in rows:
        floor = rates.floor_s(row.work)
        over = f"{row.measured.seconds / floor:8.2f}" if floor else "       -"
        print(
            f"{row.stage:32s} {row.measured.first_s:9.4f} {row.measured.seconds:9.4f} {row.work.flops / 1e9:10.2f} "
            f"{row.work.moved_bytes / 1e9:9.3f} {floor:9.4f} {over}  {row.measured.peak_bytes / 1e9:.3f} GB"
        )


def judge(rows: list[Row], rates: Rates) -> int:
    """Print the targets of a GPU and whether it does; 0 when everything is met."""
    by_stage = {row.stage: row for row in rows}
    sampling = [by_stage[f"{stage} sampling, 12 steps"] for stage in ("structure", "latent")]
    decoding = [by_stage[stage] for stage in ("structure decode", "gaussian decoder", "mesh decoder", "extraction")]
    warm = sum(row.measured.seconds for row in rows)
    checks = {
        "sampling at 12 + 12 steps over its floor": (
            sum(row.measured.seconds for row in sampling) / sum(rates.floor_s(row.work) for row in sampling),
            MOST_OVER_FLOOR,
        ),
        "decoding and extraction, s": (sum(row.measured.seconds for row in decoding), MOST_DECODE_S),
        "peak memory, GB": (max(row.measured.peak_bytes for row in rows) / 1e9, MOST_BYTES / 1e9),
        "first run over a warm one": (sum(row.measured.first_s for row in rows) / warm, MOST_FIRST),
    }
    for what, (found, most) in checks.items():
        print(f"{what}: {found:.2f}, at most {most:.2f} {'ok' if found <= most else 'MISSED'}")
    return int(any(found > most for found, most in checks.values()))


def flow_args(name: str, **changes: Any) -> dict[str, Any]:
    """A released flow model's arguments with one block, in float32."""
    return {**IMAGE_LARGE.checkpoints[name].args, "num_blocks": 1, "use_fp16": False, **changes}


def block_rows(device: torch.device, dtype: torch.dtype, counts: tuple[int, ...]) -> Iterator[Row]:
    """One block of each transformer at its real width, one guided pass over some tokens."""
    context = torch.randn(1, 1374, 1024, device=device).to(dtype)
    with torch.device(device):
        flow = SparseStructureFlowModel(**flow_args("structure_flow"))
        args = {**IMAGE_LARGE.gaussian_decoder.args, "num_blocks": 1, "use_fp16": False}
        decoder = PART_CLASSES["gaussian_decoder"](**args)
    for part in (flow, decoder):
        fill_randomly(part)
        part.set_dtype(dtype)
    cached = flow.encode_condition(context).layers[0]
    block, window_block = flow.blocks[0], decoder.blocks[0]  # type: ignore[index]
    coords = ball_voxels(64, device)
    for count in counts:
        x = torch.randn(1, count, 1024, device=device).to(dtype)
        mod = torch.randn(1, 1, 1024, device=device).to(dtype)
        step = partial(block, x, mod, cached)
        yield Row(f"flow block, {count} tokens", measure(step, device, repeats=5), count_work(step))
        voxels = VoxelSet(coords[:count], batch_size=1)
        y = torch.randn(1, count, 768, device=device).to(dtype)
        step = partial(window_block, y, voxels)
        yield Row(f"window block, {count} tokens", measure(step, device, repeats=5), count_work(step))


def ball_voxels(resolution: int, device: torch.device) -> Tensor:
    """Voxels of a hollow ball, ascending."""
    from pipeline.engines.trellis.cuda_warm_up import ball_shell

    return ball_shell(resolution).to(device)


def print_changes(device: torch.device, dtype: torch.dtype, rounds: int) -> None:
    """What each piece of work that is done once gains over repeating it: one block at full width and real shapes."""
    contexts = image_contexts(torch.randn(1, 1374, 1024, device=device))
    with torch.device(device):
        flow = SparseStructureFlowModel(**flow_args("structure_flow"))
        latent_flow = SLatFlowModel(**flow_args("latent_flow"))
    for part in (flow, latent_flow):
        fill_randomly(part)
        part.set_dtype(dtype)
    x = torch.randn(1, 8, 16, 16, 16, device=device)
    coords = ball_voxels(64, device)
    feats = torch.randn(1, len(coords), 8, device=device)
    voxels = VoxelSet(coords, batch_size=1)
    dense, sparse = structure_velocities(flow, contexts), latent_velocities(latent_flow, voxels, contexts)
    plain = flow.encode_condition(torch.cat([contexts.tokens, contexts.negative]))
    emb = flow.t_embedder(model_time(0.5, x)).to(dtype)
    modulate: Any = flow.blocks[0].adaLN_modulation  # type: ignore[union-attr]

    def attend_to_zeros() -> Tensor:
        return flow(x.repeat(2, 1, 1, 1, 1), model_time(0.5, x), plain)

    def fresh_tables() -> Tensor:
        fresh = VoxelSet(coords, batch_size=1)
        return latent_velocities(latent_flow, fresh, contexts)(feats, 0.5, [0], True)

    def known_tables() -> Tensor:
        return latent_velocities(latent_flow, voxels, contexts)(feats, 0.5, [0], True)

    changes: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        (
            "keys and values of the image once per job",
            lambda: structure_velocities(flow, contexts)(x, 0.5, [0], True),
            lambda: dense(x, 0.5, [0], True),
        ),
        ("unguided cross-attention as a constant", attend_to_zeros, lambda: dense(x, 0.5, [0], True)),
        (
            "passes as one batch, structure",
            lambda: one_pass_at_a_time(dense)(x, 0.5, [0], True),
            lambda: dense(x, 0.5, [0], True),
        ),
        (
            "passes as one batch, latents",
            lambda: one_pass_at_a_time(sparse)(feats, 0.5, [0], True),
            lambda: sparse(feats, 0.5, [0], True),
        ),
        ("tables once per set of voxels", fresh_tables, known_tables),
    ]
    print(
        f"{describe(device)}: one guided and one unguided pass, one block at full width, "
        f"4096 tokens, {len(coords)} voxels"
    )
    for name, before, after in changes:
        print(f"{name:48s} {ratio_of(before, after, device, rounds=rounds):6.2f} times as fast")
    share = ratio_of(lambda: modulate(emb), lambda: dense(x, 0.5, [0], True), device, rounds=rounds)
    print(f"{'modulation of one step, share of a block':48s} {100 * share:6.2f} %")


def main(argv: list[str]) -> int:
    """Print the tables; 1 when a GPU at full size misses what it has to meet."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks trellis", description=__doc__)
    parser.add_argument("--full", action="store_true", help="real sizes; on a CPU this takes an hour")
    parser.add_argument("--device", help="such as cuda:0; by default a GPU where there is one")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: float16 on a GPU, float32 on a CPU")
    parser.add_argument("--mesh", type=Path, help="whose surface gives the occupied voxels; default: a lumpy ball")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--changes", action="store_true", help="only what caching repeated work gains")
    given = parser.parse_args(argv)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = DTYPES[given.dtype] if given.dtype else (torch.float16 if device.type == "cuda" else torch.float32)
    with torch.no_grad():  # not inference mode, inside which a counter sees no single operations
        if given.changes:
            print_changes(device, dtype, given.repeats)
            return 0
        rates = best_rates(device, dtype)
        shape = Shape.of(given.mesh)
        spec = IMAGE_LARGE if given.full else TINY
        models = (
            random_models(spec, device, dtype) if given.full else load_models(TINY, None, device=device, dtype=dtype)
        )
        bench = Bench(spec, models, shape, device, repeats=given.repeats)
        loaded = peak_memory(lambda: warm_up_cuda(models, device, bench.contexts), device)
        print(f"{spec.name}, {len(bench.coords)} occupied voxels; warming up took {loaded / 1e9:.2f} GB")
        rows = list(bench.rows())
        counts = (1024, 4096) if device.type == "cuda" else (512, 2048)
        blocks = [] if given.full else list(block_rows(device, dtype, counts))
        rates = rates.best_of(best_rates(device, dtype))  # others may have used the machine during the first
        print(
            f"{describe(device)}, {dtype}: at best {rates.flops_per_s / 1e12:.3f} TFLOP/s in a matrix product, "
            f"{rates.bytes_per_s / 1e9:.1f} GB/s in a copy"
        )
        print_table([*rows, *blocks], rates)
        return judge(rows, rates) if given.full and device.type == "cuda" else 0
