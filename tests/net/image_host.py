"""A host of images on loopback, whose answers a test chooses."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answers(BaseHTTPRequestHandler):
    """Serves `/image`, `/to/N` (N redirects to it), and what `routes` adds."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        server = self.server
        server.asked.append(self.path)
        if self.path in server.routes:
            server.routes[self.path](self)
        elif self.path.startswith("/to/"):
            left = int(self.path.rsplit("/", 1)[1])
            self.redirect("/image" if left == 1 else f"/to/{left - 1}")
        elif self.path == "/image":
            self.answer(b"an image")
        else:
            self.send_error(404)

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("location", to)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.routes: dict[str, Callable[[Answers], None]] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: a client that disconnects is no error here."""
