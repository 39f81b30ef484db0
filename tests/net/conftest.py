"""The image host of these tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.net.image_host import Server


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
