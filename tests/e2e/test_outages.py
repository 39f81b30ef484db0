"""Seconds of failing external dependencies of a real service; `python -m scripts.benchmarks outages` a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.jobs.stores.sql.connection import BUSY_TIMEOUT_S
from tests.e2e import outages
from tests.e2e.external_dependencies import NotAvailable
from tests.e2e.outages import Report

pytest.importorskip("PIL", reason="needs the extra 'local'")


def survived(scenario: Callable[..., Report], folder: Path, *, duration_s: float) -> Report:
    """The report of an outage after which nothing is lost, duplicated, left open or answered wrongly."""
    try:
        report = scenario(folder, duration_s=duration_s)
    except NotAvailable as reason:
        pytest.skip(str(reason))

    assert report.faults == (), f"{report}\n" + (folder / "service.log").read_text()[-5000:]
    assert sum(report.states.values()) == report.accepted
    return report


def test_files_reach_a_bucket_after_its_outage(tmp_path: Path) -> None:
    report = survived(outages.bucket_away, tmp_path, duration_s=2)

    assert report.accepted_meanwhile > 0
    assert set(report.states) == {"success"}


def test_a_receiver_that_hangs_delays_no_other_callers_webhooks(tmp_path: Path) -> None:
    report = survived(outages.receiver_hangs, tmp_path, duration_s=2)

    assert report.accepted_meanwhile > 0
    assert set(report.states) == {"success"}


def test_a_full_disk_leaves_jobs_queued_until_there_is_space(tmp_path: Path) -> None:
    survived(outages.disk_full, tmp_path, duration_s=2)


def test_a_locked_database_postpones_submits_until_it_is_free(tmp_path: Path) -> None:
    report = survived(outages.database_locked, tmp_path, duration_s=BUSY_TIMEOUT_S + 1)

    assert report.postponed > 0
    assert set(report.states) == {"success"}


def test_a_clock_that_is_set_back_and_forward_delays_and_duplicates_nothing(tmp_path: Path) -> None:
    report = survived(outages.clock_steps, tmp_path, duration_s=1)

    assert set(report.states) == {"success"}
