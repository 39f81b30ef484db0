"""CLIP's vocabulary for tests, rebuilt from a wheel of the package index, since the model hub is not used in tests."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from pipeline.engines.trellis.text.spec import CLIP_LARGE
from pipeline.engines.trellis.text.tokenizer import PromptTokenizer, vocabulary_of

WHEEL = "open_clip_torch==3.3.0"  # MIT; only its list of merges is read, and nothing of it installed
MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 48_894
DOWNLOAD_S = 120


class NoVocabulary(Exception):
    """The wheel cannot be downloaded here; the message is a reason to skip."""


def vocabulary_folder() -> Path:
    """The folder with vocab.json and merges.txt, byte for byte as published; made at the first use, then kept.

    Raises:
        NoVocabulary: the wheel cannot be downloaded.
    """
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "image-to-3d-tests"
    folder = cached / "clip-vocabulary"
    if folder.is_dir():
        return folder
    cached.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=cached))
    try:
        _write_vocabulary(made)
        made.rename(folder)
    except OSError:  # another process was faster
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


@cache
def prompt_tokenizer() -> PromptTokenizer:
    """The tokenizer of the released models."""
    return PromptTokenizer.from_folder(vocabulary_folder())


def _write_vocabulary(folder: Path) -> None:
    with zipfile.ZipFile(_download(folder)) as wheel:
        lines = gzip.decompress(wheel.read(MEMBER)).decode().split("\n")[1 : MERGES + 1]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    files = {
        "vocab.json": json.dumps(vocabulary_of(merges), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges), ""]),
    }
    for name, text in files.items():
        content = text.encode()
        if hashlib.sha256(content).hexdigest() != CLIP_LARGE.sha256[name]:
            raise ValueError(f"{name} differs from the published one")
        (folder / name).write_bytes(content)


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False)
    except subprocess.TimeoutExpired:
        raise NoVocabulary(f"pip download takes longer than {DOWNLOAD_S} s") from None
    if done.returncode:
        raise NoVocabulary(f"pip download fails: {(done.stderr.strip().splitlines() or ['no reason stated'])[-1]}")
    return next(folder.glob("*.whl"))
