"""Each process of a service on five machines is killed; `python -m scripts.benchmarks machines` does so many times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.machines import kill_machines

pytest.importorskip("PIL", reason="needs the extra 'local'")
pytest.importorskip("psycopg", reason="needs the extra 'postgres'")
pytestmark = pytest.mark.xdist_group("postgres")


def test_killed_machines_lose_and_duplicate_no_job_and_any_web_process_serves_the_files(tmp_path: Path) -> None:
    report = kill_machines(tmp_path, rounds=1, seed=5, clients=1)

    logs = "\n".join(path.read_text()[-2000:] for path in sorted(tmp_path.glob("*.log")))
    assert report.faults == [], logs
    assert report.kills == 5
    assert report.accepted >= 3
    assert sum(report.states.values()) == report.accepted
