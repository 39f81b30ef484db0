"""Installs npm packages for tests and benchmarks, in pinned versions, into a folder outside of the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

INSTALL_S = 120


class NoPackages(Exception):
    """node or npm is missing, or npm cannot install the packages; the message is a reason to skip."""


def packages(manifest: bytes) -> Path:
    """The folder with `node_modules`; installed at the first use, kept for later ones.

    Args:
        manifest: the content of a package.json.

    Raises:
        NoPackages: they cannot be installed here.
    """
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        raise NoPackages(f"needs {' and '.join(missing)}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "image-to-3d-tests"
    folder = cache / f"npm-{hashlib.sha256(manifest).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=cache))
    (made / "package.json").write_bytes(manifest)
    options = ("--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    try:
        done = subprocess.run(
            ["npm", "install", *options], cwd=made, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoPackages(f"npm install takes longer than {INSTALL_S} s") from None
    if done.returncode:
        shutil.rmtree(made)
        raise NoPackages(f"npm install fails: {(done.stderr.strip().splitlines() or ['no reason stated'])[0]}")
    try:
        made.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(made)
    return folder
