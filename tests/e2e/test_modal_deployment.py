"""`modal deploy` of the real app file by Modal's real CLI, and jobs through it, on the fake Modal server."""

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
from tests.fakes.modal import FakeModal, Limits, reason_unavailable
from tests.fakes.otlp_collector import Received, trace_receiver
from tests.servers.postgres import running_server

trimesh = pytest.importorskip("trimesh", reason="needs the extra 'local'")

pytestmark = [
    pytest.mark.xdist_group("fake_modal"),
    pytest.mark.skipif(reason_unavailable() is not None, reason=str(reason_unavailable())),
]

ROOT = Path(__file__).resolve().parents[2]
MASTER_KEY = "a-master-key-for-the-tests-alone"
SUBMIT = "/api/v6/3d/image_to_3d"
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


def run_modal(fake_modal: FakeModal, *arguments: str, is_expected: int = 0, **settings: str) -> str:
    """Modal's CLI against the fake server, from the project's folder; what it printed."""
    unset = {name: "" for name in os.environ if name.startswith("IMAGE_TO_3D_") or name == "DATABASE_URL"}
    done = subprocess.run(
        [sys.executable, "-m", "modal", *arguments],
        env=os.environ | unset | SETTINGS | settings | fake_modal.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == is_expected, done.stdout + done.stderr
    return done.stdout + done.stderr if is_expected else done.stdout


@pytest.fixture(scope="module")
def fake_modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeModal]:
    caches = {"NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("numba")), "OMP_NUM_THREADS": "2"}
    folder = tmp_path_factory.mktemp("fake_modal")
    with FakeModal(folder, limits=Limits(scaledown_s=30.0), container_environment=caches) as fake_modal:
        fake_modal.create_secret("image-to-3d", {"IMAGE_TO_3D_API_KEY": KEY, "IMAGE_TO_3D_MASTER_KEY": MASTER_KEY})
        run_modal(fake_modal, "deploy", "modal_app.py")
        yield fake_modal
        assert fake_modal.failures == []
        assert fake_modal.unanswered == {}


@pytest.fixture(scope="module")
def picture() -> str:
    return base64.b64encode(encode(draw_figure(96))).decode()


def ask(fake_modal: FakeModal, path: str, *, key: str = KEY, **fields: Any) -> httpx.Response:
    """POST to the deployment's public address."""
    return httpx.post(fake_modal.web_url("web") + path, json={"key": key, **fields}, timeout=WAIT_S)


def until_final(fake_modal: FakeModal, call_id: int) -> dict[str, Any]:
    deadline_s = time.monotonic() + WAIT_S
    while (body := ask(fake_modal, f"/api/v6/3d/fetch/{call_id}").json())["status"] == "processing":
        assert time.monotonic() < deadline_s, (body, fake_modal.logs()[-4000:])
        time.sleep(0.2)
    return body


def test_containers_come_and_go_as_they_are_meant_to(fake_modal: FakeModal) -> None:
    """From the records: what Modal's client does not tell of a definition, and tests/test_modal_app.py cannot ask."""
    functions = {each.tag.removesuffix(".*"): each for each in fake_modal.functions(app="image-to-3d")}
    scaling = {
        name: (each.min_containers, each.buffer_containers, each.max_containers, each.scaledown_window)
        for name, each in ((name, facts.autoscaler) for name, facts in functions.items())
    }

    assert scaling["TrellisGenerator"] == scaling["Generator"] == (0, 0, 10, MINUTE_S)
    assert scaling["web"] == (0, 0, 0, MINUTE_S)
    assert scaling["run_call"][:3] == (0, 0, 100)
    assert scaling["deliver_webhooks"][3] == scaling["clean"][3] == 2
    for name in ("TrellisGenerator", "Generator"):
        assert functions[name].enable_memory_snapshot and not functions[name].experimental_options
    assert functions["Generator"].gpus == ()
    assert {each.tag for each in functions.values() if each.web_url} == {"web"}
    for name in ("run_call", "web", "clean"):
        assert ("image-to-3d", ("IMAGE_TO_3D_API_KEY", "IMAGE_TO_3D_MASTER_KEY")) in functions[name].secrets


def test_health_wakes_no_accelerator_and_no_key_opens_nothing(fake_modal: FakeModal, picture: str) -> None:
    assert httpx.get(fake_modal.web_url("web") + "/health", timeout=WAIT_S).status_code == 200
    assert ask(fake_modal, SUBMIT, key="wrong", image=picture).status_code == 401
    assert fake_modal.containers("Generator") == [] and fake_modal.containers("run_call") == []


@pytest.mark.parametrize("engine", ["preview", "trellis"])
def test_a_submit_becomes_a_model_behind_a_link_and_a_webhook(fake_modal: FakeModal, picture: str, engine: str) -> None:
    with Receiver() as receiver:
        submitted = ask(
            fake_modal,
            SUBMIT,
            image=picture,
            engine=engine,
            resolution=64,
            seed=3,
            texture_size=512,
            webhook=receiver.url,
        ).json()
        final = until_final(fake_modal, submitted["id"])
        told = receiver.wait_for(submitted["id"], timeout_s=WAIT_S)

    assert submitted["status"] == "processing" and final["status"] == "success", final
    assert final["meta"]["engine"] == engine and told["output"] == final["output"] == submitted["future_links"]
    whole = httpx.get(final["output"][0], timeout=WAIT_S)
    part = httpx.get(final["output"][0], headers={"range": "bytes=0-3"}, timeout=WAIT_S)
    scene = trimesh.load_scene(trimesh.util.wrap_as_stream(whole.content), file_type="glb")
    assert len(scene.geometry) == 1
    assert (part.status_code, part.content) == (206, b"glTF")


class SlowPicture:
    """A server of one picture that takes its time, so that a call can be met while it downloads."""

    def __init__(self, content: bytes, *, pause_s: float) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(pause_s)
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/figure.png"

    def __enter__(self) -> SlowPicture:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def stage_in(work: Path, call_id: int) -> str | None:
    """The stage that a call is in, by what the earlier ones left in its folder; None before it is taken and after."""
    for folder in work.glob(f"{call_id}-*"):
        return next((stage for stage in STAGES if not (folder / f"{stage}.pickle").exists()), None)
    return None


def calls_in_ledger(fake_modal: FakeModal) -> int:
    """How many calls the key is charged for."""
    answer = httpx.get(fake_modal.web_url("web") + "/api/v1/usage", headers={"key": KEY}, timeout=WAIT_S)
    return sum(day["calls"] for day in answer.json()["days"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_call_that_is_killed_in_any_stage_and_delivered_again_ends_once(fake_modal: FakeModal, stage: str) -> None:
    # A warm preview generation ends within 0.05 s; this many steps of the tiny TRELLIS take several times as long.
    steps = {"ss_sampling_steps": 50, "slat_sampling_steps": 50}
    fields = {"engine": "trellis", "resolution": 256, "seed": 4, "texture_size": 1024, **steps}
    charged = calls_in_ledger(fake_modal)
    with Receiver() as receiver, SlowPicture(encode(draw_figure(96)), pause_s=0.5) as picture:
        submitted = ask(fake_modal, SUBMIT, image=picture.url, webhook=receiver.url, **fields).json()
        handed_over = fake_modal.calls("run_call")[-1].call_id
        generations = len(fake_modal.calls("TrellisGenerator"))
        fake_modal.kill_container_of(
            "run_call", when=lambda folders: stage_in(folders["/data/work"], submitted["id"]) == stage
        )
        final = until_final(fake_modal, submitted["id"])
        ended = fake_modal.wait_for(handed_over)
        for by_the_clock in [fake_modal.fire_schedule(name) for name in ("clean", "deliver_webhooks")]:
            fake_modal.wait_for(by_the_clock)
        receiver.wait_for(submitted["id"], timeout_s=WAIT_S)
        fake_modal.redeliver(handed_over)
        webhook_ids = {message_id for message_id, _ in receiver.delivered[submitted["id"]]}

    assert final["status"] == "success", final
    assert ended.crashes == 1
    assert until_final(fake_modal, submitted["id"]) == final | {"webhook_status": "delivered (answered 204)"}
    assert len(webhook_ids) == 1
    prefix = final["meta"]["file_prefix"]
    kept = {path.parent.name for path in fake_modal.volume_folder("image-to-3d-outputs").rglob(f"{prefix}.glb")}
    assert kept == {prefix}
    left = fake_modal.volume_folder("image-to-3d-state").glob(f"{submitted['id']}-*/**/*")
    assert [path for path in left if path.is_file()] == []
    listed = ask(fake_modal, "/api/v1/enterprise/3d/list", limit=200).json()["calls"]
    assert [call["id"] for call in listed].count(submitted["id"]) == 1
    assert calls_in_ledger(fake_modal) == charged + 1
    if stage in ("export", "deliver", "notify"):  # what an accelerator has done is not done again
        assert len(fake_modal.calls("TrellisGenerator")) == generations + 2, "one to wake it, one generation"


def test_a_generation_whose_container_is_killed_is_made_by_another(fake_modal: FakeModal, picture: str) -> None:
    steps = {"ss_sampling_steps": 50, "slat_sampling_steps": 50}
    submitted = ask(fake_modal, SUBMIT, image=picture, engine="trellis", resolution=256, seed=4, **steps).json()

    fake_modal.kill_container_of("TrellisGenerator", after_s=0.05)

    final = until_final(fake_modal, submitted["id"])
    assert final["status"] == "success", final


def test_a_call_that_is_delivered_again_after_its_end_changes_nothing(fake_modal: FakeModal, picture: str) -> None:
    call_id = ask(fake_modal, SUBMIT, image=picture, resolution=64, seed=5).json()["id"]
    final = until_final(fake_modal, call_id)
    fake_modal.wait_until(lambda: all(call.is_finished for call in fake_modal.calls("run_call")))

    fake_modal.redeliver(fake_modal.calls("run_call")[-1].call_id)

    assert until_final(fake_modal, call_id) == final


def test_a_key_made_from_the_terminal_opens_and_a_revoked_one_does_not(fake_modal: FakeModal) -> None:
    made = run_modal(fake_modal, "run", "modal_app.py::keys", "--create", "shop").split()
    (key,) = [word for word in made if ask(fake_modal, "/api/v1/enterprise/3d/list", key=word).status_code == 200]

    run_modal(fake_modal, "run", "modal_app.py::keys", "--revoke", "shop")

    deadline_s = time.monotonic() + WAIT_S
    while ask(fake_modal, "/api/v1/enterprise/3d/list", key=key).status_code != 401:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    assert fake_modal.traces_of(key) == []


def test_the_functions_that_run_by_the_clock_succeed(fake_modal: FakeModal) -> None:
    for name in ("clean", "deliver_webhooks"):
        assert fake_modal.wait_for(fake_modal.fire_schedule(name)).is_finished, fake_modal.logs(name)
    assert "Traceback" not in fake_modal.logs("clean") + fake_modal.logs("deliver_webhooks")


def test_one_picture_goes_through_without_a_service(fake_modal: FakeModal, tmp_path: Path) -> None:
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


def test_the_smoke_test_finds_a_deployment_well(fake_modal: FakeModal) -> None:
    with Receiver() as receiver:
        said = run_modal(fake_modal, "run", "modal_app.py::smoke", "--webhook", receiver.url)

    table = [line for line in said.splitlines() if line.startswith(("ok ", "FAILED "))]
    assert [line.split()[0] for line in table] == ["ok"] * 7, said
    assert "delivered" in table[-1]
    assert len(receiver.delivered) == 1


def test_the_smoke_test_ends_in_an_error_where_nothing_answers(fake_modal: FakeModal) -> None:
    said = run_modal(fake_modal, "run", "modal_app.py::smoke", "--url", "http://127.0.0.1:9", is_expected=1)
    assert "FAILED  health" in said
    assert "http://127.0.0.1:9 does not work" in said


def test_no_secret_stands_in_definitions_arguments_or_logs(fake_modal: FakeModal) -> None:
    """But for the key in a header of a caller's own request: Modal hands requests to the web function as arguments."""
    assert fake_modal.traces_of(MASTER_KEY) == []
    assert set(fake_modal.traces_of(KEY)) <= {"argument of web"}


# From here on, the app is deployed anew, each time otherwise.


def test_with_a_database_in_the_secret_jobs_are_kept_there_and_traces_go_where_they_are_wanted(
    fake_modal: FakeModal, picture: str
) -> None:
    secret = {"IMAGE_TO_3D_API_KEY": KEY, "IMAGE_TO_3D_MASTER_KEY": MASTER_KEY}
    with running_server() as database_url, Receiver() as receiver, trace_receiver() as traces:
        fake_modal.create_secret("image-to-3d", secret | {"DATABASE_URL": database_url})
        run_modal(fake_modal, "deploy", "modal_app.py", OTEL_EXPORTER_OTLP_ENDPOINT=traces.url)
        submitted = ask(fake_modal, SUBMIT, image=picture, resolution=64, seed=6, webhook=receiver.url).json()
        final = until_final(fake_modal, submitted["id"])
        receiver.wait_for(submitted["id"], timeout_s=WAIT_S)
        store = open_store(Settings(database_url=SecretStr(database_url)))
        (kept,) = store.list_jobs(api_key_id=None, limit=10)
        store.close()
        fake_modal.create_secret("image-to-3d", secret)
        fake_modal.wait_until(
            lambda: {"POST", "call"} <= {span.name for span in traces_of_job(traces, submitted["id"])}
        )

    assert final["status"] == "success", final
    assert httpx.get(final["output"][0], timeout=WAIT_S).content[:4] == b"glTF"
    assert (kept.id, kept.state) == (submitted["id"], JobState.SUCCESS)
    assert len({span.trace_id for span in traces_of_job(traces, submitted["id"])}) == 1, "from the submit to its end"
    assert {f"stage {stage}" for stage in STAGES} <= {span.name for span in traces.spans}


def traces_of_job(traces: Received, job_id: int) -> list[Span]:
    """The spans that name a job."""
    return [
        span
        for span in traces.spans
        if any(pair.key == "job.id" and pair.value.int_value == job_id for pair in span.attributes)
    ]


def test_a_deployment_without_weights_says_how_to_bring_them_and_starts_no_accelerator(
    fake_modal: FakeModal, picture: str, tmp_path: Path
) -> None:
    (tmp_path / "figure.png").write_bytes(encode(draw_figure(96)))
    run_modal(fake_modal, "deploy", "modal_app.py", **NO_WEIGHTS)
    started = len(fake_modal.containers("Generator"))

    final = until_final(fake_modal, ask(fake_modal, SUBMIT, image=picture).json()["id"])
    picture_alone = ("--image", str(tmp_path / "figure.png"), "--out", str(tmp_path / "figure.glb"))
    said = run_modal(fake_modal, "run", "modal_app.py", *picture_alone, is_expected=1, **NO_WEIGHTS)

    assert final["status"] == "failed"
    assert final["message"].endswith("modal run modal_app.py::fetch_weights --engine trellis"), final
    assert "GB of the weights of trellis are missing" in final["message"]
    assert final["message"] in said
    assert "Traceback" not in said
    assert len(fake_modal.containers("Generator")) == started
