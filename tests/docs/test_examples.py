"""The examples of docs/ run as they stand, against a real service with the preview engine."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.docs.conftest import IMAGE, INTERPRETERS, NODE, WAIT_S, Endpoint, curl
from tests.docs.tables import EXAMPLES, ROOT
from tests.servers.s3 import free_port, moto_server

needs_node = pytest.mark.skipif(NODE is None, reason="needs node")
pytestmark = [
    pytest.mark.xdist_group("docs_examples"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]


def test_the_python_api_example_writes_the_files_that_it_names(endpoint: Endpoint, tmp_path: Path) -> None:
    told = endpoint.run("generate.py", IMAGE, tmp_path).splitlines()

    assert all(Path(line).stat().st_size > 0 for line in told[:-1])
    assert {Path(line).suffix for line in told[:-1]} == {".glb", ".png"}
    assert "watertight: True" in told[-1]


def test_the_engine_example_runs_through_the_pipeline(endpoint: Endpoint, tmp_path: Path) -> None:
    told = endpoint.run("own_engine.py", IMAGE, tmp_path).splitlines()

    assert Path(told[0]).read_bytes()[:4] == b"glTF"


@pytest.mark.parametrize("name", ["submit.py", pytest.param("submit.mjs", marks=needs_node)])
def test_a_submit_example_saves_the_files_of_its_job(name: str, endpoint: Endpoint, tmp_path: Path) -> None:
    saved = [Path(line) for line in endpoint.run(name, IMAGE, tmp_path / "out").splitlines()]

    assert [path.suffix for path in saved] == [".glb", ".png"]
    assert saved[0].read_bytes()[:4] == b"glTF"


def test_the_shell_examples_submit_wait_and_manage_a_job(endpoint: Endpoint, tmp_path: Path) -> None:
    job_id = endpoint.submit()

    saved = [Path(line) for line in endpoint.run("wait.sh", job_id, tmp_path / "out").splitlines()]
    listed, cancelled, deleted, *usage = endpoint.run("jobs.sh", job_id).splitlines()

    assert saved[0].read_bytes()[:4] == b"glTF"
    assert job_id in [job["id"] for job in json.loads(listed)["calls"]]
    assert json.loads(cancelled)["status"] == "success"
    assert json.loads(deleted)["status"] == "success"
    assert usage[0].startswith("day,calls,")


def test_the_upload_example_submits_an_image_by_its_url(endpoint: Endpoint) -> None:
    job = json.loads(endpoint.run("upload.sh", IMAGE))

    assert endpoint.result_of(job["id"])["status"] == "success"


@pytest.mark.parametrize("name", ["events.sh", "events.py", pytest.param("events.mjs", marks=needs_node)])
def test_an_events_example_follows_a_job_to_its_end(name: str, endpoint: Endpoint) -> None:
    told = endpoint.run(name, endpoint.submit())

    assert "success" in told
    assert ".glb" in told


def test_the_requests_of_the_readme_are_answered(endpoint: Endpoint, tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "curl " in block)
    shutil.copy(IMAGE, tmp_path / "robot.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as images:
        thread = threading.Thread(target=images.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        address = f"http://127.0.0.1:{images.server_port}"
        for example, real in (
            ("http://127.0.0.1:8000", endpoint.url),
            ("i3d_…", endpoint.key),
            ("https://YOUR-HOST", address),
        ):
            assert example in block
            block = block.replace(example, real)
        command = block.replace("python -c", f"{sys.executable} -c").replace("curl http", "curl -sS http")
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S)
        job_ids = [body["id"] for body in map(json.loads, re.split(r"(?<=\})\s*(?=\{\"status\")", done.stdout))]
        results = [endpoint.result_of(job_id) for job_id in job_ids]
        images.shutdown()
        thread.join()

    assert done.returncode == 0, done.stderr
    assert [result["status"] for result in results] == ["success", "success"]
    assert httpx.get(results[1]["output"][0]).content[:4] == b"glTF"


@contextmanager
def receiving(name: str, endpoint: Endpoint, port: int) -> Iterator[subprocess.Popen[str]]:
    """A webhook receiver that listens."""
    command = [*INTERPRETERS[Path(name).suffix], str(EXAMPLES / name), str(port)]
    receiver = subprocess.Popen(command, env=endpoint.environment, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + WAIT_S
        while not _is_open(port):
            assert receiver.poll() is None and time.monotonic() < deadline, f"{name} does not listen"
            time.sleep(0.1)
        yield receiver
    finally:
        receiver.kill()
        receiver.communicate()


@pytest.mark.parametrize("name", ["receive_webhook.py", pytest.param("receive_webhook.mjs", marks=needs_node)])
def test_a_webhook_example_takes_genuine_webhooks_and_refuses_others(name: str, endpoint: Endpoint) -> None:
    port = free_port()
    image = base64.b64encode(IMAGE.read_bytes()).decode()
    body = json.dumps({"image": f"data:image/png;base64,{image}", "webhook": f"http://127.0.0.1:{port}/hook"})
    with receiving(name, endpoint, port) as receiver:
        assert receiver.stdout is not None
        forged = ("webhook-id: a", f"webhook-timestamp: {int(time.time())}", "webhook-signature: v1,AAAA")
        headers = [part for header in forged for part in ("-H", header)]
        answer = curl(f"http://127.0.0.1:{port}/hook", "{}", *headers, "-o", os.devnull, "-w", "%{http_code}")
        first_line = receiver.stdout.readline()
        job = json.loads(curl(f"{endpoint.url}/api/v6/3d/image_to_3d", body, "-H", f"key: {endpoint.key}"))

        assert answer == "401"
        assert first_line.startswith("refused")
        told = receiver.stdout.readline().split()

    assert told[1:3] == [str(job["id"]), "success"]
    assert told[3].endswith(".glb")


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.mark.parametrize("name", ["bucket.sh", "bucket.py", pytest.param("bucket.mjs", marks=needs_node)])
def test_a_bucket_example_sends_outputs_to_the_bucket(name: str, endpoint: Endpoint, s3_url: str) -> None:
    bucket = f"{s3_url}/{Path(name).suffix[1:]}-assets"
    assert httpx.put(bucket).is_success

    told = endpoint.run(name, bucket)
    job = endpoint.result_of(endpoint.submit())
    file = httpx.get(job["output"][0])
    curl(f"{endpoint.url}/api/v1/enterprise/reset_s3", "{}", "-H", f"key: {endpoint.key}")

    assert f"{Path(name).suffix[1:]}-assets" in told
    assert job["output"][0].startswith(f"{bucket}/3d/")
    assert file.content[:4] == b"glTF"
