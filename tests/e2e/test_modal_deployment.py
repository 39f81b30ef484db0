"""`modal deploy` of the real app file by Modal's real CLI, and jobs on that deployment, on a fake Modal server."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import SecretStr

from pipeline.deployment import open_store
from pipeline.jobs.model import JobFilter, JobState
from pipeline.jobs.stages import STAGES
from pipeline.settings import Settings
from tests.e2e.faults import KEY, Receiver
from tests.fakes.images import draw_figure, encode
from tests.fakes.modal import FakeModal, Limits, reason_unavailable
from tests.fakes.otlp_collector import Received, trace_receiver
from tests.interrupts import heed_interrupts
from tests.servers.postgres import running_server
from tests.servers.s3 import moto_server

trimesh = pytest.importorskip("trimesh", reason="needs the extra 'local'")

pytestmark = [
    pytest.mark.xdist_group("fake_modal"),
    pytest.mark.skipif(reason_unavailable() is not None, reason=str(reason_unavailable())),
]

ROOT = Path(__file__).resolve().parents[2]
MASTER_KEY = "a-master-key-for-the-tests-alone"
SUBMIT = "/api/v6/3d/image_to_3d"
RUN_JOB = "run_call"  # the name that the function of jobs has on Modal
MINUTE_S = 60
WAIT_S = 300.0
"""The first container of jobs compiles every kernel before its snapshot: half a minute on two cores of its own."""
NO_WEIGHTS = {"IMAGE_TO_3D_ENGINE": "trellis", "IMAGE_TO_3D_ENGINES": "", "IMAGE_TO_3D_WEIGHTS": ""}
SETTINGS = {
    "IMAGE_TO_3D_ENGINE": "preview",
    "IMAGE_TO_3D_ENGINES": "trellis,trellis-text",
    "IMAGE_TO_3D_WEIGHTS": "tiny",
    "IMAGE_TO_3D_GPUS": "none",  # an engine that is given one and does not find it refuses to run
    "IMAGE_TO_3D_ALLOW_PRIVATE_ADDRESSES": "1",
    "IMAGE_TO_3D_SUBMIT_WAIT_S": "0",
}


def run_modal(fake_modal: FakeModal, *arguments: str, exit_code: int = 0, **settings: str) -> str:
    """Run Modal's CLI against the fake server, in the project's folder; returns what it printed."""
    unset = {name: "" for name in os.environ if name.startswith("IMAGE_TO_3D_") or name == "DATABASE_URL"}
    process = subprocess.run(
        [sys.executable, "-m", "modal", *arguments],
        env=os.environ | unset | SETTINGS | settings | fake_modal.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == exit_code, process.stdout + process.stderr
    return process.stdout + process.stderr if exit_code else process.stdout


@contextmanager
def running_modal(folder: Path) -> Iterator[FakeModal]:
    """A server with the app's secret, and without a deployment."""
    caches = {"NUMBA_CACHE_DIR": str(folder / "numba"), "OMP_NUM_THREADS": "2"}
    with FakeModal(folder / "server", limits=Limits(scaledown_s=30.0), container_environment=caches) as fake_modal:
        fake_modal.create_secret("image-to-3d", {"IMAGE_TO_3D_API_KEY": KEY, "IMAGE_TO_3D_MASTER_KEY": MASTER_KEY})
        yield fake_modal
        assert fake_modal.failures == []
        assert fake_modal.unanswered == {}


@pytest.fixture(scope="module")
def fake_modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeModal]:
    with running_modal(tmp_path_factory.mktemp("fake_modal")) as fake_modal:
        run_modal(fake_modal, "deploy", "modal_app.py")
        yield fake_modal


@pytest.fixture
def own_modal(tmp_path: Path) -> Iterator[FakeModal]:
    """A server for one test, which deploys the app with other settings."""
    with running_modal(tmp_path) as fake_modal:
        yield fake_modal


@pytest.fixture(scope="module")
def image() -> str:
    return base64.b64encode(encode(draw_figure(96))).decode()


def post(fake_modal: FakeModal, path: str, *, key: str = KEY, **fields: Any) -> httpx.Response:
    """Send a POST request to the deployment's public address."""
    return httpx.post(fake_modal.web_url("web") + path, json={"key": key, **fields}, timeout=WAIT_S)


def until_final(fake_modal: FakeModal, job_id: int) -> dict[str, Any]:
    deadline_s = time.monotonic() + WAIT_S
    while (body := post(fake_modal, f"/api/v6/3d/fetch/{job_id}").json())["status"] == "processing":
        assert time.monotonic() < deadline_s, (body, fake_modal.logs()[-4000:])
        time.sleep(0.2)
    return body


def test_functions_have_the_intended_autoscaler_settings(fake_modal: FakeModal) -> None:
    """From the server's records: Modal's client does not show these, so tests/test_modal_app.py cannot check them."""
    functions = {each.tag.removesuffix(".*"): each for each in fake_modal.functions(app="image-to-3d")}
    scaling = {
        name: (each.min_containers, each.buffer_containers, each.max_containers, each.scaledown_window)
        for name, each in ((name, facts.autoscaler) for name, facts in functions.items())
    }

    assert (
        scaling["TrellisTextGenerator"] == scaling["TrellisGenerator"] == scaling["Generator"] == (0, 0, 10, MINUTE_S)
    )
    assert scaling["web"] == (0, 0, 0, MINUTE_S)
    assert scaling[RUN_JOB][:3] == (0, 0, 34)  # three for each GPU container, and four
    assert scaling["deliver_webhooks"][3] == scaling["clean"][3] == 2
    snapshots = {name for name, facts in functions.items() if facts.enable_memory_snapshot}
    assert snapshots == {"Generator", "TrellisGenerator", "TrellisTextGenerator", RUN_JOB, "web", "deliver_webhooks"}
    for name in ("TrellisGenerator", "Generator"):
        assert functions[name].enable_memory_snapshot and not functions[name].experimental_options
    assert functions["Generator"].gpus == ()
    assert {each.tag for each in functions.values() if each.web_url} == {"web"}
    for name in (RUN_JOB, "web", "clean"):
        assert ("image-to-3d", ("IMAGE_TO_3D_API_KEY", "IMAGE_TO_3D_MASTER_KEY")) in functions[name].secrets


def test_the_modules_and_kernels_of_a_job_are_loaded_before_the_snapshot_of_its_container(
    fake_modal: FakeModal, image: str
) -> None:
    until_final(fake_modal, post(fake_modal, SUBMIT, image=image, engine="preview", resolution=64, seed=9).json()["id"])

    for name in (RUN_JOB, "web"):
        container = fake_modal.containers(name)[0]
        at = dict(zip(container.events, container.event_times, strict=True))
        before_s, after_s = at["snapshot"] - at["boot"], at["ready"] - at["restored"]
        assert before_s > 2 * after_s, f"{name}: {before_s:.1f} s before the snapshot, {after_s:.1f} s after it"


def test_a_finished_job_is_exported_again_without_an_engine_container(fake_modal: FakeModal, image: str) -> None:
    fields: dict[str, Any] = {"engine": "preview", "resolution": 64, "texture_size": 512, "seed": 3}
    first = until_final(fake_modal, post(fake_modal, SUBMIT, image=image, **fields).json()["id"])
    containers = len(fake_modal.containers("Generator"))
    calls = len(fake_modal.calls("Generator"))

    path = f"/api/v6/3d/export/{first['id']}"
    again = until_final(fake_modal, post(fake_modal, path, output_format="stl").json()["id"])
    deleted = post(fake_modal, f"/api/v1/enterprise/3d/delete/{first['id']}").json()

    assert again["status"] == "success" and again["output"][0].endswith(".stl")
    content = httpx.get(again["output"][0], timeout=WAIT_S).content
    assert len(content) == again["files"][0]["bytes"] == 84 + 50 * again["files"][0]["faces"]
    assert len(fake_modal.containers("Generator")) == containers and len(fake_modal.calls("Generator")) == calls
    assert deleted["status"] == "success"
    gone = post(fake_modal, f"/api/v6/3d/export/{again['id']}")
    assert (gone.status_code, gone.json()["error_code"]) == (410, "generation_gone")


def test_neither_health_nor_a_wrong_key_starts_an_engine_container(fake_modal: FakeModal, image: str) -> None:
    def started() -> tuple[int, int]:
        return len(fake_modal.containers("Generator")), len(fake_modal.containers(RUN_JOB))

    before = started()

    assert httpx.get(fake_modal.web_url("web") + "/health", timeout=WAIT_S).status_code == 200
    assert post(fake_modal, SUBMIT, key="wrong", image=image).status_code == 401

    assert started() == before


@pytest.mark.parametrize("engine", ["preview", "trellis"])
def test_a_submit_leads_to_a_model_behind_a_link_and_a_webhook(fake_modal: FakeModal, image: str, engine: str) -> None:
    with Receiver() as receiver:
        submitted = post(
            fake_modal,
            SUBMIT,
            image=image,
            engine=engine,
            resolution=64,
            seed=3,
            texture_size=512,
            webhook=receiver.url,
        ).json()
        final = until_final(fake_modal, submitted["id"])
        webhook = receiver.wait_for(submitted["id"], timeout_s=WAIT_S)

    assert submitted["status"] == "processing" and final["status"] == "success", final
    assert final["meta"]["engine"] == engine and webhook["output"] == final["output"] == submitted["future_links"]
    whole = httpx.get(final["output"][0], timeout=WAIT_S)
    part = httpx.get(final["output"][0], headers={"range": "bytes=0-3"}, timeout=WAIT_S)
    scene = trimesh.load_scene(trimesh.util.wrap_as_stream(whole.content), file_type="glb")
    assert len(scene.geometry) == 1
    assert (part.status_code, part.content) == (206, b"glTF")


def test_a_text_leads_to_a_model_by_a_container_of_its_own_engine(fake_modal: FakeModal) -> None:
    steps = {"ss_sampling_steps": 3, "slat_sampling_steps": 3}
    fields = {"prompt": "a robot 🤖", "resolution": 64, "seed": 3, "texture_size": 512, **steps}
    submitted = [post(fake_modal, "/api/v6/3d/text_to_3d", **fields).json() for _ in range(2)]

    finals = [until_final(fake_modal, each["id"]) for each in submitted]

    assert [final["status"] for final in finals] == ["success"] * 2, finals
    assert finals[0]["meta"]["engine"] == "trellis-text"
    first, second = (httpx.get(final["output"][0], timeout=WAIT_S).content for final in finals)
    assert first == second and first.startswith(b"glTF")


class SlowImageServer:
    """Serves one image after a pause, so that a test can kill a job during its download."""

    def __init__(self, content: bytes, *, pause_s: float) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(pause_s)
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/figure.png"

    def __enter__(self) -> SlowImageServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def stage_in(work: Path, job_id: int) -> str | None:
    """The stage that a job is in, by the checkpoints in its folder; None before it is claimed and after its end."""
    for folder in work.glob(f"{job_id}-*"):
        return next((stage for stage in STAGES if not (folder / f"{stage}.pickle").exists()), None)
    return None


def jobs_in_ledger(fake_modal: FakeModal) -> int:
    """How many jobs of the key the ledger contains."""
    answer = httpx.get(fake_modal.web_url("web") + "/api/v1/usage", headers={"key": KEY}, timeout=WAIT_S)
    return sum(day["calls"] for day in answer.json()["days"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_that_is_killed_in_any_stage_and_delivered_again_ends_once(fake_modal: FakeModal, stage: str) -> None:
    fields = {"engine": "trellis", "resolution": 256, "seed": 4, "texture_size": 1024}
    charged = jobs_in_ledger(fake_modal)
    calls = len(fake_modal.calls())
    with Receiver() as receiver, SlowImageServer(encode(draw_figure(96)), pause_s=0.5) as server:
        generations = len(fake_modal.calls("TrellisGenerator"))
        if stage == "generate":
            kill = fake_modal.plan_kill("TrellisGenerator", method="generate", after_s=0.02)
        submitted = post(fake_modal, SUBMIT, image=server.url, webhook=receiver.url, **fields).json()
        dispatch = fake_modal.calls(RUN_JOB)[-1].call_id
        if stage != "generate":
            kill = fake_modal.plan_kill(
                RUN_JOB, when=lambda folders: stage_in(folders["/data/work"], submitted["id"]) == stage
            )
        fake_modal.wait_for_kill(kill, timeout_s=WAIT_S)  # two containers start one after the other
        final = until_final(fake_modal, submitted["id"])
        fake_modal.wait_until(lambda: all(call.is_finished for call in fake_modal.calls(RUN_JOB)), timeout_s=WAIT_S)
        of_job = [call.call_id for call in fake_modal.calls(RUN_JOB)]
        of_job = of_job[of_job.index(dispatch) :]
        crashes = sum(call.crashes for call in fake_modal.calls()[calls:])
        for scheduled in [fake_modal.fire_schedule(name) for name in ("clean", "deliver_webhooks")]:
            fake_modal.wait_for(scheduled)
        receiver.wait_for(submitted["id"], timeout_s=WAIT_S)
        for call_id in of_job:
            fake_modal.redeliver(call_id)
        webhook_ids = {message_id for message_id, _ in receiver.delivered[submitted["id"]]}

    assert final["status"] == "success", final
    assert crashes == 1
    assert len(of_job) == 2, "up to the start of the generation, and from its answer"
    assert until_final(fake_modal, submitted["id"]) == final | {"webhook_status": "delivered (answered 204)"}
    assert len(webhook_ids) == 1
    prefix = final["meta"]["file_prefix"]
    kept = {path.parent.name for path in fake_modal.volume_folder("image-to-3d-outputs").rglob(f"{prefix}.glb")}
    assert kept == {prefix}
    folder, pattern = fake_modal.volume_folder("image-to-3d-state"), f"{submitted['id']}-*/**/*"
    # The platform commits the deletion: Modal every few seconds, the fake server where a container ends.
    fake_modal.wait_until(lambda: not any(path.is_file() for path in folder.glob(pattern)), timeout_s=WAIT_S)
    listed = post(fake_modal, "/api/v1/enterprise/3d/list", limit=200).json()["calls"]
    assert [job["id"] for job in listed].count(submitted["id"]) == 1
    assert jobs_in_ledger(fake_modal) == charged + 1
    if stage in ("export", "deliver"):  # the generation is not run again
        assert len(fake_modal.calls("TrellisGenerator")) <= generations + 2, (
            "one wake, here or at submit, one generation"
        )


def test_a_generation_whose_container_is_killed_runs_on_another(fake_modal: FakeModal, image: str) -> None:
    kill = fake_modal.plan_kill("TrellisGenerator", method="generate", after_s=0.05)
    submitted = post(fake_modal, SUBMIT, image=image, engine="trellis", resolution=256, seed=4).json()
    fake_modal.wait_for_kill(kill, timeout_s=WAIT_S)

    final = until_final(fake_modal, submitted["id"])
    assert final["status"] == "success", final


def test_a_dispatch_that_is_delivered_again_after_the_end_of_its_job_changes_nothing(
    fake_modal: FakeModal, image: str
) -> None:
    job_id = post(fake_modal, SUBMIT, image=image, resolution=64, seed=5).json()["id"]
    final = until_final(fake_modal, job_id)
    fake_modal.wait_until(lambda: all(call.is_finished for call in fake_modal.calls(RUN_JOB)))

    fake_modal.redeliver(fake_modal.calls(RUN_JOB)[-1].call_id)

    assert until_final(fake_modal, job_id) == final


def test_a_key_from_the_terminal_is_accepted_until_it_is_revoked(fake_modal: FakeModal) -> None:
    made = run_modal(fake_modal, "run", "modal_app.py::keys", "--create", "shop").split()
    (key,) = [word for word in made if post(fake_modal, "/api/v1/enterprise/3d/list", key=word).status_code == 200]

    run_modal(fake_modal, "run", "modal_app.py::keys", "--revoke", "shop")

    deadline_s = time.monotonic() + WAIT_S
    while post(fake_modal, "/api/v1/enterprise/3d/list", key=key).status_code != 401:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    assert fake_modal.traces_of(key) == []


def test_the_master_key_can_be_replaced(fake_modal: FakeModal, tmp_path: Path) -> None:
    def rotate(*master_keys: str) -> str:
        secret = {"IMAGE_TO_3D_API_KEY": KEY, "IMAGE_TO_3D_MASTER_KEY": ",".join(master_keys)}
        fake_modal.create_secret("image-to-3d", secret)
        return run_modal(fake_modal, "run", "modal_app.py::rotate_secrets")

    with moto_server(tmp_path) as moto:
        httpx.put(f"{moto}/models").raise_for_status()
        details = {"endpoint_url": f"{moto}/models", "aws_access_key_id": "id", "aws_secret_access_key": "secret"}
        saved = post(fake_modal, "/api/v1/enterprise/update_s3", **details, region_name="us-east-1")
    assert saved.status_code == 200, saved.text

    try:
        assert "1 saved buckets re-encrypted, 0 already current" in rotate("another-master-key", MASTER_KEY)
        assert "0 saved buckets re-encrypted, 1 already current" in rotate("another-master-key")
    finally:
        rotate(MASTER_KEY, "another-master-key")
        post(fake_modal, "/api/v1/enterprise/reset_s3")
        fake_modal.create_secret("image-to-3d", {"IMAGE_TO_3D_API_KEY": KEY, "IMAGE_TO_3D_MASTER_KEY": MASTER_KEY})


def test_the_scheduled_functions_succeed(fake_modal: FakeModal) -> None:
    for name in ("clean", "deliver_webhooks"):
        assert fake_modal.wait_for(fake_modal.fire_schedule(name)).is_finished, fake_modal.logs(name)
    assert "Traceback" not in fake_modal.logs("clean") + fake_modal.logs("deliver_webhooks")


def test_one_image_without_a_deployment(fake_modal: FakeModal, tmp_path: Path) -> None:
    (tmp_path / "figure.png").write_bytes(encode(draw_figure(96)))
    out = tmp_path / "figure.glb"

    run_modal(
        fake_modal,
        "run",
        "modal_app.py",
        "--image",
        str(tmp_path / "figure.png"),
        "--out",
        str(out),
        "--resolution",
        "64",
    )

    assert len(trimesh.load_scene(out).geometry) == 1


def test_one_text_without_a_deployment(fake_modal: FakeModal, tmp_path: Path) -> None:
    out = tmp_path / "robot.glb"
    small = ("--resolution", "64", "--ss-sampling-steps", "3", "--slat-sampling-steps", "3")

    run_modal(fake_modal, "run", "modal_app.py", "--text", "a robot", "--out", str(out), *small)

    assert len(trimesh.load_scene(out).geometry) == 1


def test_the_smoke_test_passes(fake_modal: FakeModal) -> None:
    with Receiver() as receiver:
        printed = run_modal(fake_modal, "run", "modal_app.py::smoke", "--webhook", receiver.url)

    table = [line for line in printed.splitlines() if line.startswith(("ok ", "FAILED "))]
    assert [line.split()[0] for line in table] == ["ok"] * 7, printed
    assert "delivered" in table[-1]
    measured = {line.split()[1]: line for line in printed.splitlines() if line.startswith("measured ")}
    assert re.search(r"queue and boot \d+\.\d s, then its client and this file \d+\.\d s", measured["boot"])
    assert re.search(r"preview on CPU: answered after [\d.]+ s; to the device", measured["engine"])
    assert re.search(r"put p50 \d+ ms, p99 \d+ ms, get p50 \d+ ms", measured["dictionary"])
    assert "5 of 60 MB: median" in measured["commits"]
    assert "failed: InternalFailure: container died" in measured["isolation"]  # on Modal itself: an open question
    assert len(receiver.delivered) == 1


def test_the_smoke_test_fails_if_nothing_answers(fake_modal: FakeModal) -> None:
    printed = run_modal(fake_modal, "run", "modal_app.py::smoke", "--url", "http://127.0.0.1:9", exit_code=1)
    assert "FAILED  health" in printed
    assert "http://127.0.0.1:9 does not work" in printed


def test_no_secret_appears_in_definitions_arguments_or_logs(fake_modal: FakeModal) -> None:
    """Except the API key in a caller's own request: Modal passes requests to the web function as arguments."""
    assert fake_modal.traces_of(MASTER_KEY) == []
    assert set(fake_modal.traces_of(KEY)) <= {"argument of web"}


def test_with_a_database_and_an_otlp_endpoint_jobs_are_kept_there_and_traces_are_sent_there(
    own_modal: FakeModal, image: str
) -> None:
    secret = {"IMAGE_TO_3D_API_KEY": KEY, "IMAGE_TO_3D_MASTER_KEY": MASTER_KEY}
    with running_server() as database_url, Receiver() as receiver, trace_receiver() as traces:
        own_modal.create_secret("image-to-3d", secret | {"DATABASE_URL": database_url})
        run_modal(own_modal, "deploy", "modal_app.py", OTEL_EXPORTER_OTLP_ENDPOINT=traces.url)
        submitted = post(own_modal, SUBMIT, image=image, resolution=64, seed=6, webhook=receiver.url).json()
        final = until_final(own_modal, submitted["id"])
        receiver.wait_for(submitted["id"], timeout_s=WAIT_S)
        store = open_store(Settings(database_url=SecretStr(database_url)))
        (stored,) = store.list_jobs(JobFilter(None), limit=10)
        store.close()
        # Each container sends its spans on its own time, and a job runs in more than one.
        expected = {"POST", "call", *(f"stage {stage}" for stage in STAGES)}
        own_modal.wait_until(lambda: expected <= {span.name for span in traces.spans}, timeout_s=WAIT_S)
        own_modal.wait_until(lambda: {"POST", "call"} <= {span.name for span in traces_of_job(traces, submitted["id"])})
        content = httpx.get(final["output"][0], timeout=WAIT_S).content  # a new web container needs the database

    assert final["status"] == "success" and content[:4] == b"glTF", final
    assert (stored.id, stored.state) == (submitted["id"], JobState.SUCCESS)
    assert len({span.trace_id for span in traces_of_job(traces, submitted["id"])}) == 1, "from the submit to its end"


def traces_of_job(traces: Received, job_id: int) -> list[Span]:
    """The spans that name a job."""
    return [
        span
        for span in traces.spans
        if any(pair.key == "job.id" and pair.value.int_value == job_id for pair in span.attributes)
    ]


def test_a_deployment_without_weights_names_the_command_and_starts_no_engine_container(
    own_modal: FakeModal, image: str, tmp_path: Path
) -> None:
    (tmp_path / "figure.png").write_bytes(encode(draw_figure(96)))
    run_modal(own_modal, "deploy", "modal_app.py", **NO_WEIGHTS)
    started = len(own_modal.containers("Generator"))

    final = until_final(own_modal, post(own_modal, SUBMIT, image=image).json()["id"])
    options = ("--image", str(tmp_path / "figure.png"), "--out", str(tmp_path / "figure.glb"))
    printed = run_modal(own_modal, "run", "modal_app.py", *options, exit_code=1, **NO_WEIGHTS)

    assert final["status"] == "failed"
    assert final["message"].endswith("modal run modal_app.py::fetch_weights --engine trellis"), final
    assert "GB of the weights of trellis are missing" in final["message"]
    assert final["message"] in printed
    assert "Traceback" not in printed
    assert len(own_modal.containers("Generator")) == started


def test_a_served_app_makes_a_model_and_ends_when_it_is_interrupted(own_modal: FakeModal, image: str) -> None:
    """`modal serve`, as in development: an App for as long as the command runs."""
    unset = {name: "" for name in os.environ if name.startswith("IMAGE_TO_3D_") or name == "DATABASE_URL"}
    with subprocess.Popen(
        [sys.executable, "-m", "modal", "serve", "modal_app.py"],
        env=os.environ | unset | SETTINGS | own_modal.environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_interrupts,
    ) as serving:
        try:
            url = wait_for_url(serving, own_modal)
            submitted = httpx.post(url + SUBMIT, json={"key": KEY, "image": image}, timeout=WAIT_S).json()
            ended = until_final(own_modal, submitted["id"])
            assert ended["status"] == "success", ended
        finally:
            serving.send_signal(signal.SIGINT)
            try:
                printed, _ = serving.communicate(timeout=WAIT_S)
            except subprocess.TimeoutExpired:
                serving.kill()  # or leaving the block would wait for it
                raise
    assert serving.returncode == 0, printed
    assert httpx.get(url + "/health", timeout=WAIT_S).status_code == 404


def wait_for_url(serving: subprocess.Popen[str], fake_modal: FakeModal) -> str:
    """The public address of an App that `modal serve` starts."""
    deadline_s = time.monotonic() + WAIT_S
    while serving.poll() is None and time.monotonic() < deadline_s:
        with suppress(LookupError, httpx.HTTPError):
            url = fake_modal.web_url("web")
            if httpx.get(url + "/health", timeout=WAIT_S).is_success:
                return url
        time.sleep(0.2)
    raise AssertionError("modal serve did not start")
