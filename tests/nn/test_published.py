from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import WeightsUnusable
from pipeline.nn.published import RECORD_NAME, fetch_files, verify_record

REVISION = "0123456789abcdef0123456789abcdef01234567"
CONTENT = bytes(range(256)) * 65536  # 16 MiB: the library resumes at the blocks of 10 MB that it has written


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as a download asks for: one file at one revision, with ranges."""

    asked: list[tuple[str, str, str | None]] = []  # noqa: RUF012 - reset by the fixture
    cut_after: int | None = None

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        Hub.asked.append((self.command, self.path, self.headers.get("Range")))
        if self.path != f"/someone/model/resolve/{REVISION}/ckpts/part.safetensors":
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if with_body and (match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")):
            start = int(match[1])
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[: Hub.cut_after])
            self.close_connection = Hub.cut_after is not None
            Hub.cut_after = None

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked, Hub.cut_after = [], None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_is_fetched_at_its_revision_and_only_once(hub: str, tmp_path: Path) -> None:
    for _ in range(2):
        fetch_files("someone/model", ["ckpts/part.safetensors"], tmp_path, revision=REVISION, endpoint=hub)

    assert (tmp_path / "ckpts/part.safetensors").read_bytes() == CONTENT
    assert [method for method, _, _ in Hub.asked].count("GET") == 1


def test_a_transfer_goes_on_where_its_connection_broke(hub: str, tmp_path: Path) -> None:
    Hub.cut_after = 12 << 20

    fetch_files("someone/model", ["ckpts/part.safetensors"], tmp_path, revision=REVISION, endpoint=hub)

    assert (tmp_path / "ckpts/part.safetensors").read_bytes() == CONTENT
    first, second = (wanted for method, _, wanted in Hub.asked if method == "GET")
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 12 << 20


def test_a_transfer_whose_process_was_killed_goes_on_in_the_next_one(hub: str, tmp_path: Path) -> None:
    part = tmp_path / f"ckpts/part.safetensors.{REVISION[:12]}.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT[: 9 << 20])
    seen: list[tuple[str, int, int]] = []

    fetch_files(
        "someone/model",
        ["ckpts/part.safetensors"],
        tmp_path,
        revision=REVISION,
        endpoint=hub,
        on_bytes=lambda *told: seen.append(told),
    )

    assert (tmp_path / "ckpts/part.safetensors").read_bytes() == CONTENT
    assert [wanted for method, _, wanted in Hub.asked if method == "GET"] == [f"bytes={9 << 20}-"]
    assert seen[0][1] > 9 << 20
    assert seen[-1] == ("ckpts/part.safetensors", len(CONTENT), len(CONTENT))
    assert not part.exists()


def test_a_file_that_is_not_published_is_named(hub: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnusable, match=r"^other\.safetensors of someone/model cannot be fetched: "):
        fetch_files("someone/model", ["other.safetensors"], tmp_path, revision=REVISION, endpoint=hub)


def test_files_are_recorded_first_and_verified_after(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"weights")
    verify_record(tmp_path, ["a.bin"])
    verify_record(tmp_path, ["a.bin"])
    assert set(json.loads((tmp_path / RECORD_NAME).read_text())) == {"a.bin"}

    (tmp_path / "a.bin").write_bytes(b"others")

    with pytest.raises(WeightsUnusable, match=r"^a\.bin has changed since it was fetched"):
        verify_record(tmp_path, ["a.bin"])
