"""The kernels are compiled before a job's export needs them. Each script runs in a new process, as in a container."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

pytest.importorskip("numba", reason="needs the extra 'local'")

from pipeline.engines.base import GenerationOptions
from pipeline.on_modal import prewarm
from pipeline.stages.generate import configured_engine
from tests.fakes.images import draw_figure
from tests.fakes.preview_subjects import SUBJECTS

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import pickle, sys
from pathlib import Path
from numba.core.dispatcher import Dispatcher
from pipeline.engines.base import ignore_steps
from pipeline.engines.base import GenerationOptions
from pipeline.stages.export import export
from pipeline.stages.generate import configured_engine
from pipeline.on_modal.prewarm import start_prewarm, prewarm_numba
from schemas.request import ImageTo3DRequest

folder = Path(sys.argv[1])

def exported(**fields):
    request = ImageTo3DRequest(image=("none",), texture_size=512, **fields)
    generation = pickle.loads((folder / "generation.pickle").read_bytes())
    files = export(generation, request=request, file_prefix="toy", folder=folder / "files", on_step=ignore_steps).files
    return [file.path.read_bytes() for file in files]

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("pipeline.")]
    kernels = [each for module in modules for each in vars(module).values() if isinstance(each, Dispatcher)]
    return {str(kernel): kernel.signatures for kernel in kernels}
"""
ALL_EXPORTS_AFTERWARDS = """
prewarm_numba()
before = compiled()
view = pickle.loads((folder / "view.pickle").read_bytes())
configured_engine("preview", weights="tiny").generate([view], GenerationOptions(seed=2))
for format in ("glb", "obj", "stl", "ply"):
    for no_texture in (False, True):
        exported(output_format=format, no_texture=no_texture, render=format == "glb")
exported(compression="meshopt", texture_format="webp")
assert before == compiled() and any(before.values()), (before, compiled())
"""
EXPORT_DURING_PREWARM = """
thread = start_prewarm()
assert start_prewarm() is thread
during = exported()
thread.join()
assert during == exported()
"""


def run_fresh(script: str, folder: Path, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + script, str(folder)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def write_generation(folder: Path, engine: str) -> None:
    options = GenerationOptions(seed=1, resolution=64)
    generation = configured_engine(engine, weights="tiny").generate([draw_figure(96)], options)
    (folder / "view.pickle").write_bytes(pickle.dumps(SUBJECTS["owl"]()))
    (folder / "generation.pickle").write_bytes(pickle.dumps(generation, protocol=pickle.HIGHEST_PROTOCOL))


@pytest.mark.parametrize("engine", ["preview", "trellis"])
def test_after_prewarm_neither_a_preview_nor_an_export_compiles_a_kernel(tmp_path: Path, engine: str) -> None:
    if engine == "trellis":
        pytest.importorskip("transformers", reason="needs the extra 'trellis'")
    write_generation(tmp_path, engine)

    run_fresh(ALL_EXPORTS_AFTERWARDS, tmp_path)


def test_an_export_during_prewarm_gives_the_same_files(tmp_path: Path) -> None:
    write_generation(tmp_path, "preview")

    run_fresh(EXPORT_DURING_PREWARM, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "empty"))


def test_a_failed_prewarm_is_logged_and_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(prewarm, "prewarm_numba", fail)
    prewarm.start_prewarm.cache_clear()

    with structlog.testing.capture_logs() as logs:
        prewarm.start_prewarm().join()

    prewarm.start_prewarm.cache_clear()
    assert [entry["event"] for entry in logs] == ["prewarming failed"]
