"""Decodes images in another process, with limits of time and memory: no image can hold or take down a worker.

A decoder is native code that runs to its end: a JPEG of 300 KB can ask for hours, and no exception stops it. The other
process can be killed. It is started with the first image and kept; each image gets a fork of it.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from pipeline.errors import Cancelled, DecoderLost, UnreadableImage
from pipeline.imaging.decode import decode_image
from pipeline.imaging.signatures import require_accepted

CPU_S = 20
"""Computing time of one image: 60 megapixels in the slowest format take a quarter of it."""
MEMORY_BYTES = 3 << 30
"""60 megapixels of 16-bit grey, which are scaled in float64, take two thirds of it."""
WALL_S = 300.0
"""For a machine that is so busy that the computing time never comes."""
POLL_S = 0.1
ATTEMPTS = 2
LENGTH_BYTES = STATUS_BYTES = 8
HEADER_BYTES = mmap.ALLOCATIONGRANULARITY
"""What comes before the pixels in a result: a multiple of what a mapping may begin at."""

START = "import sys; sys.path[:] = {path!r}; from pipeline.imaging.decode_server import main; main({arguments})"
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""All of the process's environment: it needs none of this one's, which holds secrets. Threads would not be forked."""

log = structlog.get_logger()


class DecodeProcess:
    """`decode_image` in another process. For one image at a time; further threads wait.

    Args:
        cpu_s: computing time of one image.
        memory_bytes: memory of one image.
    """

    def __init__(self, *, cpu_s: int = CPU_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._cpu_s = cpu_s
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def decode(self, content: bytes, *, is_cancelled: Callable[[], bool] = lambda: False) -> NDArray[np.uint8]:
        """Decode an image, see `decode_image`.

        Args:
            is_cancelled: asked while the decoder runs.

        Raises:
            UnreadableImage: also an image that takes too much time or memory, or whose decoder crashes.
            DecoderLost: the process was ended from outside, twice.
            Cancelled: the job was cancelled.
        """
        if sys.platform == "win32":  # no fork
            return decode_image(content)
        if not content:
            require_accepted(content)
        with self._lock:
            for _ in range(ATTEMPTS):
                try:
                    return self._decode_once(content, is_cancelled)
                except (OSError, EOFError) as error:
                    log.warning("image decoder lost", reason=type(error).__name__)
                    self._kill()
        raise DecoderLost("the process that decodes images was ended; send the image again")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._kill()

    def __del__(self) -> None:
        self._kill()

    def _decode_once(self, content: bytes, is_cancelled: Callable[[], bool]) -> NDArray[np.uint8]:
        """Let the process decode an image.

        Raises:
            OSError, EOFError: the process ended.
        """
        connection = self._connection or self._start()
        try:
            connection.sendall(len(content).to_bytes(LENGTH_BYTES, "little"))
            connection.sendall(content)
            self._wait(connection, is_cancelled)
            told, descriptors, _, _ = socket.recv_fds(connection, STATUS_BYTES, 1)
        except BaseException:
            self._kill()
            raise
        if len(told) < STATUS_BYTES or not descriptors:
            raise EOFError
        try:
            status = int(told, 16)
            if os.WIFSIGNALED(status):
                _explain_signal(os.WTERMSIG(status), self._cpu_s)
            if status != 0:
                raise UnreadableImage("the image is damaged: its decoder failed; send it again")
            return _read_result(descriptors[0])
        finally:
            os.close(descriptors[0])

    def _wait(self, connection: socket.socket, is_cancelled: Callable[[], bool]) -> None:
        ends_at_s = time.monotonic() + WALL_S
        while not select.select([connection], [], [], POLL_S)[0]:
            if is_cancelled():
                raise Cancelled("The job was cancelled.")
            if time.monotonic() > ends_at_s:
                raise TimeoutError("the decoder got too little computing time")

    def _start(self) -> socket.socket:
        here, there = socket.socketpair()
        with there:
            arguments = f"{there.fileno()}, {self._cpu_s}, {self._memory_bytes}"
            self._process = subprocess.Popen(
                [sys.executable, "-c", START.format(path=sys.path, arguments=arguments)],
                env=ENVIRONMENT,
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._connection = here
        return here

    def _kill(self) -> None:
        """End the process and its fork."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def _explain_signal(number: int, cpu_s: int) -> None:
    """Raise for a fork that a signal ended.

    Raises:
        UnreadableImage: the image is the reason.
        OSError: something outside is.
    """
    if number == signal.SIGXCPU:
        raise UnreadableImage(f"the image takes more than {cpu_s} s of computing time to decode; save it anew")
    if number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL):
        raise UnreadableImage("the image is damaged: its decoder crashed; save it anew")
    raise ChildProcessError(f"signal {number}")


def _read_result(descriptor: int) -> NDArray[np.uint8]:
    """The pixels in a decoder's file; they stay in that memory.

    Raises:
        UnreadableImage: the header says why there are none.
        EOFError: it is not what a decoder writes.
    """
    size = os.fstat(descriptor).st_size
    header: dict[str, Any] = json.loads(os.pread(descriptor, HEADER_BYTES, 0).rstrip(b"\0"))
    if "unreadable" in header:
        raise UnreadableImage(str(header["unreadable"]))
    height, width = (int(side) for side in header["shape"])
    if height < 1 or width < 1 or size != HEADER_BYTES + 4 * height * width:
        raise EOFError
    pixels = mmap.mmap(descriptor, 4 * height * width, offset=HEADER_BYTES)
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 4)
