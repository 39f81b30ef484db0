"""What surrounds a service, made to fail for real: a disk that is full, a database that is locked, a clock that is set.

Knows nothing of the service.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SMALL_DISK_BYTES = 160 << 20
CLOCK_SOURCE = Path(__file__).with_name("stepped_clock.c")


class NotHere(Exception):
    """This machine cannot make the thing fail; says what it would take."""


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own, in memory, on a folder.

    Raises:
        NotHere: only root may mount, and not everywhere.
    """
    folder.mkdir()
    options = f"size={SMALL_DISK_BYTES}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        raise NotHere(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """No byte is free in a folder's file system, whatever its users give back meanwhile."""
    ballast = folder / "ballast"
    stop = threading.Event()

    def fill() -> None:
        with ballast.open("ab", buffering=0) as file:
            while not stop.is_set():
                _fill_up(file.fileno())
                stop.wait(0.01)

    filler = threading.Thread(target=fill, daemon=True)
    filler.start()
    try:
        while os.statvfs(folder).f_bavail:
            time.sleep(0.01)
        yield
    finally:
        stop.set()
        filler.join()
        ballast.unlink()


def _fill_up(file: int) -> None:
    """Write until nothing more goes in."""
    for size in (1 << 20, 4096):
        try:
            while os.write(file, bytes(size)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process has the database to itself."""
    code = (
        "import sqlite3, sys; database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30);"
        "database.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "locked\n"
            yield
        finally:
            process.stdin.close()


def stepped_clock(folder: Path) -> tuple[dict[str, str], Callable[[int], None]]:
    """Variables under which programs take the time from a clock that can be set, and what sets it.

    Returns:
        The variables, and a function of the seconds that the clock is to be ahead.

    Raises:
        NotHere: there is no C compiler.
    """
    library, ahead = folder / "stepped_clock.so", folder / "clock"
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotHere("a clock that can be set takes a C compiler, cc")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(CLOCK_SOURCE)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise NotHere(f"a clock that can be set cannot be compiled: {made.stderr.strip()}")
    ahead.write_bytes(struct.pack("q", 0))

    def turn(ahead_s: int) -> None:
        with ahead.open("r+b") as file:  # in place: the programs look at this very file
            file.write(struct.pack("q", ahead_s))

    return {"LD_PRELOAD": str(library), "STEPPED_CLOCK_FILE": str(ahead)}, turn
