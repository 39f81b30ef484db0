"""Seconds of failing external_dependencies around a real service; `scripts/benchmarks/outages.py` does a minute of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.jobs.stores.sql.connection import BUSY_TIMEOUT_S
from tests.e2e import outages
from tests.e2e.external_dependencies import NotHere
from tests.e2e.outages import Report

pytest.importorskip("PIL", reason="needs the extra 'local'")


def survived(scenario: Callable[..., Report], folder: Path, *, duration_s: float) -> Report:
    """The report of an outage after which nothing is lost, doubled, left open or answered as it should not be."""
    try:
        report = scenario(folder, duration_s=duration_s)
    except NotHere as reason:
        pytest.skip(str(reason))

    assert report.faults == (), f"{report}\n" + (folder / "service.log").read_text()[-5000:]
    assert sum(report.states.values()) == report.accepted
    return report


def test_files_that_a_bucket_missed_come_into_it_later(tmp_path: Path) -> None:
    report = survived(outages.bucket_away, tmp_path, duration_s=2)

    assert report.accepted_meanwhile > 0
    assert set(report.states) == {"success"}


def test_a_receiver_that_hangs_holds_up_nobody_elses_webhooks(tmp_path: Path) -> None:
    report = survived(outages.receiver_hangs, tmp_path, duration_s=2)

    assert report.accepted_meanwhile > 0
    assert set(report.states) == {"success"}


def test_a_full_disk_leaves_calls_in_the_queue_until_there_is_room(tmp_path: Path) -> None:
    survived(outages.disk_full, tmp_path, duration_s=2)


def test_a_locked_database_puts_submits_off_until_it_is_free(tmp_path: Path) -> None:
    report = survived(outages.database_locked, tmp_path, duration_s=BUSY_TIMEOUT_S + 1)

    assert report.put_off > 0
    assert set(report.states) == {"success"}


def test_a_clock_that_is_set_back_and_forward_delays_and_doubles_nothing(tmp_path: Path) -> None:
    report = survived(outages.clock_steps, tmp_path, duration_s=1)

    assert set(report.states) == {"success"}
