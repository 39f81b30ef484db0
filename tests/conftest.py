"""The order of the tests, and which of them `scripts/check --fast` leaves out.

Two or three processes share the tests. The long ones start first, so that no process ends with a long test while the
others are idle.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SERVICES = ("cli", "client", "e2e", "fakes", "local", "parity")
"""Folders whose tests start a service, a browser, a command of ours in a process, or compute for seconds."""
SERVICE_FILES = frozenset(
    {
        "api/test_head_limits.py",
        "api/test_isolation.py",
        "engines/preview/test_hull.py",
        "engines/trellis/test_engine.py",
        "engines/triposr/test_engine.py",
        "engines/triposr/test_delivered_files.py",
        "jobs/stores/test_stores_agree.py",
        "mesh/test_bake.py",
        "on_modal/test_prewarm.py",
        "ops/kernels/test_kernels.py",
        "ops/test_flexicubes.py",
        "ops/test_isosurface.py",
        "scripts/test_cost_model.py",
        "stages/test_export.py",
        "stages/test_export_kernels.py",
        "test_imports.py",
        "test_python_api.py",
        "webhooks/test_sender.py",
    }
)
SERVERS = ("postgres", "s3")
"""Parts of the names of parameters and fixtures that start a server."""


def needs_service(item: pytest.Item) -> bool:
    """Whether a test starts a server or a process, or takes seconds."""
    path = item.path.relative_to(TESTS)
    fixtures = getattr(item, "fixturenames", ())
    return (
        path.parts[0] in SERVICES
        or path.as_posix() in SERVICE_FILES
        or item.get_closest_marker("xdist_group") is not None
        or any(name in fixture for fixture in fixtures for name in SERVERS)
    )


def pytest_configure() -> None:
    """Let OpenMP's idle threads sleep, in torch and in the processes that tests start.

    By default they spin; with more threads than cores that takes the cores from the threads that work, and a TripoSR
    generation uses four times the CPU time. The number of threads, and so every result, stays the same.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    missing = sorted(name for name in SERVICE_FILES if not (TESTS / name).is_file())
    if missing:
        raise pytest.UsageError(f"tests/conftest.py names files that do not exist: {', '.join(missing)}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a service, and put them first. The sort is stable: shuffled files stay shuffled."""
    for item in items:
        if item.path.is_relative_to(TESTS) and needs_service(item):
            item.add_marker("service")
    items.sort(key=lambda item: item.get_closest_marker("service") is None)
