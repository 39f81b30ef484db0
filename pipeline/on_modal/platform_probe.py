"""Measures what a platform really takes, on a deployment: dictionary, commits, isolation, an engine's cold start.

The answers decide settings and say whether assumptions of the design hold. Knows no vendor: calls are passed in.
"""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.on_modal.shared_dict import SharedDict

DICT_OPERATIONS = 200
COMMITS = 5
COMMIT_BYTES = 60_000_000
"""The size of a large Generation."""
ISOLATED_BYTES = 40_000
"""More than fits into a message of a spawned call on Modal (8 KiB)."""


@dataclass(frozen=True)
class EngineStart:
    """What a container of an engine says about its start.

    Attributes:
        device: name of the accelerator, or "CPU".
        seconds: duration of each part; parts before the snapshot are those of the container that took it.
        snapshot_age_s: from the end of the parts before the snapshot to the first part after it.
    """

    engine: str
    device: str
    seconds: Mapping[str, float]
    snapshot_age_s: float


@dataclass(frozen=True)
class Probes:
    """The calls that are measured.

    Attributes:
        age_of_container: calls a new container that does nothing but answer `process_age_s`.
        start_engine: calls a container of the default engine, which starts if none is warm.
        commit_seconds: the durations of commits of `COMMIT_BYTES` each, in a container that mounts a volume.
        echo_isolated: sends bytes through a container without a network, and back.
    """

    entries: SharedDict
    age_of_container: Callable[[], float]
    start_engine: Callable[[], EngineStart]
    commit_seconds: Callable[[], Sequence[float]]
    echo_isolated: Callable[[bytes], bytes]


def measurements(probes: Probes) -> Iterator[str]:
    """One line per answer; what fails is an answer too."""
    boot_s = 0.0

    def boot() -> str:
        nonlocal boot_s
        started_s = time.perf_counter()
        age_s = probes.age_of_container()
        boot_s = max(0.0, time.perf_counter() - started_s - age_s)
        return f"a new container: queue and boot {boot_s:.1f} s, then its client and this file {age_s:.1f} s"

    for name, measure in (
        ("boot", boot),
        ("engine", lambda: _engine_start(probes.start_engine, boot_s)),
        ("dictionary", lambda: _dictionary(probes.entries)),
        ("commits", lambda: _commits(probes.commit_seconds())),
        ("isolation", lambda: _isolation(probes.echo_isolated)),
    ):
        try:
            found = measure()
        except Exception as error:  # noqa: BLE001  # any error of the platform is what the operator wants to read
            found = f"failed: {type(error).__name__}: {error}"
        yield f"measured {name:<16} {found}"


def _engine_start(start: Callable[[], EngineStart], boot_s: float) -> str:
    """What an engine's start took, in a line.

    Args:
        boot_s: queue and boot of another new container, without which the rest of the time was the restore; 0 where it
            was not measured.
    """
    started_s = time.perf_counter()
    found = start()
    total_s = time.perf_counter() - started_s
    after = {name: seconds for name, seconds in found.seconds.items() if name == "device"}
    before = {name: seconds for name, seconds in found.seconds.items() if name not in after}
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in before.items())
    rest_s = max(0.0, total_s - sum(after.values()))
    restore = f" (without the boot: restore {max(0.0, rest_s - boot_s):.1f} s)" if boot_s else ""
    return (
        f"{found.engine} on {found.device}: answered after {total_s:.1f} s; to the device {sum(after.values()):.1f} s, "
        f"queue, boot and restore {rest_s:.1f} s{restore}; "
        f"before its snapshot, {found.snapshot_age_s:.0f} s old: {parts}"
    )


def _dictionary(entries: SharedDict) -> str:
    key = f"smoke/{secrets.token_hex(8)}"
    puts = [_seconds_of(lambda number=number: entries.put(key, number)) for number in range(DICT_OPERATIONS)]
    gets = [_seconds_of(lambda: entries.get(key)) for _ in range(DICT_OPERATIONS)]
    entries.pop(key, None)
    return ", ".join(f"{name} {_spread(seconds)}" for name, seconds in (("put", puts), ("get", gets)))


def _commits(seconds: Sequence[float]) -> str:
    median_s = statistics.median(seconds)
    return f"{len(seconds)} of {COMMIT_BYTES / 1e6:.0f} MB: median {median_s:.2f} s, most {max(seconds):.2f} s"


def _isolation(echo: Callable[[bytes], bytes]) -> str:
    sent = secrets.token_bytes(ISOLATED_BYTES)
    return "large values pass a container without a network" if echo(sent) == sent else "the value came back changed"


def _spread(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"p50 {1000 * statistics.median(ordered):.0f} ms, p99 {1000 * p99:.0f} ms"


def process_age_s() -> float:
    """Seconds since the kernel started this process.

    Source: Linux, proc(5): field 22 of /proc/self/stat counts clock ticks from the boot.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    return uptime_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _seconds_of(work: Callable[[], Any]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def time_commits(folder: Path, commit: Callable[[], object]) -> list[float]:
    """Seconds of each of `COMMITS` commits of `COMMIT_BYTES` random bytes in a file, which is deleted afterwards."""
    path = folder / f"smoke-{secrets.token_hex(8)}.bin"
    seconds = []
    try:
        for _ in range(COMMITS):
            path.write_bytes(secrets.token_bytes(COMMIT_BYTES))
            seconds.append(_seconds_of(commit))
    finally:
        path.unlink(missing_ok=True)
        commit()
    return seconds
