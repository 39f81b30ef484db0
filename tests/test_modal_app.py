"""The app file as a deployer's machine reads it: without an account, and light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "numpy", "scipy", "trimesh", "fastapi", "sqlalchemy")
LIST = f"""
import json, sys, modal_app
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""


def test_the_app_file_is_read_without_credentials_and_without_anything_heavy(tmp_path: Path) -> None:
    bare = ["env", "-i", f"HOME={tmp_path}", f"PYTHONPATH={ROOT}"]
    done = subprocess.run([*bare, sys.executable, "-c", LIST], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
