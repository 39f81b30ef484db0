"""Generate 3D files from Python, on this machine, through the same four stages that run a service's jobs.

    from pipeline import generate

    result = generate("robot.png", output_format="glb", seed=1)
    result.save("out/")          # out/robot.glb, out/robot_thumbnail.png
    result.mesh                  # the asset as a trimesh.Trimesh
    result.meta["seed"]          # every effective parameter

The signature is `generate(image, *, <one keyword per field of a request>, engine=None, weights=None,
file_prefix=None, allow_private_addresses=False, on_progress=None) -> GenerationResult`.

Knows nothing of HTTP, stores or buckets. `run_request` and `run_in_memory` are what the command line and
`modal run` build on.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

from pipeline.engines.registry import ENGINES, choose_engine, defaults_of, find_spec, require_weights
from pipeline.errors import Cancelled, ImageTo3DError, InvalidRequest, MissingExtra, UnwritableOutput
from pipeline.storage.base import cutout_names, output_names
from schemas.formats import Compression, OutputFormat, TextureFormat
from schemas.request import GenerationRequest, ImageTo3DRequest, Origin, UpAxis, parse_request
from schemas.table import SERVICE_FIELDS
from schemas.text import TextTo3DRequest, parse_text_request

if TYPE_CHECKING:
    import numpy as np
    import trimesh
    from numpy.typing import NDArray
    from PIL import Image

    from pipeline.engines.base import Engine, ForegroundImage, Generation, GenerationOptions, OnStep
    from pipeline.jobs.model import JobResult
    from pipeline.run_job import Generate, LoadViews
    from pipeline.settings import Settings
    from pipeline.stages.deliver import Delivery
    from pipeline.stages.generate import LocalEngines
    from pipeline.storage.base import FileKind, OutputFile

ImageSource: TypeAlias = "str | PathLike[str] | bytes | bytearray | NDArray[np.uint8] | Image.Image"
"""One image: a path, an http(s) URL, a data URI, the bytes of an image file, an array (H, W, 3 or 4) uint8 in sRGB with
straight alpha, or a PIL image."""

OnProgress: TypeAlias = Callable[[str, int], None]
"""Called with the stage (intake, generate, export, deliver) and the percentage of the whole job."""

DEFAULT_ENGINE = "preview"
DEFAULT_FILE_PREFIX = "model"

Content = TypeVar("Content")

_one_at_a_time = threading.RLock()  # engines are not thread-safe; reentrant, since `on_progress` may generate too
_engines: dict[str, LocalEngines] = {}
_loaded_instances: weakref.WeakValueDictionary[int, Engine] = weakref.WeakValueDictionary()

# A library logs, but prints nothing on stderr where the application has configured no logging.
logging.getLogger("pipeline").addHandler(logging.NullHandler())


@dataclass(frozen=True, eq=False, repr=False)
class GenerationResult:
    """The files of one asset, in memory.

    Attributes:
        files: content by file name: the model, what belongs to it, the turntable, extra files, the thumbnail.
        file_kinds: what each file is, by its name: model, companion, lod, turntable, extra or thumbnail.
        meta: every effective parameter, among them the seed that was drawn and the engine that ran.
        warnings: sentences about what was ignored, assumed or done differently.
        engine: name of the engine that ran.
        stage_seconds: wall seconds by stage.
        gpu_seconds: accelerator seconds, 0 on a CPU.
    """

    files: Mapping[str, bytes]
    file_kinds: Mapping[str, FileKind]
    meta: Mapping[str, Any]
    warnings: tuple[str, ...]
    engine: str
    stage_seconds: Mapping[str, float]
    gpu_seconds: float

    @property
    def model_name(self) -> str:
        """Name of the model among `files`; of the first format where there are several."""
        return next(name for name, kind in self.file_kinds.items() if kind == "model")

    @cached_property
    def mesh(self) -> trimesh.Trimesh:
        """The model as trimesh reads it, with its texture or vertex colours; read when first used.

        Vertices along the seams of a texture are split, as in the file, so `mesh.is_watertight` says no of a textured
        GLB that is; `pipeline.inspect(result.files[result.model_name])` joins them first.
        """
        import io

        from pipeline.formats.reading import read_scene

        name = self.model_name
        source = io.BytesIO(self.files[name])
        return read_scene(source, file_type=Path(name).suffix[1:], companions=self.files).to_mesh()

    def save(self, folder: str | PathLike[str]) -> list[Path]:
        """Write all files into a folder, under their own names, so that an OBJ finds its material.

        Args:
            folder: made when missing; files of the same names are replaced, and none is ever half-written.

        Returns:
            The paths, in the order of `files`.

        Raises:
            UnwritableOutput: the folder cannot be made or written.
        """
        return write_files(self.files, Path(folder))

    def __repr__(self) -> str:
        files = ", ".join(f"{name} ({len(content) / 1e6:.2f} MB)" for name, content in self.files.items())
        return f"<{type(self).__name__} of engine {self.engine}: {files}>"


def generate(
    image: ImageSource | Sequence[ImageSource],
    *,
    output_format: OutputFormat = "glb",
    output_formats: Sequence[OutputFormat] | str | None = None,
    seed: int = 0,
    engine: str | Engine | None = None,
    multi_image: bool = False,
    multi_image_mode: Literal["stochastic", "multidiffusion"] | None = None,
    view_angles: Sequence[float | str] | str | None = None,
    resolution: int = 256,
    mesh_simplify: float = 0.90,
    target_faces: int | None = None,
    lods: Sequence[int] | str | None = None,
    texture_size: int = 1024,
    no_texture: bool = False,
    normal_map: bool = False,
    render: bool = False,
    splat: bool = False,
    depth: float | None = None,
    remove_bg: bool = True,
    foreground_ratio: float | None = None,
    size: float | None = None,
    origin: Origin = "bottom",
    up_axis: UpAxis | None = None,
    texture_format: TextureFormat = "png",
    compression: Compression = "none",
    print_ready: bool = False,
    min_wall_mm: float = 0.8,
    ss_sampling_steps: int = 12,
    ss_guidance_strength: float = 7.5,
    slat_sampling_steps: int = 12,
    slat_guidance_strength: float | None = None,
    tex_sampling_steps: int = 12,
    tex_guidance_strength: float = 1.0,
    detail: int = 1024,
    chunk_size: int = 8192,
    weights: str | PathLike[str] | None = None,
    file_prefix: str | None = None,
    allow_private_addresses: bool = False,
    on_progress: OnProgress | None = None,
) -> GenerationResult:
    """Turn an image, or several views of one subject, into a textured 3D file.

    Reads the given paths and downloads the given URLs; files are written to a temporary folder only. Weights of engines
    are not downloaded: `image-to-3d fetch-weights` does that. Engines are loaded on first use and kept; calls from
    several threads run one after another. The settings of the environment (`IMAGE_TO_3D_WEIGHTS`,
    `IMAGE_TO_3D_MATTING_MODEL`, whose model rembg downloads on first use, and `IMAGE_TO_3D_TRELLIS_…`) apply as they do
    to the command line.

    Args:
        image: one image, or a list of up to 8 views of one subject. Each is a path, an http(s) URL, a data URI, the
            bytes of an image file, an array (H, W, 3 or 4) uint8 in sRGB, or a PIL image. An alpha channel that is
            not opaque everywhere is the mask of the subject; otherwise the background is removed.
        output_format: glb, obj, stl, ply, usdz (needs the extra `usd`) or 3mf.
        output_formats: several of them for the same asset, `["glb", "stl"]` or `"glb,stl"`; overrides `output_format`.
            The first is the one that `mesh` and `model_name` mean.
        seed: 0 to 2^32-1. The same seed gives the same bytes; 0 draws one, see `meta["seed"]`.
        engine: `preview` (the default), `trellis`, `triposr`, or an object of your own with the `Engine` protocol,
            whose `load()` is called once.
        multi_image: a single image is a sheet of several views. A list of several images needs no flag.
        multi_image_mode: how an engine joins several views.
        view_angles: where each view was taken from: degrees around the subject, or `front`, `right`, `back`, `left`,
            `top`, `bottom`. Seen from above, degrees grow counter-clockwise, and `right` (90) is to the right of
            somebody who looks at the front. Guessed if not given; see `meta["view_angles"]`.
        resolution: the grid that the surface is extracted on, 64 to 512.
        mesh_simplify: share of the extracted triangles that is removed, 0.9 to 0.98.
        target_faces: number of faces of the result, 100 to 2,000,000; overrides `mesh_simplify`.
        lods: up to 4 further numbers of faces, `[5000, 1000]`: the same asset in less detail as `…_lod1.glb`,
            `…_lod2.glb`, in every format.
        texture_size: side of the texture in pixels, 512 to 4096.
        no_texture: leave the texture out.
        normal_map: bake the relief that simplification removes into a normal map, in GLB, OBJ and USDZ.
        render: also make an mp4 turntable.
        splat: also give the Gaussians as a splat `.ply`, where the engine has them.
        depth: depth of the preview engine's solid, 0 (a thin plate) to 1 (round); by default guessed from the contour,
            see `meta["depth"]`.
        remove_bg: false keeps the whole image as the subject, and ignores its transparency.
        foreground_ratio: share of the engine's frame that the longer side of the subject fills, 0.5 to 1; by default
            the engine's own: 0.83 for TRELLIS, 0.85 for TripoSR, 1 for the preview engine.
        size: longest side in metres, 0.001 to 1000; by default 1, and 0.1 in STL and 3MF, which are in millimetres.
        origin: `bottom`: the middle of the base lies at the origin; `center`: the middle of the asset.
        up_axis: `y` or `z`; by default z in STL, 3MF and PLY, and y elsewhere.
        texture_format: `png`, `jpeg`, or in a GLB `webp`; the two lossy ones at 39 dB or better.
        compression: of a GLB's geometry: `none`, `quantize`, `meshopt` or `draco`. Each needs an extension of glTF in
            the programs that open the file; docs/formats.md has which do.
        print_ready: make it one solid shell that stands on a flat base. Warnings say what was changed for that, and
            which walls are thinner than `min_wall_mm`; `meta["print"]` has the measures.
        min_wall_mm: 0.1 to 10.
        ss_sampling_steps, ss_guidance_strength: stage 1 of TRELLIS, the sparse structure: 1 to 50, 0 to 10.
        slat_sampling_steps, slat_guidance_strength: stage 2 of TRELLIS, the structured latent: 1 to 50, 0 to 10; by
            default 12, and 3 or the engine's own.
        tex_sampling_steps, tex_guidance_strength: the texture stage of TRELLIS.2: 1 to 50, 0 to 10.
        detail: voxels along the side of the grid that TRELLIS.2 decodes: 512, 1024 or 1536.
        chunk_size: points evaluated at once, 1 to 12000: peak memory falls with it, the result stays.
        weights: folder of all engines' weights; by default `IMAGE_TO_3D_WEIGHTS`, else `weights`.
        file_prefix: what the names of all files begin with; by default the name of the first image's file, else
            `model`.
        allow_private_addresses: download from this machine and its network too.
        on_progress: called with the stage and the percentage of the whole job. An exception that it raises stops the
            job and reaches the caller unchanged, so that raising one cancels.

    Returns:
        The files, their mesh, and what is known of how they were made.

    Raises:
        CallerError: an argument or an image is wrong; the message says what was seen and what is accepted.
        StageError: a stage failed; the exception behind it is its `__cause__`.
    """
    sources = [_checked_source(each) for each in (image if isinstance(image, list | tuple) else [image])]
    body = {
        "image": [source if isinstance(source, str) else f"<image {n}>" for n, source in enumerate(sources, start=1)],
        "output_format": output_format,
        "output_formats": output_formats,
        "seed": seed,
        "engine": engine if isinstance(engine, str) else None,
        "multi_image": True if len(sources) > 1 else multi_image,
        "multi_image_mode": multi_image_mode,
        "view_angles": view_angles,
        "resolution": resolution,
        "mesh_simplify": mesh_simplify,
        "target_faces": target_faces,
        "lods": lods,
        "texture_size": texture_size,
        "no_texture": no_texture,
        "normal_map": normal_map,
        "render": render,
        "splat": splat,
        "depth": depth,
        "remove_bg": remove_bg,
        "foreground_ratio": foreground_ratio,
        "size": size,
        "origin": origin,
        "up_axis": up_axis,
        "texture_format": texture_format,
        "compression": compression,
        "print_ready": print_ready,
        "min_wall_mm": min_wall_mm,
        "ss_sampling_steps": ss_sampling_steps,
        "ss_guidance_strength": ss_guidance_strength,
        "slat_sampling_steps": slat_sampling_steps,
        "slat_guidance_strength": slat_guidance_strength,
        "tex_sampling_steps": tex_sampling_steps,
        "tex_guidance_strength": tex_guidance_strength,
        "detail": detail,
        "chunk_size": chunk_size,
    }
    own_engine = _checked_engine(engine)
    settings = read_settings(weights=None if weights is None else str(weights))
    return run_request(
        parse_request(body, defaults=defaults_of(body["engine"] or DEFAULT_ENGINE)).request,
        sources,
        settings=settings,
        file_prefix=_file_prefix(file_prefix, sources[0]),
        engine=own_engine,
        allow_private_addresses=allow_private_addresses,
        before_weights=partial(_require_weights, settings),
        on_progress=on_progress,
    )


def generate_from_text(
    prompt: str,
    *,
    negative_prompt: str = "",
    init_mesh: str | PathLike[str] | None = None,
    engine: str | Engine | None = None,
    weights: str | PathLike[str] | None = None,
    file_prefix: str | None = None,
    allow_private_addresses: bool = False,
    on_progress: OnProgress | None = None,
    **fields: Any,
) -> GenerationResult:
    """Turn a text into a textured 3D file.

    Args:
        prompt: what to make, in English, 1 to 1,000 characters. The model reads about the first 55 words; `warnings`
            quotes what it does not read.
        negative_prompt: what to stay away from.
        init_mesh: a path, an http(s) URL or a data URI of a GLB, OBJ, STL or PLY whose shape is kept; only details and
            colours are generated.
        engine: `trellis-text` (the default), or an object of your own with the `Engine` protocol.
        weights, file_prefix, allow_private_addresses, on_progress: as in `generate`.
        fields: any other keyword of `generate` that is not about images, such as `output_format`, `seed` and `render`.
            The sampling fields have the defaults of the released models: 25 steps and a strength of 7.5 in both stages.

    Raises:
        TypeError: a keyword is no field of a text.
        CallerError, StageError: as `generate` raises them.
    """
    for name in fields:
        if name not in TextTo3DRequest.model_fields or name in SERVICE_FIELDS:
            raise TypeError(f"generate_from_text() got an unexpected keyword argument {name!r}")
    own_engine = _checked_engine(engine)
    body = {
        **fields,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "init_mesh": None if init_mesh is None else str(init_mesh),
        "engine": engine if isinstance(engine, str) else None,
    }
    settings = read_settings(weights=None if weights is None else str(weights))
    return run_request(
        parse_text_request(body).request,
        (),
        settings=settings,
        file_prefix=_file_prefix(file_prefix or DEFAULT_FILE_PREFIX, ""),
        engine=own_engine,
        allow_private_addresses=allow_private_addresses,
        before_weights=partial(_require_weights, settings),
        on_progress=on_progress,
    )


def _checked_engine(engine: str | Engine | None) -> Engine | None:
    """The engine that the caller passed, None where it is a name.

    Raises:
        InvalidRequest: it is neither.
    """
    if engine is None or isinstance(engine, str):
        return None
    if not hasattr(engine, "generate"):
        raise InvalidRequest(f"engine must be a name or an Engine, got {type(engine).__name__}")
    return engine


def _require_weights(settings: Settings, name: str) -> None:
    remedy = f"image-to-3d fetch-weights --engine {name} --dir {settings.weights}"
    require_weights(find_spec(name), settings.weights, remedy=remedy, wanted=settings.weights_wanted(name))


@cache
def read_settings(*, weights: str | None = None) -> Settings:
    """The environment's settings, read once per process.

    Args:
        weights: the folder of all engines' weights instead of the environment's.

    Raises:
        InvalidRequest: a variable holds a value out of bounds.
    """
    from pydantic import ValidationError

    from pipeline.settings import Settings

    try:
        return Settings() if weights is None else Settings(weights=weights)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def run_request(
    request: GenerationRequest,
    sources: Sequence[ImageSource],
    *,
    settings: Settings,
    file_prefix: str,
    engine: Engine | None = None,
    allow_private_addresses: bool = False,
    before_weights: Callable[[str], None] | None = None,
    on_progress: OnProgress | None = None,
) -> GenerationResult:
    """Run a validated request on this machine.

    Args:
        sources: the images themselves, none with a text; those of the request are not read.
        engine: used instead of the one that the request names.
        before_weights: called with the engine's name before its weights, or those of its background remover, are
            looked for; more than once.
        on_progress: as in `generate`.

    Raises:
        ImageTo3DError: as `generate` does; also any exception that `on_progress` raises.
    """
    offered = dict.fromkeys((DEFAULT_ENGINE, *(spec.name for spec in ENGINES)))
    name = (
        DEFAULT_ENGINE if engine is not None else choose_engine(request.engine, request.kind, offered=[*offered]).name
    )
    with _needs_extra(f"the {name} engine" if engine is None else "an engine", name if engine is None else None):
        from pipeline.imaging.cutout import Separation, separate
        from pipeline.imaging.rembg_remover import select_background_remover
        from pipeline.net.download import fetch
        from pipeline.stages.generate import run_engine
        from pipeline.stages.intake import foreground_images
        from pipeline.stages.intake import load_views as load_inputs
    policy = _AddressPolicy(allow_private_addresses, settings.user_agent)

    def prepare_weights() -> None:
        if engine is None and before_weights is not None:
            before_weights(name)

    def remover(rgb: NDArray[np.uint8]) -> Separation:
        prepare_weights()  # the background remover's weights are fetched with the engine's
        return (select_background_remover(settings.matting_model, settings.weights) or separate)(rgb)

    def load_views(request: GenerationRequest) -> list[ForegroundImage]:
        if not isinstance(request, ImageTo3DRequest):
            return load_inputs(request, fetch=lambda url: fetch(url, policy), allow_paths=True)
        images = (_decode(source, fetch=lambda url: fetch(url, policy)) for source in sources)
        views = foreground_images(images, multi_image=request.multi_image, remove_bg=request.remove_bg, remover=remover)
        request.check_view_angles(len(views))
        return views

    def run(views: Sequence[ForegroundImage], options: GenerationOptions, on_step: OnStep) -> Generation:
        prepare_weights()
        if engine is None:
            return _local_engines(settings).generate(name, views, options, on_step)
        _load_once(engine)
        return run_engine(engine, views, options, on_step=on_step)

    errors: list[ImageTo3DError] = []
    progress = _Progress(on_progress)
    with _one_at_a_time:
        result, files = run_in_memory(
            request,
            file_prefix=file_prefix,
            load_views=load_views,
            generate=run,
            on_progress=progress.report,
            on_error=errors.append,
        )
    if progress.raised is not None:
        raise progress.raised
    if errors:
        raise errors[0]
    return GenerationResult(
        files=files,
        file_kinds={artifact.name: artifact.kind for artifact in result.artifacts},
        meta=result.meta,
        warnings=result.all_warnings,
        engine=result.engine,
        stage_seconds=result.stage_seconds,
        gpu_seconds=result.gpu_seconds,
    )


def run_in_memory(
    request: GenerationRequest,
    *,
    file_prefix: str,
    load_views: LoadViews,
    generate: Generate,
    on_progress: OnProgress,
    on_error: Callable[[ImageTo3DError], None] = lambda error: None,
    work_dir: Path | None = None,
) -> tuple[JobResult, dict[str, bytes]]:
    """Run a job whose files come back in memory.

    Args:
        work_dir: kept afterwards, for a later run to resume from; None is a folder that exists during the run.

    Returns:
        How the job ended, and the content of its files by name, in the order of `artifacts`.

    Raises:
        Transferred: as for `run_job`.
    """
    from pipeline.run_job import run_job

    contents: dict[str, bytes] = {}
    kept = None if work_dir is None else nullcontext(str(work_dir))
    with kept or tempfile.TemporaryDirectory(prefix="image-to-3d-") as folder:
        result = run_job(
            request,
            file_prefix=file_prefix,
            work_dir=Path(folder),
            load_views=load_views,
            generate=generate,
            deliver=lambda files: _deliver_to_memory(files, contents),
            on_progress=on_progress,
            is_cancelled=lambda: False,
            on_error=on_error,
        )
    return result, contents


def write_files(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write files into a folder so that no reader sees one half-written; the first one appears last.

    Args:
        files: content by name.
        folder: made when missing.

    Returns:
        The paths, in the order of the files.

    Raises:
        UnwritableOutput: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".arriving-", dir=folder) as staging:
            for name, content in files.items():
                (Path(staging) / name).write_bytes(content)
            for name in reversed(list(files)):
                (Path(staging) / name).replace(folder / name)
    except OSError as error:
        raise UnwritableOutput(f"cannot write to {folder}: {error.strerror or type(error).__name__}") from error
    return [folder / name for name in files]


def rename_model(files: Mapping[str, Content], name: str) -> dict[str, Content]:
    """The same files, of which the first, the model, has another name. No other file refers to it by name."""
    return {name if number == 0 else old: content for number, (old, content) in enumerate(files.items())}


def check_output_files(request: GenerationRequest, output: Path) -> None:
    """Check that no file of a job exists yet, before minutes are spent on making them.

    Args:
        output: the path of the model; the other files are named after it and lie beside it.

    Raises:
        UnwritableOutput: one does.
    """
    splat = ("splat.ply",) if request.splat else ()
    named = output_names(
        request.formats,
        file_prefix=output.stem,
        lods=len(request.lods or ()),
        render=request.render,
        is_textured=not request.no_texture,
        texture_format=request.texture_format,
        has_normal_map=request.normal_map and not request.no_texture,
        extra_endings=splat,
    )
    cutouts = cutout_names(output.stem, views=len(request.sources) if request.kind == "image" else 0)
    for name in (output.name, *(name for name, _ in named[1:]), *cutouts):
        if (output.parent / name).exists():
            raise UnwritableOutput(f"{output.parent / name} exists already; --force replaces it")


def check_output_folder(folder: Path) -> None:
    """Check that files can be written into a folder, before minutes are spent on making them; changes nothing in it.

    Raises:
        UnwritableOutput: they cannot.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UnwritableOutput(f"cannot write to {folder}: {(error.strerror or '').lower()}") from None


@dataclass(frozen=True)
class _AddressPolicy:
    """An `AddressPolicy` of the caller's choice."""

    allow_private_addresses: bool
    user_agent: str


class _Progress:
    """Calls the caller's `on_progress`; an exception that it raises stops the job and is stored."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self.raised: Exception | None = None

    def report(self, stage: str, percent: int) -> None:
        if self._on_progress is None:
            return
        try:
            self._on_progress(stage, percent)
        except Exception as error:
            self.raised = error
            raise Cancelled("on_progress raised an exception") from error


def _local_engines(settings: Settings) -> LocalEngines:
    """The engines of this process, kept loaded; one set for each folder of weights."""
    from pipeline.stages.generate import LocalEngines

    if settings.weights not in _engines:
        arguments = settings.engine_arguments
        _engines[settings.weights] = LocalEngines(DEFAULT_ENGINE, weights=settings.weights, arguments=arguments)
    return _engines[settings.weights]


def _load_once(engine: Engine) -> None:
    """Load an engine that the caller passed, unless an earlier call did."""
    if _loaded_instances.get(id(engine)) is not engine:
        engine.load()
        _loaded_instances[id(engine)] = engine


@contextmanager
def _needs_extra(what: str, engine: str | None) -> Iterator[None]:
    """Say which extra to install when a package is missing.

    Raises:
        MissingExtra: one is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("pipeline", "schemas"):
            raise
        raise MissingExtra(what, extra="local" if engine is None else find_spec(engine).extra) from error


def _deliver_to_memory(files: Sequence[OutputFile], contents: dict[str, bytes]) -> Delivery:
    """Stage 4 without a storage: read the files."""
    import hashlib

    from pipeline.stages.deliver import Delivery
    from pipeline.storage.base import Artifact

    contents.update((file.path.name, file.path.read_bytes()) for file in files)
    return Delivery(
        tuple(
            Artifact.of(
                file,
                url="",
                size_bytes=len(contents[file.path.name]),
                sha256=hashlib.sha256(contents[file.path.name]).hexdigest(),
            )
            for file in files
        )
    )


def _file_prefix(given: str | None, source: ImageSource) -> str:
    """What the names of all files begin with.

    Raises:
        InvalidRequest: it cannot begin a file's name.
    """
    if given is None:
        if isinstance(source, PathLike) or (isinstance(source, str) and not _is_url(source)):
            return Path(source).stem or DEFAULT_FILE_PREFIX
        return DEFAULT_FILE_PREFIX
    if not given or Path(given).name != given or "\0" in given:
        raise InvalidRequest(f"file_prefix must be the beginning of a file's name, got {given!r}")
    return given


def _is_url(source: str) -> bool:
    return source.strip()[:8].lower().startswith(("http://", "https://", "data:"))


def _checked_source(source: object) -> ImageSource:
    """The same source; what the image holds is checked when it is decoded.

    Raises:
        InvalidRequest: it is none of the types of `ImageSource`.
    """
    # Asked of the type: on an instance, Pillow would copy the pixels to answer.
    if not isinstance(source, str | PathLike | bytes | bytearray) and not hasattr(type(source), "__array_interface__"):
        raise InvalidRequest(
            "image must be a path, an http(s) URL, a data URI, bytes, an array or a PIL image, "
            f"got {type(source).__name__}"
        )
    return cast("ImageSource", source)


def _decode(source: ImageSource, *, fetch: Callable[[str], bytes]) -> NDArray[np.uint8]:
    """The pixels of an image: (H, W, 4) uint8 RGBA, straight alpha.

    Raises:
        CallerError: one sentence about what was seen and what is accepted.
    """
    from PIL import Image

    from pipeline.imaging.decode import decode_image, rgba_of
    from pipeline.imaging.inline import at_most
    from pipeline.stages.intake import read_image, read_path

    if isinstance(source, str):
        return decode_image(read_image(source.strip(), fetch=fetch, allow_paths=True))
    if isinstance(source, PathLike):
        return decode_image(read_path(Path(source)))
    if isinstance(source, bytes | bytearray):
        return decode_image(at_most(bytes(source)))
    if isinstance(source, Image.Image):
        return rgba_of(source)
    return _rgba_from_array(source)


def _rgba_from_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An array as (H, W, 4) uint8 RGBA.

    Raises:
        CallerError: its shape, type or size is not accepted.
    """
    import numpy as np

    from pipeline.imaging.decode import check_size

    array = np.asarray(array)
    shape = " × ".join(map(str, array.shape))
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (3, 4):
        raise InvalidRequest(f"an image array must be (H, W, 3 or 4) uint8, got ({shape}) {array.dtype}")
    height, width, channels = array.shape
    if height == 0 or width == 0:
        raise InvalidRequest(f"an image array must have pixels, got ({shape})")
    check_size(width, height)
    if channels == 4:
        return np.ascontiguousarray(array)
    return np.dstack([array, np.full((height, width), 255, np.uint8)])
