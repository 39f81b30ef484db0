"""The sample app on a fake Modal server, deployed by Modal's CLI, for the tests of the server itself."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fakes.modal import FakeModal, Limits

APP = "sample-app"
SAMPLE = Path(__file__).with_name("sample_app.py")


def run_modal(fake_modal: FakeModal, *arguments: str, exit_code: int = 0) -> str:
    """Runs Modal's CLI against the fake server; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "modal", *arguments],
        env=os.environ | fake_modal.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout + done.stderr if exit_code else done.stdout


@contextmanager
def deployed_sample(folder: Path, *, limits: Limits | None = None, **options: Any) -> Iterator[FakeModal]:
    """A server on which the sample app is deployed; afterwards, no container is left and the server has not failed."""
    with FakeModal(folder, limits=limits or Limits(scaledown_s=20.0), web_timeout_s=2.0, **options) as fake_modal:
        fake_modal.create_secret("sample-secret", {"SAMPLE_KEY": "opensesame"})
        run_modal(fake_modal, "deploy", str(SAMPLE))
        yield fake_modal
        assert fake_modal.failures == []
        assert fake_modal.unanswered == {}
    assert [each.pid for each in fake_modal.containers() if each.pid and Path(f"/proc/{each.pid}").exists()] == []
