"""What a process imports at its start, at run time; contracts in pyproject.toml check the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH = ("torch", "transformers")
NUMERIC = ("PIL", "cv2", "numba", "numpy", "scipy", "skimage", "trimesh")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pipeline.api.app", TORCH + NUMERIC),
        ("pipeline.local.web", TORCH + NUMERIC),
        ("pipeline.on_modal.web", TORCH + NUMERIC),
        ("pipeline.engines.preview.engine", TORCH),
        ("pipeline.stages.export", TORCH),
    ],
)
def test_a_module_imports_nothing_that_its_container_lacks(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stdout == "[]\n", done.stderr
