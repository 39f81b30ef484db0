"""The checks of the TRELLIS.2 kit by `spec.target`: build with the arguments of the spec, fill, run, compare.

Its classes have the names of TRELLIS' own where they do the same or the like; `CLAIMS` says which specs are meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.engines.trellis2.flow import SLatFlowModel, SparseStructureFlowModel
from pipeline.engines.trellis2.image_encoder import ImageEncoder
from pipeline.engines.trellis2.preprocess import crop_subject, image_tensor
from pipeline.engines.trellis2.stages import (
    COARSE_RESOLUTION,
    Normalisation,
    Sampling,
    StageSettings,
    cascade_voxels,
    decode_attributes,
    sample_latents,
    sample_structure,
    surface_of,
)
from pipeline.engines.trellis2.unet import (
    Decoded,
    FlexiDualGridVaeDecoder,
    SparseConvNeXtBlock3d,
    SparseResBlockC2S3d,
    SparseResBlockS2C3d,
    SparseUnetVaeDecoder,
)
from pipeline.mesh.fill_holes import fill_small_holes
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.nn.attention import SelfAttention
from pipeline.nn.dense_blocks import ModulatedCrossBlock
from pipeline.nn.deterministic_weights import fill_deterministic
from pipeline.nn.rotary import rotary_phases, rotate
from pipeline.nn.sparse_conv import Sparse, SubmanifoldConv3
from pipeline.nn.structure_decoder import SparseStructureDecoder, coarsened_occupancy
from pipeline.ops.dual_grid import DualGrid, dual_grid_mesh, dual_grid_of, sample_voxels
from pipeline.ops.sparse import merge_octants, per_row, take_octants
from pipeline.ops.voxels import VoxelSet
from pipeline.sampling.contexts import Contexts, model_time
from pipeline.sampling.flow_euler import euler_steps, flow_times
from pipeline.sampling.guidance import RescaledGuidance, guided_velocity
from tests.parity.harness import Check, Deviation, Fixture, compare, compare_outputs
from tests.parity.precision import lowered
from tests.parity.trellis import as_array, canonical, logged, sparse_input, tensor
from tests.reference.flow import denoised

HOLE_PERIMETER = 0.03
VERTEX_ATTRIBUTES_GUARD = 2e-3
"""The kit's second guard for attributes at vertices, whose query divides by the sum of the existing weights."""

TARGETS: dict[str, Check] = {}
CLAIMS: dict[str, Callable[[Fixture], bool]] = {
    **dict.fromkeys(
        (
            "MultiHeadAttention",
            "SparseMultiHeadAttention",
            "ModulatedTransformerCrossBlock",
            "ModulatedSparseTransformerCrossBlock",
        ),
        lambda fixture: "use_rope" in fixture.args,
    ),
    "SLatFlowModel": lambda fixture: "num_io_res_blocks" not in fixture.args,
    "SparseStructureFlowModel": lambda fixture: "patch_size" not in fixture.args,
    "SparseConv3d": lambda fixture: "keys weight" in fixture.spec.get("note", ""),
    **dict.fromkeys(
        ("FlowEulerSampler", "FlowEulerCfgSampler", "FlowEulerGuidanceIntervalSampler"),
        lambda fixture: "kind" in fixture.spec["model"],
    ),
}
"""Of the targets that another kit has too, which fixtures are this kit's."""


def check(*targets: str) -> Callable[[Callable[[Fixture], Mapping[str, Any]]], Callable[[Fixture], Mapping[str, Any]]]:
    """Register a function that computes the outputs of a fixture, which are then compared one by one."""

    def register(compute: Callable[[Fixture], Mapping[str, Any]]) -> Callable[[Fixture], Mapping[str, Any]]:
        def run(fixture: Fixture) -> list[Deviation]:
            with torch.inference_mode():
                computed = compute(fixture)
            return compare_all(fixture, computed)

        for target in targets:
            TARGETS[target] = run
        return compute

    return register


def compare_all(fixture: Fixture, computed: Mapping[str, Any]) -> list[Deviation]:
    """Compare every output; faces as a set of rotated triples, attributes at vertices with the guard of the kit."""
    arrays = {name: as_array(value) for name, value in computed.items()}
    special = [name for name in fixture.golden if name.endswith("faces") or "faces_" in name or name == "vertex_attrs"]
    rest = Fixture(**{**vars(fixture), "golden": {k: v for k, v in fixture.golden.items() if k not in special}})
    deviations = compare_outputs(rest, arrays) if rest.golden else []
    for name in special:
        golden = fixture.golden[name]
        if name not in arrays:
            deviations.append(Deviation(name, np.inf, False, f"{name}: not computed"))
        elif name == "vertex_attrs":
            tolerance = max(1e-4, fixture.tolerance)
            deviations.append(compare(name, arrays[name], golden, tolerance=tolerance, max_abs=VERTEX_ATTRIBUTES_GUARD))
        else:
            deviations.append(compare(name, canonical(arrays[name]), canonical(golden), tolerance=0))
    return deviations


def filled(module: nn.Module, spec: Mapping[str, Any], *, add: Mapping[str, float] | None = None) -> Any:
    """Fill a module with the deterministic test weights of a spec, then add its constants."""
    fill_deterministic(module, seed=spec["seed"])
    state = module.state_dict()
    for key, value in {**(spec.get("state_add") or {}), **(add or {})}.items():
        state[key].add_(np.float32(value))
    scales = spec.get("state_scale")
    if scales:
        scale_entries(module, scales)
    return lowered(module.eval())


def scale_entries(module: nn.Module, scales: Mapping[str, float]) -> None:
    """Multiply the entries that match a pattern."""
    from fnmatch import fnmatchcase

    for pattern, factor in scales.items():
        for key, entry in module.state_dict().items():
            if fnmatchcase(key, pattern):
                entry.mul_(factor)


def block_args(args: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if name != "use_rope"}


def side_positions(count: int) -> Tensor:
    """Positions of the tokens of a cube, x slowest: (N, 3)."""
    side = torch.arange(round(count ** (1 / 3)), dtype=torch.int32)
    return torch.cartesian_prod(side, side, side)


# -- primitives -------------------------------------------------------------------------------------------------------


@check("RotaryPositionEmbedder")
def rotary(fixture: Fixture) -> Mapping[str, Any]:
    phases = rotary_phases(tensor(fixture, "coords"), fixture.args["head_dim"])
    return {"phase_re": phases.real, "phase_im": phases.imag, "y": rotate(tensor(fixture, "x"), phases)}


def self_attention(fixture: Fixture) -> SelfAttention:
    args = fixture.args
    if args.get("type", "self") != "self":
        raise ValueError("rotary positions belong to self-attention")
    module = SelfAttention(
        args["channels"],
        args["num_heads"],
        qkv_bias=args.get("qkv_bias", True),
        qk_rms_norm=args.get("qk_rms_norm", False),
    )
    return filled(module, fixture.spec)


def phases_of(positions: Tensor, args: Mapping[str, Any]) -> Tensor | None:
    return rotary_phases(positions, args["channels"] // args["num_heads"]) if args.get("use_rope") else None


@check("MultiHeadAttention")
def dense_attention(fixture: Fixture) -> Mapping[str, Any]:
    x = tensor(fixture, "x")
    return {"y": self_attention(fixture)(x, None, phases_of(side_positions(x.shape[1]), fixture.args))}


@check("SparseMultiHeadAttention")
def sparse_attention(fixture: Fixture) -> Mapping[str, Any]:
    feats, voxels = sparse_input(fixture)
    return {"y": self_attention(fixture)(feats, voxels, phases_of(voxels.coords[:, 1:], fixture.args))[0]}


def modulated_block(fixture: Fixture) -> ModulatedCrossBlock:
    return filled(ModulatedCrossBlock(offset_shared=True, **block_args(fixture.args)), fixture.spec)


@check("ModulatedTransformerCrossBlock")
def dense_block(fixture: Fixture) -> Mapping[str, Any]:
    block, x = modulated_block(fixture), tensor(fixture, "x")
    cache = block.cross_attn.cache(tensor(fixture, "context")[None])
    phases = phases_of(side_positions(x.shape[1]), fixture.args)
    return {"y": block(x, tensor(fixture, "mod")[:, None], cache, None, phases)}


@check("ModulatedSparseTransformerCrossBlock")
def sparse_block(fixture: Fixture) -> Mapping[str, Any]:
    block, (feats, voxels) = modulated_block(fixture), sparse_input(fixture)
    cache = block.cross_attn.cache(tensor(fixture, "context")[None])
    phases = phases_of(voxels.coords[:, 1:], fixture.args)
    return {"y": block(feats, per_row(tensor(fixture, "mod"), voxels), cache, voxels, phases)[0]}


@check("SparseConv3d")
def convolution(fixture: Fixture) -> Mapping[str, Any]:
    args = fixture.args
    if args["kernel_size"] != 3:
        raise ValueError("the released decoders have kernels of 3 alone")
    module = filled(SubmanifoldConv3(args["in_channels"], args["out_channels"]), fixture.spec)
    feats, voxels = sparse_input(fixture)
    return {"y": module(feats, voxels)[0]}


@check("SparseSpatial2Channel/SparseChannel2Spatial")
def space_to_channel(fixture: Fixture) -> Mapping[str, Any]:
    feats, voxels = sparse_input(fixture)
    cells = voxels.coarsen(2)
    merged = merge_octants(feats, voxels)
    exists = torch.zeros((len(cells.cells), 8), dtype=torch.bool)
    x, y, z = (voxels.coords[:, 1:].long() % 2).unbind(-1)
    exists[cells.cell_of_row, x + 2 * y + 4 * z] = True
    children = cells.cells.subdivide_where(exists)
    back = take_octants(merged, children)[0]
    # The inverse restores the rows of the input: find each of them among the children.
    order = {tuple(coords): row for row, coords in enumerate(children.voxels.coords.tolist())}
    rows = torch.tensor([order[tuple(coords)] for coords in voxels.coords.tolist()])
    return {
        "down_coords": cells.cells.coords,
        "down_feats": merged[0],
        "up_coords": children.voxels.coords[rows],
        "up_feats": back[rows],
    }


@check("SparseConvNeXtBlock3d")
def convnext_block(fixture: Fixture) -> Mapping[str, Any]:
    out = filled(SparseConvNeXtBlock3d(**fixture.args), fixture.spec)(Sparse(*sparse_input(fixture)))
    return {"y": out.feats[0], "coords": out.voxels.coords}


@check("SparseResBlockS2C3d")
def down_block(fixture: Fixture) -> Mapping[str, Any]:
    out = filled(SparseResBlockS2C3d(**fixture.args), fixture.spec)(Sparse(*sparse_input(fixture)))
    return {"y": out.feats[0], "coords": out.voxels.coords}


@check("SparseResBlockC2S3d")
def up_block(fixture: Fixture) -> Mapping[str, Any]:
    block = filled(SparseResBlockC2S3d(**fixture.args), fixture.spec)
    feats, voxels = sparse_input(fixture)
    outputs: dict[str, Any] = {}
    if "subdiv" in fixture.inputs:
        logits = tensor(fixture, "subdiv")
    else:
        logits = outputs["subdiv_logits"] = block.subdivision(feats[0])
    out = block(Sparse(feats, voxels), logits > 0)
    return {**outputs, "y": out.feats[0], "coords": out.voxels.coords}


# -- networks ---------------------------------------------------------------------------------------------------------


@check("SparseStructureFlowModel")
def structure_flow(fixture: Fixture) -> Mapping[str, Any]:
    model = filled(SparseStructureFlowModel(**fixture.args), fixture.spec)
    condition = model.encode_condition(tensor(fixture, "cond")[None])
    phases = rotary_phases(side_positions(model.resolution**3), model.head_dim)
    return {
        "v": model(tensor(fixture, "x"), tensor(fixture, "t"), condition),
        "rope_re": phases.real,
        "rope_im": phases.imag,
    }


@check("SLatFlowModel")
def latent_flow(fixture: Fixture) -> Mapping[str, Any]:
    model = filled(SLatFlowModel(**fixture.args), fixture.spec)
    feats, voxels = sparse_input(fixture)
    condition = model.encode_condition(tensor(fixture, "cond")[None])
    concat = tensor(fixture, "concat_feats") if "concat_feats" in fixture.inputs else None
    return {"v": model(feats, voxels, tensor(fixture, "t"), condition, concat)[0]}


def unpacked(bits: NDArray[np.uint8]) -> Tensor:
    """(N, 1) uint8 -> (N, 8), positive where a child exists."""
    return torch.from_numpy(np.unpackbits(bits, axis=1, bitorder="little").astype(np.float32))


def packed(logits: Tensor) -> NDArray[np.uint8]:
    return np.packbits((logits > 0).numpy(), axis=1, bitorder="little")


@check("SparseUnetVaeDecoder")
def texture_decoder(fixture: Fixture) -> Mapping[str, Any]:
    model = filled(SparseUnetVaeDecoder(**fixture.args), fixture.spec)
    feats, voxels = sparse_input(fixture)
    guides = [unpacked(fixture.inputs[f"guide{i}_bits"]) for i in range(len(fixture.args["up_block_type"]))]
    decoded = model(feats[0], voxels, subdivisions=guides)
    return {"attrs": decoded.channels * 0.5 + 0.5, "coords": decoded.voxels.coords}


@check("FlexiDualGridVaeDecoder")
def shape_decoder(fixture: Fixture) -> Mapping[str, Any]:
    model = filled(FlexiDualGridVaeDecoder(**fixture.args), fixture.spec)
    feats, voxels = sparse_input(fixture)
    decoded: Decoded = model(feats[0], voxels)
    grid = dual_grid_of(decoded.channels)
    out: dict[str, Any] = {
        "fields": decoded.channels,
        "coords": decoded.voxels.coords,
        "dual_vertices": grid.offset,
        "quad_lerp": grid.split,
    }
    out |= {f"subdiv{i}_logits": logits for i, logits in enumerate(decoded.subdivisions)}
    for i, rows in enumerate(decoded.voxels.segments):
        part = DualGrid(*(None if field is None else field[rows] for field in grid))
        out[f"mesh{i}.vertices"], out[f"mesh{i}.faces"] = dual_grid_mesh(
            decoded.voxels.coords[rows, 1:], part, resolution=model.resolution
        )
    for level in range(1, len(decoded.subdivisions) + 1):
        if f"upsample{level}_coords" in fixture.golden:
            out[f"upsample{level}_coords"] = model(feats[0], voxels, levels=level).voxels.coords
    return out


@check("DinoV3FeatureExtractor")
def image_encoder(fixture: Fixture) -> Mapping[str, Any]:
    if fixture.spec["op"] == "image_to_tensor":
        return {"pixels": image_tensor(fixture.inputs["rgb"], size=fixture.args["image_size"])}
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    args = {name: value for name, value in fixture.args.items() if name != "attn_implementation"}
    model = filled(DINOv3ViTModel(DINOv3ViTConfig(**args)), fixture.spec)
    encoder = ImageEncoder(model)
    pixels = tensor(fixture, "pixels")
    return {"prenorm": encoder.prenorm(pixels), "tokens": encoder(pixels)}


@check("Trellis2ImageTo3DPipeline.preprocess_image")
def preprocess(fixture: Fixture) -> Mapping[str, Any]:
    return {"rgb": crop_subject(fixture.inputs["rgba"])}


# -- surfaces ---------------------------------------------------------------------------------------------------------


@check("flexible_dual_grid_to_mesh")
def dual_grid(fixture: Fixture) -> Mapping[str, Any]:
    args = fixture.args
    grid = DualGrid(
        tensor(fixture, "dual_vertices"), tensor(fixture, "intersected").bool(), tensor(fixture, "split_weight")
    )
    coords, side = tensor(fixture, "coords"), args["grid_size"]
    vertices, faces = dual_grid_mesh(coords, grid, resolution=side)
    filled_mesh = fill_small_holes(
        TriMesh(vertices.numpy(), faces.int().numpy()), max_perimeter_m=args["fill_max_perimeter"]
    )
    matched = in_order_of(filled_mesh, fixture.golden["filled_vertices"], first=len(vertices))
    return {
        "vertices": vertices,
        "faces": faces,
        "faces_nosplit": dual_grid_mesh(coords, grid._replace(split=None), resolution=side)[1],
        "filled_vertices": matched.vertices,
        "filled_faces": matched.faces,
    }


def in_order_of(mesh: TriMesh, golden: NDArray[np.floating], *, first: int) -> TriMesh:
    """A mesh whose vertices from `first` on, which were added in any order, are in the order of the golden ones."""
    from scipy.spatial import cKDTree

    if mesh.vertices.shape != golden.shape or len(golden) == first:
        return mesh
    match = cKDTree(mesh.vertices[first:]).query(golden[first:])[1] + first
    old_of_new = np.concatenate([np.arange(first), match])
    new_of_old = np.empty(len(golden), np.int64)
    new_of_old[old_of_new] = np.arange(len(golden))
    return TriMesh(mesh.vertices[old_of_new], new_of_old[mesh.faces].astype(np.int32))


@check("flex_gemm grid_sample_3d")
def sparse_sampling(fixture: Fixture) -> Mapping[str, Any]:
    coords, values, queries = tensor(fixture, "coords")[:, 1:], tensor(fixture, "feats"), tensor(fixture, "query")
    side = fixture.args["shape"][-1]
    return {
        "trilinear": sample_voxels(coords, values, queries, resolution=side, chunk_size=40),
        "nearest": sample_voxels(coords, values, queries, resolution=side, nearest=True),
    }


# -- samplers and the whole pipeline ----------------------------------------------------------------------------------


@check("FlowEulerSampler", "FlowEulerCfgSampler", "FlowEulerGuidanceIntervalSampler")
def sampler(fixture: Fixture) -> Mapping[str, Any]:
    options, noise = fixture.spec["sample_args"], tensor(fixture, "noise")
    conds = [tensor(fixture, "cond"), tensor(fixture, "neg_cond")]
    is_sparse = fixture.spec["model"]["kind"] == "sparse"
    segments = None
    if is_sparse:
        voxels = VoxelSet(tensor(fixture, "coords"))
        segments = tuple(voxels.segments)

    def analytic(x: Tensor, t: float, images: Sequence[int], unguided: bool) -> Tensor:
        """The kit's formula; `mean(cond)` is that of each batch element."""
        time = model_time(t, x) / 1000
        passes = []
        for index in [*images, *([-1] if unguided else [])]:
            mean = conds[index].flatten(1).mean(dim=1)
            per_value = per_row(mean[:, None], voxels) if is_sparse else mean.reshape(-1, *[1] * (x.ndim - 1))
            passes.append(0.9 * x + 0.3 * (2 * x + time).sin() + per_value * (0.5 + 0.25 * x.cos()))
        return torch.stack(passes)

    guidance = None
    if fixture.target != "FlowEulerSampler":
        guidance = RescaledGuidance(
            options["guidance_strength"],
            tuple(options.get("guidance_interval", (-np.inf, np.inf))),
            options.get("guidance_rescale", 0.0),
            fixture.args["sigma_min"],
            segments,
        )
    log: list[tuple[float, int]] = []
    velocity = guided_velocity(logged(analytic, log), guidance)
    times = flow_times(options["steps"], rescale_t=options.get("rescale_t", 1.0))
    steps = list(euler_steps(noise, velocity, times=times))
    kept = fixture.golden["step_index"]
    return {
        "samples": steps[-1].after,
        "step_index": kept,
        "pred_x_t": torch.stack([steps[i].after for i in kept]),
        "pred_x_0": torch.stack([denoised(steps[i], sigma_min=fixture.args["sigma_min"]) for i in kept]),
        "model_t": np.array([t for t, _ in log]),
        "model_cond_mean": np.array([float(conds[image].mean()) for _, image in log]),
    }


PIPELINE_MODELS: dict[str, type[nn.Module]] = {
    "SparseStructureFlowModel": SparseStructureFlowModel,
    "SparseStructureDecoder": SparseStructureDecoder,
    "SLatFlowModel": SLatFlowModel,
    "FlexiDualGridVaeDecoder": FlexiDualGridVaeDecoder,
    "SparseUnetVaeDecoder": SparseUnetVaeDecoder,
}


class Kind(NamedTuple):
    """What a kind of run does.

    Attributes:
        resolution: of the decoded grid, at first.
        side: of the grid of occupied voxels.
        is_cascade: whether the shape is sampled on a coarse grid first.
    """

    resolution: int
    side: int
    is_cascade: bool


KINDS = {
    "512": Kind(512, 32, False),
    "1024": Kind(1024, 64, False),
    "1024_cascade": Kind(1024, 32, True),
    "1536_cascade": Kind(1536, 32, True),
}
DEFAULT_MAX_TOKENS = 49152


@check("Trellis2ImageTo3DPipeline")
def pipeline_run(fixture: Fixture) -> Mapping[str, Any]:
    spec, run = fixture.spec, fixture.spec["run_args"]
    kind = KINDS[run["pipeline_type"]]
    models: dict[str, Any] = {
        name: filled(PIPELINE_MODELS[part["class"]](**part["args"]), part, add=spec["state_add"].get(name))
        for name, part in spec["args"].items()
    }
    settings = {
        stage: StageSettings(
            params["steps"],
            params["guidance_strength"],
            params["guidance_rescale"],
            tuple(params["guidance_interval"]),
            params["rescale_t"],
        )
        for stage, params in spec["sampler_params"].items()
    }
    shape_norm, texture_norm = (
        Normalisation(values["mean"], values["std"])
        for values in (spec["shape_slat_normalization"], spec["tex_slat_normalization"])
    )
    low, high = (
        Contexts(tokens, torch.zeros_like(tokens[:1]))
        for tokens in (tensor(fixture, "cond_512"), tensor(fixture, "cond_1024"))
    )
    sampling = Sampling(torch.Generator().manual_seed(run["seed"]), torch.device("cpu"))
    latent = sample_structure(models["sparse_structure_flow_model"], low, settings["sparse_structure"], sampling)
    coords = coarsened_occupancy(models["sparse_structure_decoder"](latent), side=kind.side)
    out: dict[str, Any] = {"ss_coords": coords}
    resolution = kind.resolution
    fine = "512" if kind.resolution == COARSE_RESOLUTION else "1024"
    voxels = VoxelSet(coords)
    if kind.is_cascade:
        latents = sample_latents(models["shape_slat_flow_model_512"], voxels, low, settings["shape_slat"], sampling)
        out["lr_slat"] = shape_norm.restore(latents)
        upsampled = models["shape_slat_decoder"](out["lr_slat"], voxels, levels=4).voxels.coords
        coords, resolution = cascade_voxels(
            upsampled, resolution=resolution, max_voxels=run.get("max_num_tokens", DEFAULT_MAX_TOKENS)
        )
        voxels = VoxelSet(coords)
        out |= {"lr_upsampled_coords": upsampled, "hr_resolution": np.array(resolution, np.int32)}
    contexts = low if fine == "512" else high
    flow = models[f"shape_slat_flow_model_{fine}"]
    shape_latents = shape_norm.restore(sample_latents(flow, voxels, contexts, settings["shape_slat"], sampling))
    texture_latents = texture_norm.restore(
        sample_latents(
            models[f"tex_slat_flow_model_{fine}"],
            voxels,
            contexts,
            settings["tex_slat"],
            sampling,
            beside=shape_norm.apply(shape_latents),
        )
    )
    shape: Decoded = models["shape_slat_decoder"](shape_latents, voxels)
    vertices, faces = surface_of(shape, resolution=resolution)
    attributes, finest = decode_attributes(models["tex_slat_decoder"], texture_latents, voxels, shape=shape)
    raw = TriMesh(vertices.numpy(), faces.int().numpy())
    mesh = fill_small_holes(raw, max_perimeter_m=HOLE_PERIMETER)
    mesh = in_order_of(mesh, fixture.golden["mesh.vertices"], first=len(vertices))
    queries = (torch.from_numpy(mesh.vertices) + 0.5) * resolution
    out |= {
        "shape_coords": coords,
        "shape_slat": shape_latents,
        "tex_slat": texture_latents,
        "raw_mesh.vertices": raw.vertices,
        "raw_mesh.faces": raw.faces,
        "tex_coords": finest.coords,
        "attrs": attributes,
        "mesh.vertices": mesh.vertices,
        "mesh.faces": mesh.faces,
        "vertex_attrs": sample_voxels(finest.coords[:, 1:], attributes, queries, resolution=resolution),
    }
    out |= {f"subdiv{i}_bits": packed(logits) for i, logits in enumerate(shape.subdivisions)}
    return out
