"""image-to-3d on Modal: only the wiring. `pipeline.on_modal` contains what the containers do.

    modal secret create image-to-3d IMAGE_TO_3D_API_KEY=… IMAGE_TO_3D_MASTER_KEY=…
    modal run modal_app.py::fetch_weights
    modal deploy modal_app.py
    modal run modal_app.py::smoke

One image without a deployment: `modal run modal_app.py --image robot.png --out robot.glb`; or `--text "a robot"`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import modal
from grpclib.exceptions import StreamTerminatedError

from pipeline.engines.registry import find_spec, require_weights, weights_module
from pipeline.on_modal.one_shot import run_from_terminal, with_field_options
from pipeline.on_modal.preload import preload, preload_options
from pipeline.on_modal.remote_call import marked_as_remote
from pipeline.on_modal.requirements import requirements
from pipeline.on_modal.settings import ScalingSettings, environment_of_containers, unknown_settings
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions
    from pipeline.jobs.store import Store
    from pipeline.on_modal.api_keys import Change, KeyCommand
    from pipeline.on_modal.control_channel import Failure
    from pipeline.on_modal.deployment import Deployment
    from pipeline.on_modal.dispatch import Dispatcher
    from pipeline.on_modal.engine_pool import EnginePool
    from pipeline.on_modal.platform_probe import EngineStart
    from pipeline.service import Rotation

MINUTES = 60
NAME = "image-to-3d"
# Read once per process. Containers get them by their environment, since they import this file without the deployer's.
SETTINGS, SCALING = Settings(), ScalingSettings()
if modal.is_local():
    for sentence in unknown_settings():
        print(f"warning: {sentence}", file=sys.stderr)
ENVIRONMENT = environment_of_containers(engine=SCALING.engine, weights="/weights", data_dir="/data")
BLOCKLIST = "/blocklist.txt"  # a copy of the deployer's file, in the web function
if SETTINGS.prompt_blocklist_file is not None:
    ENVIRONMENT |= {"IMAGE_TO_3D_PROMPT_BLOCKLIST_FILE": BLOCKLIST}

# Images: Python and packages only. No CUDA toolkit, no build step; torch's wheels contain CUDA. The one with the GPU
# has a C compiler, with which Triton builds its bindings to the driver at the first kernel.


def image(*extras: str, debian_packages: Sequence[str] = ()) -> modal.Image:
    """Debian and what pyproject.toml lists, in the tested versions; the project's own code is added at the start."""
    built = modal.Image.debian_slim(python_version="3.12")
    if debian_packages:
        built = built.apt_install(*debian_packages)
    if modal.is_local():
        here = Path(__file__).parent
        built = built.add_local_file(here / "constraints.txt", "/constraints.txt", copy=True)
        packages = requirements(here / "pyproject.toml", *extras)
        built = built.uv_pip_install(*packages, extra_options="--constraint /constraints.txt")
    return built.add_local_python_source("pipeline", "schemas", ignore=["**/__pycache__", "**/*.pyc"])


TRACED = ("tracing",) if SETTINGS.is_traced else ()
web_image = image("postgres", *TRACED)
if SETTINGS.prompt_blocklist_file is not None and modal.is_local():
    web_image = web_image.add_local_file(SETTINGS.prompt_blocklist_file, BLOCKLIST)
work_image = image("postgres", "matting", "usd", *TRACED)
gpu_extras = {find_spec(name).extra for name in (SCALING.engine, *SCALING.further_engines)}
gpu_image = image(*gpu_extras, debian_packages=("gcc", "libc6-dev"))
weights_image = image("trellis")

# Volumes and Dicts. Engine containers mount the weights read-only; outputs and unfinished work have many writers, each
# of which writes its own files.
weights = modal.Volume.from_name(f"{NAME}-weights", create_if_missing=True)
outputs = modal.Volume.from_name(f"{NAME}-outputs", create_if_missing=True, version=2)
state = modal.Volume.from_name(f"{NAME}-state", create_if_missing=True, version=2)
# The backup of the Dict of jobs has one writer, `clean`, and is not on a Volume of version 2, which is beta.
backups = modal.Volume.from_name(f"{NAME}-backup", create_if_missing=True, version=1)
jobs = modal.Dict.from_name(f"{NAME}-jobs", create_if_missing=True)
shared_dict = modal.Dict.from_name(f"{NAME}-notes", create_if_missing=True)
WEIGHTS: dict[Any, Any] = {"/weights": weights.with_mount_options(read_only=True)}
FAST_DOWNLOAD: dict[str, Any] = {"HF_XET_HIGH_PERFORMANCE": "1"}
DATA: dict[Any, Any] = {"/data/files": outputs, "/data/work": state}

# Secrets. DATABASE_URL in the named one makes Postgres the store.
settings = modal.Secret.from_dict(dict(ENVIRONMENT))
secret = modal.Secret.from_name(NAME, required_keys=["IMAGE_TO_3D_API_KEY", "IMAGE_TO_3D_MASTER_KEY"])
SERVICE: dict[str, Any] = {"secrets": [settings, secret], "region": SCALING.region}

# `modal deploy` deploys `app`. The others are for `modal run`, which builds the images and starts the containers of one
# App only: none that `app` keeps running. `modal run modal_app.py::keys` finds an App by this name and runs its only
# entrypoint.
app = modal.App(NAME)
fetching = modal.App(f"{NAME}-fetch-weights")
testing = modal.App(f"{NAME}-smoke")
once = modal.App(f"{NAME}-once")
keys = modal.App(f"{NAME}-keys")
rotate_secrets = modal.App(f"{NAME}-rotate-secrets")

# The GPU class, one subclass per offered engine: each has its own GPU types, containers and snapshots.


class EngineContainer:
    """One engine, loaded before the snapshot and moved to the device after it; handles one input at a time."""

    engine: str

    @modal.enter(snap=True)
    def load_weights(self) -> None:
        from pipeline.on_modal.engine_server import EngineServer
        from pipeline.telemetry import configure_logging

        configure_logging(SETTINGS.log_level, SETTINGS.log_format)
        self.server = EngineServer(
            self.engine,
            weights=SETTINGS.weights,
            arguments=SETTINGS.engine_arguments,
            needs_accelerator=bool(SCALING.gpus_for(find_spec(self.engine))),
        )
        if SCALING.gpu_snapshot_weights:
            self.server.load_weights(with_device=SCALING.gpu_snapshot)
        else:
            self.server.import_engine()

    @modal.enter(snap=False)
    def to_device(self) -> None:
        self.server.to_device()

    @modal.method()
    def wake(self) -> Failure | None:
        """Return once a container is ready, or why it cannot be; called during the intake of a job."""
        self.recycle_if_needed()
        return self.server.start_failure

    @modal.method()
    def describe_start(self) -> EngineStart:
        """The device, and how long each part of the start took; for the smoke test."""
        return self.server.describe_start()

    @modal.method()
    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, channel: str, restarts: int, job_id: int = 0
    ) -> Generation | Failure:
        """Generate, then dispatch the job again, if the call belongs to one."""
        from pipeline.on_modal.control_channel import ControlChannel

        call_id, own = modal.current_function_call_id() or "", ControlChannel(shared_dict, channel)
        with marked_as_remote(TRANSIENT_ERRORS):
            answer = self.server.answer(views, options, own, restarts=restarts, call_id=call_id)
        self.recycle_if_needed()
        if job_id:
            dispatcher()(job_id, call_id)
        return answer

    def recycle_if_needed(self) -> None:
        """Let the container end after this input where it must take no further one."""
        if self.server.must_recycle:
            modal.experimental.stop_fetching_inputs()  # pyright: ignore[reportUnusedCoroutine]


def gpu_options(engine: str, *, min_containers: int = 0) -> dict[str, Any]:
    """The options of `app.cls` for an engine."""
    spec = find_spec(engine)
    return {
        "image": gpu_image,
        "secrets": [settings],
        "volumes": WEIGHTS,
        "env": {"HF_HUB_OFFLINE": "1"},
        "gpu": list(SCALING.gpus_for(spec)) or None,
        "cpu": 2.0,
        "memory": spec.memory_gib * 1024,
        "min_containers": min_containers,
        "buffer_containers": SCALING.gpu_buffer_containers,
        "max_containers": SCALING.gpu_max_containers,
        "scaledown_window": SCALING.gpu_scaledown_s,
        "region": SCALING.region,
        "timeout": 15 * MINUTES,
        "startup_timeout": 10 * MINUTES,
        "enable_memory_snapshot": spec.takes_snapshot,
        "experimental_options": {"enable_gpu_snapshot": True} if SCALING.gpu_snapshot else None,
    }


@app.cls(**gpu_options(SCALING.engine, min_containers=SCALING.gpu_min_containers))
class Generator(EngineContainer):
    """The default engine."""

    engine = SCALING.engine


GENERATORS: dict[str, Any] = {SCALING.engine: Generator}
ONCE: dict[str, Any] = {}
"""The same engines for `modal run modal_app.py --image …`."""


def _generator(owner: modal.App, engine: str, name: str) -> Any:
    """A class of an App for an engine, as an attribute of this module, where its container finds it."""
    made = type(name, (EngineContainer,), {"engine": engine, "__module__": __name__})
    globals()[name] = owner.cls(**gpu_options(engine))(made)
    return globals()[name]


for _name in (SCALING.engine, *SCALING.further_engines):
    _prefix = _name.title().replace("-", "")
    ONCE[_name] = _generator(once, _name, f"Once{_prefix}Generator")
    if _name != SCALING.engine:
        GENERATORS[_name] = _generator(app, _name, f"{_prefix}Generator")


def engines(generators: dict[str, Any]) -> EnginePool:
    """The engines for one job."""
    from pipeline.on_modal.engine_pool import EnginePool

    return EnginePool(
        generators,
        default=SCALING.engine,
        weights=SETTINGS.weights,
        entries=shared_dict,
        reopen=FIND_CALL,
        transient=TRANSIENT_ERRORS,
        check=check_weights,
    )


def check_weights(engine: str) -> None:
    """Raise `WeightsUnusable`, which names the command to run, if a container would not find an engine's weights."""
    remedy = f"modal run modal_app.py::fetch_weights --engine {engine}"
    wanted = SETTINGS.weights_wanted(engine)
    require_weights(find_spec(engine), SETTINGS.weights, remedy=remedy, refresh=weights.reload, wanted=wanted)


# CPU functions. None of them is reachable from the web; each may be killed and run again.
WORK: dict[str, Any] = {"image": work_image, "cpu": 2.0, "memory": 4 * 1024, "timeout": 30 * MINUTES}
# A scheduled function scales down at once: a container that waited for the next minute would never stop.
SCHEDULED: dict[str, Any] = {"timeout": 10 * MINUTES, "scaledown_window": 2} | SERVICE
FIND_CALL: Any = modal.FunctionCall.from_id
CLIENT_ERRORS = (modal.exception.Error,)
# What the client raises, after its own repetitions, where its connection or Modal's servers fail for a while.
TRANSIENT_ERRORS = (
    modal.exception.ConnectionError,
    modal.exception.InternalError,
    modal.exception.ResourceExhaustedError,
    modal.exception.ServiceError,
    StreamTerminatedError,
    OSError,
)
MISSING = (FileNotFoundError, modal.exception.NotFoundError)


@cache
def dispatcher() -> Dispatcher:
    """Dispatches jobs, from any container."""
    from pipeline.on_modal.dispatch import Dispatcher

    return Dispatcher(
        lambda job_id, call_id: run_job.spawn(job_id, call_id).object_id,
        is_in_flight=is_in_flight,
        entries=shared_dict,
    )


def is_in_flight(call_id: str) -> bool:
    """Whether a call waits or runs."""
    from pipeline.on_modal import remote_call

    return remote_call.is_in_flight(FIND_CALL(call_id), transient=TRANSIENT_ERRORS, errors=CLIENT_ERRORS)


@cache
def deployment() -> Deployment:
    """What the CPU functions share, built once per container."""
    from pipeline.on_modal.deployment import open_deployment
    from pipeline.on_modal.waiting_jobs import WaitingJobs

    return open_deployment(
        SETTINGS if SETTINGS.public_url else SETTINGS.model_copy(update={"public_url": web.get_web_url()}),
        jobs=jobs,
        backups=backups,
        dispatch=dispatcher(),
        waiting=WaitingJobs(
            dispatcher(),
            find_call=FIND_CALL,
            is_in_flight=is_in_flight,
            entries=shared_dict,
            default=SETTINGS.engine,
        ),
        missing=MISSING,
        commit_work=state.commit,
        commit_outputs=outputs.commit,
        reload_work=state.reload,
        reload_outputs=outputs.reload,
    )


@app.function(
    volumes=DATA | WEIGHTS,
    max_containers=SCALING.most_job_containers,
    retries=modal.Retries(max_retries=3, initial_delay=1.0, backoff_coefficient=2.0),
    startup_timeout=5 * MINUTES,
    name="run_call",
    **preload_options("jobs"),
    **WORK,
    **SERVICE,
)
def run_job(job_id: int, call_id: str = "") -> None:
    """One job as far as it goes without waiting: to the start of its generation, or from its answer to its files."""
    from pipeline.on_modal.functions import run_job

    worker_id = modal.current_function_call_id() or f"job-{job_id}"
    with marked_as_remote(TRANSIENT_ERRORS):
        run_job(
            job_id,
            deployment(),
            announced=call_id,
            worker_id=worker_id,
            engines=engines(GENERATORS),
            send_webhooks=deliver_webhooks.spawn,
        )


@app.function(
    image=web_image,
    cpu=0.25,
    memory=512,
    schedule=modal.Cron("* * * * *"),
    **preload_options("webhooks"),
    **SCHEDULED,
)
def deliver_webhooks(job_id: int = 0) -> None:
    """Send the webhooks that are due; the outbox records when each is due again."""
    from pipeline.on_modal.webhooks import send_webhooks

    send_webhooks(deployment(), job_id=job_id or None)


@app.function(
    image=work_image,
    cpu=0.5,
    memory=1024,
    volumes=DATA | {"/data/backup": backups},
    schedule=modal.Cron("*/5 * * * *"),
    **SCHEDULED,
)
def clean() -> None:
    """Back up the Dict, delete what has expired, retry late uploads, dispatch lost jobs again."""
    from pipeline.on_modal.functions import clean_up

    for volume in (state, outputs, backups):
        volume.reload()
    clean_up(deployment(), commit_backup=backups.commit)


@fetching.function(
    image=weights_image,
    secrets=[settings],
    volumes={"/weights": weights},
    env=FAST_DOWNLOAD,
    cpu=4.0,
    memory=8 * 1024,
    timeout=60 * MINUTES,
)
def fetch_weights(engine: str = SCALING.engine, size: str = "") -> None:
    """Download an engine's published weights and the best background remover to the Volume, once, pinned.

    `--size base`, `large` or `xlarge` is for trellis-text.
    """
    from pipeline.nn.remover_weights import BIREFNET, fetch_remover

    if (published := weights_module(find_spec(engine))) is not None:
        chosen = SETTINGS.weights_wanted(engine) | SETTINGS.weights_source(engine) | ({"size": size} if size else {})
        published.fetch_weights(Path("/weights"), report=print, **chosen)
    fetch_remover(Path("/weights"), spec=BIREFNET, report=print)
    weights.commit()


@once.function(volumes=WEIGHTS | {"/data/work": state}, secrets=[settings], name="make_files", **WORK)
def generate_once(body: dict[str, Any], file_prefix: str, channel: str, call_id: str = "") -> dict[str, Any]:
    """One image without a service, for `modal run modal_app.py --image …` and `--text …`, as far as `run_job` goes."""
    from pipeline.on_modal import one_shot
    from pipeline.on_modal.control_channel import ControlChannel

    own = ControlChannel(shared_dict, channel)
    with marked_as_remote(TRANSIENT_ERRORS):
        return one_shot.generate_once(
            body,
            file_prefix=file_prefix,
            settings=SETTINGS,
            engines=engines(ONCE),
            channel=own,
            announced=call_id,
            commit=state.commit,
            reload=state.reload,
        )


# The web function: the only public one, with API keys of its own.


@app.function(
    image=web_image,
    cpu=0.5,
    memory=1024,
    min_containers=SCALING.web_min_containers,
    scaledown_window=1 * MINUTES,
    timeout=5 * MINUTES,
    startup_timeout=1 * MINUTES,
    **preload_options("web"),
    **SERVICE,
)
@modal.concurrent(max_inputs=100, target_inputs=60)
@modal.asgi_app(custom_domains=SCALING.custom_domains)
def web() -> Any:
    """The same application as on one machine."""
    from pipeline.on_modal.early_start import EarlyStart
    from pipeline.on_modal.web import web_app

    start_early = EarlyStart(GENERATORS, default=SCALING.engine, entries=shared_dict)
    return web_app(deployment(), outputs=outputs, state=state, missing=MISSING, start_early=start_early)


@testing.function(image=web_image, volumes={"/data/work": state}, timeout=10 * MINUTES)
def time_commits() -> list[float]:
    """Seconds of commits of the size of a Generation."""
    from pipeline.on_modal import platform_probe

    return platform_probe.time_commits(Path("/data/work"), state.commit)


@testing.function(image=web_image)
def age_of_container() -> float:
    """How old the process of a container is that does nothing else."""
    from pipeline.on_modal import platform_probe

    return platform_probe.process_age_s()


@testing.function(image=web_image, block_network=True)
def echo_isolated(data: bytes) -> bytes:
    """What came, from a container without a network."""
    return data


@testing.function(image=web_image, timeout=30 * MINUTES, **SERVICE)
def smoke(url: str = "", webhook: str = "", cold: bool = False) -> None:
    """Test the deployment as a customer uses it, through its public address, measure the platform, and print both.

    `--cold` waits until the engine's container has stopped, so that its restore from the snapshot is measured.
    """
    from pipeline.on_modal.platform_probe import Probes, measurements
    from pipeline.on_modal.smoke_test import check

    probes = Probes(
        entries=shared_dict,
        age_of_container=age_of_container.remote,
        start_engine=lambda: modal.Cls.from_name(NAME, "Generator")().describe_start.remote(),
        commit_seconds=time_commits.remote,
        echo_isolated=lambda data: echo_isolated.spawn(data).get(timeout=2 * MINUTES),
    )
    deployed = url or modal.Function.from_name(NAME, "web").get_web_url() or ""
    if check(deployed, SETTINGS, webhook=webhook or None, report=print):
        raise RuntimeError(f"{deployed} does not work; see the table")
    if cold:
        time.sleep(SCALING.gpu_scaledown_s + 15)
    for line in measurements(probes):
        print(line)


# Entrypoints on the operator's machine.


@once.local_entrypoint()
@with_field_options
def main(
    image: str = "", text: str = "", out: str = "out.glb", also: str = "", force: bool = False, **fields: str | bool
) -> None:
    """Generate from one image, from several views separated by commas, or from a text; writes beside `--out`.

    `--also stl,ply` names further formats of the same asset.
    """
    run_from_terminal(
        image or None,
        Path(out),
        fields,
        text=text or None,
        spawn=generate_once.spawn,
        find_call=FIND_CALL,
        entries=shared_dict,
        also=also,
        force=force,
        transient=TRANSIENT_ERRORS,
    )


def store_and_master_keys() -> tuple[Store, Sequence[bytes]]:
    """What the operator's functions need. They run in Apps of their own, in which `web` has no address."""
    from pipeline.on_modal.deployment import open_store
    from pipeline.secrets import load_master_keys

    return open_store(SETTINGS, jobs, backups, missing=MISSING), load_master_keys(SETTINGS)


def change_keys(command: KeyCommand) -> Change:
    """Add a key, of which only the hash is sent here, or change or show one; returns its webhook secret, and rows."""
    from pipeline.on_modal.api_keys import change

    return change(*store_and_master_keys(), command)


def reencrypt_secrets() -> str | Rotation:
    """Encrypt the saved buckets with the current master key."""
    from pipeline.on_modal.api_keys import rotate

    return rotate(*store_and_master_keys())


# Kept in a tuple: if the functions were attributes of this file, `::keys` would run one instead of the entrypoint.
OPERATOR: dict[str, Any] = {"image": web_image, "timeout": 5 * MINUTES} | SERVICE
OF_KEYS: tuple[Any, ...] = (
    keys.function(**OPERATOR)(change_keys),
    rotate_secrets.function(**OPERATOR)(reencrypt_secrets),
)


def _keys(create: str = "", revoke: str = "", show: str = "", rotate_secret: str = "") -> None:
    """`--create NAME`, `--revoke NAME`, `--show NAME` and its webhook secret, `--rotate-secret NAME`, or list all."""
    from pipeline.on_modal.api_keys import change_from_terminal

    change_from_terminal(create, revoke, show, rotate_secret, settings=SETTINGS, change=OF_KEYS[0].remote)


def _rotate_secrets() -> None:
    """Re-encrypt the saved buckets under the current master key, so that an older one can be removed."""
    from pipeline.on_modal.api_keys import rotate_from_terminal

    rotate_from_terminal(OF_KEYS[1].remote)


keys.local_entrypoint(name="keys")(_keys)
rotate_secrets.local_entrypoint(name="rotate_secrets")(_rotate_secrets)

preload()
