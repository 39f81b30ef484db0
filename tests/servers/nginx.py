"""A private nginx in front of a service, with a location of the documents."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers.s3 import server_process


@contextmanager
def nginx(location: str, *, port: int, certificate: Path | None = None) -> Iterator[str]:
    """Start nginx with this location block and yield its URL; skips the test where nginx is not installed.

    Args:
        certificate: a PEM file with the key too; with it nginx talks TLS to its clients, and HTTP to the service.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (scripts/debian_for_tests.sh)")
    with tempfile.TemporaryDirectory(prefix="nginx-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        paths = "".join(
            f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        tls = "" if certificate is None else f"ssl_certificate {certificate}; ssl_certificate_key {certificate};"
        listen = f"listen 127.0.0.1:{port}{' ssl' if certificate else ''};"
        server = f"server {{ {listen} {tls} {location} }}"
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\n"
            f"http {{ access_log off;\n{paths}{server} }}\n"
        )
        command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
        with server_process(command, port, cwd=folder) as url:
            yield url if certificate is None else url.replace("http:", "https:")
