"""`image-to-3d generate`: a picture to a 3D file on this machine, through the same call that serves paying callers."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.data_folder import settings_for
from pipeline.cli.fetch_weights import bytes_bar, fetch_on_first_use

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions, OnStep
    from pipeline.jobs.model import JobResult
    from pipeline.nn.hub_download import OnBytes

FORMATS = ("glb", "obj", "stl", "ply")
FAILED, REFUSED = 1, 2  # exit codes: ours, and what the caller can mend


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(generate)


def generate(
    pictures: Annotated[
        list[str], typer.Argument(metavar="PICTURE…", help="Path, http(s) URL, data URI or base64; several views.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write: .glb, .obj, .stl or .ply.")],
    engine: Annotated[str | None, typer.Option(help="See `image-to-3d engines`. [default: preview]")] = None,
    render: Annotated[bool, typer.Option("--render", help="Also write an mp4 turntable.")] = False,
    multi_image: Annotated[bool, typer.Option("--multi-image", help="Several views of one subject.")] = False,
    multi_image_mode: Annotated[str | None, typer.Option(help="stochastic or multidiffusion.")] = None,
    resolution: Annotated[str | None, typer.Option(help="Grid of the surface, 64–512. [default: 256]")] = None,
    mesh_simplify: Annotated[
        str | None, typer.Option(help="Share of the triangles that is removed, 0.9–0.98. [default: 0.9]")
    ] = None,
    texture_size: Annotated[str | None, typer.Option(help="Side of the texture, 512–4096. [default: 1024]")] = None,
    seed: Annotated[str | None, typer.Option(help="0 draws one. [default: 0]")] = None,
    ss_sampling_steps: Annotated[str | None, typer.Option(help="Steps of stage 1, 1–50. [default: 12]")] = None,
    ss_guidance_strength: Annotated[str | None, typer.Option(help="Guidance of stage 1, 0–10. [default: 7.5]")] = None,
    slat_sampling_steps: Annotated[str | None, typer.Option(help="Steps of stage 2, 1–50. [default: 12]")] = None,
    slat_guidance_strength: Annotated[str | None, typer.Option(help="Guidance of stage 2, 0–10. [default: 3]")] = None,
    chunk_size: Annotated[str | None, typer.Option(help="Points at once, 1–12000. [default: 8192]")] = None,
    no_texture: Annotated[bool, typer.Option("--no-texture", help="Leave the texture out.")] = False,
    splat: Annotated[
        bool, typer.Option("--splat", help="Also write the Gaussians, where the engine has them.")
    ] = False,
    weights: Annotated[str | None, typer.Option(help="Folder of the engines' weights. [default: weights]")] = None,
    allow_private_addresses: Annotated[
        bool, typer.Option("--allow-private-addresses", help="Download from this machine and its network too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Turn a picture, or several views of one subject, into a textured 3D file."""
    given = {name: value for name, value in locals().items() if value is not None}
    fields = {name: value for name, value in given.items() if name not in ("pictures", "output", *_NOT_FIELDS)}
    with _ending_in_words(as_json):
        outcome = _run(
            {"image": pictures, **fields},
            output=output,
            weights=weights,
            allow_private_addresses=allow_private_addresses,
        )
        _report(outcome, as_json=as_json)


_NOT_FIELDS = ("weights", "allow_private_addresses", "as_json")


def _run(body: dict[str, Any], *, output: Path, weights: str | None, allow_private_addresses: bool) -> JobResult:
    """Run the call.

    Raises:
        CallerError: a field, the output's name, or a missing part of the installation.
    """
    import logging

    from pipeline.errors import InvalidRequest
    from schemas.request import parse_request

    logging.getLogger("pipeline").addHandler(logging.NullHandler())  # the command says it in one sentence

    ending = output.suffix.lower().removeprefix(".")
    if ending not in FORMATS or not output.stem:
        raise InvalidRequest(f"the output must end in {', '.join('.' + name for name in FORMATS)}, got {output.name!r}")
    request = parse_request(body | {"output_format": ending}).request
    engine = request.engine or "preview"
    with _local_installation(engine):
        from pipeline.imaging.background_removal import grabcut_foreground
        from pipeline.imaging.rembg_remover import select_background_remover
        from pipeline.net.egress import fetch
        from pipeline.run_job import run_job
        from pipeline.stages.deliver import deliver_to_folder
        from pipeline.stages.generate import LocalEngines
        from pipeline.stages.intake import load_views

    _check_place(output)
    policy = _Policy(allow_private_addresses)
    settings = settings_for(None, weights=weights)
    engines = LocalEngines(engine, weights=settings.weights, arguments=settings.engine_arguments)
    with _display() as display, tempfile.TemporaryDirectory(prefix="image-to-3d-") as work_dir:

        def see_to_weights() -> None:
            fetch_on_first_use(engine, settings.weights, say=display.say, on_bytes=display.on_bytes)

        def remover(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
            see_to_weights()  # the engine's background remover is among them
            return (select_background_remover(settings.matting_model, settings.weights) or grabcut_foreground)(rgb)

        def generate(views: Sequence[ForegroundImage], options: GenerationOptions, on_step: OnStep) -> Generation:
            see_to_weights()
            return engines.generate(engine, views, options, on_step)

        return run_job(
            request,
            file_prefix=output.stem,
            work_dir=Path(work_dir),
            load_views=lambda request: load_views(
                request, fetch=lambda url: fetch(url, policy), remover=remover, allow_paths=True
            ),
            generate=generate,
            deliver=lambda files: deliver_to_folder(files, output.parent),
            on_progress=display.on_progress,
            is_cancelled=lambda: False,
        )


class _Policy:
    """An `AddressPolicy` from the command line."""

    def __init__(self, allow_private_addresses: bool) -> None:
        self.allow_private_addresses = allow_private_addresses


def _check_place(output: Path) -> None:
    """See that the output can be written before minutes are spent on it; leaves nothing behind.

    Raises:
        UnwritableOutput: it cannot.
    """
    from pipeline.errors import UnwritableOutput

    if output.is_dir():
        raise UnwritableOutput(f"{output} is a folder")
    existing = output.parent
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UnwritableOutput(f"cannot write to {output.parent}: {(error.strerror or '').lower()}") from None


@contextmanager
def _local_installation(engine: str) -> Iterator[None]:
    """Say which extra to install when a package is missing.

    Raises:
        MissingExtra: one is.
    """
    from pipeline.engines.registry import find_spec
    from pipeline.errors import MissingExtra

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("pipeline", "schemas"):
            raise
        raise MissingExtra(f"the {engine} engine", extra=find_spec(engine).extra) from error


@contextmanager
def _ending_in_words(as_json: bool) -> Iterator[None]:
    """Whatever ends the command early becomes one sentence and an exit code; SIGTERM counts as Ctrl-C."""
    from pipeline.errors import CallerError, ImageTo3DError

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except ImageTo3DError as error:
        _fail(str(error), REFUSED if isinstance(error, CallerError) else FAILED, as_json=as_json)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", REFUSED, as_json=as_json)
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"status": "error", "message": message}))
    else:
        typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


@dataclass(frozen=True)
class _Display:
    """Where the command shows how far it is.

    Attributes:
        on_progress: takes the stage and the percentage of the whole call.
        on_bytes: takes how far a file of weights has come.
        say: takes a line for the person.
    """

    on_progress: Callable[[str, int], None]
    on_bytes: OnBytes
    say: Callable[[str], None]


@contextmanager
def _display() -> Iterator[_Display]:
    """A bar over the whole call on a terminal; lines alone anywhere else."""
    if not sys.stderr.isatty():
        yield _Display(lambda stage, percent: None, lambda name, done, size: None, partial(typer.echo, err=True))
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<9}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("intake", total=100)
        yield _Display(
            on_progress=lambda stage, percent: progress.update(task, description=stage, completed=percent),
            on_bytes=bytes_bar(progress),
            say=progress.console.print,
        )


def _report(outcome: JobResult, *, as_json: bool) -> None:
    """Say where the files are and what each stage took, or why there are none."""
    from urllib.parse import unquote, urlsplit

    from pipeline.errors import is_caller_error

    if outcome.state != "success":
        is_refused = is_caller_error(outcome.error_code) or outcome.error_code == "disk_full"
        _fail(outcome.message, REFUSED if is_refused else FAILED, as_json=as_json)
    paths = [unquote(urlsplit(artifact.url).path) for artifact in outcome.artifacts]
    if as_json:
        body = {
            "status": "success",
            "output": paths,
            "warning": " ".join(outcome.all_warnings),
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in outcome.stage_seconds.items()},
            "meta": outcome.meta,
        }
        typer.echo(json.dumps(body))
        return
    for warning in outcome.all_warnings:
        typer.echo(f"note: {warning}", err=True)
    for path, artifact in zip(paths, outcome.artifacts, strict=True):
        typer.echo(f"{artifact.kind:<9}  {artifact.size_bytes / 1e6:6.2f} MB  {path}")
    stages = "  ".join(f"{stage} {seconds:.2f} s" for stage, seconds in outcome.stage_seconds.items())
    typer.echo(f"took       {sum(outcome.stage_seconds.values()):.2f} s: {stages}   (engine {outcome.engine})")
