"""What the smoke test measures of a platform, and what it prints where a measurement fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.on_modal import platform_probe
from pipeline.on_modal.platform_probe import EngineStart, Probes, measurements, time_commits
from tests.fakes.shared_dict import InMemoryDict

START = EngineStart("trellis", "NVIDIA H100", {"imports": 4.0, "weights": 2.0, "device": 3.0}, 42.0)


def refuse(data: bytes) -> bytes:
    raise ConnectionError("no route")


def test_each_answer_is_a_line_and_a_failure_is_one_too() -> None:
    entries = InMemoryDict()
    probes = Probes(entries, lambda: 0.0, lambda: START, lambda: [0.5, 1.5, 0.7], refuse)

    lines = dict(line.removeprefix("measured ").split(maxsplit=1) for line in measurements(probes))

    assert lines["boot"] == "a new container: queue and boot 0.0 s, then its client and this file 0.0 s"
    assert lines["engine"].startswith("trellis on NVIDIA H100: answered after 0.0 s; to the device 3.0 s")
    assert lines["engine"].endswith("42 s old: imports 4.0 s, weights 2.0 s")
    assert lines["dictionary"].startswith("put p50 0 ms")
    assert lines["commits"] == "3 of 60 MB: median 0.70 s, most 1.50 s"
    assert lines["isolation"] == "failed: ConnectionError: no route"
    assert entries.keys() == []


def test_a_value_that_passes_isolation_is_said_to() -> None:
    probes = Probes(InMemoryDict(), lambda: 0.0, lambda: START, lambda: [1.0], lambda data: data)

    assert list(measurements(probes))[-1].endswith("large values pass a container without a network")


def test_the_restore_is_what_the_boot_of_another_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.5, 10.0, 21.0])
    monkeypatch.setattr(platform_probe.time, "perf_counter", lambda: next(clock))
    probes = Probes(InMemoryDict(), lambda: 1.5, lambda: START, lambda: [1.0], lambda data: data)

    boot, engine = (line for line, _ in zip(measurements(probes), range(2), strict=False))

    assert boot.endswith("queue and boot 1.0 s, then its client and this file 1.5 s")
    assert "to the device 3.0 s, queue, boot and restore 8.0 s (without the boot: restore 7.0 s)" in engine


def test_the_age_of_a_process_grows_from_its_start() -> None:
    code = (
        "import time; from pipeline.on_modal.platform_probe import process_age_s as age;"
        "first = age(); time.sleep(0.3); print(first, age())"
    )

    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    first, later = map(float, done.stdout.split())
    assert 0.0 <= first < later


def test_commits_are_timed_with_the_file_in_place_and_without_it_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform_probe, "COMMIT_BYTES", 1000)
    seen: list[int] = []

    seconds = time_commits(tmp_path, lambda: seen.append(sum(path.stat().st_size for path in tmp_path.iterdir())))

    assert len(seconds) == platform_probe.COMMITS
    assert seen == [1000] * platform_probe.COMMITS + [0]
