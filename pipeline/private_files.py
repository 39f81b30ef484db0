"""Folders and files that only this service's user may read, whatever the umask is. Knows nothing of what is in them.

The data of a deployment holds customers' images, addresses with tokens in them, and hashes of keys.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

FOLDER_MODE, FILE_MODE = 0o700, 0o600
OF_OTHERS = 0o077
"""The mode bits of the owner's group and of everybody else."""


def make_private_folder(folder: Path) -> None:
    """Make a folder, and the missing ones above it, that only their owner can enter; an existing one stays as it is."""
    if not folder.parent.exists():
        make_private_folder(folder.parent)
    try:
        folder.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        folder.chmod(FOLDER_MODE)  # also where the umask takes the owner's permissions


def make_private_file(path: Path) -> None:
    """Make an empty file that only its owner reads; an existing one stays as it is."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, FILE_MODE))


def private_opener(path: str, flags: int) -> int:
    """For `open(..., opener=private_opener)`: a new file is readable by its owner only."""
    return os.open(path, flags, FILE_MODE)


def close_to_others(paths: Iterable[Path]) -> None:
    """Take the permissions of everybody but the owner from those of these paths that exist and are this user's."""
    for path in paths:
        with suppress(OSError):
            mode = path.stat().st_mode
            if mode & OF_OTHERS:
                path.chmod(mode & ~OF_OTHERS & 0o7777)
