"""A container loads what its variable names while it imports the app file, and nothing without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pipeline.on_modal.preload import MODULES, VARIABLE, preload_options

SCRIPT = """
import json, sys
from pipeline.on_modal.preload import MODULES, preload
preload()
heavy = [name for name in ("numpy", "torch") if name in sys.modules]
kernels = 0
if "pipeline.on_modal.prewarm" in sys.modules:
    from numba.core.dispatcher import Dispatcher
    modules = [module for name, module in sys.modules.items() if name.startswith("pipeline.")]
    compiled = [each for module in modules for each in vars(module).values() if isinstance(each, Dispatcher)]
    kernels = sum(bool(each.signatures) for each in compiled)
loaded = [name for name, module in MODULES.items() if module in sys.modules]
print(json.dumps({"loaded": loaded, "heavy": heavy, "kernels": kernels}))
"""


def loaded_by(name: str | None) -> dict[str, object]:
    """What a process has loaded whose variable names these modules."""
    environment = os.environ | ({} if name is None else {VARIABLE: name})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [None, "web", "webhooks"])
def test_a_container_loads_its_own_modules_and_no_numpy(name: str | None) -> None:
    assert loaded_by(name) == {"loaded": [] if name is None else [name], "heavy": [], "kernels": 0}


def test_the_container_of_jobs_has_its_kernels_compiled() -> None:
    pytest.importorskip("numba", reason="needs the extra 'local'")

    found = loaded_by("jobs")

    assert found["loaded"] == ["jobs"]
    assert isinstance(found["kernels"], int) and found["kernels"] > 10


def test_a_function_asks_for_modules_that_exist() -> None:
    assert preload_options("web") == {"env": {VARIABLE: "web"}, "enable_memory_snapshot": True}
    with pytest.raises(KeyError):
        preload_options("nothing")
    assert set(MODULES) == {"jobs", "web", "webhooks"}
