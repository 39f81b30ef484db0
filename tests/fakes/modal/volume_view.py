"""A container's own copy of a Volume: what it sees changes by `reload`, what others see changes by `commit`.

The committed files of a Volume lie in one folder; each container that mounts it works on a copy. A commit copies
the files that changed here since the last synchronisation (per file, the last writer wins); a reload fetches the files
that others committed, keeps local changes, and is refused while a file of the copy is open. Knows nothing of gRPC.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

Stamp = tuple[int, int, int]
"""Inode, modification time in nanoseconds and size: equal stamps mean equal contents."""


def stamps(root: Path) -> dict[str, Stamp]:
    """The stamp of every file and symbolic link under a folder, by its path relative to the folder."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            try:
                status = path.lstat()
            except FileNotFoundError:  # removed since it was listed, by the container that works here
                continue
            found[str(path.relative_to(root))] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found


def replace_file(source: Path, target: Path, *, link: bool = False) -> None:
    """Puts a copy (or, if `link`, the same inode) of `source` at `target` in one step: readers see old or new."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    if link:
        os.link(source, part, follow_symlinks=False)
    else:
        shutil.copy2(source, part, follow_symlinks=False)
    part.replace(target)


@dataclass
class VolumeView:
    """A container's copy of one Volume under `root`. A read-only view shares inodes, for it cannot write them."""

    committed: Path
    root: Path
    mount_path: str
    read_only: bool
    sub_path: str = ""

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True)
        self._seen: dict[str, Stamp] = {}
        self._own: dict[str, Stamp] = {}
        self.reload()

    @property
    def source(self) -> Path:
        """The folder to mount: the copy, or the part of it that the mount asks for."""
        source = self.root / self.sub_path.lstrip("/")
        source.mkdir(parents=True, exist_ok=True)
        return source

    def changed(self) -> set[str]:
        """The files written, replaced or removed here since the last synchronisation."""
        now = stamps(self.root)
        return {path for path in now.keys() | self._own.keys() if now.get(path) != self._own.get(path)}

    def commit(self) -> None:
        """Copies local changes to the committed files."""
        changed = self.changed()
        for path in changed:
            try:
                replace_file(self.root / path, self.committed / path)
            except FileNotFoundError:
                (self.committed / path).unlink(missing_ok=True)
        self._remember(changed)

    def reload(self) -> None:
        """Fetches what others committed, leaving local changes alone."""
        local, there = self.changed(), stamps(self.committed)
        fetched = {path for path, stamp in there.items() if self._seen.get(path) != stamp} - local
        removed = self._seen.keys() - there.keys() - local
        for path in fetched:
            replace_file(self.committed / path, self.root / path, link=self.read_only)
        for path in removed:
            (self.root / path).unlink(missing_ok=True)
        for folder, names, _ in os.walk(self.committed):
            for name in names:
                (self.root / Path(folder, name).relative_to(self.committed)).mkdir(parents=True, exist_ok=True)
        self._remember(fetched | removed)

    def _remember(self, paths: set[str]) -> None:
        own, there = stamps(self.root), stamps(self.committed)
        for path in paths:
            for known, now in ((self._own, own), (self._seen, there)):
                if path in now:
                    known[path] = now[path]
                else:
                    known.pop(path, None)

    def open_file(self, pids: list[int]) -> str | None:
        """The first file or working directory inside the copy that one of the processes holds open."""
        inside = {}
        for folder, _, names in os.walk(self.root):
            for path in (Path(folder), *(Path(folder, name) for name in names)):
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue
                inside[(status.st_dev, status.st_ino)] = str(path.relative_to(self.root))
        for pid in pids:
            for handle in (Path(f"/proc/{pid}/cwd"), *_descriptors(pid)):
                try:
                    status = handle.stat()
                except OSError:
                    continue
                if (status.st_dev, status.st_ino) in inside:
                    return inside[(status.st_dev, status.st_ino)]
        return None


def _descriptors(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return []


def session_pids(leader: int) -> list[int]:
    """The processes of one session: a container and what it started."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == leader:
                pids.append(int(entry.name))
    return pids
