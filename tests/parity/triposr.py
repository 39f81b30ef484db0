"""The checks of the TripoSR kit by `spec.target`: build with the arguments of the spec, fill, run, compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.engines.triposr.backbone import BasicTransformerBlock, Transformer1D
from pipeline.engines.triposr.field import Samples, TriplaneField
from pipeline.engines.triposr.image_encoder import DINOSingleImageTokenizer, interpolate_positions
from pipeline.engines.triposr.model import TSR
from pipeline.engines.triposr.preprocess import composite_on_grey, frame_foreground, resize_images
from pipeline.engines.triposr.rendering import rays_intersect_bbox, render_rays
from pipeline.engines.triposr.spec import (
    BackboneSpec,
    DecoderSpec,
    EncoderSpec,
    ModelSpec,
    RendererSpec,
    TokenizerSpec,
    UpsamplerSpec,
)
from pipeline.engines.triposr.triplane import NeRFMLP, Triplane1DTokenizer, TriplaneUpsampleNetwork
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.nn.deterministic_weights import fill_deterministic
from pipeline.ops.isosurface import IsoSurface, extract_isosurface
from pipeline.render.orbit import level_orbit, pixel_rays
from tests.parity.harness import Check, Deviation, Fixture, compare, compare_stats
from tests.reference.triposr_grid import density_on_grid

Arrays = Mapping[str, Any]
Module = TypeVar("Module", bound=nn.Module)
Spec = TypeVar("Spec")

TARGETS: dict[str, Check] = {}

CHUNK = 8192
CHUNKED_TOLERANCE = 1e-6
MOST_LOG_DIFFERENCE, LOG_RANGE = 2e-4, (1e-6, 1e6)
ACTIVATED = ("density_act", "grid_density_act", "query_density_act")
CORNER_VOXELS, EDGES_MAY_DIFFER = 1e-3, 3
SHAPE_TOLERANCE = 1e-3
TRAINING_ONLY = {
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "encoder_stride", "dropout",
    "norm_eps", "layer_norm_eps", "ff_mult",
}  # fmt: skip


def check(*targets: str) -> Callable[[Callable[[Fixture], list[Deviation]]], Callable[[Fixture], list[Deviation]]]:
    """Register a function that checks a fixture."""

    def register(run: Callable[[Fixture], list[Deviation]]) -> Callable[[Fixture], list[Deviation]]:
        def guarded(fixture: Fixture) -> list[Deviation]:
            with torch.inference_mode():
                return run(fixture)

        for target in targets:
            TARGETS[target] = guarded
        return run

    return register


# -- reading a spec ---------------------------------------------------------------------------------------------------


def spec_of(kind: type[Spec], arguments: Mapping[str, Any]) -> Spec:
    """Build a spec from the arguments of the release; an unsupported argument is an error."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    fixed = {"layer_norm_eps": 1e-5, "norm_eps": 1e-6, "ff_mult": 4, "dropout": 0.0}
    for name in arguments.keys() - known:
        if name not in TRAINING_ONLY or (name in fixed and arguments[name] != fixed[name]):
            raise ValueError(f"{name} = {arguments[name]!r} is not supported")
    return kind(**{name: value for name, value in arguments.items() if name in known})


def model_spec(args: Mapping[str, Any]) -> ModelSpec:
    config = args["config"]
    backbone = dict(config["backbone"])
    if backbone["in_channels"] == "${tokenizer.num_channels}":
        backbone["in_channels"] = config["tokenizer"]["num_channels"]
    return ModelSpec(
        name="kit",
        repo_id="",
        revision="",
        file_name="",
        size_bytes=0,
        sha256="",
        cond_image_size=config["cond_image_size"],
        encoder=spec_of(EncoderSpec, args["vit_config"]),
        tokenizer=spec_of(TokenizerSpec, config["tokenizer"]),
        backbone=spec_of(BackboneSpec, backbone),
        post_processor=spec_of(UpsamplerSpec, config["post_processor"]),
        decoder=spec_of(DecoderSpec, config["decoder"]),
        renderer=spec_of(RendererSpec, {k: v for k, v in config["renderer"].items() if k != "randomized"}),
        turntable_size=0,
        turntable_frames=0,
        turntable_fps=0,
    )


def filled(module: Module, fixture: Fixture) -> Module:
    """Fill a module with the deterministic test weights of a spec."""
    spec = fixture.spec
    fill_deterministic(
        module, seed=spec["seed"], key_prefix=spec.get("key_prefix") or "", scale=spec.get("state_scale")
    )
    return module.eval()


def kit_image(seed: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The kit's images: (H, W, C) uint8 from integers alone."""
    y, x, c = np.indices(shape)
    t = (x * (3 + 2 * c) + y * (5 + c) + (x * y) // (37 + 11 * c) + 17 * seed) % 510
    return np.clip(np.minimum(t, 510 - t), 0, 255).astype(np.uint8)


def fixture_images(fixture: Fixture, name: str) -> NDArray[Any]:
    """A stored image or batch, or those of a rule: (..., H, W, C)."""
    if name in fixture.inputs:
        return fixture.inputs[name]
    rule = fixture.spec["inputs_generated"][name]
    shape = tuple(rule["shape"])
    if "seed" in rule:
        return kit_image(rule["seed"], shape)
    seeds = np.asarray(rule["seeds"])
    return np.stack([kit_image(int(seed), shape) for seed in seeds.ravel()]).reshape(*seeds.shape, *shape)


def tensor(fixture: Fixture, name: str) -> Tensor:
    return torch.from_numpy(fixture.inputs[name])


def sliced(array: NDArray[Any], text: str) -> NDArray[Any]:
    """Slice an array as a spec writes it, such as `[:, ::3]`."""
    parts = [part.strip().split(":") for part in text.strip("[]").split(",")]
    return array[tuple(slice(*(int(number) if number else None for number in part)) for part in parts)]


# -- comparing --------------------------------------------------------------------------------------------------------


def compared(fixture: Fixture, whole: Arrays, stored: Arrays | None = None) -> list[Deviation]:
    """Compare golden outputs.

    Args:
        whole: complete arrays, whose statistics are compared if the spec has them.
        stored: the stored parts of them; by default the whole arrays, sliced as the spec says.
    """
    arrays = {name: np.asarray(array) for name, array in whole.items()}
    cut = fixture.spec.get("slice")
    found = {name: sliced(array, cut) if cut else array for name, array in arrays.items()}
    found |= {name: np.asarray(array) for name, array in (stored or {}).items()}
    deviations = [deviation_of(fixture, name, found, golden) for name, golden in fixture.golden.items()]
    for name, stats in (fixture.spec.get("full_stats") or {}).items():
        deviations.append(compare_stats(name, arrays[name], stats, tolerance=fixture.tolerance))
    return deviations


def deviation_of(fixture: Fixture, name: str, found: Arrays, golden: NDArray[Any]) -> Deviation:
    if name not in found:
        return Deviation(name, math.inf, False, f"{name}: not computed")
    if name in ACTIVATED:
        return compare_logs(name, found[name], golden)
    if name.endswith("rgba8"):
        return compare_bytes(name, found[name], golden)
    return compare(name, found[name], golden, tolerance=fixture.tolerance, max_abs=fixture.max_abs)


def compare_logs(name: str, found: NDArray[Any], golden: NDArray[Any]) -> Deviation:
    """Compare exponentials by their logarithms, inside `LOG_RANGE`."""
    if found.shape != golden.shape:
        return Deviation(name, math.inf, False, f"{name}: shape {found.shape}, expected {golden.shape}")
    counts = (golden >= LOG_RANGE[0]) & (golden <= LOG_RANGE[1])
    difference = np.abs(np.log(found[counts].astype(np.float64)) - np.log(golden[counts].astype(np.float64)))
    largest = float(difference.max(initial=0))
    ok = largest <= MOST_LOG_DIFFERENCE
    return Deviation(name, 0.0, ok, "" if ok else f"{name}: logarithms differ by {largest:.1e}")


def compare_bytes(name: str, found: NDArray[Any], golden: NDArray[Any]) -> Deviation:
    """Compare 8-bit colours; one level of difference is allowed.

    If no golden channel exceeds 1, the library that stored the colours mistook floats for bytes (trimesh 4.0.5 compares
    with 1 + 1e-8, which is 1 in float32) and truncated them to 0 and 1; the computed colours are then truncated alike.
    """
    if golden[:, :3].max(initial=0) <= 1:
        found = np.concatenate([found[:, :3] // 255, found[:, 3:]], axis=1)
    if found.shape != golden.shape:
        return Deviation(name, math.inf, False, f"{name}: shape {found.shape}, expected {golden.shape}")
    largest = int(np.abs(found.astype(int) - golden.astype(int)).max(initial=0))
    return Deviation(name, 0.0, largest <= 1, "" if largest <= 1 else f"{name}: a channel is {largest} off")


def within(name: str, value: float, expected: float, bound: float) -> Deviation:
    ok = abs(value - expected) <= bound
    return Deviation(name, 0.0, ok, "" if ok else f"{name}: {value}, expected {expected}")


def unchunked(name: str, chunked: Tensor, whole: Tensor) -> Deviation:
    return compare(f"{name}, chunked", chunked.numpy(), whole.numpy(), tolerance=CHUNKED_TOLERANCE)


# -- images ---------------------------------------------------------------------------------------------------------


@check("ImagePreprocessor")
def image_preprocessor(fixture: Fixture) -> list[Deviation]:
    batch = torch.from_numpy(fixture_images(fixture, "image"))
    batch = batch[None] if batch.ndim == 3 else batch
    return compared(fixture, {"y": resize_images(batch, size=fixture.args["size"])})


@check("run.py image branch")
def image_branch(fixture: Fixture) -> list[Deviation]:
    args = fixture.args
    framed = frame_foreground(fixture.inputs["rgba"], ratio=args["foreground_ratio"])
    rgb = composite_on_grey(framed, background=args["background"])
    resized = resize_images(torch.from_numpy(rgb)[None], size=args["size"])[0].numpy()
    return compared(
        fixture,
        {"image512": resized},
        {"foreground": framed, "rgb": rgb, "image512_sub": resized[3::11, 3::11]},
    )


@check("ViTEmbeddings.interpolate_pos_encoding")
def position_interpolation(fixture: Fixture) -> list[Deviation]:
    args = fixture.args
    rows, columns = (args[side] // args["patch_size"] for side in ("height", "width"))
    return compared(
        fixture, {"y": interpolate_positions(tensor(fixture, "position_embeddings"), rows=rows, columns=columns)}
    )


@check("DINOSingleImageTokenizer")
def image_tokenizer(fixture: Fixture) -> list[Deviation]:
    module = filled(DINOSingleImageTokenizer(spec_of(EncoderSpec, fixture.args["vit_config"])), fixture)
    images = torch.from_numpy(fixture_images(fixture, "images").astype(np.float32) / np.float32(255))  # (B, V, H, W, 3)
    tokens = module(images.flatten(0, 1).permute(0, 3, 1, 2)).mT.unflatten(0, images.shape[:2])  # (B, V, C, L)
    if fixture.args.get("packed_4d_input"):
        tokens = tokens[:, 0]
    if "token_index" not in fixture.golden:
        return compared(fixture, {"tokens": tokens})
    index = fixture.golden["token_index"]
    stored = {"tokens": tokens.numpy()[..., index], "token_index": index}
    return compared(fixture, {"tokens": tokens}, stored)


# -- triplane and backbone --------------------------------------------------------------------------------------------


@check("Triplane1DTokenizer")
def triplane_tokenizer(fixture: Fixture) -> list[Deviation]:
    batch = fixture.args["batch"]
    module = filled(
        Triplane1DTokenizer(spec_of(TokenizerSpec, {k: v for k, v in fixture.args.items() if k != "batch"})), fixture
    )
    return compared(fixture, {"forward": module(batch), "detokenize": module.detokenize(tensor(fixture, "tokens"))})


@check("BasicTransformerBlock")
def transformer_block(fixture: Fixture) -> list[Deviation]:
    module = filled(BasicTransformerBlock(**fixture.args), fixture)
    return compared(fixture, {"y": module(tensor(fixture, "hidden_states"), tensor(fixture, "encoder_hidden_states"))})


@check("Transformer1D")
def transformer(fixture: Fixture) -> list[Deviation]:
    module = filled(Transformer1D(spec_of(BackboneSpec, fixture.args)), fixture)
    return compared(fixture, {"y": module(tensor(fixture, "hidden_states"), tensor(fixture, "encoder_hidden_states"))})


@check("TriplaneUpsampleNetwork")
def upsampler(fixture: Fixture) -> list[Deviation]:
    module = filled(TriplaneUpsampleNetwork(spec_of(UpsamplerSpec, fixture.args)), fixture)
    return compared(fixture, {"y": module(tensor(fixture, "triplanes"))})


# -- the field --------------------------------------------------------------------------------------------------------


@check("NeRFMLP")
def decoder(fixture: Fixture) -> list[Deviation]:
    out = filled(NeRFMLP(spec_of(DecoderSpec, fixture.args)), fixture)(tensor(fixture, "x"))
    return compared(fixture, {"density": out[..., :1], "features": out[..., 1:]})


def field_of(fixture: Fixture) -> TriplaneField:
    args = fixture.args
    module = filled(NeRFMLP(spec_of(DecoderSpec, args["decoder"])), fixture)
    return TriplaneField.of(module, tensor(fixture, "triplane"), renderer=spec_of(RendererSpec, args["renderer"]))


def as_arrays(samples: Samples, prefix: str = "") -> dict[str, NDArray[Any]]:
    return {prefix + field.name: getattr(samples, field.name).numpy() for field in fields(samples)}


@check("TriplaneNeRFRenderer.query_triplane")
def query(fixture: Fixture) -> list[Deviation]:
    field, positions = field_of(fixture), tensor(fixture, "positions")
    whole = field.at(positions, chunk_size=CHUNK)
    deviations = compared(fixture, as_arrays(whole))
    for chunk_size in fixture.args.get("chunk_size", []):
        chunked = field.at(positions, chunk_size=chunk_size or CHUNK)
        deviations.append(unchunked("density", chunked.density, whole.density))
    return deviations


@check("get_spherical_cameras")
def cameras(fixture: Fixture) -> list[Deviation]:
    origins, directions = camera_rays(fixture.args)
    if "informative_only" in fixture.spec:  # it records a defect in the directions; the origins are correct
        return [compare("rays_o", origins, fixture.golden["rays_o"], tolerance=fixture.tolerance)]
    return compared(fixture, {"rays_o": origins, "rays_d": directions})


def camera_rays(args: Mapping[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(V, H, W, 3) origins and directions."""
    size = {"height": args["height"], "width": args["width"]}
    orbit = level_orbit(
        args["n_views"],
        elevation_deg=args["elevation_deg"],
        distance=args["camera_distance"],
        fovy_deg=args["fovy_deg"],
        **size,
    )
    origins, directions = zip(*(pixel_rays(camera, **size) for camera in orbit), strict=True)
    return np.stack(origins).astype(np.float32), np.stack(directions).astype(np.float32)


def box_hits(origins: Tensor, directions: Tensor, args: Mapping[str, Any]) -> dict[str, Tensor]:
    near, far, valid = rays_intersect_bbox(origins.reshape(-1, 3), directions.reshape(-1, 3), **args)
    return {"t_near": near, "t_far": far, "rays_valid": valid}


@check("rays_intersect_bbox")
def ray_box(fixture: Fixture) -> list[Deviation]:
    return compared(fixture, box_hits(tensor(fixture, "rays_o"), tensor(fixture, "rays_d"), fixture.args))


@check("TriplaneNeRFRenderer.forward")
def render(fixture: Fixture) -> list[Deviation]:
    field, origins, directions = field_of(fixture), tensor(fixture, "rays_o"), tensor(fixture, "rays_d")
    whole = rendered(field, origins, directions, CHUNK)
    made = {"origins": origins, "directions": directions}
    deviations = []
    if "cameras" in fixture.args and fixture.args["cameras"]["n_views"] != 3:
        made = dict(zip(made, camera_rays(fixture.args["cameras"]), strict=True))
        deviations = [
            compare(name, made[name], given.numpy(), tolerance=fixture.tolerance)
            for name, given in (("origins", origins), ("directions", directions))
        ]
    hits = box_hits(origins, directions, {"radius": field.renderer.radius})
    deviations += compared(fixture, {"comp_rgb": whole, **hits})
    return [*deviations, unchunked("comp_rgb", rendered(field, origins, directions, 7), whole)]


def rendered(field: TriplaneField, origins: Tensor, directions: Tensor, chunk_size: int) -> Tensor:
    rgb = render_rays(field, origins.reshape(-1, 3), directions.reshape(-1, 3), chunk_size=chunk_size)
    return rgb.view(origins.shape)


# -- meshes -----------------------------------------------------------------------------------------------------------


def formula_colours(vertices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the colours of the mesh fixtures: (V, 3)."""
    x, y, z = vertices.astype(np.float64).T
    return np.stack(
        [0.5 + 0.5 * np.sin(3 * x + 1), 0.5 + 0.5 * np.cos(4 * y), np.clip(0.5 + 0.55 * z, 0, 1)], 1
    ).astype(np.float32)


def rgba8(colours: NDArray[np.float32]) -> NDArray[np.uint8]:
    rgb = np.round(colours * 255).astype(np.uint8)
    return np.concatenate([rgb, np.full((len(rgb), 1), 255, np.uint8)], axis=1)


def in_the_box(surface: IsoSurface, *, resolution: int, radius: float) -> NDArray[np.float32]:
    """Return the vertices in the model's frame: (V, 3)."""
    return (surface.vertices.double() / (resolution - 1) * 2 - 1).mul(radius).float().numpy()


def surface_of(grid: Tensor, level: float) -> IsoSurface:
    """Extract the surface of a dense (R, R, R) grid."""
    return extract_isosurface(
        lambda i: grid[i[:, 0, :, None, None], i[:, 1, None, :, None], i[:, 2, None, None, :]],
        resolution=len(grid),
        level=level,
        step=1,
    )


@check("TSR.extract_mesh")
def mesh(fixture: Fixture) -> list[Deviation]:
    args = fixture.args
    surface = surface_of(tensor(fixture, "density").view(*[args["resolution"]] * 3), args["threshold"])
    vertices = in_the_box(surface, resolution=args["resolution"], radius=args["radius"])
    colours = formula_colours(vertices)
    found = {"edge_key": surface.edges, "vertices": vertices, "color": colours, "vertex_colors_rgba8": rgba8(colours)}
    golden = {name: array for name, array in fixture.golden.items() if name != "faces_torchmcubes"}
    deviations = [
        deviation_of(fixture, name, {k: np.asarray(v) for k, v in found.items()}, array)
        for name, array in golden.items()
    ]
    furthest = (
        float(np.abs(vertices - golden["vertices"]).max()) if vertices.shape == golden["vertices"].shape else math.inf
    )
    deviations.append(within("furthest vertex", furthest, 0.0, 1e-5))
    if not fixture.spec["skimage_lewiner"]["extra_interior_vertices"]:
        deviations += shape_deviations(
            TriMesh(vertices, surface.faces.int().numpy()), fixture.spec["canonical_mesh_stats"]
        )
    return deviations


def shape_deviations(found: TriMesh, stats: Mapping[str, float]) -> list[Deviation]:
    """Compare area and signed volume, whose sign gives the orientation of the faces."""
    area = float(np.linalg.norm(found.face_cross_products(), axis=1).sum() / 2)
    return [
        within("area", area, stats["area"], SHAPE_TOLERANCE * stats["area"]),
        within("volume", found.volume(), stats["signed_volume"], SHAPE_TOLERANCE * abs(stats["signed_volume"])),
    ]


def compare_surfaces(
    edges: NDArray[Any], vertices: NDArray[Any], golden_edges: NDArray[Any], golden_vertices: NDArray[Any], voxel: float
) -> list[Deviation]:
    """Compare surfaces by the grid edges of their vertices; vertices next to a grid corner are excluded."""
    along = vertices[np.arange(len(vertices)), edges[:, 3]] / voxel
    clear = np.abs(along - np.round(along)) > CORNER_VOXELS
    ours = {tuple(edge): place for edge, place in zip(edges[clear].tolist(), vertices[clear], strict=True)}
    theirs = {tuple(edge): place for edge, place in zip(golden_edges.tolist(), golden_vertices, strict=True)}
    apart = len(ours.keys() ^ theirs.keys())
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return [Deviation("mesh", math.inf, False, "mesh: no edge in common")]
    furthest = max(float(np.abs(ours[edge] - theirs[edge]).max()) for edge in shared)
    return [within("edges that differ", apart, 0, EDGES_MAY_DIFFER), within("furthest vertex", furthest, 0.0, 1e-4)]


# -- the whole --------------------------------------------------------------------------------------------------------


@check("TSR")
def whole_model(fixture: Fixture) -> list[Deviation]:
    spec = model_spec(fixture.args)
    model = filled(TSR(spec), fixture)
    batch = torch.from_numpy(fixture_images(fixture, "image"))
    batch = batch[None] if batch.ndim == 3 else batch
    resized = resize_images(batch, size=spec.cond_image_size)
    if fixture.spec["op"] == "full-size forward":
        return full_size(fixture, model, resized)
    codes = model(resized)
    fields_ = [model.field(code) for code in codes]
    args, positions = fixture.args, tensor(fixture, "positions")
    samples = [as_arrays(field.at(positions, chunk_size=CHUNK)) for field in fields_]
    resolution = args["mesh_resolution"]
    grids = [density_on_grid(field, resolution=resolution, chunk_size=CHUNK) for field in fields_]
    rays = [torch.from_numpy(part) for part in camera_rays(args["cameras"])]
    found: dict[str, Any] = {name: np.stack([one[name] for one in samples]) for name in samples[0]}
    found |= {
        "scene_codes": codes.numpy(),
        "grid_density_act": np.stack([grid.numpy() for grid in grids]),
        "render": np.stack([rendered(field, *rays, CHUNK).numpy() for field in fields_]),
    }
    deviations = [
        deviation_of(fixture, name, found, golden)
        for name, golden in fixture.golden.items()
        if not name.startswith("mesh")
    ]
    for number, (field, grid) in enumerate(zip(fields_, grids, strict=True)):
        if f"mesh{number}.edge_key" in fixture.golden:
            deviations += mesh_deviations(fixture, f"mesh{number}", field, grid)
    return deviations


def mesh_deviations(fixture: Fixture, name: str, field: TriplaneField, grid: Tensor) -> list[Deviation]:
    """Compare the mesh of one image, extracted from its dense grid."""
    resolution, radius = fixture.args["mesh_resolution"], field.renderer.radius
    surface = surface_of(grid, fixture.args["threshold"])
    vertices = in_the_box(surface, resolution=resolution, radius=radius)
    golden = {part: fixture.golden[f"{name}.{part}"] for part in ("edge_key", "vertices", "rgba8")}
    voxel = 2 * radius / (resolution - 1)
    centred = surface.vertices.double().numpy() * voxel
    deviations = compare_surfaces(
        surface.edges.numpy(), centred, golden["edge_key"], golden["vertices"].astype(np.float64) + radius, voxel
    )
    colours = field.at(torch.from_numpy(golden["vertices"]), chunk_size=CHUNK).color.numpy()
    deviations.append(compare_bytes(f"{name}.rgba8", rgba8(colours), golden["rgba8"]))
    volume = TriMesh(vertices, surface.faces.int().numpy()).volume()
    deviations.append(Deviation(f"{name} volume", 0.0, volume > 0, "" if volume > 0 else f"{name}: volume {volume}"))
    return deviations


def full_size(fixture: Fixture, model: TSR, resized: Tensor) -> list[Deviation]:
    tokens = model.image_tokenizer(resized.permute(0, 3, 1, 2))
    planes = model.backbone(model.tokenizer(len(resized)), tokens)
    codes = model.post_processor(model.tokenizer.detokenize(planes))
    samples = model.field(codes[0]).at(tensor(fixture, "positions"), chunk_size=CHUNK)
    index = {name: fixture.golden[name] for name in ("token_index", "backbone_index")}
    stored = {
        **index,
        "image_tokens": tokens.numpy()[:, index["token_index"], ::4],
        "backbone_out": planes.numpy()[:, ::8][..., index["backbone_index"]],
        "scene_codes_sub": codes.numpy()[:, :, ::3, 1::6, 2::6],
        **as_arrays(samples, "query_"),
    }
    return compared(fixture, {"image_tokens": tokens, "backbone_out": planes, "scene_codes": codes}, stored)
