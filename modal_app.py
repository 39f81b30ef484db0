"""image-to-3d on Modal: the wiring, and nothing that a test would want. What the containers do is in `pipeline`.

    modal secret create image-to-3d IMAGE_TO_3D_API_KEY=… IMAGE_TO_3D_MASTER_KEY=…
    modal run modal_app.py::fetch_weights
    modal deploy modal_app.py
    modal run modal_app.py::smoke

One picture without a deployment: `modal run modal_app.py --image robot.png --out robot.glb`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import modal

from pipeline.engines.registry import find_spec, require_weights, weights_module
from pipeline.on_modal.requirements import requirements
from pipeline.settings import ScalingSettings, Settings, environment_of_containers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.engines.base import ForegroundImage, Generation, GenerationOptions
    from pipeline.jobs.model import ApiKey
    from pipeline.jobs.store import Store
    from pipeline.on_modal.control_channel import Failure
    from pipeline.on_modal.dispatch import Dispatcher
    from pipeline.on_modal.engine_pool import RemoteEngines
    from pipeline.on_modal.functions import Shared

MINUTES = 60
NAME = "image-to-3d"
SCALING = ScalingSettings()
# Settings reach containers by their environment: this file is imported again there, without the deployer's shell.
ENVIRONMENT = environment_of_containers(engine=SCALING.engine, weights="/weights", data_dir="/data")

# Images. Python and packages alone: no CUDA toolkit, no compiler, no build step; torch's wheels bring their libraries.


def image(*extras: str) -> modal.Image:
    """Debian and what pyproject.toml lists, in the tested versions; the project's own code is added at the start."""
    built = modal.Image.debian_slim(python_version="3.12")
    if modal.is_local():
        here = Path(__file__).parent
        built = built.add_local_file(here / "constraints.txt", "/constraints.txt", copy=True)
        packages = requirements(here / "pyproject.toml", *extras)
        built = built.pip_install(*packages, extra_options="--constraint /constraints.txt")
    return built.add_local_python_source("pipeline", "schemas", ignore=["**/__pycache__", "**/*.pyc"])


TRACED = ("tracing",) if Settings().is_traced else ()
web_image = image("postgres", *TRACED)
work_image = image("postgres", "matting", *TRACED)
gpu_image = image(*{find_spec(name).extra for name in (SCALING.engine, *SCALING.further_engines)})
weights_image = image("trellis")

# Volumes, and what is shared in memory. Servers see the weights read-only; outputs and unfinished work have many
# writers, each to files of its own.
weights = modal.Volume.from_name(f"{NAME}-weights", create_if_missing=True)
outputs = modal.Volume.from_name(f"{NAME}-outputs", create_if_missing=True, version=2)
state = modal.Volume.from_name(f"{NAME}-state", create_if_missing=True, version=2)
jobs = modal.Dict.from_name(f"{NAME}-jobs", create_if_missing=True)
notes = modal.Dict.from_name(f"{NAME}-notes", create_if_missing=True)
WEIGHTS: dict[Any, Any] = {"/weights": weights.with_mount_options(read_only=True)}
DATA: dict[Any, Any] = {"/data/files": outputs, "/data/work": state}

# Secrets. DATABASE_URL in it makes Postgres the store.
settings = modal.Secret.from_dict(dict(ENVIRONMENT))
secret = modal.Secret.from_name(NAME, required_keys=["IMAGE_TO_3D_API_KEY", "IMAGE_TO_3D_MASTER_KEY"])
SERVICE: dict[str, Any] = {"secrets": [settings, secret], "region": SCALING.region}

app = modal.App(NAME)
keys = modal.App(f"{NAME}-keys")
"""For `modal run modal_app.py::keys`: a file whose `modal run` needs no name has one local entrypoint to an App."""


def open_store() -> Store:
    """The deployment's store."""
    from pipeline.deployment import open_shared_store
    from pipeline.jobs.stores.kv.map import DictKeyValues

    return open_shared_store(Settings(), DictKeyValues(jobs, errors=(modal.exception.Error, OSError)))


# The GPU class, once for each engine on offer: each has its accelerators, its containers and its snapshots.


class EngineContainer:
    """One engine, loaded before the snapshot and moved to the device after it; takes one call at a time."""

    engine: str

    @modal.enter(snap=True)
    def load_weights(self) -> None:
        from pipeline.on_modal.engine_server import EngineHost
        from pipeline.telemetry import configure_logging

        read = Settings()
        configure_logging(read.log_level)
        self.host = EngineHost(self.engine, weights=read.weights, arguments=read.engine_arguments)
        self.host.load_weights()

    @modal.enter(snap=False)
    def to_device(self) -> None:
        self.host.to_device()

    @modal.method()
    def wake(self) -> None:
        """Be there: called while the picture of a call is still being read."""

    @modal.method()
    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, line: str, restarts: int
    ) -> Generation | Failure:
        from pipeline.on_modal.control_channel import ControlChannel

        answer = self.host.answer(views, options, ControlChannel(notes, line), restarts=restarts)
        if self.host.must_recycle:
            modal.experimental.stop_fetching_inputs()  # pyright: ignore[reportUnusedCoroutine]
        return answer


def gpu_options(engine: str, *, min_containers: int) -> dict[str, Any]:
    """The options of `app.cls` for an engine."""
    spec = find_spec(engine)
    return {
        "image": gpu_image,
        "secrets": [settings],
        "volumes": WEIGHTS,
        "env": {"HF_HUB_OFFLINE": "1"},
        "gpu": list(spec.gpus if SCALING.gpus is None else SCALING.gpus) or None,
        "cpu": 2.0,
        "memory": 16 * 1024,
        "min_containers": min_containers,
        "buffer_containers": SCALING.gpu_buffer_containers,
        "max_containers": SCALING.gpu_max_containers,
        "scaledown_window": SCALING.gpu_scaledown_s,
        "region": SCALING.region,
        "timeout": 15 * MINUTES,
        "startup_timeout": 10 * MINUTES,
        "enable_memory_snapshot": True,
        "experimental_options": {"enable_gpu_snapshot": True} if SCALING.gpu_snapshot else None,
        "block_network": True,
    }


@app.cls(**gpu_options(SCALING.engine, min_containers=SCALING.gpu_min_containers))
class Generator(EngineContainer):
    """The default engine."""

    engine = SCALING.engine


GENERATORS: dict[str, Any] = {SCALING.engine: Generator}
for _name in SCALING.further_engines:
    # Modal finds a class in its container as an attribute of this module.
    _class = type(f"{_name.title()}Generator", (EngineContainer,), {"engine": _name, "__module__": __name__})
    GENERATORS[_name] = globals()[_class.__name__] = app.cls(**gpu_options(_name, min_containers=0))(_class)


def engines() -> RemoteEngines:
    """The engines as a call in a CPU container uses them."""
    from pipeline.on_modal.engine_pool import RemoteEngines

    return RemoteEngines(
        GENERATORS,
        default=SCALING.engine,
        notes=notes,
        reopen=modal.FunctionCall.from_id,  # pyright: ignore[reportArgumentType]
        check=check_weights,
    )


def check_weights(engine: str) -> None:
    """See that a container of an engine would find its weights.

    Raises:
        WeightsUnusable: it would not; says the command that brings them.
    """
    remedy = f"modal run modal_app.py::fetch_weights --engine {engine}"
    require_weights(find_spec(engine), Settings().weights, remedy=remedy, refresh=weights.reload)


# CPU functions. None of them is on the web; each may be killed and run again.


def deployed() -> Settings:
    """The settings, with the address that the web function has."""
    read = Settings()
    return read if read.public_url else read.model_copy(update={"public_url": web.get_web_url()})


def dispatcher() -> Dispatcher:
    """What hands jobs over to `run_job`."""
    from pipeline.on_modal.dispatch import Dispatcher

    return Dispatcher(dispatch_call, is_in_flight=is_in_flight, notes=notes)


def shared() -> Shared:
    """What a CPU container works with."""
    from pipeline.on_modal.functions import Shared

    return Shared(
        deployed(), open_store(), commit_work=state.commit, commit_outputs=outputs.commit, dispatch=dispatcher()
    )


def dispatch_call(job_id: int) -> str:
    """Hand a job over; returns the hand-over's name."""
    return run_job.spawn(job_id).object_id


def is_in_flight(call_id: str) -> bool:
    """Whether a hand-over waits or runs."""
    try:
        modal.FunctionCall.from_id(call_id).get(timeout=0)
    except TimeoutError:
        return True
    except modal.exception.Error:
        return False
    return False


@app.function(
    image=work_image,
    volumes=DATA | WEIGHTS,
    cpu=2.0,
    memory=4 * 1024,
    max_containers=100,
    retries=modal.Retries(max_retries=3, initial_delay=1.0, backoff_coefficient=2.0),
    timeout=30 * MINUTES,
    startup_timeout=5 * MINUTES,
    name="run_call",
    **SERVICE,
)
def run_job(job_id: int) -> None:
    """One call from its picture to its files."""
    from pipeline.on_modal.functions import run_job

    state.reload()
    outputs.reload()
    run_job(
        job_id,
        shared(),
        worker_id=modal.current_function_call_id() or f"job-{job_id}",
        engines=engines(),
        send_webhooks=deliver_webhooks.spawn,
    )


@app.function(
    image=work_image,
    cpu=0.25,
    memory=512,
    timeout=10 * MINUTES,
    scaledown_window=2,  # it runs by the clock: a container that waited for the next time would never end
    schedule=modal.Cron("* * * * *"),
    **SERVICE,
)
def deliver_webhooks(job_id: int = 0) -> None:
    """Send the webhooks that are due; the outbox knows when each is due again."""
    from pipeline.on_modal.functions import send_webhooks

    send_webhooks(Settings(), open_store(), job_id=job_id or None)


@app.function(
    image=work_image,
    volumes=DATA,
    cpu=0.5,
    memory=1024,
    timeout=10 * MINUTES,
    scaledown_window=2,
    schedule=modal.Cron("*/5 * * * *"),
    **SERVICE,
)
def clean() -> None:
    """Remove what is over, upload what a bucket did not take, hand over again what was lost."""
    from pipeline.on_modal.functions import clean_up

    state.reload()
    outputs.reload()
    clean_up(shared())


@app.function(
    image=weights_image,
    secrets=[settings],
    volumes={"/weights": weights},
    env={"HF_XET_HIGH_PERFORMANCE": "1"},
    timeout=60 * MINUTES,
)
def fetch_weights(engine: str = SCALING.engine) -> None:
    """Bring the published weights of an engine to the Volume, once, at their pinned revisions."""
    if (published := weights_module(find_spec(engine))) is not None:
        published.fetch_weights(Path("/weights"), report=print)
        weights.commit()


@app.function(
    image=work_image,
    secrets=[settings],
    volumes=WEIGHTS,
    cpu=2.0,
    memory=4 * 1024,
    timeout=30 * MINUTES,
    name="make_files",
)
def generate_once(body: dict[str, Any], file_prefix: str, line: str) -> dict[str, Any]:
    """One picture without a service, for `modal run modal_app.py --image …`."""
    from pipeline.on_modal import one_shot
    from pipeline.on_modal.control_channel import ControlChannel

    return one_shot.generate_once(body, file_prefix=file_prefix, engines=engines(), line=ControlChannel(notes, line))


def change_keys(record: ApiKey | None, revoke: str) -> tuple[str, list[tuple[str, ...]]]:
    """Add a key of which only the hash comes here, or revoke one; the secret of its webhooks, and all keys."""
    from pipeline.on_modal.api_keys import change

    return change(Settings(), open_store(), record=record, revoke=revoke)


# The web function: the only door, with a key of its own.


@app.function(
    image=web_image,
    cpu=0.5,
    memory=1024,
    min_containers=SCALING.web_min_containers,
    scaledown_window=1 * MINUTES,
    timeout=5 * MINUTES,
    startup_timeout=1 * MINUTES,
    **SERVICE,
)
@modal.concurrent(max_inputs=100, target_inputs=60)
@modal.asgi_app()
def web() -> Any:
    """The same application as on one machine."""
    from pipeline.on_modal.web import web_app

    return web_app(
        deployed(),
        store=open_store(),
        outputs=outputs,
        missing=(FileNotFoundError, modal.exception.NotFoundError),
        dispatch=dispatcher(),
    )


@app.function(image=web_image, timeout=15 * MINUTES, **SERVICE)
def smoke(url: str = "", webhook: str = "") -> None:
    """Try the deployment as a customer does, through its public address, and print a table."""
    from pipeline.on_modal.smoke_test import check

    deployed = url or modal.Function.from_name(NAME, "web").get_web_url() or ""
    if check(deployed, Settings(), webhook=webhook or None, tell=print):
        raise RuntimeError(f"{deployed} does not work; the table says where")


# On the operator's own machine.


@app.local_entrypoint()
def main(
    image: str,
    out: str = "out.glb",
    engine: str = "",
    render: bool = False,
    multi_image: bool = False,
    multi_image_mode: str = "",
    resolution: str = "",
    mesh_simplify: str = "",
    texture_size: str = "",
    seed: str = "",
    ss_sampling_steps: str = "",
    ss_guidance_strength: str = "",
    slat_sampling_steps: str = "",
    slat_guidance_strength: str = "",
    chunk_size: str = "",
    no_texture: bool = False,
    splat: bool = False,
) -> None:
    """One picture, or several separated by commas, on a remote GPU; the files land beside `--out`."""
    given = dict(locals())
    from pipeline.on_modal.one_shot import run_from_terminal

    fields = {name: value for name, value in given.items() if name not in ("image", "out")}
    run_from_terminal(image, Path(out), fields, spawn=generate_once.spawn, notes=notes)


# Kept in a list: as an attribute of this file it, and not the entrypoint, would be what `::keys` means.
OF_KEYS: list[Any] = [keys.function(image=web_image, timeout=5 * MINUTES, **SERVICE)(change_keys)]


def _keys(create: str = "", revoke: str = "") -> None:
    """Make a key, revoke one, and list all: `--create NAME`, `--revoke NAME`, or nothing."""
    from pipeline.on_modal.api_keys import change_from_terminal

    change_from_terminal(create, revoke, change=OF_KEYS[0].remote)


keys.local_entrypoint(name="keys")(_keys)
