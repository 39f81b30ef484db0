"""The checks of the TRELLIS kits by `spec.target`: build with the arguments of the spec, fill, run, compare."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.engines.trellis.gaussian_decoder import SLatGaussianDecoder
from pipeline.engines.trellis.image_encoder import ImageEncoder, encoder_config
from pipeline.engines.trellis.latent_flow import SLatFlowModel
from pipeline.engines.trellis.mesh_decoder import SLatMeshDecoder
from pipeline.engines.trellis.mesh_extraction import extract_mesh, gather_field
from pipeline.engines.trellis.preprocess import frame_subject
from pipeline.engines.trellis.radiance_decoder import SLatRadianceFieldDecoder
from pipeline.engines.trellis.sparse_blocks import SparseResBlock3d, SparseSubdivideBlock3d, SparseTransformerBlock
from pipeline.engines.trellis.stages import SamplerSettings, run_sampler
from pipeline.engines.trellis.structure_flow import SparseStructureFlowModel
from pipeline.nn.attention import CrossAttention, SelfAttention
from pipeline.nn.dense_blocks import ModulatedCrossBlock, ResBlock3d, UpsampleBlock3d
from pipeline.nn.deterministic_weights import deterministic_array, fill_deterministic
from pipeline.nn.embeddings import TimestepEmbedder, position_embedding, timestep_sinusoids
from pipeline.nn.norms import SparseGroupNorm32
from pipeline.nn.sparse_conv import Sparse, SparseConv3d
from pipeline.nn.structure_decoder import SparseStructureDecoder, coarsened_occupancy, occupied_coords
from pipeline.ops.sparse import per_row, pool_cells, repeat_octants, spread_cells
from pipeline.ops.voxels import VoxelSet
from pipeline.render.orbit import Camera, intrinsics_of, orbit_angles, orbit_cameras
from pipeline.render.radiance_field import RadianceField, render_field
from pipeline.sampling.contexts import Contexts, latent_velocities, model_time, structure_velocities
from pipeline.sampling.flow_euler import FlowStep, euler_steps, flow_times
from pipeline.sampling.guidance import Evaluate, Guidance, guided_velocity
from tests.parity.harness import Check, Deviation, Fixture, compare, compare_outputs
from tests.parity.precision import lowered, with_decided_signs
from tests.reference.flow import denoised
from tests.reference.gaussians import render_gaussians

Arrays = dict[str, NDArray[Any]]
Module = TypeVar("Module", bound=nn.Module)

TARGETS: dict[str, Check] = {}


Compute = Callable[[Fixture], Mapping[str, Any]]


def as_array(value: Any) -> NDArray[Any]:
    """A tensor or array as numpy has it, which knows no bfloat16."""
    return np.asarray(value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value)


def check_into(registry: dict[str, Check]) -> Callable[..., Callable[[Compute], Compute]]:
    """Return a decorator for functions that compute a fixture's outputs, which are then compared one by one."""

    def check(*targets: str) -> Callable[[Compute], Compute]:
        def register(compute: Compute) -> Compute:
            def run(fixture: Fixture) -> list[Deviation]:
                with torch.inference_mode():
                    computed = compute(fixture)
                return compare_outputs(fixture, {name: as_array(value) for name, value in computed.items()})

            for target in targets:
                registry[target] = run
            return compute

        return register

    return check


check = check_into(TARGETS)


def filled(module: Module, spec: Mapping[str, Any]) -> Module:
    """Fill a module with the deterministic test weights of a spec."""
    fill_deterministic(module, seed=spec["seed"], scale=spec.get("state_scale"))
    return lowered(module.eval())


def tensor(fixture: Fixture, name: str) -> Tensor:
    return torch.from_numpy(fixture.inputs[name])


def sparse_input(fixture: Fixture) -> tuple[Tensor, VoxelSet]:
    """Return (1, N, C) features and their voxels."""
    return tensor(fixture, "feats")[None], VoxelSet(tensor(fixture, "coords"))


def attention_options(args: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the attention arguments of the release."""
    known = {name: args[name] for name in ("qkv_bias", "qk_rms_norm") if name in args}
    if args.get("attn_mode", "full") not in ("full", "windowed"):
        raise ValueError(f"attn_mode {args['attn_mode']!r} needs a package that the released models do not")
    if args.get("attn_mode") == "windowed":
        known |= {"window_size": args["window_size"], "shift_window": args.get("shift_window") or 0}
    return known


# -- primitives -------------------------------------------------------------------------------------------------------


@check("TimestepEmbedder")
def timestep_embedder(fixture: Fixture) -> Mapping[str, Any]:
    embedder = filled(TimestepEmbedder(**fixture.args), fixture.spec)
    t = tensor(fixture, "t")
    return {"freq": timestep_sinusoids(t, embedder.frequency_embedding_size), "emb": embedder(t)}


@check("AbsolutePositionEmbedder")
def absolute_position(fixture: Fixture) -> Mapping[str, Any]:
    return {"emb": position_embedding(tensor(fixture, "coords"), fixture.args["channels"])}


def attention_module(args: Mapping[str, Any]) -> SelfAttention | CrossAttention:
    if args.get("type", "self") == "cross":
        context = args.get("ctx_channels") or args["channels"]
        return CrossAttention(args["channels"], args["num_heads"], context, **attention_options(args))
    return SelfAttention(args["channels"], args["num_heads"], **attention_options(args))


@check("MultiHeadAttention")
def dense_attention(fixture: Fixture) -> Mapping[str, Any]:
    module = filled(attention_module(fixture.args), fixture.spec)
    x = tensor(fixture, "x")
    if isinstance(module, CrossAttention):
        return {"y": module(x, module.cache(tensor(fixture, "context")[None]))}
    return {"y": module(x)}


@check("SparseMultiHeadAttention")
def sparse_attention(fixture: Fixture) -> Mapping[str, Any]:
    module = filled(attention_module(fixture.args), fixture.spec)
    feats, voxels = sparse_input(fixture)
    if isinstance(module, CrossAttention):
        return {"y": module(feats, module.cache(tensor(fixture, "context")[None]), voxels)[0]}
    return {"y": module(feats, voxels)[0]}


@check("SparseConv3d")
def sparse_convolution(fixture: Fixture) -> Mapping[str, Any]:
    feats, voxels = sparse_input(fixture)
    args = fixture.args
    args.pop("indice_key", None)  # name of a cached table in the release
    if args.pop("stride", 1) != 1 or args.pop("dilation", 1) != 1 or args.pop("padding", None) is not None:
        raise ValueError("the released models use only submanifold convolutions")
    return {"y": filled(SparseConv3d(**args), fixture.spec)(feats, voxels)[0]}


@check("SparseGroupNorm32")
def sparse_group_norm(fixture: Fixture) -> Mapping[str, Any]:
    feats, voxels = sparse_input(fixture)
    return {"y": filled(SparseGroupNorm32(**fixture.args), fixture.spec)(feats, voxels)[0]}


@check("SparseDownsample/SparseUpsample/SparseSubdivide")
def resampling(fixture: Fixture) -> Mapping[str, Any]:
    feats, voxels = sparse_input(fixture)
    factor = fixture.args["factor"]
    pooled = pool_cells(feats, voxels, factor)
    return {
        "down_coords": voxels.coarsen(factor).cells.coords,
        "down_feats": pooled[0],
        "up_coords": voxels.coords,
        "up_feats": spread_cells(pooled, voxels, factor)[0],
        "sub_coords": voxels.subdivide().coords,
        "sub_feats": repeat_octants(feats)[0],
    }


# -- blocks -----------------------------------------------------------------------------------------------------------


def without_defaults(args: dict[str, Any]) -> dict[str, Any]:
    """Drop arguments of the release that select between equivalent computations.

    Raises:
        ValueError: an argument selects something that the released models do not use.
    """
    fixed = {
        "use_checkpoint": (True, False),
        "use_rope": (False,),
        "serialize_mode": (None,),
        "shift_sequence": (None,),
    }
    for name in fixed.keys() & args.keys():
        if args.pop(name) not in fixed[name]:
            raise ValueError(f"{name} is not what the released models use")
    if args.pop("attn_mode", "full") == "full":
        args.pop("window_size", None), args.pop("shift_window", None)
    elif "shift_window" in args:
        args["shift_window"] = args["shift_window"] or 0
    return args


@check("ModulatedTransformerCrossBlock", "ModulatedSparseTransformerCrossBlock")
def modulated_block(fixture: Fixture) -> Mapping[str, Any]:
    block = filled(ModulatedCrossBlock(**without_defaults(fixture.args)), fixture.spec)
    context = block.cross_attn.cache(tensor(fixture, "context")[None])
    mod = tensor(fixture, "mod")
    if "x" in fixture.inputs:
        return {"y": block(tensor(fixture, "x"), mod[:, None], context)}
    feats, voxels = sparse_input(fixture)
    return {"y": block(feats, per_row(mod, voxels), context, voxels)[0]}


@check("SparseTransformerBlock")
def sparse_block(fixture: Fixture) -> Mapping[str, Any]:
    args = without_defaults(fixture.args) | {"attn_mode": fixture.args.get("attn_mode", "full")}
    options = attention_options(args) | {name: args[name] for name in ("mlp_ratio", "ln_affine") if name in args}
    block = filled(SparseTransformerBlock(args["channels"], args["num_heads"], **options), fixture.spec)
    feats, voxels = sparse_input(fixture)
    return {"y": block(feats, voxels)[0]}


@check("ResBlock3d")
def residual_block(fixture: Fixture) -> Mapping[str, Any]:
    return {"y": filled(ResBlock3d(**fixture.args), fixture.spec)(tensor(fixture, "x"))}


@check("UpsampleBlock3d")
def upsample_block(fixture: Fixture) -> Mapping[str, Any]:
    return {"y": filled(UpsampleBlock3d(**fixture.args), fixture.spec)(tensor(fixture, "x"))}


@check("SparseResBlock3d")
def sparse_residual_block(fixture: Fixture) -> Mapping[str, Any]:
    block = filled(SparseResBlock3d(**without_defaults(fixture.args)), fixture.spec)
    out = block(Sparse(*sparse_input(fixture)), tensor(fixture, "emb"))
    return {"y": out.feats[0], "y_coords": out.voxels.coords}


@check("SparseSubdivideBlock3d")
def subdivide_block(fixture: Fixture) -> Mapping[str, Any]:
    args = without_defaults(fixture.args)
    args.pop("resolution", None)  # the release uses it for a cache only
    out = filled(SparseSubdivideBlock3d(**args), fixture.spec)(Sparse(*sparse_input(fixture)))
    return {"y": out.feats[0], "y_coords": out.voxels.coords}


def model_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the argument for gradient checkpointing, which affects training only."""
    return {name: value for name, value in args.items() if name != "use_checkpoint"}


# -- models -----------------------------------------------------------------------------------------------------------


@check("SparseStructureFlowModel")
def structure_flow(fixture: Fixture) -> Mapping[str, Any]:
    model = filled(SparseStructureFlowModel(**model_args(fixture.args)), fixture.spec)
    condition = model.encode_condition(tensor(fixture, "cond")[None])
    v = model(tensor(fixture, "x"), tensor(fixture, "t"), condition)
    return {"v": v, "pos_emb": model.pos_emb}


@check("SparseStructureDecoder")
def structure_decoder(fixture: Fixture) -> Mapping[str, Any]:
    logits = filled(SparseStructureDecoder(**model_args(fixture.args)), fixture.spec)(tensor(fixture, "x"))
    decided = with_decided_signs(logits, fixture)
    half = coarsened_occupancy(decided, side=logits.shape[-1] // 2)
    return {"logits": logits, "coords": occupied_coords(decided), "coords_half": half}


@check("SLatFlowModel")
def latent_flow(fixture: Fixture) -> Mapping[str, Any]:
    model = filled(SLatFlowModel(**model_args(fixture.args)), fixture.spec)
    feats, voxels = sparse_input(fixture)
    condition = model.encode_condition(tensor(fixture, "cond")[None])
    return {"v": model(feats, voxels, tensor(fixture, "t"), condition)[0]}


@check("SLatGaussianDecoder")
def gaussian_decoder(fixture: Fixture) -> Mapping[str, Any]:
    model = filled(SLatGaussianDecoder(**model_args(fixture.args)), fixture.spec)
    feats, voxels = sparse_input(fixture)
    channels = model(feats, voxels)[0]
    out: dict[str, Any] = {"feats": channels, "offset_perturbation": model.offset_perturbation}
    for i, rows in enumerate(voxels.segments):
        raw = model.raw_gaussians(channels[rows], voxels.coords[rows, 1:])
        active = model.activate(raw)
        for name in ("xyz", "features_dc", "scaling", "rotation", "opacity"):
            shaped = getattr(raw, name)
            out[f"gs{i}.{name}_raw"] = shaped[:, None] if name == "features_dc" else shaped
            out[f"gs{i}.{name}"] = getattr(active, name)
    return out


@check("SLatRadianceFieldDecoder")
def radiance_decoder(fixture: Fixture) -> Mapping[str, Any]:
    model = filled(SLatRadianceFieldDecoder(**model_args(fixture.args)), fixture.spec)
    feats, voxels = sparse_input(fixture)
    channels = model(feats, voxels)[0]
    out: dict[str, Any] = {"feats": channels}
    for i, rows in enumerate(voxels.segments):
        field = model.radiance_field(channels[rows], voxels.coords[rows, 1:])
        out |= {
            f"rf{i}.position": field.position,
            f"rf{i}.depth": field.depth[:, None],
            f"rf{i}.trivec": field.trivec,
            f"rf{i}.density": field.density,
            f"rf{i}.features_dc": field.features_dc[:, :, None],
        }
    return out


@check("SLatMeshDecoder")
def mesh_decoder(fixture: Fixture) -> Mapping[str, Any]:
    model = filled(SLatMeshDecoder(**model_args(fixture.args)), fixture.spec)
    between: list[Tensor] = []
    for block in model.upsample:
        block.register_forward_hook(lambda module, inputs, output: between.append(output.feats[0]))
    out = model(*sparse_input(fixture))
    return {"feats": out.feats[0], "out_coords": out.voxels.coords, "up0_feats": between[0], "up1_feats": between[1]}


ENCODER_LAYER_KEYS = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "attn.proj.": "attention.o_proj.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.": "mlp.",
}
ENCODER_KEYS = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
}


def encoder_state(keys: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """Return deterministic test weights under the names of transformers, from the names of the DINOv2 code."""
    state: dict[str, Tensor] = {}
    for key, shape in keys.items():
        values = torch.from_numpy(deterministic_array(key, tuple(shape), seed=seed))
        prefix, table, rest = "", ENCODER_KEYS, key
        if match := re.match(r"blocks\.(\d+)\.(.*)", key):
            prefix, table, rest = f"encoder.layer.{match[1]}.", ENCODER_LAYER_KEYS, match[2]
        if rest.startswith("attn.qkv."):
            for name, third in zip("qkv", values.chunk(3), strict=True):
                state[f"{prefix}attention.{name}_proj.{rest.removeprefix('attn.qkv.')}"] = third
            continue
        start = next(start for start in table if rest.startswith(start))
        state[prefix + table[start] + rest.removeprefix(start)] = values
    return state


def encoder_keys(args: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the DINOv2 code's tensors, which fixtures of the full size leave to the module."""
    width, patch = args["embed_dim"], args["patch_size"]
    hidden, tokens = int(width * args["mlp_ratio"]), 1 + (args["img_size"] // patch) ** 2
    keys: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "register_tokens": (1, args["num_register_tokens"], width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    for block in (f"blocks.{number}." for number in range(args["depth"])):
        for name, shape in layers.items():
            keys |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            keys |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        if args.get("layerscale", True):
            keys |= {f"{block}ls1.gamma": (width,), f"{block}ls2.gamma": (width,)}
    return keys


@check("dinov2 vit *_reg (facebookresearch code)")
def image_encoder(fixture: Fixture) -> Mapping[str, Any]:
    from transformers import Dinov2WithRegistersModel

    args = fixture.args
    config = encoder_config(
        image_size=args["img_size"],
        patch_size=args["patch_size"],
        width=args["embed_dim"],
        depth=args["depth"],
        heads=args["num_heads"],
        registers=args["num_register_tokens"],
        mlp_ratio=args["mlp_ratio"],
    )
    model = Dinov2WithRegistersModel(config)
    stored = fixture.spec.get("keys")
    keys = stored if isinstance(stored, Mapping) else encoder_keys(args)
    loaded = model.load_state_dict(encoder_state(keys, fixture.spec["seed"]), strict=False)
    allowed = () if args.get("layerscale", True) else ("layer_scale1.lambda1", "layer_scale2.lambda1")
    if loaded.unexpected_keys or any(not key.endswith(allowed) for key in loaded.missing_keys):
        raise ValueError(f"keys do not fit: {loaded}")
    encoder = ImageEncoder(model)
    images = tensor(fixture, "rgb")[None]
    return {"x_prenorm": encoder.prenorm(images)[0], "tokens": encoder(images)[0]}


@check("TrellisImageTo3DPipeline.preprocess_image")
def preprocess(fixture: Fixture) -> Mapping[str, Any]:
    return {"rgb518": frame_subject(fixture.inputs["rgba"], size=518)}


# -- samplers and the whole pipeline ----------------------------------------------------------------------------------

Call = tuple[float, int]
"""Time as passed to the model, and index of the image, -1 for the unguided pass."""


def logged(evaluate: Evaluate, log: list[Call]) -> Evaluate:
    """Return the same velocities and log every pass."""

    def logging(x: Tensor, t: float, images: Sequence[int], unguided: bool) -> Tensor:
        log.extend((float(model_time(t, x)), image) for image in [*images, *([-1] if unguided else [])])
        return evaluate(x, t, images, unguided)

    return logging


def contexts_of(fixture: Fixture) -> Contexts:
    """Return the condition and the negative condition of a fixture; zeros where it has none."""
    tokens = tensor(fixture, "cond")
    return Contexts(
        tokens, tensor(fixture, "neg_cond") if "neg_cond" in fixture.inputs else torch.zeros_like(tokens[:1])
    )


def fixture_velocities(fixture: Fixture) -> Evaluate:
    """Return the model of the sampler fixtures: analytic, a tiny structure flow, or a tiny latent flow."""
    conds = [tensor(fixture, name) for name in ("cond", "neg_cond") if name in fixture.inputs]
    spec = fixture.spec["model"]

    if spec["target"] == "analytic_v1":

        def analytic(x: Tensor, t: float, images: Sequence[int], unguided: bool) -> Tensor:
            time = 0.1 * torch.cos(3 * model_time(t, x) / 1000)
            means = [conds[i].mean() for i in [*images, *([-1] if unguided else [])]]
            return torch.stack([0.7 * x.tanh() + time + 0.3 * mean for mean in means])

        return analytic

    model = filled(PIPELINE_MODELS[spec["target"]](**model_args(spec["args"])), spec)
    if isinstance(model, SLatFlowModel):
        sparse = latent_velocities(model, VoxelSet(tensor(fixture, "coords")), contexts_of(fixture))
        return lambda x, t, images, unguided: sparse(x[None], t, images, unguided)  # (N, C) as in the release
    assert isinstance(model, SparseStructureFlowModel)
    return structure_velocities(model, contexts_of(fixture))


@check("FlowEulerSampler", "FlowEulerCfgSampler", "FlowEulerGuidanceIntervalSampler")
def sampler(fixture: Fixture) -> Mapping[str, Any]:
    options = fixture.spec["sample_args"]
    guidance = None
    if "cfg_strength" in options:
        guidance = Guidance(options["cfg_strength"], tuple(options.get("cfg_interval", (-np.inf, np.inf))))
    log: list[Call] = []
    velocity = guided_velocity(logged(fixture_velocities(fixture), log), guidance)
    times = flow_times(options["steps"], rescale_t=options.get("rescale_t", 1.0))
    steps: list[FlowStep] = list(euler_steps(tensor(fixture, "noise"), velocity, times=times))
    kept = fixture.golden["step_index"]
    means = [float(tensor(fixture, "neg_cond" if image < 0 else "cond").mean()) for _, image in log]
    sigma_min = fixture.args["sigma_min"]
    return {
        "samples": steps[-1].after,
        "step_index": kept,
        "pred_x_t": torch.stack([steps[i].after for i in kept]),
        "pred_x_0": torch.stack([denoised(steps[i], sigma_min=sigma_min) for i in kept]),
        "model_t": np.array([t for t, _ in log], np.float32),
        "model_cond_mean": np.array(means, np.float32),
    }


PIPELINE_MODELS: dict[str, type[nn.Module]] = {
    "SparseStructureFlowModel": SparseStructureFlowModel,
    "SparseStructureDecoder": SparseStructureDecoder,
    "SLatFlowModel": SLatFlowModel,
    "SLatGaussianDecoder": SLatGaussianDecoder,
    "SLatRadianceFieldDecoder": SLatRadianceFieldDecoder,
    "SLatMeshDecoder": SLatMeshDecoder,
}


@dataclass(frozen=True)
class PipelineRun:
    """The stages of a pipeline fixture with its models, and the log of all passes.

    Attributes:
        contexts: what the passes are conditioned by.
    """

    fixture: Fixture
    contexts: Contexts

    @cached_property
    def models(self) -> dict[str, Any]:
        """The filled models by their names in the release."""
        models: dict[str, Any] = {
            name: filled(PIPELINE_MODELS[model["target"]](**model_args(model["args"])), model)
            for name, model in self.fixture.spec["args"]["models"].items()
        }
        if decoder := models.get("sparse_structure_decoder"):
            decoder.out_layer[2].bias += self.fixture.spec.get("occupancy_bias_shift", 0.0)
        return models

    @cached_property
    def logs(self) -> list[list[Call]]:
        return [[], []]

    @cached_property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.fixture.spec["run_args"]["seed"])

    @property
    def _several(self) -> dict[str, Any]:
        return {"images": len(self.contexts), "mode": self.fixture.spec["run_args"].get("mode") or "stochastic"}

    def sample_structure(self) -> dict[str, Any]:
        """The first stage: latent, logits and coords."""
        run, flow = self.fixture.spec["run_args"], self.models["sparse_structure_flow_model"]
        shape = (run["num_samples"], flow.in_channels, *[flow.resolution] * 3)
        noise = torch.randn(shape, generator=self.generator)
        np.testing.assert_array_equal(noise, self.fixture.inputs["torch_noise_ss"])
        evaluate = logged(structure_velocities(flow, self.contexts), self.logs[0])
        latent = run_sampler(noise, evaluate, settings(run["sparse_structure_sampler_params"]), **self._several)
        logits = self.models["sparse_structure_decoder"](latent)
        coords = occupied_coords(with_decided_signs(logits, self.fixture))
        return {"z_s": latent, "logits": logits, "coords": coords}

    def sample_latents(self, coords: Tensor) -> dict[str, Any]:
        """The second stage on given voxels, and the first decoder."""
        spec, flow = self.fixture.spec, self.models["slat_flow_model"]
        voxels = VoxelSet(coords)
        noise = torch.randn((len(coords), flow.in_channels), generator=self.generator)
        np.testing.assert_array_equal(noise, self.fixture.inputs["torch_noise_slat"])
        evaluate = logged(latent_velocities(flow, voxels, self.contexts), self.logs[1])
        sampled = run_sampler(noise[None], evaluate, settings(spec["run_args"]["slat_sampler_params"]), **self._several)
        mean, std = (torch.tensor(spec["slat_normalization"][name]) for name in ("mean", "std"))
        slat = sampled * std + mean
        samples = spec["run_args"]["num_samples"]
        calls = [(stage, t, image, samples) for stage, log in enumerate(self.logs) for t, image in log]
        return {
            "coords": coords,
            "slat_norm": sampled[0],
            "slat": slat[0],
            "call_log": np.array(calls, np.float64),
            "gs_feats": self.models["slat_decoder_gs"](slat, voxels)[0],
        }


@check("TrellisImageTo3DPipeline")
def pipeline_run(fixture: Fixture) -> Mapping[str, Any]:
    tokens = tensor(fixture, "conds")
    run = PipelineRun(fixture, Contexts(tokens, torch.zeros_like(tokens[:1])))
    structure = run.sample_structure()
    return structure | run.sample_latents(structure["coords"])


def settings(params: Mapping[str, Any]) -> SamplerSettings:
    return SamplerSettings(
        steps=params["steps"],
        cfg_strength=params["cfg_strength"],
        cfg_interval=tuple(params["cfg_interval"]),
        rescale_t=params["rescale_t"],
    )


# -- meshes: vertices in any order ------------------------------------------------------------------------------------

MESH_TOLERANCE = 1e-5  # bound of the kit for the distance between matching vertices


def compare_mesh(fixture: Fixture) -> list[Deviation]:
    """Match vertices by nearest neighbour, then compare attributes, and faces as cyclically rotated triples."""
    from scipy.spatial import cKDTree

    args, golden = fixture.args, fixture.golden
    with torch.inference_mode():
        coords = tensor(fixture, "coords")
        field = gather_field(
            coords[:, 1:], tensor(fixture, "feats"), resolution=args["res"], use_color=args["use_color"]
        )
        mesh = extract_mesh(field)
    vertices = mesh.vertices.numpy()
    if vertices.shape != golden["vertices"].shape or len(vertices) == 0:
        deviations = [compare("vertices", vertices, golden["vertices"], tolerance=fixture.tolerance)]
        return [*deviations, compare("faces", mesh.faces.numpy(), golden["faces"], tolerance=0)]
    distance, match = cKDTree(golden["vertices"]).query(vertices)
    one_to_one = len(np.unique(match)) == len(match) and float(distance.max()) <= MESH_TOLERANCE
    deviations = [
        Deviation("match", 0.0, one_to_one, "" if one_to_one else f"vertices do not match, worst {distance.max():.1e}"),
        compare("vertices", vertices, golden["vertices"][match], tolerance=fixture.tolerance),
        compare("faces", canonical(match[mesh.faces.numpy()]), canonical(golden["faces"]), tolerance=0),
    ]
    if "vertex_attrs" in golden:
        assert mesh.attributes is not None
        attributes, expected = mesh.attributes.numpy(), golden["vertex_attrs"][match]
        deviations.append(compare("vertex_attrs", attributes, expected, tolerance=fixture.tolerance))
    return deviations


def canonical(faces: NDArray[Any]) -> NDArray[np.int64]:
    """Rotate each face so that its smallest index comes first, and sort the faces: (F, 3)."""
    first = faces.argmin(axis=1)
    rotated = np.take_along_axis(faces.astype(np.int64), (first[:, None] + np.arange(3)) % 3, axis=1)
    return rotated[np.lexsort(rotated.T[::-1])]


TARGETS["SparseFeatures2Mesh"] = compare_mesh


# -- rendering --------------------------------------------------------------------------------------------------------


@check("render_utils.render_video")
def camera_path(fixture: Fixture) -> Mapping[str, Any]:
    args = fixture.args
    frames = int(fixture.inputs["num_frames"])
    yaw, pitch = orbit_angles(frames)
    cameras = orbit_cameras(frames, radius=args["r"], fov_rad=np.deg2rad(args["fov"]))
    return {
        "yaw": yaw,
        "pitch": pitch,
        "extrinsics": np.stack([camera.world_to_camera for camera in cameras]),
        "intrinsics": intrinsics_of(np.deg2rad(args["fov"])),
    }


def fixture_cameras(fixture: Fixture) -> list[Camera]:
    pairs = zip(fixture.inputs["extrinsics"], fixture.inputs["intrinsics"], strict=True)
    return [Camera(pose.astype(np.float64), lens.astype(np.float64)) for pose, lens in pairs]


@check("OctreeRenderer(trivec)")
def field_rendering(fixture: Fixture) -> Mapping[str, Any]:
    args = fixture.args
    field = RadianceField(
        position=tensor(fixture, "position"),
        depth=tensor(fixture, "depth")[:, 0],
        trivec=tensor(fixture, "trivec"),
        density=tensor(fixture, "density"),
        features_dc=tensor(fixture, "features_dc")[:, :, 0],
        box=fixture.inputs["aabb"].tolist(),
    )
    images = [
        render_field(
            field,
            camera,
            resolution=args["resolution"],
            chunk_size=8192,
            background=fixture.inputs["bg"].tolist(),
            jitter=jitter,
            density_shift=args["density_shift"],
            ssaa=args["ssaa"],
        )
        for camera, jitter in zip(fixture_cameras(fixture), tensor(fixture, "jitter"), strict=True)
    ]
    names = ("rgb", "depth", "alpha", "percent_depth")
    return {name: torch.stack([getattr(image, name) for image in images]) for name in names}


class Splats:
    """The Gaussians of a fixture under the attribute names of the renderer."""

    def __init__(self, fixture: Fixture) -> None:
        self.xyz = tensor(fixture, "xyz")
        self.scaling = tensor(fixture, "scaling") * fixture.args.get("scaling_modifier", 1.0)
        self.rotation = tensor(fixture, "rotation")
        self.opacity = tensor(fixture, "opacity")
        self.features_dc = tensor(fixture, "features_dc")[:, 0]


@check("GaussianRenderer(mip)")
def gaussian_rendering(fixture: Fixture) -> Mapping[str, Any]:
    images = [
        render_gaussians(
            Splats(fixture),
            camera,
            resolution=fixture.args["resolution"],
            background=fixture.inputs["bg"].tolist(),
            kernel_size=fixture.args["kernel_size"],
        )
        for camera in fixture_cameras(fixture)
    ]
    return {name: torch.stack([getattr(image, name) for image in images]) for name in ("rgb", "alpha", "radii")}
