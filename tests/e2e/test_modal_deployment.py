"""`modal deploy` of the real app file by Modal's real CLI, and jobs on that deployment, on a fake Modal server."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import SecretStr

from pipeline.deployment import open_store
from pipeline.jobs.model import JobState
from pipeline.run_job import STAGES
from pipeline.settings import Settings
from tests.e2e.faults import KEY, Receiver
from tests.fakes.images import draw_figure, encode
from tests.fakes.modal import Limits, Plane, reason_unavailable
from tests.fakes.otlp_collector import Received, trace_receiver
from tests.servers.postgres import running_server

trimesh = pytest.importorskip("trimesh", reason="needs the extra 'local'")

pytestmark = [
    pytest.mark.xdist_group("modal_plane"),
    pytest.mark.skipif(reason_unavailable() is not None, reason=str(reason_unavailable())),
]

ROOT = Path(__file__).resolve().parents[2]
MASTER_KEY = "a-master-key-for-the-tests-alone"
SUBMIT = "/api/v6/3d/image_to_3d"
RUN_JOB = "run_call"  # the name that the function of jobs has on Modal
MINUTE_S = 60
WAIT_S = 120.0
NO_WEIGHTS = {"IMAGE_TO_3D_ENGINE": "trellis", "IMAGE_TO_3D_ENGINES": "", "IMAGE_TO_3D_WEIGHTS": ""}
SETTINGS = {
    "IMAGE_TO_3D_ENGINE": "preview",
    "IMAGE_TO_3D_ENGINES": "trellis",
    "IMAGE_TO_3D_WEIGHTS": "tiny",
    "IMAGE_TO_3D_ALLOW_PRIVATE_ADDRESSES": "1",
    "IMAGE_TO_3D_SUBMIT_WAIT_S": "0",
}


def run_modal(plane: Plane, *arguments: str, exit_code: int = 0, **settings: str) -> str:
    """Run Modal's CLI against the fake server, in the project's folder; returns what it printed."""
    unset = {name: "" for name in os.environ if name.startswith("IMAGE_TO_3D_") or name == "DATABASE_URL"}
    process = subprocess.run(
        [sys.executable, "-m", "modal", *arguments],
        env=os.environ | unset | SETTINGS | settings | plane.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == exit_code, process.stdout + process.stderr
    return process.stdout + process.stderr if exit_code else process.stdout


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    caches = {"NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("numba")), "OMP_NUM_THREADS": "2"}
    folder = tmp_path_factory.mktemp("plane")
    with Plane(folder, limits=Limits(scaledown_s=30.0), container_environment=caches) as plane:
        plane.create_secret("image-to-3d", {"IMAGE_TO_3D_API_KEY": KEY, "IMAGE_TO_3D_MASTER_KEY": MASTER_KEY})
        run_modal(plane, "deploy", "modal_app.py")
        yield plane
        assert plane.failures == []
        assert plane.unanswered == {}


@pytest.fixture(scope="module")
def image() -> str:
    return base64.b64encode(encode(draw_figure(96))).decode()


def post(plane: Plane, path: str, *, key: str = KEY, **fields: Any) -> httpx.Response:
    """Send a POST request to the deployment's public address."""
    return httpx.post(plane.web_url("web") + path, json={"key": key, **fields}, timeout=WAIT_S)


def until_final(plane: Plane, job_id: int) -> dict[str, Any]:
    deadline_s = time.monotonic() + WAIT_S
    while (body := post(plane, f"/api/v6/3d/fetch/{job_id}").json())["status"] == "processing":
        assert time.monotonic() < deadline_s, (body, plane.logs()[-4000:])
        time.sleep(0.2)
    return body


def test_functions_have_the_intended_autoscaler_settings(plane: Plane) -> None:
    """From the server's records: Modal's client does not show these, so tests/test_modal_app.py cannot check them."""
    functions = {each.tag.removesuffix(".*"): each for each in plane.functions(app="image-to-3d")}
    scaling = {
        name: (each.min_containers, each.buffer_containers, each.max_containers, each.scaledown_window)
        for name, each in ((name, facts.autoscaler) for name, facts in functions.items())
    }

    assert scaling["TrellisGenerator"] == scaling["Generator"] == (0, 0, 10, MINUTE_S)
    assert scaling["web"] == (0, 0, 0, MINUTE_S)
    assert scaling[RUN_JOB][:3] == (0, 0, 100)
    assert scaling["deliver_webhooks"][3] == scaling["clean"][3] == 2
    for name in ("TrellisGenerator", "Generator"):
        assert functions[name].enable_memory_snapshot and not functions[name].experimental_options
    assert functions["Generator"].gpus == ()
    assert {each.tag for each in functions.values() if each.web_url} == {"web"}
    for name in (RUN_JOB, "web", "clean"):
        assert ("image-to-3d", ("IMAGE_TO_3D_API_KEY", "IMAGE_TO_3D_MASTER_KEY")) in functions[name].secrets


def test_neither_health_nor_a_wrong_key_starts_an_engine_container(plane: Plane, image: str) -> None:
    assert httpx.get(plane.web_url("web") + "/health", timeout=WAIT_S).status_code == 200
    assert post(plane, SUBMIT, key="wrong", image=image).status_code == 401
    assert plane.containers("Generator") == [] and plane.containers(RUN_JOB) == []


@pytest.mark.parametrize("engine", ["preview", "trellis"])
def test_a_submit_leads_to_a_model_behind_a_link_and_a_webhook(plane: Plane, image: str, engine: str) -> None:
    with Receiver() as receiver:
        submitted = ask(
            plane, SUBMIT, image=image, engine=engine, resolution=64, seed=3, texture_size=512, webhook=receiver.url
        ).json()
        final = until_final(plane, submitted["id"])
        webhook = receiver.wait_for(submitted["id"], timeout_s=WAIT_S)

    assert submitted["status"] == "processing" and final["status"] == "success", final
    assert final["meta"]["engine"] == engine and webhook["output"] == final["output"] == submitted["future_links"]
    whole = httpx.get(final["output"][0], timeout=WAIT_S)
    part = httpx.get(final["output"][0], headers={"range": "bytes=0-3"}, timeout=WAIT_S)
    scene = trimesh.load_scene(trimesh.util.wrap_as_stream(whole.content), file_type="glb")
    assert len(scene.geometry) == 1
    assert (part.status_code, part.content) == (206, b"glTF")


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


def jobs_in_ledger(plane: Plane) -> int:
    """How many jobs of the key the ledger contains."""
    answer = httpx.get(plane.web_url("web") + "/api/v1/usage", headers={"key": KEY}, timeout=WAIT_S)
    return sum(day["calls"] for day in answer.json()["days"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_that_is_killed_in_any_stage_and_delivered_again_ends_once(plane: Plane, stage: str) -> None:
    # A warm preview generation ends within 0.05 s; this many steps of the tiny TRELLIS take several times as long.
    steps = {"ss_sampling_steps": 50, "slat_sampling_steps": 50}
    fields = {"engine": "trellis", "resolution": 256, "seed": 4, "texture_size": 1024, **steps}
    charged = jobs_in_ledger(plane)
    with Receiver() as receiver, SlowImageServer(encode(draw_figure(96)), pause_s=0.5) as server:
        submitted = post(plane, SUBMIT, image=image.url, webhook=receiver.url, **fields).json()
        dispatch = plane.calls(RUN_JOB)[-1].call_id
        generations = len(plane.calls("TrellisGenerator"))
        plane.kill_container_of(RUN_JOB, when=lambda folders: stage_in(folders["/data/work"], submitted["id"]) == stage)
        final = until_final(plane, submitted["id"])
        ended = plane.wait_for(dispatch)
        for scheduled in [plane.fire_schedule(name) for name in ("clean", "deliver_webhooks")]:
            plane.wait_for(scheduled)
        receiver.wait_for(submitted["id"], timeout_s=WAIT_S)
        plane.redeliver(dispatch)
        webhook_ids = {message_id for message_id, _ in receiver.told[submitted["id"]]}

    assert final["status"] == "success", final
    assert ended.crashes == 1
    assert until_final(plane, submitted["id"]) == final | {"webhook_status": "delivered (answered 204)"}
    assert len(webhook_ids) == 1
    prefix = final["meta"]["file_prefix"]
    kept = {path.parent.name for path in plane.volume_folder("image-to-3d-outputs").rglob(f"{prefix}.glb")}
    assert kept == {prefix}
    left = plane.volume_folder("image-to-3d-state").glob(f"{submitted['id']}-*/**/*")
    assert [path for path in left if path.is_file()] == []
    listed = post(plane, "/api/v1/enterprise/3d/list", limit=200).json()["calls"]
    assert [job["id"] for job in listed].count(submitted["id"]) == 1
    assert jobs_in_ledger(plane) == charged + 1
    if stage in ("export", "deliver"):  # the generation is not run again
        assert len(plane.calls("TrellisGenerator")) == generations + 2, "one wake, one generation"


def test_a_generation_whose_container_is_killed_runs_on_another(plane: Plane, image: str) -> None:
    steps = {"ss_sampling_steps": 50, "slat_sampling_steps": 50}
    submitted = post(plane, SUBMIT, image=image, engine="trellis", resolution=256, seed=4, **steps).json()

    plane.kill_container_of("TrellisGenerator", after_s=0.05)

    final = until_final(plane, submitted["id"])
    assert final["status"] == "success", final


def test_a_dispatch_that_is_delivered_again_after_the_end_of_its_job_changes_nothing(plane: Plane, image: str) -> None:
    job_id = post(plane, SUBMIT, image=image, resolution=64, seed=5).json()["id"]
    final = until_final(plane, job_id)
    plane.wait_until(lambda: all(call.is_finished for call in plane.calls(RUN_JOB)))

    plane.redeliver(plane.calls(RUN_JOB)[-1].call_id)

    assert until_final(plane, job_id) == final


def test_a_key_from_the_terminal_is_accepted_until_it_is_revoked(plane: Plane) -> None:
    made = run_modal(plane, "run", "modal_app.py::keys", "--create", "shop").split()
    (key,) = [word for word in made if post(plane, "/api/v1/enterprise/3d/list", key=word).status_code == 200]

    run_modal(plane, "run", "modal_app.py::keys", "--revoke", "shop")

    deadline_s = time.monotonic() + WAIT_S
    while post(plane, "/api/v1/enterprise/3d/list", key=key).status_code != 401:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    assert plane.traces_of(key) == []


def test_secrets_are_rotated_from_the_terminal(plane: Plane) -> None:
    bucket = {"endpoint_url": "http://127.0.0.1:9", "bucket": "models", "aws_access_key_id": "id"}
    saved = post(plane, "/api/v1/enterprise/3d/s3_details", **bucket, aws_secret_access_key="secret")
    print(saved.text)

    assert run_modal(plane, "run", "modal_app.py::rotate_secrets").split() != []


def test_the_scheduled_functions_succeed(plane: Plane) -> None:
    for name in ("clean", "deliver_webhooks"):
        assert plane.wait_for(plane.fire_schedule(name)).is_finished, plane.logs(name)
    assert "Traceback" not in plane.logs("clean") + plane.logs("deliver_webhooks")


def test_one_image_without_a_deployment(plane: Plane, tmp_path: Path) -> None:
    (tmp_path / "figure.png").write_bytes(encode(draw_figure(96)))
    out = tmp_path / "figure.glb"

    run_modal(
        plane, "run", "modal_app.py", "--image", str(tmp_path / "figure.png"), "--out", str(out), "--resolution", "64"
    )

    assert len(trimesh.load_scene(out).geometry) == 1


def test_the_smoke_test_passes(plane: Plane) -> None:
    with Receiver() as receiver:
        printed = run_modal(plane, "run", "modal_app.py::smoke", "--webhook", receiver.url)

    table = [line for line in printed.splitlines() if line.startswith(("ok ", "FAILED "))]
    assert [line.split()[0] for line in table] == ["ok"] * 7, printed
    assert "delivered" in table[-1]
    assert len(receiver.told) == 1


def test_the_smoke_test_fails_if_nothing_answers(plane: Plane) -> None:
    printed = run_modal(plane, "run", "modal_app.py::smoke", "--url", "http://127.0.0.1:9", exit_code=1)
    assert "FAILED  health" in printed
    assert "http://127.0.0.1:9 does not work" in printed


def test_no_secret_appears_in_definitions_arguments_or_logs(plane: Plane) -> None:
    """Except the API key in a caller's own request: Modal passes requests to the web function as arguments."""
    assert plane.traces_of(MASTER_KEY) == []
    assert set(plane.traces_of(KEY)) <= {"argument of web"}


# The following tests deploy the app again, each with other settings.


def test_with_a_database_and_an_otlp_endpoint_jobs_are_kept_there_and_traces_are_sent_there(
    plane: Plane, image: str
) -> None:
    secret = {"IMAGE_TO_3D_API_KEY": KEY, "IMAGE_TO_3D_MASTER_KEY": MASTER_KEY}
    with running_server() as database_url, Receiver() as receiver, trace_receiver() as traces:
        plane.create_secret("image-to-3d", secret | {"DATABASE_URL": database_url})
        run_modal(plane, "deploy", "modal_app.py", OTEL_EXPORTER_OTLP_ENDPOINT=traces.url)
        submitted = post(plane, SUBMIT, image=image, resolution=64, seed=6, webhook=receiver.url).json()
        final = until_final(plane, submitted["id"])
        receiver.wait_for(submitted["id"], timeout_s=WAIT_S)
        store = open_store(Settings(database_url=SecretStr(database_url)))
        (stored,) = store.list_jobs(api_key_id=None, limit=10)
        store.close()
        plane.create_secret("image-to-3d", secret)
        plane.wait_until(lambda: {"POST", "call"} <= {span.name for span in traces_of_job(traces, submitted["id"])})

    assert final["status"] == "success", final
    assert httpx.get(final["output"][0], timeout=WAIT_S).content[:4] == b"glTF"
    assert (stored.id, stored.state) == (submitted["id"], JobState.SUCCESS)
    assert len({span.trace_id for span in traces_of_job(traces, submitted["id"])}) == 1, "from the submit to its end"
    assert {f"stage {stage}" for stage in STAGES} <= {span.name for span in traces.spans}


def traces_of_job(traces: Received, job_id: int) -> list[Span]:
    """The spans that name a job."""
    return [
        span
        for span in traces.spans
        if any(pair.key == "job.id" and pair.value.int_value == job_id for pair in span.attributes)
    ]


def test_a_deployment_without_weights_names_the_command_and_starts_no_engine_container(
    plane: Plane, image: str, tmp_path: Path
) -> None:
    (tmp_path / "figure.png").write_bytes(encode(draw_figure(96)))
    run_modal(plane, "deploy", "modal_app.py", **NO_WEIGHTS)
    started = len(plane.containers("Generator"))

    final = until_final(plane, post(plane, SUBMIT, image=image).json()["id"])
    options = ("--image", str(tmp_path / "figure.png"), "--out", str(tmp_path / "figure.glb"))
    printed = run_modal(plane, "run", "modal_app.py", *options, exit_code=1, **NO_WEIGHTS)

    assert final["status"] == "failed"
    assert final["message"].endswith("modal run modal_app.py::fetch_weights --engine trellis"), final
    assert "GB of the weights of trellis are missing" in final["message"]
    assert final["message"] in printed
    assert "Traceback" not in printed
    assert len(plane.containers("Generator")) == started
