"""One picture through a remote engine without a service: no store, no key, the files come back to whoever asked."""

from __future__ import annotations

import base64
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import CallerError, EngineFailed, ImageTo3DError, InvalidRequest, UnwritableOutput
from pipeline.on_modal.control_channel import ControlChannel, ProgressReporter
from pipeline.on_modal.shared_dict import SharedDict
from schemas.contract import is_http_url
from schemas.request import ImageTo3DRequest, parse_request

if TYPE_CHECKING:
    from pipeline.engines.base import ForegroundImage
    from pipeline.on_modal.engine_pool import RemoteEngines

FORMATS = ("glb", "obj", "stl", "ply")
POLL_S = 0.5


def read_body(pictures: str, out: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The request that the command line stands for, pictures inside.

    Args:
        pictures: paths or http(s) URLs, separated by commas.
        out: the file that is wanted; its ending is the format.
        fields: further fields; those that are empty were not given.

    Raises:
        InvalidRequest: a field is out of bounds, a file cannot be read, or the ending is none that there is.
    """
    ending = out.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise InvalidRequest(f"--out must end in {', '.join('.' + name for name in FORMATS)}, got {out.name!r}")
    if not out.parent.is_dir():
        raise InvalidRequest(f"--out: there is no folder {out.parent}")
    given = {name: value for name, value in fields.items() if value not in ("", False)}
    image = [source if is_http_url(source) else _encoded(Path(source)) for source in pictures.split(",")]
    body = {**given, "image": image if len(image) > 1 else image[0], "output_format": ending}
    parse_request(body)
    return body


def _encoded(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise InvalidRequest(f"--image: {path} cannot be read: {error.strerror}") from None


def generate_once(
    body: Mapping[str, Any],
    *,
    file_prefix: str,
    engines: RemoteEngines,
    line: ControlChannel,
) -> dict[str, Any]:
    """Run the call, in a CPU container.

    Args:
        engines: one of them is woken while the picture is read.
        line: tells the stage and the percent.

    Returns:
        The outcome as plain data, with `files`: name to content.
    """
    from pipeline.imaging.rembg_remover import select_background_remover
    from pipeline.net.egress import fetch
    from pipeline.on_modal.prewarm import start_prewarm
    from pipeline.run_job import run_job
    from pipeline.settings import Settings
    from pipeline.stages.deliver import deliver_to_folder
    from pipeline.stages.intake import load_views

    settings, request, engine_line = Settings(), parse_request(dict(body)).request, f"{line.name}/engine"

    def load_job_views(request: ImageTo3DRequest) -> list[ForegroundImage]:
        engines.wake(request.engine)
        start_prewarm()
        remover = select_background_remover(settings.matting_model, settings.weights)
        return load_views(request, fetch=lambda url: fetch(url, settings), remover=remover)

    with tempfile.TemporaryDirectory(prefix="image-to-3d-") as folder, ProgressReporter(line) as watch:
        outcome = run_job(
            request,
            file_prefix=file_prefix,
            work_dir=Path(folder) / "work",
            load_views=load_job_views,
            generate=engines.generator_for(request.engine, line=engine_line),
            deliver=lambda files: deliver_to_folder(files, Path(folder) / "out"),
            on_progress=lambda stage, percent: watch.report((stage, percent)),
            is_cancelled=lambda: False,
        )
        engines.forget(engine_line)
        files = {item.name: (Path(folder) / "out" / item.name).read_bytes() for item in outcome.artifacts}
    return {**asdict(outcome), "files": files}


def follow(call: Any, line: ControlChannel, on_progress: Callable[[str, int], None]) -> dict[str, Any]:
    """Wait for `generate_once` that runs elsewhere, and tell how far it is.

    Args:
        call: a `pipeline.on_modal.engine_client.RemoteCall`.

    Raises:
        EngineFailed: the call failed, with the sentence that says why.
    """
    while True:
        try:
            outcome = call.get(timeout=POLL_S)
            break
        except TimeoutError:
            on_progress(*line.progress(("starting", 0)))
    line.clear()
    if outcome["state"] != "success":
        raise EngineFailed(outcome["message"])
    return outcome


def run_from_terminal(
    pictures: str,
    out: Path,
    fields: Mapping[str, Any],
    *,
    spawn: Callable[[dict[str, Any], str, str], Any],
    notes: SharedDict,
) -> None:
    """The whole command: what is wrong ends it with a sentence and exit code 2 or, where it is ours, 1.

    Args:
        spawn: starts `generate_once` elsewhere.
        notes: the map that its line is in.
    """
    line = f"picture-{secrets.token_hex(8)}"
    try:
        body = read_body(pictures, out, fields)
        with progress_bar() as on_progress:
            outcome = follow(spawn(body, out.stem, line), ControlChannel(notes, line), on_progress)
        written = write_files(outcome, out.parent)
    except ImageTo3DError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2 if isinstance(error, CallerError) else 1) from None
    for warning in outcome["warnings"]:
        sys.stderr.write(f"note: {warning}\n")
    for path, size_bytes in written:
        sys.stdout.write(f"{size_bytes / 1e6:6.2f} MB  {path}\n")
    stages = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in outcome["stage_seconds"].items())
    sys.stdout.write(f"took {stages}   (engine {outcome['engine']}, {outcome['gpu_seconds']:.1f} GPU seconds)\n")


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int], None]]:
    """Progress in the terminal: a line for each stage, since Modal's own output shares the screen."""
    last = ""

    def tell(stage: str, percent: int) -> None:
        nonlocal last
        if stage != last:
            sys.stderr.write(f"{percent:3d} %  {stage}\n")
        last = stage

    yield tell


def write_files(outcome: Mapping[str, Any], folder: Path) -> list[tuple[Path, int]]:
    """Write the files that came back; returns path and size in bytes of each.

    Raises:
        UnwritableOutput: the disk refuses.
    """
    try:
        for name, content in outcome["files"].items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise UnwritableOutput(f"cannot write to {folder}: {error.strerror}") from error
    return [(folder / name, len(content)) for name, content in outcome["files"].items()]
