"""`image-to-3d fetch-weights`: download the published weights of an engine once; it then runs offline."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pipeline.engines.registry import EngineSpec
    from pipeline.nn.hub_download import OnBytes


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("fetch-weights")(fetch_weights)


def fetch_weights(
    engine: Annotated[str, typer.Option(help="Engine whose weights to download")] = "trellis",
    folder: Annotated[Path, typer.Option("--dir", help="Folder of all engines' weights")] = Path("weights"),
    remover: Annotated[
        str | None,
        typer.Option(help="Download this background remover alone: u2netp (5 MB), u2net (176 MB), birefnet (224 MB)"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Which of the models of trellis-text: base, large or xlarge (default: xlarge)"),
    ] = None,
    detail: Annotated[
        int | None,
        typer.Option(help="The finest detail that trellis2 will be asked for: 512, 1024 or 1536 (default: 1024)"),
    ] = None,
    encoder_repo: Annotated[
        str | None,
        typer.Option(
            help="A repository with the image encoder of trellis2, whose own asks for consent: owner/name[@revision]"
        ),
    ] = None,
) -> None:
    """Download an engine's weights at their pinned revisions and verify them; an interrupted download resumes."""
    from pipeline.engines.registry import find_spec, weights_module
    from pipeline.errors import ImageTo3DError, InvalidRequest
    from pipeline.settings import Settings
    from schemas.request import DETAILS

    try:
        if remover is not None:
            _fetch_remover(remover, folder)
            return
        weights = weights_module(find_spec(engine))
        if weights is None:
            typer.echo(f"{engine} needs no weights")
            return
        sized: dict[str, Any] = {} if size is None else {"size": size}
        if sized and not hasattr(weights, "find_size"):
            raise InvalidRequest(f"{engine} has one size; --size is for trellis-text")
        if detail is not None or encoder_repo is not None:
            if not hasattr(weights, "networks_up_to"):
                raise InvalidRequest(f"--detail and --encoder-repo are for trellis2, not {engine}")
            if detail not in (None, *DETAILS):
                raise InvalidRequest(f"--detail must be one of {', '.join(map(str, DETAILS))}, got {detail}")
            sized = {} if detail is None else {"detail": detail}
        if missing := weights.missing_bytes(folder, **sized):
            typer.echo(f"{engine}: {missing / 1e9:.2f} GB to download")
        with _own_bar() as on_bytes:
            mirror = Settings().weights_source(engine) if encoder_repo is None else {"encoder_repo": encoder_repo}
            fetched = weights.fetch_weights(folder, **sized, **mirror, report=typer.echo, on_bytes=on_bytes)
    except ImageTo3DError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("interrupted; the next download resumes from here", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{engine}'s weights are in {fetched}")


def _fetch_remover(name: str, folder: Path) -> None:
    """Download one background remover, after printing how much is missing.

    Raises:
        InvalidRequest: no remover has the name.
        WeightsUnusable: it cannot be downloaded or is another file.
    """
    from importlib.util import find_spec as find_package

    from pipeline.nn.remover_weights import fetch_remover, find_remover, missing_remover_bytes

    spec = find_remover(name)
    if missing := missing_remover_bytes(folder, spec):
        typer.echo(f"{name}: {missing / 1e6:.0f} MB to download")
    with _own_bar() as on_bytes:
        fetched = fetch_remover(folder, spec=spec, report=typer.echo, on_bytes=on_bytes)
    typer.echo(f"{name} is in {fetched}")
    if find_package("rembg") is None:
        typer.echo("it is used once the extra is installed: pip install 'image-to-3d[matting]'")


def fetch_on_first_use(engine: str, weights: str, *, say: Callable[[str], None], on_bytes: OnBytes) -> None:
    """Download the missing weights of an engine, after printing how much is missing.

    For commands that a user started; a server gets its weights beforehand.

    Args:
        weights: the folder of all engines' weights, or "tiny" for weights that are not files.
        say: prints a line for the user.
        on_bytes: called with the downloaded bytes of each file.

    Raises:
        WeightsUnusable: they cannot be downloaded.
    """
    from pipeline.engines.registry import TINY_WEIGHTS, find_spec, weights_module

    spec = find_spec(engine)
    module = weights_module(spec)
    if module is None or weights == TINY_WEIGHTS:
        return
    folder = Path(weights)
    if missing := module.missing_bytes(folder):
        say(f"the weights of {engine} are not in {folder} yet: downloading {missing / 1e9:.2f} GB, once")
        if words := missing_gpu(spec):
            say(words)
        say("if interrupted, the next run resumes the download")
        module.fetch_weights(folder, on_bytes=on_bytes)


def missing_gpu(spec: EngineSpec) -> str:
    """What an engine lacks on this machine, before its weights are downloaded for it; "" if nothing."""
    if not spec.gpu_memory_gb or shutil.which("nvidia-smi") is not None:
        return ""
    return f"{spec.name} needs {spec.needs}, and this machine has no NVIDIA driver: on a CPU it runs, very slowly"


def bytes_bar(progress: Progress) -> OnBytes:
    """An `OnBytes` that shows one progress bar per file."""
    tasks: dict[str, TaskID] = {}

    def on_bytes(name: str, done: int, size: int) -> None:
        if name not in tasks:
            tasks[name] = progress.add_task(Path(name).name, total=size)
        progress.update(tasks[name], completed=done)

    return on_bytes


@contextmanager
def _own_bar() -> Iterator[OnBytes]:
    """A progress bar for each file on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda name, done, size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield bytes_bar(progress)
