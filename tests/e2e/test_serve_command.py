"""`image-to-3d serve` for its operator: what it prints, which processes it starts and stops."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.deployment import open_store
from pipeline.jobs.api_keys import authenticate
from pipeline.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0  # far longer than anything takes here; only a failing test waits this long
HEAVY = ("torch", "numpy", "scipy", "trimesh", "cv2", "numba")


@contextmanager
def serving(data: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """The service once it is ready, its port, and the lines that it printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["env", "-u", "DATABASE_URL", "-u", "IMAGE_TO_3D_API_KEY", "IMAGE_TO_3D_STOP_GRACE_S=1", sys.executable]
    command += ["-m", "pipeline.cli", "serve", "--data", str(data), "--port", str(port), *options]
    log = (data.parent / "service.log").open("ab")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    said: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line.rstrip())
            if line.startswith("Ready"):
                break
        yield process, port, said
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(WAIT_S)
        assert process.stdout is not None
        process.stdout.close()
        log.close()


def read_when_there(path: Path) -> str:
    """The text of a file that another process writes; the file is removed."""
    deadline_s = time.monotonic() + WAIT_S
    while not path.exists():
        assert time.monotonic() < deadline_s, f"{path} was not written"
        time.sleep(0.02)
    text = path.read_text()
    path.unlink()
    return text


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def browser_that_notes_its_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `webbrowser` start a program that writes the address which it is to open to the file that is returned."""
    program, noted = folder / "browser", folder / "opened"
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > "{noted}.part" && mv "{noted}.part" "{noted}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{program} %s")
    return noted


def test_only_the_first_start_prints_an_api_key_and_hands_it_to_the_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    opened = browser_that_notes_its_address(tmp_path, monkeypatch)

    with (
        serving(data, "--open") as (_, port, said),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer,
    ):
        assert answer.status == 200
        address = read_when_there(opened)
    with serving(data, "--open") as (_, port_again, said_again):
        address_again = read_when_there(opened)

    shown = re.search(r"shown this once: (\S+)", "\n".join(said))
    assert shown is not None
    store = open_store(Settings(data_dir=data, database_url=None))
    assert authenticate(store, shown[1]).name == "development"
    store.close()
    assert any("keys create" in line for line in said)
    assert len(said_again) == 2 and "keys list" in said_again[0]
    assert said_again[1].startswith("Ready at http://127.0.0.1:")
    assert shown[1] not in (tmp_path / "service.log").read_text()
    # A fragment is never sent to the service; a later start knows no key.
    assert address == f"http://127.0.0.1:{port}/#key={shown[1]}"
    assert address_again == f"http://127.0.0.1:{port_again}/"


def test_stopping_leaves_no_process_and_deregisters_the_workers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as (process, _, _):
        store = open_store(Settings(data_dir=data, database_url=None))
        deadline = time.monotonic() + WAIT_S
        while not store.workers():
            assert time.monotonic() < deadline, "no worker registered"
            time.sleep(0.05)
        pids = children_of(process.pid)
        lines = " ".join(command_line(pid) for pid in pids)
        assert "pipeline.local.web" in lines and "pipeline.local.worker" in lines

    assert process.returncode == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert store.workers() == []
    store.close()


@pytest.mark.parametrize("command", ["serve", "web"])
def test_a_port_that_is_taken_is_one_sentence_and_nothing_is_announced(tmp_path: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        arguments = [sys.executable, "-m", "pipeline.cli", command, "--data", str(tmp_path), "--port", str(port)]

        ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines() == [
        f"Cannot listen on port {port} of 127.0.0.1: another process uses it; choose another with --port or "
        "IMAGE_TO_3D_PORT."
    ]


@pytest.mark.parametrize("command", ["serve", "web", "worker"])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "postgres://nobody:secret-word@127.0.0.1:9/x",
            "cannot be opened (connection failed: .* refused.*DATABASE_URL",
        ),
        ("mysql://nobody:secret-word@127.0.0.1/x", "postgresql://user:password@host/name; mysql is no kind"),
        ("postgresql://nobody:secret-word@host:port/x", "DATABASE_URL must be an address such as postgresql://"),
        ("secret-word", "DATABASE_URL must be an address such as postgresql://"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_sentence(tmp_path: Path, command: str, url: str, words: str) -> None:
    environment = os.environ | {"IMAGE_TO_3D_DATABASE_URL": url, "IMAGE_TO_3D_PORT": "0"}
    arguments = [sys.executable, "-m", "pipeline.cli", command, "--data", str(tmp_path)]

    ended = subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
    )

    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert re.search(words.replace("(", r"\("), line) and "secret-word" not in line


@pytest.mark.parametrize("command", ["serve", "web", "worker"])
def test_a_data_folder_that_is_a_file_is_one_sentence(tmp_path: Path, command: str) -> None:
    taken = tmp_path / "data"
    taken.write_text("")
    arguments = [sys.executable, "-m", "pipeline.cli", command, "--data", str(taken)]

    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"Cannot use {taken} as the data folder: file exists; name another.\n"


def test_all_processes_exit_if_the_supervisor_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (process, _, _):
        pids = children_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + WAIT_S
        while any("pipeline." in command_line(pid) for pid in pids if Path(f"/proc/{pid}").exists()):
            assert time.monotonic() < deadline, "processes are still running"
            time.sleep(0.05)


def test_the_web_process_imports_nothing_heavy(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The process of `python -m pipeline.local.web`, which requests its own /health and prints what it imported.
    code = f"""
import signal, sys, threading, time, urllib.request
def print_modules():
    while True:
        try:
            urllib.request.urlopen("http://127.0.0.1:{port}/health").close()
            break
        except OSError:
            time.sleep(0.05)
    print(" ".join(sorted(sys.modules)), flush=True)
    signal.raise_signal(signal.SIGTERM)
threading.Thread(target=print_modules, daemon=True).start()
from pipeline.local.web import main
main(["--data", {str(tmp_path)!r}, "--port", "{port}"])
"""

    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=WAIT_S)

    modules = set(process.stdout.split())
    assert "pipeline.api.app" in modules, process.stderr
    assert modules.isdisjoint(HEAVY)
    assert modules.isdisjoint({"pipeline.engines.preview.engine", "opentelemetry.sdk", "boto3"})
