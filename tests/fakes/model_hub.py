"""A fake model hub on loopback, for tests of downloads."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef0123456789abcdef01234567"
CONTENT = bytes(range(256)) * 65536  # 16 MiB: the library resumes at the blocks of 10 MB that it has written


class Hub(BaseHTTPRequestHandler):
    """The part of a model hub that downloads use: one file at one revision, with ranges."""

    asked: list[tuple[str, str, str | None]] = []  # noqa: RUF012 - reset by `serving`
    cut_after: int | None = None
    file_name = "ckpts/part.safetensors"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        Hub.asked.append((self.command, self.path, self.headers.get("Range")))
        if self.path != f"/someone/model/resolve/{REVISION}/{Hub.file_name}":
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


@contextmanager
def serving(file_name: str) -> Iterator[str]:
    """The address of a hub that has `CONTENT` under this name in `someone/model`."""
    Hub.asked, Hub.cut_after, Hub.file_name = [], None, file_name
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
