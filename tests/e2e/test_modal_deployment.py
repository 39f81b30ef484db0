"""`modal deploy` of the real app file by Modal's real CLI, and calls through it, on a control plane on loopback."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.faults import KEY, Receiver
from tests.modal_plane import Limits, Plane, reason_unavailable
from tests.pictures import draw_figure, encode

trimesh = pytest.importorskip("trimesh", reason="needs the extra 'local'")

pytestmark = [
    pytest.mark.xdist_group("modal_plane"),
    pytest.mark.skipif(reason_unavailable() is not None, reason=str(reason_unavailable())),
]

ROOT = Path(__file__).resolve().parents[2]
MASTER_KEY = "a-master-key-for-the-tests-alone"
SUBMIT = "/api/v6/3d/image_to_3d"
MINUTE_S = 60
WAIT_S = 120.0
SETTINGS = {
    "IMAGE_TO_3D_ENGINE": "preview",
    "IMAGE_TO_3D_ENGINES": "trellis",
    "IMAGE_TO_3D_WEIGHTS": "tiny",
    "IMAGE_TO_3D_ALLOW_PRIVATE_ADDRESSES": "1",
    "IMAGE_TO_3D_SUBMIT_WAIT_S": "0",
}


def run_modal(plane: Plane, *arguments: str, is_expected: int = 0) -> str:
    """Modal's CLI against the plane, from the project's folder; what it printed."""
    unset = {name: "" for name in os.environ if name.startswith("IMAGE_TO_3D_") or name == "DATABASE_URL"}
    done = subprocess.run(
        [sys.executable, "-m", "modal", *arguments],
        env=os.environ | unset | SETTINGS | plane.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == is_expected, done.stdout + done.stderr
    return done.stdout


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
def picture() -> str:
    return base64.b64encode(encode(draw_figure(96))).decode()


def ask(plane: Plane, path: str, *, key: str = KEY, **fields: Any) -> httpx.Response:
    """POST to the deployment's public address."""
    return httpx.post(plane.web_url("web") + path, json={"key": key, **fields}, timeout=WAIT_S)


def until_final(plane: Plane, call_id: int) -> dict[str, Any]:
    deadline_s = time.monotonic() + WAIT_S
    while (body := ask(plane, f"/api/v6/3d/fetch/{call_id}").json())["status"] == "processing":
        assert time.monotonic() < deadline_s, (body, plane.logs()[-4000:])
        time.sleep(0.2)
    return body


def test_every_function_is_defined_as_it_is_meant(plane: Plane) -> None:
    functions = {each.tag.removesuffix(".*"): each for each in plane.functions(app="image-to-3d")}
    trellis, preview, call, web = (functions[name] for name in ("TrellisGenerator", "Generator", "run_call", "web"))

    assert trellis.gpus == ("H100", "A100-80GB", "A100-40GB")
    assert preview.gpus == ()
    for generator in (trellis, preview):
        assert generator.volumes == {"/weights": ("image-to-3d-weights", True)}
        assert generator.enable_memory_snapshot and not generator.experimental_options
        assert generator.block_network and generator.max_concurrent_inputs <= 1
        assert (generator.timeout_s, generator.startup_timeout_s) == (15 * MINUTE_S, 10 * MINUTE_S)
        assert generator.autoscaler.min_containers == 0 and generator.autoscaler.scaledown_window == MINUTE_S
        assert "image-to-3d" not in [name for name, _ in generator.secrets]
    assert call.volumes == {
        "/data/files": ("image-to-3d-outputs", False),
        "/data/work": ("image-to-3d-state", False),
    }
    assert (call.retries, call.timeout_s, call.startup_timeout_s) == (3, 30 * MINUTE_S, 5 * MINUTE_S)
    assert web.max_concurrent_inputs == 100 and web.volumes == {} and web.web_url
    assert {each.tag for each in functions.values() if each.web_url} == {"web"}
    assert {name: functions[name].cron for name in ("deliver_webhooks", "clean")} == {
        "deliver_webhooks": "* * * * *",
        "clean": "*/5 * * * *",
    }
    for each in (call, web, functions["clean"]):
        assert ("image-to-3d", ("IMAGE_TO_3D_API_KEY", "IMAGE_TO_3D_MASTER_KEY")) in each.secrets


def test_health_wakes_no_accelerator_and_no_key_opens_nothing(plane: Plane, picture: str) -> None:
    assert httpx.get(plane.web_url("web") + "/health", timeout=WAIT_S).status_code == 200
    assert ask(plane, SUBMIT, key="wrong", image=picture).status_code == 401
    assert plane.containers("Generator") == [] and plane.containers("run_call") == []


@pytest.mark.parametrize("engine", ["preview", "trellis"])
def test_a_submit_becomes_a_model_behind_a_link_and_a_webhook(plane: Plane, picture: str, engine: str) -> None:
    with Receiver() as receiver:
        submitted = ask(
            plane, SUBMIT, image=picture, engine=engine, resolution=64, seed=3, texture_size=512, webhook=receiver.url
        ).json()
        final = until_final(plane, submitted["id"])
        told = receiver.wait_for(submitted["id"], timeout_s=WAIT_S)

    assert submitted["status"] == "processing" and final["status"] == "success", final
    assert final["meta"]["engine"] == engine and told["output"] == final["output"] == submitted["future_links"]
    whole = httpx.get(final["output"][0], timeout=WAIT_S)
    part = httpx.get(final["output"][0], headers={"range": "bytes=0-3"}, timeout=WAIT_S)
    scene = trimesh.load_scene(trimesh.util.wrap_as_stream(whole.content), file_type="glb")
    assert len(scene.geometry) == 1
    assert (part.status_code, part.content) == (206, b"glTF")


@pytest.mark.parametrize(("killed", "engine"), [("run_call", "preview"), ("TrellisGenerator", "trellis")])
def test_a_call_whose_container_is_killed_ends_once(plane: Plane, picture: str, killed: str, engine: str) -> None:
    # A warm preview generation ends within the 0.05 s; this many steps of the tiny one take several times as long.
    steps = {"ss_sampling_steps": 50, "slat_sampling_steps": 50}
    fields = {"engine": engine, "resolution": 256, "seed": 4, "texture_size": 1024, **steps}
    with Receiver() as receiver:
        submitted = ask(plane, SUBMIT, image=picture, webhook=receiver.url, **fields).json()
        plane.kill_container_of(killed, after_s=0.05)
        final = until_final(plane, submitted["id"])
        receiver.wait_for(submitted["id"], timeout_s=WAIT_S)
        ids = {message_id for message_id, _ in receiver.told[submitted["id"]]}

    assert final["status"] == "success", final
    assert len(ids) == 1
    prefix = final["meta"]["file_prefix"]
    kept = {path.parent.name for path in plane.volume_folder("image-to-3d-outputs").rglob(f"{prefix}.glb")}
    assert kept == {prefix}
    listed = ask(plane, "/api/v1/enterprise/3d/list", limit=200).json()["calls"]
    assert [call["id"] for call in listed].count(submitted["id"]) == 1


def test_a_call_that_is_delivered_again_after_its_end_changes_nothing(plane: Plane, picture: str) -> None:
    call_id = ask(plane, SUBMIT, image=picture, resolution=64, seed=5).json()["id"]
    final = until_final(plane, call_id)
    plane.wait_until(lambda: all(call.is_finished for call in plane.calls("run_call")))

    plane.redeliver(plane.calls("run_call")[-1].call_id)

    assert until_final(plane, call_id) == final


def test_a_key_made_from_the_terminal_opens_and_a_revoked_one_does_not(plane: Plane) -> None:
    made = run_modal(plane, "run", "modal_app.py::keys", "--create", "shop").split()
    (key,) = [word for word in made if ask(plane, "/api/v1/enterprise/3d/list", key=word).status_code == 200]

    run_modal(plane, "run", "modal_app.py::keys", "--revoke", "shop")

    deadline_s = time.monotonic() + WAIT_S
    while ask(plane, "/api/v1/enterprise/3d/list", key=key).status_code != 401:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    assert plane.traces_of(key) == []


def test_the_functions_that_run_by_the_clock_succeed(plane: Plane) -> None:
    for name in ("clean", "deliver_webhooks"):
        assert plane.wait_for(plane.fire_schedule(name)).is_finished, plane.logs(name)
    assert "Traceback" not in plane.logs("clean") + plane.logs("deliver_webhooks")


def test_one_picture_goes_through_without_a_service(plane: Plane, tmp_path: Path) -> None:
    (tmp_path / "figure.png").write_bytes(encode(draw_figure(96)))
    out = tmp_path / "figure.glb"

    run_modal(
        plane, "run", "modal_app.py", "--image", str(tmp_path / "figure.png"), "--out", str(out), "--resolution", "64"
    )

    assert len(trimesh.load_scene(out).geometry) == 1


def test_no_secret_stands_in_definitions_arguments_or_logs(plane: Plane) -> None:
    for secret in (KEY, MASTER_KEY):
        assert plane.traces_of(secret) == []
