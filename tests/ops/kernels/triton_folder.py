"""Triton for the tests, in a folder of its own: the product installs it with torch's CUDA build or not at all.

`scripts/check` installs the dependency group `kernels` there. With TRITON_INTERPRET=1 Triton runs kernels on CPU
tensors; without, it compiles them for any GPU and needs none for that.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(sys.prefix) / "triton-for-tests"

needs_triton = pytest.mark.skipif(
    not (FOLDER / "triton").is_dir(), reason=f"Triton is not in {FOLDER}: scripts/check installs it where it exists"
)


def environment(*, interpret: bool) -> dict[str, str]:
    """The environment of a process that finds Triton."""
    variables = dict(os.environ)
    variables.pop("TRITON_INTERPRET", None)
    return variables | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(FOLDER)]),
        "TRITON_DEFAULT_FP_FUSION": "1",  # Triton 3.9 warns where nobody chose
        **({"TRITON_INTERPRET": "1"} if interpret else {}),
    }


def start_interpreter() -> None:
    """Let this process run kernels on CPU tensors; before anything imports Triton.

    Raises:
        ModuleNotFoundError: Triton is not in its folder.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.append(str(FOLDER))
    import triton

    assert triton.knobs.runtime.interpret, "Triton was imported before its interpreter was chosen"
