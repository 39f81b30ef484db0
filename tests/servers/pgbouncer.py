"""A private pgbouncer in transaction mode, in front of a PostgreSQL server of the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.servers.s3 import free_port, server_process

SERVER_CONNECTIONS = 3
"""Fewer than the processes of a test have connections: almost every transaction lands on another server session."""


@contextmanager
def pooler(url: str, *, connections: int = SERVER_CONNECTIONS) -> Iterator[str]:
    """Start pgbouncer and yield the database's URL through it; skips the test where pgbouncer is not installed.

    Args:
        url: the server's, as SQLAlchemy reads it.
        connections: of the pooler to the server, for all clients together.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed (scripts/debian_for_tests.sh)")
    server, port = urlsplit(url), free_port()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "users.txt").write_text(f'"{server.username}" ""\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": folder / "users.txt",
            "pool_mode": "transaction",
            "default_pool_size": connections,
            "max_client_conn": 500,
            "server_round_robin": 1,  # not the session that the same client had before
        }
        lines = ["[databases]", f"* = host={server.hostname} port={server.port}", "[pgbouncer]"]
        lines += [f"{setting} = {value}" for setting, value in settings.items()]
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        command = [program, "-q", str(folder / "pgbouncer.ini")]
        if os.getuid() == 0:  # it refuses to run as root
            command[1:1] = ["-u", "nobody"]
            for path in (folder, *folder.iterdir()):
                os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
        with server_process(command, port, cwd=folder):
            yield urlunsplit(server._replace(netloc=f"{server.username}@127.0.0.1:{port}"))
