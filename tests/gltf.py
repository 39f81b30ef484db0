"""Khronos' glTF validator, installed with npm if it is available."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
VALIDATE = """
const v = require(process.argv[2] + '/node_modules/gltf-validator'), fs = require('fs');
v.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1]))).then(r => console.log(JSON.stringify(r.issues)));
"""


@cache
def _validator_folder() -> str | None:
    """Where the validator is installed; None without node, npm or its package."""
    given = os.environ.get("GLTF_VALIDATOR_DIR")
    if given:
        return given
    folder = ROOT / ".venv" / "gltf-validator"
    if not (folder / "node_modules" / "gltf-validator").is_dir():
        if not shutil.which("npm") or not shutil.which("node"):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "--no-save",
            "--prefix",
            str(folder),
            "gltf-validator",
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=folder)
        except (subprocess.SubprocessError, OSError):
            return None
    return str(folder)


def document_of(data: bytes) -> dict[str, Any]:
    """The JSON chunk of a GLB."""
    length, kind = struct.unpack_from("<II", data, 12)
    assert kind == 0x4E4F534A
    return json.loads(data[20 : 20 + length])


def issues_of(path: Path) -> dict[str, Any]:
    """Issues that the validator finds in a GLB; skips the test if it cannot be installed."""
    folder = _validator_folder()
    if folder is None:
        pytest.skip("no node, or npm cannot fetch gltf-validator")
    run = subprocess.run(["node", "-e", VALIDATE, str(path), folder], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
