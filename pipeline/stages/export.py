"""Stage 3: turns a `Generation` into files on the local disk, the same way for every engine.

Clean, simplify, unwrap, bake, encode. Knows nothing of engines beyond what they return, nor of where files go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import Generation, OnStep
from pipeline.errors import ExportFailed
from pipeline.formats.encode import AssetEncoder
from pipeline.formats.glb import unit_normals
from pipeline.formats.mp4 import encode_mp4
from pipeline.formats.png import png_bytes
from pipeline.imaging.background_removal import Cutout
from pipeline.mesh.asset import Asset, Body, unmapped
from pipeline.mesh.bake import Detail, bake, colour_vertices
from pipeline.mesh.clean import clean
from pipeline.mesh.clean_open import clean_open, faces_of_bodies
from pipeline.mesh.material import ALPHA_CUTOFF, Material
from pipeline.mesh.measure import measure
from pipeline.mesh.nearest_surface import NearestSurface
from pipeline.mesh.placement import Placement
from pipeline.mesh.simplify import simplify
from pipeline.mesh.solidify import THICKNESS_SHARE, solidify
from pipeline.mesh.tangents import vertex_tangents
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.mesh.unwrap import unwrap
from pipeline.render.mesh_view import RenderMesh, thumbnail, turntable
from pipeline.storage.base import FileKind, OutputFile, content_type_of, cutout_names, level_stem
from schemas.formats import FORMATS
from schemas.names import is_random_name, safe_name
from schemas.request import GenerationRequest

TURNTABLE_FRAMES, TURNTABLE_FPS = 120, 30
IMAGE_SIZE = 512
CUTOUT_SIDE_PX = 512  # longer side of a delivered cut-out: enough to judge it, 0.1 to 0.4 MB
PLAIN_GREY = 184
LEAST_LOD_TEXTURE = 256
LEAST_FACES_OF_SOLID, MORE_FACES_OF_SOLID = 100_000, 1.2
"""A solid that is made of an open surface keeps as many faces, or as many times those of its finest level, until its
parts are joined: their union takes 25 µs for a face."""
COUNT_TOLERANCE = 0.01
"""A number of faces that differs by a larger share from the one that was asked for is reported."""


@dataclass(frozen=True)
class Exported:
    """What the export stage made.

    Attributes:
        files: each model before its companions, the turntable, extra files, the thumbnail, cut-outs.
        warnings: sentences for the caller.
        meta: what the export decided or measured, for `meta` of the answer: plain values of JSON.
    """

    files: tuple[OutputFile, ...]
    warnings: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


def export(
    generation: Generation,
    *,
    request: GenerationRequest,
    file_prefix: str,
    folder: Path,
    on_step: OnStep,
    cutouts: Sequence[Cutout] = (),
) -> Exported:
    """Write every file of a job.

    Args:
        file_prefix: prefix of their names.
        folder: where they are written; created when missing.
        on_step: receives the share that is done; may raise `Cancelled`.
        cutouts: one for each image; delivered where the background was removed.

    Raises:
        ExportFailed: the generation's surface encloses nothing, or has no area where it may be open.
        Cancelled: raised by `on_step`.
    """
    levels = make_levels(generation, request=request, on_step=lambda share: on_step(0.6 * share))
    part_name = asset_name(levels[0], file_prefix)
    placement = Placement(request.size, request.origin, request.up_axis, bounds=levels[0].mesh.bounds())
    encoders = {
        level_stem(file_prefix, number): AssetEncoder(
            replace(level, name=level_stem(part_name, number)),
            placement,
            texture_format=request.texture_format,
            compression=request.compression,
        )
        for number, level in enumerate(levels)
    }
    asset, encoder = levels[0], encoders[file_prefix]
    render_mesh = render_mesh_of(asset)
    contents: dict[str, bytes] = {}
    kinds: dict[str, FileKind] = {}
    faces, bytes_of = dict[str, int](), dict[str, int]()  # by model
    for stem, each in encoders.items():
        for output_format in request.formats:
            made = each.files(output_format, stem=stem)
            contents |= made
            kinds |= dict.fromkeys(made, "companion")
            kinds[f"{stem}.{output_format}"] = "model" if each is encoder else "lod"
            faces[f"{stem}.{output_format}"] = len(each.asset_in(output_format).mesh.faces)
            bytes_of[f"{stem}.{output_format}"] = sum(map(len, made.values()))
    model = f"{file_prefix}.{request.formats[0]}"
    mesh_measures = _measures(encoder, request.formats[0], file_bytes=bytes_of[model])
    on_step(0.7)
    meta: dict[str, Any] = {"mesh": mesh_measures}
    if request.render:
        meta["turntable"] = "mesh" if generation.turntable_mp4 is None else "field"
        name = f"{file_prefix}.mp4"
        kinds[name] = "turntable"
        contents[name] = generation.turntable_mp4 or _turntable_of(
            render_mesh, lambda share: on_step(0.7 + 0.25 * share)
        )
    for ending, content in generation.extra_files.items():
        kinds[f"{file_prefix}.{ending}"] = "extra"
        contents[f"{file_prefix}.{ending}"] = content
    name = f"{file_prefix}_thumbnail.png"
    kinds[name] = "thumbnail"
    contents[name] = png_bytes(thumbnail(render_mesh, size=IMAGE_SIZE))
    on_step(0.97)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, content in contents.items():
        path = folder / name
        path.write_bytes(content)
        files.append(OutputFile(path, kinds[name], content_type_of(name), faces.get(name)))
    warnings = _normal_map_warning(request) + _texture_warnings(encoder, request.formats)
    if request.compression != "none" and "glb" not in request.formats:
        warnings += (f"compression {request.compression} had no effect: it is for GLB alone.",)
    if request.print_ready:
        meta["print"], for_print = _print_report(asset, request)
        warnings += for_print
    warnings += _thickened_warning(asset.body, [name for name in request.formats if encoder.is_thickened_in(name)])
    for stem, asked in zip(encoders, (request.target_faces, *(request.lods or ())), strict=True):
        warnings += _count_warning(f"{stem}.{request.formats[0]}", faces, asked=asked)
    return Exported((*files, *_cutout_files(cutouts, file_prefix, folder)), warnings, meta)


def asset_name(asset: Asset, file_prefix: str) -> str:
    """What the parts of an asset are called in its files: after the user's file, else after its content.

    A random prefix, as the service has, is no name: the same request would give other bytes each time.
    """
    if not is_random_name(file_prefix):
        return safe_name(file_prefix)
    content = hashlib.sha256()
    for part in (asset.mesh.vertices, asset.mesh.faces, *asset.material.images):
        content.update(np.ascontiguousarray(part).tobytes())
    return f"asset_{content.hexdigest()[:8]}"


def _print_size_mm(request: GenerationRequest) -> float:
    """Longest side of the print: that of the formats for printing where the request names none."""
    return 1000 * (FORMATS["stl"].default_size_m if request.size is None else request.size)


def _print_report(asset: Asset, request: GenerationRequest) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Measures of an asset as it is printed, and sentences about what was changed for it and what may not succeed."""
    from pipeline.mesh.print_check import check_print, wall_warning

    size_mm, sides = _print_size_mm(request), np.ptp(asset.mesh.bounds(), axis=0)
    report = check_print(asset.mesh, mm_per_unit=size_mm / float(sides.max()), min_wall_mm=request.min_wall_mm)
    changed = f"Made ready to print at {size_mm:g} mm: {' '.join(asset.print_changes)}"
    warnings = (*([changed] if asset.print_changes else []), *wall_warning(report, min_wall_mm=request.min_wall_mm))
    return report.as_dict(), warnings


def _count_warning(name: str, faces: Mapping[str, int], *, asked: int | None) -> tuple[str, ...]:
    """A sentence about a file whose number of faces is not the one that was asked for."""
    if asked is None or abs(faces[name] - asked) <= COUNT_TOLERANCE * asked:
        return ()
    reason = "the surface has no more" if faces[name] < asked else "the surface allows no fewer"
    return (f"{name} has {faces[name]:,} faces instead of {asked:,}: {reason}.",)


def _normal_map_warning(request: GenerationRequest) -> tuple[str, ...]:
    """A sentence if a normal map was asked for that no file has."""
    if not request.normal_map:
        return ()
    if request.no_texture:
        return ("normal_map has no effect without a texture.",)
    without = [name.upper() for name in request.formats if FORMATS[name].texture in ("vertices", "none")]
    return (f"normal_map has no effect in {' and '.join(without)}, which has no images.",) if without else ()


def _texture_warnings(encoder: AssetEncoder, output_formats: Sequence[str]) -> tuple[str, ...]:
    """A sentence about each format that has images in another format than the one that was asked for."""
    asked, warnings = encoder.texture_format, []
    for name in output_formats:
        others = {image.texture_format for image in encoder.textures_in(name).values()} - {asked}
        if others:
            is_known = asked in FORMATS[name].texture_formats
            reason = "JPEG has no alpha" if is_known else f"{name.upper()} has no {asked}"
            warnings.append(f"The {name.upper()} has textures as {' and '.join(sorted(others))}: {reason}.")
    return tuple(warnings)


def _thickened_warning(body: Body | None, output_formats: Sequence[str]) -> tuple[str, ...]:
    """A sentence about the formats in which an open surface became a body, if there are any."""
    if body is None or not output_formats:
        return ()
    names = " and the ".join(name.upper() for name in output_formats)
    return (
        f"The surface encloses nothing; in the {names} it is {body.thickness_share:.1%} of its longest side "
        "thick, so that it can be printed.",
    )


def _measures(encoder: AssetEncoder, output_format: str, *, file_bytes: int) -> dict[str, Any]:
    """Measures of an asset as a format has it, for answers: in metres, with the bytes of its files."""
    asset, units = encoder.asset_in(output_format), FORMATS[output_format].units_per_metre
    report = measure(asset.mesh)
    textures = encoder.textures_in(output_format)
    return {
        "faces": report.faces,
        "vertices": report.vertices,
        "watertight": report.is_watertight,
        "components": report.components,
        "volume": _rounded(report.volume / units**3),
        "bounds": [[_rounded(value / units) for value in corner] for corner in (report.lowest, report.highest)],
        "texture_size": asset.material.base_colour.shape[0] if textures else None,
        "texture_bytes": sum(len(image.content) for image in textures.values()),
        "file_bytes": file_bytes,
    }


def _rounded(value: float) -> float:
    """Six significant digits: a measure of a file that holds float32."""
    return float(f"{value:.6g}")


def _cutout_files(cutouts: Sequence[Cutout], file_prefix: str, folder: Path) -> list[OutputFile]:
    """Write the cut-outs that were made here: `robot_cutout.png`, or `robot_2_cutout.png` for the second of several."""
    files = []
    for name, cutout in zip(cutout_names(file_prefix, views=len(cutouts)), cutouts, strict=True):
        if cutout.was_removed:
            path = folder / name
            path.write_bytes(png_bytes(_reduced_cutout(cutout.image)))
            files.append(OutputFile(path, "extra", content_type_of(path.name)))
    return files


def _reduced_cutout(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A cut-out at the delivered size, without the hidden colours: (H, W, 4) -> (h, w, 4)."""
    premultiplied = image.astype(np.float32)
    premultiplied[..., :3] *= premultiplied[..., 3:] / 255
    scale = CUTOUT_SIDE_PX / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        premultiplied = np.asarray(cv2.resize(premultiplied, size, interpolation=cv2.INTER_AREA), np.float32)
    alpha = premultiplied[..., 3:]
    colours = np.where(alpha >= 0.5, premultiplied[..., :3] * 255 / np.maximum(alpha, 1e-3), 0)
    return np.dstack([np.clip(colours, 0, 255), alpha]).round().astype(np.uint8)


def make_levels(generation: Generation, *, request: GenerationRequest, on_step: OnStep) -> list[Asset]:
    """Clean, simplify, unwrap and bake: the asset, then its further levels of detail in the order of the request.

    Further levels have textures of their own, of half the side: docs/formats.md has the measurement. One texture
    for all would need the seams of the finest level in the coarser ones, whose faces cross them.

    Raises:
        ExportFailed: the generation's surface encloses nothing, or has no area where it may be open.
    """
    surface = clean(generation.mesh) if generation.is_closed else clean_open(generation.mesh)
    if len(surface.faces) == 0:
        reason = "encloses nothing" if generation.is_closed else "has no area"
        raise ExportFailed(f"export failed: the engine's surface {reason}")
    is_open = not generation.is_closed and not faces_of_bodies(surface).all()
    on_step(0.2)
    changes: tuple[str, ...] = ()
    if request.print_ready:
        meshes, changes = _print_levels(surface, request, len(generation.mesh.faces))
        is_open = False
    else:
        meshes = _simplified_levels(surface, request, len(generation.mesh.faces))
    bodies: Sequence[Body | None] = [None] * len(meshes)
    if is_open and any(FORMATS[name].needs_body for name in request.formats):
        bodies = _bodies(surface, [len(mesh.faces) for mesh in meshes], generation, request)
    detailed = NearestSurface(surface) if request.normal_map and not request.no_texture else None
    on_step(0.5)

    def step_of(number: int) -> OnStep:
        return lambda share: on_step(0.5 + 0.5 * (number + share) / len(meshes))

    return [
        replace(
            _with_texture(
                mesh,
                generation,
                request=request,
                texture_size=max(request.texture_size // 2, LEAST_LOD_TEXTURE) if number else request.texture_size,
                detailed=detailed,
                on_step=step_of(number),
            ),
            is_open=is_open,
            body=body,
            print_changes=changes,
        )
        for number, (mesh, body) in enumerate(zip(meshes, bodies, strict=True))
    ]


def _finest_count(request: GenerationRequest, extracted_faces: int) -> int:
    """The number of faces that is asked of the asset."""
    return request.target_faces or round((1 - request.mesh_simplify) * extracted_faces)


def _simplified_levels(surface: TriMesh, request: GenerationRequest, extracted_faces: int) -> list[TriMesh]:
    """The surface and its further levels of detail, with their numbers of faces."""
    return _levels_of(surface, [_finest_count(request, extracted_faces), *(request.lods or ())])


def _levels_of(surface: TriMesh, counts: Sequence[int]) -> list[TriMesh]:
    """A surface simplified to each number of faces, the first of which is the finest as a rule."""
    finest = simplify(surface, target_faces=counts[0])
    return [
        finest,
        *(simplify(finest if n <= len(finest.faces) else surface, target_faces=n) for n in counts[1:]),
    ]


def _bodies(surface: TriMesh, counts: Sequence[int], generation: Generation, request: GenerationRequest) -> list[Body]:
    """What stands for an open surface and its further levels of detail where a format needs a body."""
    low, high = surface.bounds()
    longest = float((high - low).max())
    solids = solidify(surface, thickness_m=THICKNESS_SHARE * longest, most_faces=max(counts))
    return [
        Body(
            mesh,
            solids.thickness_m / longest,
            _vertex_colours(mesh, unit_normals(mesh.vertex_normals()), generation, request),
        )
        for mesh in _levels_of(solids.mesh, counts)
    ]


def _print_levels(
    surface: TriMesh, request: GenerationRequest, extracted_faces: int
) -> tuple[list[TriMesh], tuple[str, ...]]:
    """The same, each one shell on a flat base; and sentences about what was changed for that in the first."""
    from pipeline.mesh.printable import make_solid, simplify_for_print  # its packages are needed for nothing else

    size_mm = _print_size_mm(request)
    finest = _finest_count(request, extracted_faces)
    most_faces = max(LEAST_FACES_OF_SOLID, round(MORE_FACES_OF_SOLID * max(finest, *(request.lods or (0,)))))
    solid = make_solid(surface, size_mm=size_mm, min_wall_mm=request.min_wall_mm, most_faces=most_faces)
    made = [
        simplify_for_print(solid.mesh, target_faces=count, size_mm=size_mm) for count in (finest, *(request.lods or ()))
    ]
    return [each.mesh for each in made], (*solid.changes, *made[0].changes)


def _with_texture(
    mesh: TriMesh,
    generation: Generation,
    *,
    request: GenerationRequest,
    texture_size: int,
    detailed: NearestSurface | None,
    on_step: OnStep,
) -> Asset:
    """Unwrap and bake; without a texture where the request leaves it out.

    Args:
        detailed: the surface whose normals are baked into a normal map; None bakes none.
    """
    normals = unit_normals(mesh.vertex_normals())
    if request.no_texture:
        return _plain(mesh, normals)
    unwrapped = unwrap(mesh, texture_size=texture_size)
    on_step(0.4)
    of_unwrapped = normals[unwrapped.source_vertices]
    detail = None
    if detailed is not None:
        tangents = vertex_tangents(unwrapped.vertices, unwrapped.faces, of_unwrapped, unwrapped.uvs)
        detail = Detail(detailed.normals_at, tangents)
    material = bake(
        unwrapped,
        of_unwrapped,
        generation.attribute_source.attributes_at,
        texture_size=texture_size,
        chunk_size=request.points_at_once,
        detail=detail,
        on_share=lambda share: on_step(0.4 + 0.6 * share),
    )
    colours = _vertex_colours(mesh, normals, generation, request)
    return Asset(mesh, normals, unwrapped, material, is_textured=True, vertex_colours=colours)


def _vertex_colours(
    mesh: TriMesh, normals: NDArray[np.float32], generation: Generation, request: GenerationRequest
) -> NDArray[np.uint8] | None:
    """Colours of a mesh's vertices where a format that is asked for has them there."""
    if request.no_texture or not any(FORMATS[name].texture == "vertices" for name in request.formats):
        return None
    source = generation.attribute_source.attributes_at
    return colour_vertices(mesh, normals, source, chunk_size=request.points_at_once)


def _plain(mesh: TriMesh, normals: NDArray[np.float32]) -> Asset:
    """An asset without texture, in one grey."""
    grey = Material(np.full((1, 1, 3), PLAIN_GREY, np.uint8))
    return Asset(mesh, normals, unmapped(mesh), grey, is_textured=False)


def render_mesh_of(asset: Asset) -> RenderMesh:
    """An asset as the renderer takes it."""
    split = asset.unwrapped
    return RenderMesh(
        split.vertices,
        split.faces,
        asset.unwrapped_normals,
        split.uvs,
        asset.material.base_colour,
        is_double_sided=asset.shows_backs,
        alpha_cutoff=ALPHA_CUTOFF if asset.material.alpha_mode == "MASK" else None,
    )


def _turntable_of(mesh: RenderMesh, on_share: Callable[[float], None]) -> bytes:
    """One turn around the mesh as an mp4."""

    def counted() -> Iterator[NDArray[np.uint8]]:
        for number, frame in enumerate(turntable(mesh, frames=TURNTABLE_FRAMES, size=IMAGE_SIZE), start=1):
            on_share(number / TURNTABLE_FRAMES)
            yield frame

    return encode_mp4(counted(), fps=TURNTABLE_FPS, width=IMAGE_SIZE, height=IMAGE_SIZE)
