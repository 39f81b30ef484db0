"""The plane carries what the app uses, through Modal's real command line, client and container entry point."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.modal_plane import Plane, reason_unavailable

pytestmark = [
    pytest.mark.xdist_group("modal_plane"),
    pytest.mark.skipif(reason_unavailable() is not None, reason=str(reason_unavailable())),
]

SAMPLE = Path(__file__).with_name("sample_app.py")


def run_modal(plane: Plane, *arguments: str) -> str:
    """Runs Modal's CLI against the plane; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "modal", *arguments],
        env=os.environ | plane.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("plane")) as plane:
        run_modal(plane, "deploy", str(SAMPLE))
        yield plane
        assert plane.failures == []


def test_run_executes_the_entrypoint_and_shows_what_the_container_printed(plane: Plane) -> None:
    shown = run_modal(plane, "run", f"{SAMPLE}::main", "--number", "5")

    assert "doubling 5" in shown
    assert "answer 10" in shown
