"""The service that the examples of docs/ are run against."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.docs.tables import EXAMPLES, ROOT
from tests.e2e.test_serve_command import serving

IMAGE = ROOT / "pipeline" / "api" / "playground" / "sample.png"
NODE = shutil.which("node")
WAIT_S = 120.0  # far longer than anything takes here; only a failing test waits so long
INTERPRETERS = {
    ".sh": ["bash"],
    ".py": [sys.executable, "-W", "error"],
    ".mjs": [NODE or "node"],
    ".js": [NODE or "node"],
}


@dataclass(frozen=True)
class Endpoint:
    """A running service, a key, and the secret that its webhooks are signed with."""

    url: str
    key: str
    webhook_secret: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "IMAGE_TO_3D_URL": self.url,
            "IMAGE_TO_3D_KEY": self.key,
            "WEBHOOK_SECRET": self.webhook_secret,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def run(self, name: str, *arguments: object) -> str:
        """The output of an example, or of a program by its path; one that fails fails the test, with its own words."""
        command = [*INTERPRETERS[Path(name).suffix], str(EXAMPLES / name), *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self) -> int:
        """The id of a new job."""
        return json.loads(self.run("submit.sh", IMAGE))["id"]

    def result_of(self, job_id: int) -> dict[str, Any]:
        """The final body of a job."""
        while True:
            headers = ("-H", f"key: {self.key}", "-H", "prefer: wait=60")
            body = json.loads(curl(f"{self.url}/api/v6/3d/fetch/{job_id}", "{}", *headers))
            if body["status"] != "processing":
                return body


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """One service for all tests of the group `docs_examples`."""
    data = tmp_path_factory.mktemp("docs") / "data"
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # the start alone: other tests of this process must not see it
            patch.setenv("IMAGE_TO_3D_ALLOW_PRIVATE_ADDRESSES", "yes")
            _, port, _ = stack.enter_context(serving(data))
        made = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "keys", "create", "shop", "--data", str(data)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        secret = re.search(r"whsec_\S+", made.stderr)
        assert secret is not None
        yield Endpoint(f"http://127.0.0.1:{port}", made.stdout.strip(), secret[0])


def curl(url: str, body: str, *options: str) -> str:
    """The body of the answer to a POST of a JSON text."""
    command = ["curl", "-sS", url, "-H", "content-type: application/json", "--data-binary", "@-", *options]
    return subprocess.run(command, input=body, capture_output=True, text=True, check=True, timeout=WAIT_S).stdout
