"""Makes a service's external dependencies fail for real: a full disk, a locked database, a clock that is set.

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


class NotAvailable(Exception):
    """This machine cannot make the dependency fail; the message says what is missing."""


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small file system in memory on a folder.

    Raises:
        NotAvailable: only root may mount, and not on every machine.
    """
    folder.mkdir()
    options = f"size={SMALL_DISK_BYTES}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        raise NotAvailable(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Keep a folder's file system full, also when its users free space."""
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
    """Write until the file system is full."""
    for size in (1 << 20, 4096):
        try:
            while os.write(file, bytes(size)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the database's exclusive lock in another process."""
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
    """Make a system clock for programs that can be set.

    Returns:
        The environment variables that programs need, and a function that sets the seconds by which the clock is ahead.

    Raises:
        NotAvailable: there is no C compiler.
    """
    library, ahead = folder / "stepped_clock.so", folder / "clock"
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotAvailable("a clock that can be set needs a C compiler, cc")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(CLOCK_SOURCE)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise NotAvailable(f"a clock that can be set cannot be compiled: {made.stderr.strip()}")
    ahead.write_bytes(struct.pack("q", 0))

    def set_clock(ahead_s: int) -> None:
        with ahead.open("r+b") as file:  # in place: the programs have this file mapped
            file.write(struct.pack("q", ahead_s))

    return {"LD_PRELOAD": str(library), "STEPPED_CLOCK_FILE": str(ahead)}, set_clock
