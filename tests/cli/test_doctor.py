"""The checks of a deployment, on real folders, processes and answers."""

from __future__ import annotations

import json
import socket
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner, Result

from pipeline.cli import doctor
from pipeline.deployment import open_store
from pipeline.jobs.model import WorkerRecord
from pipeline.settings import Settings
from schemas.formats import FORMATS
from tests.e2e.test_serve_command import serving


def run(*words: str) -> tuple[Result, dict[str, tuple[str, str]]]:
    """The command's result, and its findings by check: verdict and detail; of several the last one."""
    app = typer.Typer()
    app.command()(doctor.doctor)
    result = CliRunner().invoke(app, [*words, "--json"])
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return result, {one["check"]: (one["verdict"], one["detail"]) for one in found}


@pytest.fixture(autouse=True)
def no_deployment_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "IMAGE_TO_3D_API_KEY", "IMAGE_TO_3D_ENGINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IMAGE_TO_3D_PORT", "9")  # nothing listens there


def test_a_fresh_folder_is_told_what_is_missing_and_stays_empty(tmp_path: Path) -> None:
    result, found = run("--data", str(tmp_path / "data"), "--skip-job")

    assert result.exit_code == 0
    assert found["engine preview"] == ("ok", "installed")
    assert found["database"][0] == "warning" and "There is no service's data" in found["database"][1]
    assert found["address"][0] == "warning" and "does not answer from here" in found["address"][1]
    assert found["disk"][0] in ("ok", "warning") and not (tmp_path / "data").exists()


def test_a_misspelt_setting_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--data", str(tmp_path), "--skip-job")
    assert run(*words)[1]["settings"][0] == "ok"

    monkeypatch.setenv("IMAGE_TO_3D_MAX_QUEUD", "5")

    verdict, detail = run(*words)[1]["settings"]
    assert verdict == "warning"
    assert "did you mean IMAGE_TO_3D_MAX_QUEUED?" in detail


def test_the_formats_are_those_that_requests_may_name_and_what_the_others_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--data", str(tmp_path), "--skip-job")
    every = run(*words)[1]["formats"]
    usdz = replace(FORMATS["usdz"], package="a_package_that_nobody_has")
    monkeypatch.setitem(FORMATS, "usdz", usdz)
    without = run(*words)[1]["formats"]
    monkeypatch.setenv("IMAGE_TO_3D_OUTPUT_FORMATS", "glb,usdz")
    result, named = run(*words)

    assert every == ("ok", "glb, obj, stl, ply, usdz, 3mf")
    assert without == ("ok", "glb, obj, stl, ply, 3mf; usdz needs pip install 'image-to-3d[usd]'")
    assert named["formats"] == ("failed", "glb, usdz; usdz needs pip install 'image-to-3d[usd]'")
    assert result.exit_code == 1


@pytest.mark.parametrize(("worker_id", "is_warned"), [(f"{socket.gethostname()}-1", False), ("elsewhere-1", True)])
def test_workers_of_other_hosts_without_shared_storage_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker_id: str, is_warned: bool
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'shared.sqlite3'}")
    store = open_store(Settings(data_dir=tmp_path))
    store.heartbeat_worker(WorkerRecord(worker_id, "preview", time.time(), is_ready=True))
    store.close()

    _, found = run("--data", str(tmp_path), "--skip-job")

    assert found["workers"][0] == "ok"
    assert ("storage" in found) == is_warned
    if is_warned:
        assert found["storage"][0] == "warning" and "OUTPUTS_URL is not set" in found["storage"][1]


def test_missing_weights_fail_with_the_command_that_fetches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_ENGINES", "trellis")

    result, found = run("--data", str(tmp_path), "--weights", str(tmp_path), "--skip-job")

    assert result.exit_code == 1
    assert found["engine trellis"][0] == "failed"
    assert found["engine trellis"][1].endswith("image-to-3d fetch-weights --engine trellis")


def test_a_job_runs_in_this_process(tmp_path: Path) -> None:
    result, found = run("--data", str(tmp_path))

    assert result.exit_code == 0
    assert found["job"][0] == "ok" and found["job"][1].startswith("preview made model.")


@pytest.mark.parametrize(
    ("driver", "torch", "verdict", "words"),
    [
        ("echo 'NVIDIA L4, 23034 MiB, 570.86'", "None False", "failed", "a build for CPUs"),
        ("echo 'NVIDIA L4, 23034 MiB, 570.86'", "13.0 False", "failed", "update the driver"),
        ("echo 'NVIDIA L4, 23034 MiB, 570.86'", "13.0 True", "ok", "with CUDA 13.0"),
        ("echo 'cannot communicate with the driver'; exit 9", "", "failed", "cannot communicate with the driver"),
    ],
    ids=["torch for CPUs", "old driver", "working", "driver not loaded"],
)
def test_a_gpu_is_judged_by_its_driver_and_by_torch(
    driver: str, torch: str, verdict: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins for the driver's command and for Python with torch: no test machine has a card."""
    for name, script in (("nvidia-smi", driver), ("python", f"echo {torch}")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(doctor.sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("IMAGE_TO_3D_ENGINES", "trellis")

    _, found = run("--data", str(tmp_path), "--skip-job")

    assert found["gpu"][0] == verdict and words in found["gpu"][1]


@contextmanager
def another_service() -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<h1>It works!</h1>")

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_address_that_is_another_services_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with another_service() as port:
        monkeypatch.setenv("IMAGE_TO_3D_PORT", str(port))
        result, found = run("--data", str(tmp_path), "--skip-job")

    assert result.exit_code == 1
    assert found["address"][1].endswith("is answered by something else: HTTP 200")


def test_a_running_service_passes_with_a_job_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "data") as (_, port, said):
        key = next(line.rpartition(" ")[2] for line in said if "i3d_" in line)
        wait_until_ready(port)
        monkeypatch.setenv("IMAGE_TO_3D_PORT", str(port))
        result, found = run("--data", str(tmp_path / "data"), "--key", key)

    assert result.exit_code == 0, result.stdout
    assert found["workers"][0] == found["readiness"][0] == "ok"
    assert found["job"][0] == "ok" and "the service made and served" in found["job"][1]


def wait_until_ready(port: int) -> None:
    deadline_s = time.monotonic() + 60
    while httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code != 200:
        assert time.monotonic() < deadline_s, "no worker became ready"
        time.sleep(0.1)


def test_a_clock_that_is_off_fails() -> None:
    assert doctor._clock("the database's", 0.0).verdict == "failed"


def test_workers_of_the_database_are_named(tmp_path: Path) -> None:
    store = open_store(Settings(data_dir=tmp_path))
    store.heartbeat_worker(WorkerRecord("box-1", "preview", 0.0, is_ready=True))
    store.close()

    _, found = run("--data", str(tmp_path), "--skip-job")

    assert found["workers"] == ("ok", "box-1 (preview)")
    assert found["database"] == ("ok", "SQLite; no jobs")


def test_a_database_of_an_older_version_is_left_as_it_is(tmp_path: Path) -> None:
    open_store(Settings(data_dir=tmp_path)).close()
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0003'")

    _, found = run("--data", str(tmp_path), "--skip-job")

    assert found["database"][0] == "warning" and "it has revision 0003" in found["database"][1]
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0003",)
