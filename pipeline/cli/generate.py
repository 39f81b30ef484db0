"""`image-to-3d generate`: an image or a text to a 3D file on this machine, through the Python API.

The options for request fields are made from the contract's table. That needs pydantic, which `image-to-3d --help` does
not load: the command is built when it is first used.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.main import get_command

from pipeline.cli.commands import OneValueCommand
from pipeline.cli.fetch_weights import bytes_bar, fetch_on_first_use
from schemas.formats import extensions_in_words

if TYPE_CHECKING:
    from pipeline.nn.hub_download import OnBytes
    from pipeline.python_api import GenerationResult

FAILED, REFUSED = 1, 2  # exit codes: a failure of ours, and what the caller can fix

SUMMARY = "Turn an image, several views of one subject, or a text into a textured 3D file."
ENGINE_HELP = "Name of the engine, see `image-to-3d engines` (default: preview; trellis-text for a text)"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("generate", cls=_GenerateCommand, help=SUMMARY)(_built_on_first_use)


class _GenerateCommand(OneValueCommand):
    """Takes its parameters and its callback from a command that is built when they are needed."""

    @cached_property
    def _built(self) -> Any:
        single = typer.Typer(add_completion=False)
        single.command("generate", help=SUMMARY)(_with_field_options(generate))
        return get_command(single)

    def get_params(self, ctx: Any) -> list[Any]:
        return self._built.get_params(ctx)

    def invoke(self, ctx: Any) -> Any:
        return self._built.invoke(ctx)


def _built_on_first_use() -> None:
    """Stands for `generate` until the command is built."""


def _with_field_options(command: Callable[..., None]) -> Callable[..., None]:
    """The function with one keyword for each field in place of `**fields`, so that typer makes options of them.

    Values stay text, so that the contract refuses them with the same sentence as over HTTP.
    """
    from schemas.table import option_rows, text_option_rows

    added = []
    for row in (*option_rows(), *text_option_rows()):
        text = ENGINE_HELP if row.name == "engine" else row.option_help
        if row.kind == "bool":
            flags = f"{row.option}/--no-{row.option[2:]}" if row.is_on_by_default else row.option
            added.append((row.name, Annotated[bool, typer.Option(flags, help=text)], row.is_on_by_default))
        else:
            kind = {"int": "INTEGER", "float": "NUMBER"}.get(row.kind, "TEXT")
            added.append((row.name, Annotated[str | None, typer.Option(row.option, metavar=kind, help=text)], None))
    own = [each for each in signature(command, eval_str=True).parameters.values() if each.kind != Parameter.VAR_KEYWORD]
    fields = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in added
    ]

    def run(**given: Any) -> None:
        command(**given)

    all_parameters = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in (*own[:2], *fields, *own[2:])]
    setattr(run, "__signature__", Signature(all_parameters))  # noqa: B010  # no attribute of a function's type
    run.__annotations__ = {each.name: each.annotation for each in all_parameters}
    return run


def generate(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]", help="Path, http(s) URL or data URI; several are views of one subject"),
    ] = None,
    *,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help=f"File to write; its extension is the format: {extensions_in_words()}"),
    ],
    text: Annotated[
        str | None,
        typer.Option(
            help="What to make, instead of an image; sampling then defaults to 25 steps and a strength of 7.5 in both "
            "stages"
        ),
    ] = None,
    also: Annotated[
        str | None,
        typer.Option("--also", metavar="TEXT", help="Further formats of the same asset, beside the output: stl,ply"),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Folder of the engines' weights (default: weights)")] = None,
    allow_private_addresses: Annotated[
        bool, typer.Option("--allow-private-addresses", help="Download from this machine and its network too")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist already")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text")] = False,
    **fields: Any,
) -> None:
    """Generate the files and report them."""
    given = {name: value for name, value in fields.items() if value is not None}
    with _errors_as_exit_codes(as_json):
        result = _generate(
            _body_of(images, text, given),
            output,
            also=also,
            weights=weights,
            allow_private_addresses=allow_private_addresses,
            force=force,
        )
        paths = result.save(output.parent)
        _report(result, paths, as_json=as_json)


def _body_of(images: list[str] | None, text: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The request body that the command line describes.

    Raises:
        InvalidRequest: there are both images and a text, or neither; or an option that does not apply.
    """
    from pipeline.errors import InvalidRequest
    from schemas.request import ImageTo3DRequest
    from schemas.table import option_rows
    from schemas.text import TextTo3DRequest

    if bool(images) == (text is not None):
        raise InvalidRequest("name either an image or, by --text, a text")
    kind, fields = ("an image", ImageTo3DRequest) if images else ("a text", TextTo3DRequest)
    defaults = {row.name: row.is_on_by_default for row in option_rows() if row.kind == "bool"}
    asked = {name: value for name, value in given.items() if name not in defaults or value != defaults[name]}
    for name in asked:
        if name not in fields.model_fields:
            raise InvalidRequest(f"--{name.replace('_', '-')} does not apply to {kind}")
    return {**asked, "image": images} if images else {**asked, "prompt": text}


def _generate(
    body: dict[str, Any],
    output: Path,
    *,
    also: str | None,
    weights: str | None,
    allow_private_addresses: bool,
    force: bool,
) -> GenerationResult:
    """Generate the files, in memory.

    Raises:
        ImageTo3DError: as `pipeline.generate` raises it; also when the output cannot be written, before any work.
    """
    from pipeline.errors import InvalidRequest, UnwritableOutput
    from pipeline.python_api import (
        check_output_files,
        check_output_folder,
        read_settings,
        rename_model,
        run_request,
    )
    from pipeline.settings import split_list
    from pipeline.stages.export_kernels import compiling_beside
    from schemas.formats import OUTPUT_FORMATS
    from schemas.text import parse_any_request

    extension = output.suffix.lower().removeprefix(".")
    if extension not in OUTPUT_FORMATS or not output.stem:
        raise InvalidRequest(f"the output must end in {extensions_in_words()}, got {output.name!r}")
    request = parse_any_request(body | {"output_formats": [extension, *split_list(also or "")]}).request
    if output.is_dir():
        raise UnwritableOutput(f"{output} is a folder")
    check_output_folder(output.parent)
    if not force:
        check_output_files(request, output)
    settings = read_settings(weights=weights)
    with _display() as display, compiling_beside():
        result = run_request(
            request,
            request.sources if request.kind == "image" else (),
            settings=settings,
            file_prefix=output.stem,
            allow_private_addresses=allow_private_addresses,
            before_weights=lambda engine: fetch_on_first_use(
                engine, settings.weights, say=display.say, on_bytes=display.on_bytes
            ),
            on_progress=display.on_progress,
        )
    return replace(
        result,
        files=rename_model(result.files, output.name),
        file_kinds=rename_model(result.file_kinds, output.name),
    )


@contextmanager
def _errors_as_exit_codes(as_json: bool) -> Iterator[None]:
    """Print an error as one sentence and exit with its code; SIGTERM acts like Ctrl-C."""
    from pipeline.errors import CallerError, DiskFull, ImageTo3DError

    is_interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        raise KeyboardInterrupt

    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        # Python turns a KeyboardInterrupt inside the import of a C extension into an ImportError.
        if is_interrupted or isinstance(error, KeyboardInterrupt):
            _fail("interrupted; nothing was written", REFUSED, as_json=as_json)
        if isinstance(error, ImageTo3DError):
            _fail(str(error), REFUSED if isinstance(error, CallerError | DiskFull) else FAILED, as_json=as_json)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str, code: int, *, as_json: bool) -> NoReturn:
    if as_json:
        typer.echo(json.dumps({"status": "error", "message": message}))
    else:
        typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


@dataclass(frozen=True)
class _Display:
    """Where the command shows its progress.

    Attributes:
        on_progress: takes the stage and the percentage of the whole job.
        on_bytes: takes the downloaded bytes of a file of weights.
        say: prints a line for the user.
    """

    on_progress: Callable[[str, int], None]
    on_bytes: OnBytes
    say: Callable[[str], None]


@contextmanager
def _display() -> Iterator[_Display]:
    """A progress bar for the whole job on a terminal; only lines elsewhere."""
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


def _report(result: GenerationResult, paths: list[Path], *, as_json: bool) -> None:
    """Print where the files are and what each stage took."""
    if as_json:
        body = {
            "status": "success",
            "output": [str(path.absolute()) for path in paths],
            "warning": " ".join(result.warnings),
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in result.stage_seconds.items()},
            "meta": dict(result.meta),
        }
        typer.echo(json.dumps(body))
        return
    for warning in result.warnings:
        typer.echo(f"note: {warning}", err=True)
    for path in paths:
        kind, size_bytes = result.file_kinds[path.name], len(result.files[path.name])
        typer.echo(f"{kind:<9}  {size_bytes / 1e6:6.2f} MB  {path.absolute()}")
    stages = "  ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.stage_seconds.items())
    typer.echo(f"took       {sum(result.stage_seconds.values()):.2f} s: {stages}   (engine {result.engine})")
