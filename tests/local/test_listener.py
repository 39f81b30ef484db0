"""Where the web process listens: a port that is taken, one that becomes free, one that is not allowed."""

from __future__ import annotations

import socket
import threading

import pytest

from pipeline.errors import CannotStart
from pipeline.local import listener as module
from pipeline.local.listener import open_listener


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_of_another_process_is_one_sentence(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    with open_listener("127.0.0.1", 0) as other:
        port = other.getsockname()[1]

        with pytest.raises(CannotStart) as raised:
            open_listener(host, port)

    assert str(raised.value) == (
        f"Cannot listen on port {port} of {host}: another process uses it; choose another with --port or "
        "IMAGE_TO_3D_PORT."
    )


def test_a_port_that_becomes_free_is_waited_for() -> None:
    other = open_listener("127.0.0.1", 0)
    port = other.getsockname()[1]
    threading.Timer(0.3, other.close).start()

    with open_listener("127.0.0.1", port) as listener, socket.create_connection(("127.0.0.1", port), 5):
        listener.accept()[0].close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(CannotStart, match=host):
        open_listener(host, 8000)
