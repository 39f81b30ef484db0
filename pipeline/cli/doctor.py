"""`image-to-3d doctor`: checks what a deployment needs on this machine, and says what to do about what is missing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.data_folder import DataOption, settings_for

if TYPE_CHECKING:
    from pipeline.settings import Settings

Verdict = Literal["ok", "warning", "failed"]
MAX_CLOCK_ERROR_S = 5.0
"""Leases, links and webhook signatures compare clocks of different machines."""
MIN_FREE_BYTES = 5 * 10**9
COMMAND_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 10.0
JOB_TIMEOUT_S = 600.0
CUDA_REPORT = "import torch; print(torch.version.cuda, torch.cuda.is_available())"


@dataclass(frozen=True)
class Finding:
    """The result of one check, as a sentence."""

    check: str
    verdict: Verdict
    detail: str


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    data: DataOption = None,
    weights: Annotated[str | None, typer.Option(help="Folder of the engines' weights (default: weights)")] = None,
    key: Annotated[str | None, typer.Option(help="API key for one job through the running service")] = None,
    skip_job: Annotated[bool, typer.Option("--skip-job", help="Run no job")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per check")] = False,
) -> None:
    """Check engines, formats, GPU, disk, database, clock, public address, and run one job; exit code 1 if one failed.

    Changes nothing and creates no database. The job runs through the service where it answers and a key is given, by
    --key or IMAGE_TO_3D_API_KEY, else in this process.
    """
    settings = settings_for(data, weights=weights)
    if key is None and settings.api_key is not None:
        key = settings.api_key.get_secret_value()
    has_failed = False
    for finding in findings(settings, key=key, runs_job=not skip_job):
        has_failed |= finding.verdict == "failed"
        typer.echo(
            json.dumps(asdict(finding)) if as_json else f"{finding.verdict:<8} {finding.check}: {finding.detail}"
        )
    raise typer.Exit(int(has_failed))


def findings(settings: Settings, *, key: str | None, runs_job: bool) -> Iterator[Finding]:
    """Run all checks, in the order of the command's help; a check that raises has failed."""
    from subprocess import SubprocessError

    import httpx

    from pipeline.errors import ImageTo3DError

    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("settings", _settings),
        ("engine", lambda: _engines(settings)),
        ("formats", lambda: _formats(settings)),
        ("gpu", lambda: _gpu(settings)),
        ("disk", lambda: _disk(settings)),
        ("database", lambda: _database(settings)),
        ("address", lambda: _address(settings)),
    ]
    if runs_job:
        checks.append(("job", lambda: _job(settings, key)))
    for name, check in checks:
        try:
            yield from check()
        except (ImageTo3DError, OSError, ValueError, SubprocessError, httpx.HTTPError) as error:
            # The other checks are worth running all the same.
            yield Finding(name, "failed", str(error) or type(error).__name__)


def _python() -> Iterator[Finding]:
    import platform

    from pipeline.version import __version__

    yield Finding("python", "ok", f"image-to-3d {__version__}, Python {platform.python_version()}, {sys.executable}")


def _settings() -> Iterator[Finding]:
    """The variables that are named like settings and change nothing."""
    from pipeline.on_modal.settings import unknown_settings

    unknown = unknown_settings()
    yield Finding("settings", "warning" if unknown else "ok", " ".join(unknown) or "every variable is one of a setting")


def _engines(settings: Settings) -> Iterator[Finding]:
    from pipeline.cli.engines import state_of
    from pipeline.engines.registry import TINY_WEIGHTS, find_spec

    for name in settings.offered_engines:
        state = state_of(find_spec(name), Path(settings.weights))
        if not state.installed:
            yield Finding(f"engine {name}", "failed", f"not installed: pip install 'image-to-3d[{state.extra}]'")
        elif settings.weights != TINY_WEIGHTS and state.missing_bytes:
            missing = (
                f"{state.missing_bytes / 1e9:.2f} GB of weights are missing in {Path(settings.weights).absolute()}"
            )
            yield Finding(f"engine {name}", "failed", f"{missing}: image-to-3d fetch-weights --engine {name}")
        else:
            yield Finding(f"engine {name}", "ok", "installed" + (", weights are here" if state.has_weights else ""))


def _formats(settings: Settings) -> Iterator[Finding]:
    """The file formats that requests may name, and what is missing for the others, or for them, on this machine."""
    from schemas.formats import FORMATS, is_installed

    offered = settings.offered_formats
    detail = ", ".join(offered)
    if not is_installed("numpy"):
        yield Finding("formats", "ok", f"{detail}, as far as the workers of other machines write them; none is here")
        return
    missing = [spec for spec in FORMATS.values() if not spec.is_writable]
    hints = [f"{spec.name} needs pip install 'image-to-3d[{spec.extra}]'" for spec in missing]
    is_broken = any(spec.name in offered for spec in missing)
    yield Finding("formats", "failed" if is_broken else "ok", "; ".join([detail, *hints]))


def _gpu(settings: Settings) -> Iterator[Finding]:
    """The card as the driver sees it, and whether the installed torch can use it."""
    import shutil
    import subprocess

    from pipeline.engines.registry import find_spec, is_installed

    wanted = [spec for spec in map(find_spec, settings.offered_engines) if spec.gpus]
    needs = ", ".join(f"{spec.name} needs {spec.needs}" for spec in wanted)
    if shutil.which("nvidia-smi") is None:
        verdict, detail = ("warning", f"no NVIDIA driver; {needs}") if wanted else ("ok", "none, and none is needed")
        yield Finding("gpu", verdict, detail)
        return

    def output_of(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise OSError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout.strip()

    cards = output_of("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    for card in cards.splitlines():
        yield Finding("gpu", "ok", card)
    if any(is_installed(spec) and "torch" in spec.packages for spec in wanted):
        cuda, is_available = output_of(sys.executable, "-c", CUDA_REPORT).splitlines()[-1].split()
        if is_available == "True":
            yield Finding("gpu", "ok", f"torch uses it, with CUDA {cuda}")
            if not any(map(shutil.which, ("gcc", "clang"))):
                slower = "without one, PyTorch takes the place of the GPU kernels, several times slower"
                yield Finding("gpu kernels", "warning", f"Triton finds no C compiler; {slower}: apt-get install gcc")
        elif cuda == "None":
            yield Finding("gpu", "failed", "the installed torch is a build for CPUs: install one with CUDA")
        else:
            yield Finding("gpu", "failed", f"torch with CUDA {cuda} cannot use it: update the driver")


def _disk(settings: Settings) -> Iterator[Finding]:
    import shutil

    folder = settings.data_dir.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    verdict: Verdict = "ok" if free >= MIN_FREE_BYTES else "warning"
    yield Finding("disk", verdict, f"{free / 1e9:.1f} GB free for {folder}")


def _database(settings: Settings) -> Iterator[Finding]:
    from pipeline.deployment import check_store_exists, open_store
    from pipeline.errors import NotFound
    from pipeline.jobs.stores.sql.connection import schema_revision
    from pipeline.jobs.stores.sql.schema import SCHEMA_REVISION, oldest_code

    try:
        check_store_exists(settings)
    except NotFound as error:
        yield Finding("database", "warning", str(error))
        return
    found = schema_revision(settings.sql_url)
    if found is not None and oldest_code(found) > SCHEMA_REVISION:
        yield Finding("database", "failed", f"it has revision {found}, which this version cannot use")
        return
    if found is None or found < SCHEMA_REVISION:
        # Opening it would migrate it, maybe while an older version of the service runs.
        detail = f"it has revision {found}, this version {SCHEMA_REVISION}; a start of the service migrates it"
        yield Finding("database", "warning", detail)
        return
    store = open_store(settings)
    try:
        states, workers = store.metrics().states, store.workers()
        jobs = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no jobs"
        yield Finding("database", "ok", f"{'SQLite' if settings.database_url is None else 'Postgres'}; {jobs}")
        alive = ", ".join(f"{worker.worker_id} ({worker.engine})" for worker in workers)
        yield Finding("workers", "ok" if workers else "warning", alive or "none is alive: jobs wait in the queue")
        if settings.database_url is not None:
            yield _clock("the database's", store.database_time())
            yield from _shared_storage(settings, [worker.worker_id for worker in workers])
    finally:
        store.close()


def _shared_storage(settings: Settings, worker_ids: Sequence[str]) -> Iterator[Finding]:
    """Whether what the workers make can be read on every machine."""
    import socket

    if settings.outputs_url is not None:
        yield Finding("storage", "ok", f"machines share {settings.outputs_url}")
    elif any(not worker_id.startswith(f"{socket.gethostname()}-") for worker_id in worker_ids):
        detail = f"workers run on other hosts, and OUTPUTS_URL is not set: all hosts must share {settings.data_dir}"
        yield Finding("storage", "warning", f"{detail}, else files and kept generations stay where they were made")


def _address(settings: Settings) -> Iterator[Finding]:
    """Whether this service answers under its address, without the environment's proxy."""
    from email.utils import parsedate_to_datetime

    import httpx

    url = settings.base_url
    with httpx.Client(timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
        try:
            answer = client.get(f"{url}/health")
        except httpx.HTTPError as error:
            reason = f"{url} does not answer from here ({type(error).__name__})"
            yield Finding("address", "warning", f"{reason}: is the service running?")
            return
        if answer.text.strip() != '{"status":"ok"}':
            yield Finding("address", "failed", f"{url} is answered by something else: HTTP {answer.status_code}")
            return
        yield Finding("address", "ok", f"{url} answers")
        if answer.headers.get("date") and settings.public_url is not None:
            yield _clock(f"{url}'s", parsedate_to_datetime(answer.headers["date"]).timestamp())
        ready = client.get(f"{url}/ready")
        reasons = "; ".join(ready.json().get("reasons", []))
        yield Finding("readiness", "ok" if ready.status_code == 200 else "failed", reasons or "jobs would run now")


def _clock(whose: str, now: float) -> Finding:
    off_s = abs(now - time.time())
    verdict: Verdict = "ok" if off_s <= MAX_CLOCK_ERROR_S else "failed"
    return Finding("clock", verdict, f"{off_s:.0f} s off {whose}" + ("" if verdict == "ok" else ": synchronize them"))


def _job(settings: Settings, key: str | None) -> Iterator[Finding]:
    from importlib import resources

    image = resources.files("pipeline.api").joinpath("playground/sample.png").read_bytes()
    if key is not None:
        yield _job_by_service(settings, key, image)
        return
    from pipeline.engines.registry import find_spec
    from pipeline.python_api import generate

    if find_spec(settings.engine).gpus and settings.weights != "tiny":
        yield Finding("job", "warning", f"not run here with {settings.engine}; give --key for one through the service")
        return
    started_s = time.monotonic()
    result = generate(image, engine=settings.engine, weights=settings.weights, resolution=64)
    seconds = time.monotonic() - started_s
    yield Finding("job", "ok", f"{result.engine} made {result.model_name} in {seconds:.1f} s in this process")


def _job_by_service(settings: Settings, key: str, image: bytes) -> Finding:
    import base64

    import httpx

    data_uri = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    started_s = time.monotonic()
    api = f"{settings.base_url}/api/v6/3d"
    with httpx.Client(timeout=180, trust_env=False, headers={"key": key}) as client:
        body = client.post(f"{api}/image_to_3d", json={"image": data_uri, "resolution": 64, "temp": "yes"}).json()
        while body.get("status") == "processing" and time.monotonic() - started_s < JOB_TIMEOUT_S:
            body = client.post(f"{api}/fetch/{body['id']}").json()
        if body.get("status") != "success":
            return Finding("job", "failed", f"{body.get('status')}: {body.get('message', '')}")
        fetched = client.get(body["output"][0])
        if fetched.status_code != 200:
            return Finding("job", "failed", f"the model's URL answers HTTP {fetched.status_code}; check PUBLIC_URL")
    seconds = time.monotonic() - started_s
    return Finding("job", "ok", f"the service made and served {len(fetched.content):,} bytes in {seconds:.1f} s")
