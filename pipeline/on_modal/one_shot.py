"""One image or text through a remote engine without a service: no store, no API key; the files come back to the caller.

`run_from_terminal` runs on the operator's machine, `generate_once` in a CPU container: once up to the start of the
generation, and again when the terminal has seen the end of that. Both build on `pipeline.python_api`. Knows no vendor.
"""

from __future__ import annotations

import base64
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.engines.registry import choose_engine
from pipeline.errors import CallerError, ImageTo3DError, InvalidRequest, StageError, is_caller_error
from pipeline.jobs.stages import percent_of
from pipeline.jobs.transfer import Transferred
from pipeline.on_modal.control_channel import ControlChannel, ProgressReporter, best_effort
from pipeline.on_modal.remote_call import PatientCall
from pipeline.on_modal.shared_dict import SharedDict
from pipeline.python_api import check_output_files, rename_model, run_in_memory, write_files
from pipeline.settings import split_list
from schemas.contract import read_http_url
from schemas.formats import OUTPUT_FORMATS, extensions_in_words
from schemas.request import GenerationRequest
from schemas.table import option_rows, text_option_rows
from schemas.text import parse_any_request

if TYPE_CHECKING:
    from pipeline.engines.base import ForegroundImage
    from pipeline.on_modal.engine_pool import EnginePool
    from pipeline.on_modal.remote_call import RemoteCall
    from pipeline.settings import Settings

POLL_S = 0.5
FOLDER_PREFIX = "one-shot-"
"""What the work folders and channels begin with; the time of their making follows."""
FOLDER_LIFETIME_S = 86400.0
NOT_STARTED = ("starting", 0)


def with_field_options(entrypoint: Callable[..., None]) -> Callable[..., None]:
    """Give a function with `**fields` one keyword for each field, so that `modal run` makes options of them.

    Modal reads the signature and the annotations. A field that is not given has its value of `_defaults`.
    """
    own = [each for each in signature(entrypoint).parameters.values() if each.kind != Parameter.VAR_KEYWORD]
    defaults = _defaults()
    types = {name: type(value) for name, value in defaults.items()}
    fields = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=value, annotation=type(value))
        for name, value in defaults.items()
    ]
    setattr(entrypoint, "__signature__", Signature([*own, *fields]))  # noqa: B010  # no attribute of a function's type
    entrypoint.__annotations__ |= types
    return entrypoint


def _defaults() -> dict[str, bool | str]:
    """What an option has that is not given, by the field's name: a boolean its default, any other field ""."""
    rows = (*option_rows(), *text_option_rows())
    return {row.name: row.is_on_by_default if row.kind == "bool" else "" for row in rows}


def read_body(
    images: str | None, out: Path, fields: Mapping[str, Any], *, text: str | None = None, also: str = ""
) -> dict[str, Any]:
    """The request body that the command line describes, with the content of image files in it.

    Args:
        images: paths or http(s) URLs, separated by commas; None with a text.
        text: the prompt, instead of images.
        out: the file to write; its extension is the format.
        fields: further fields; those that have their defaults are left out.
        also: further formats of the same asset, separated by commas.

    Raises:
        InvalidRequest: a field is out of bounds, a file cannot be read, or the extension is unknown.
    """
    extension = out.suffix.lower().removeprefix(".")
    if extension not in OUTPUT_FORMATS:
        raise InvalidRequest(f"--out must end in {extensions_in_words()}, got {out.name!r}")
    if not out.parent.is_dir():
        raise InvalidRequest(f"--out: there is no folder {out.parent}")
    defaults = _defaults()
    given = {name: value for name, value in fields.items() if value != defaults[name]}
    body = {**given, "output_formats": [extension, *split_list(also)]}
    if (images is None) == (text is None):
        raise InvalidRequest("give either --image or --text")
    if images is not None:
        image = [_read_source("image", source) for source in images.split(",")]
        body["image"] = image if len(image) > 1 else image[0]
    else:
        body["prompt"] = text
        if "init_mesh" in body:
            body["init_mesh"] = _read_source("init-mesh", str(body["init_mesh"]))
    parse_any_request(body)
    return body


def _read_source(option: str, source: str) -> str:
    return source if read_http_url(source) else _encoded(option, Path(source))


def _encoded(option: str, path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise InvalidRequest(f"--{option}: {path} cannot be read: {error.strerror}") from None


def generate_once(
    body: Mapping[str, Any],
    *,
    file_prefix: str,
    settings: Settings,
    engines: EnginePool,
    channel: ControlChannel,
    announced: str = "",
    commit: Callable[[], None] = lambda: None,
    reload: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run the job, in a CPU container, to the start of its generation, or from its answer to the files.

    Args:
        engines: a container of the requested one starts during intake.
        channel: receives the stage and the percentage.
        announced: the call of the generation, which has ended; "" if none was started.
        commit: commits what was written under `settings.work_dir`.
        reload: shows what an earlier run committed there.

    Returns:
        The `JobResult` as plain data, and under `files` the content of the files by name. Or `{"call_id": …}`: a
        generation was started, after whose end this is to be run again with `announced`.
    """
    from pipeline.imaging.rembg_remover import select_background_remover
    from pipeline.net.download import fetch
    from pipeline.on_modal.prewarm import start_prewarm
    from pipeline.stages.intake import load_views

    request, engine_channel = _for_engine(parse_any_request(dict(body)).request, settings), engine_channel_of(channel)
    folder = settings.work_dir / channel.name
    if announced:
        reload()

    def load_job_views(request: GenerationRequest) -> list[ForegroundImage]:
        engines.wake(request.engine)
        start_prewarm()
        remover = select_background_remover(settings.matting_model, settings.weights)
        return load_views(request, fetch=lambda url: fetch(url, settings), remover=remover)

    try:
        with ProgressReporter(channel) as reporter:
            result, files = run_in_memory(
                request,
                file_prefix=file_prefix,
                load_views=load_job_views,
                generate=engines.client(request.engine, channel=engine_channel, announced=announced),
                on_progress=lambda stage, percent: reporter.report((stage, percent)),
                work_dir=folder,
            )
    except Transferred as transferred:
        commit()
        transferred.start()
        return {"call_id": ControlChannel(channel.entries, engine_channel).saved_call().call_id or announced}
    engines.forget(engine_channel)
    shutil.rmtree(folder, ignore_errors=True)
    return {**asdict(result), "files": files}


def engine_channel_of(channel: ControlChannel) -> str:
    """The name of the channel of the generation."""
    return f"{channel.name}/engine"


def delete_old_folders(work_dir: Path, *, now: float) -> None:
    """Delete the work folders of commands that were interrupted."""
    for folder in work_dir.glob(f"{FOLDER_PREFIX}*"):
        made_at = folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if made_at.isdigit() and now - int(made_at) > FOLDER_LIFETIME_S:
            shutil.rmtree(folder, ignore_errors=True)


def _for_engine(request: GenerationRequest, settings: Settings) -> GenerationRequest:
    """The request with the name of the engine that it is for.

    Raises:
        InvalidRequest: there is none, or it takes no such input.
    """
    spec = choose_engine(request.engine, request.kind, offered=settings.offered_engines)
    return request.model_copy(update={"engine": spec.name})


def wait_for(
    spawned: RemoteCall, on_wait: Callable[[], None], *, transient: tuple[type[Exception], ...] = (OSError,)
) -> Any:
    """The result of a remote call.

    Args:
        on_wait: called about twice a second.
        transient: as for `PatientCall`.
    """
    call = PatientCall(spawned, transient)
    while True:
        try:
            return call.get(timeout=POLL_S)
        except TimeoutError:
            on_wait()


def run_remotely(
    spawn: Callable[[str], RemoteCall],
    channel: ControlChannel,
    on_progress: Callable[[str, int], None],
    *,
    find_call: Callable[[str], RemoteCall],
    transient: tuple[type[Exception], ...] = (OSError,),
) -> dict[str, Any]:
    """Run `generate_once` remotely as often as it takes; between two runs, wait here for the generation.

    Args:
        spawn: starts `generate_once` with the `announced` call.
        find_call: finds a started call by its id.
        transient: as for `PatientCall`.

    Raises:
        CallerError: the image or a field is wrong.
        StageError: the job failed.
    """
    of_engine = ControlChannel(channel.entries, engine_channel_of(channel))

    def report() -> None:
        on_progress(*best_effort(lambda: channel.progress(NOT_STARTED), NOT_STARTED))

    def report_share() -> None:
        on_progress("generate", percent_of("generate", best_effort(lambda: of_engine.progress(0.0), 0.0)))

    result = wait_for(spawn(""), report, transient=transient)
    while (call_id := result.get("call_id")) is not None:
        with suppress(Exception):  # the next run finds out what became of it
            wait_for(find_call(call_id), report_share, transient=transient)
        result = wait_for(spawn(call_id), report, transient=transient)
    best_effort(channel.clear, None)
    if result["state"] != "success":
        raise (CallerError if is_caller_error(result["error_code"]) else StageError)(result["message"])
    return result


def run_from_terminal(
    images: str | None,
    out: Path,
    fields: Mapping[str, Any],
    *,
    text: str | None = None,
    spawn: Callable[[dict[str, Any], str, str, str], RemoteCall],
    find_call: Callable[[str], RemoteCall],
    entries: SharedDict,
    also: str = "",
    force: bool = False,
    transient: tuple[type[Exception], ...] = (OSError,),
) -> None:
    """The whole command. An error is printed as one sentence; the exit code is 2 if the user can fix it, else 1.

    Args:
        images, out, fields, text, also: as in `read_body`.
        force: replace files that exist already.
        spawn: starts `generate_once` remotely, with the body, the file prefix, the channel's name and `announced`.
        find_call: finds a started call by its id.
        entries: the shared dictionary in which the channel is.
        transient: as for `PatientCall`.
    """
    name = f"{FOLDER_PREFIX}{int(time.time())}-{secrets.token_hex(8)}"
    try:
        body = read_body(images, out, fields, text=text, also=also)
        if not force:
            check_output_files(parse_any_request(body).request, out)
        channel = ControlChannel(entries, name)
        result = run_remotely(
            lambda announced: spawn(body, out.stem, name, announced),
            channel,
            _StagePrinter().report,
            find_call=find_call,
            transient=transient,
        )
        paths = write_files(rename_model(result["files"], out.name), out.parent)
    except ImageTo3DError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2 if isinstance(error, CallerError) else 1) from None
    for warning in result["warnings"]:
        sys.stderr.write(f"note: {warning}\n")
    for path in paths:
        sys.stdout.write(f"{path.stat().st_size / 1e6:6.2f} MB  {path}\n")
    stages = "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result["stage_seconds"].items())
    sys.stdout.write(f"took {stages}   (engine {result['engine']}, {result['gpu_seconds']:.1f} GPU seconds)\n")


class _StagePrinter:
    """Prints one line per stage, not a bar, since Modal's own output is on the same terminal."""

    def __init__(self) -> None:
        self._last = ""

    def report(self, stage: str, percent: int) -> None:
        if stage != self._last:
            sys.stderr.write(f"{percent:3d} %  {stage}\n")
        self._last = stage
