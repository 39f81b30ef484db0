"""A few kills of a real service's processes; `python -m scripts.benchmarks faults` does hundreds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.faults import inject_faults

pytest.importorskip("PIL", reason="needs the extra 'local'")


def test_killed_processes_lose_and_duplicate_no_job(tmp_path: Path) -> None:
    report = inject_faults(tmp_path, rounds=6, seed=11)

    assert report.faults == [], (tmp_path / "service.log").read_text()[-5000:]
    assert report.accepted >= 3
    assert sum(report.states.values()) == report.accepted
