"""The process in which images of strangers are decoded: forks for each image, so that none is left of the one before.

Started by `decode_process`; imports only what decoding needs. Knows nothing of jobs; holds no secret of the service.

For each request, a length of 8 bytes and an image's bytes, it answers with how the fork ended, and passes on a file:
a block with a JSON header, then the pixels.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import socket
import sys
import tempfile
from typing import Any

from PIL import Image

from pipeline.errors import UnreadableImage
from pipeline.imaging.decode import decode_image
from pipeline.imaging.decode_process import HEADER_BYTES, LENGTH_BYTES


def main(descriptor: int, cpu_s: int, memory_bytes: int) -> None:
    """Serve requests until the other end closes the socket.

    Args:
        descriptor: of the connected socket.
        cpu_s: computing time of one image.
        memory_bytes: memory of one image, beside that of this process.
    """
    Image.init()  # all formats, once for all forks
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=descriptor) as connection:
        while (content := receive(connection)) is not None:
            result = _new_file()
            child = os.fork()
            if child == 0:
                _decode_and_exit(content, result, cpu_s, memory_bytes)
            _, status = os.waitpid(child, 0)
            socket.send_fds(connection, [f"{status:08x}".encode()], [result])
            os.close(result)


def receive(connection: socket.socket) -> bytearray | None:
    """The next request; None at the end."""
    with connection.makefile("rb") as reader:
        length = reader.read(LENGTH_BYTES)
        if len(length) < LENGTH_BYTES:
            return None
        content = bytearray(int.from_bytes(length, "little"))
        return content if reader.readinto(content) == len(content) else None


def _new_file() -> int:
    """A file without a name, in memory where the system has such files."""
    if sys.platform == "linux":
        return os.memfd_create("image")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _decode_and_exit(content: bytearray, result: int, cpu_s: int, memory_bytes: int) -> None:
    """Decode in this process, write the result, and end."""
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))  # at the first SIGXCPU, at the second SIGKILL
        used_bytes = _virtual_bytes()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + memory_bytes, used_bytes + memory_bytes))
        header: dict[str, Any]
        try:
            image = decode_image(bytes(content))
            header = {"shape": image.shape[:2]}
            os.lseek(result, HEADER_BYTES, os.SEEK_SET)
            pixels = image.reshape(-1).data
            while pixels:
                pixels = pixels[os.write(result, pixels) :]
        except UnreadableImage as error:
            header = {"unreadable": str(error)}
        except MemoryError:
            header = {"unreadable": f"the image needs more than {memory_bytes >> 20} MiB of memory to decode"}
        os.pwrite(result, json.dumps(header).encode(), 0)
        os._exit(0)
    finally:
        os._exit(1)


def _virtual_bytes() -> int:
    """The address space that this process uses already; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # read in a fork
            return int(file.read().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 0
