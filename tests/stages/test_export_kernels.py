"""The kernels of the export are compiled beside a machine's first run. Each script runs in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="needs the extra 'local'")

from tests.fakes.images import draw_figure, encode

ROOT = Path(__file__).resolve().parents[2]
COUNTS = """
import sys
from pathlib import Path
from numba.core import event
from pipeline.stages.export_kernels import compiling_beside, export_ball

with compiling_beside(), event.install_recorder("numba:compile") as compiled:
    export_ball(Path(sys.argv[1]))
print(len(compiled.buffer))
"""
LEAVES = """
import os
from contextlib import suppress
from pipeline.render.mesh_view import is_compiled
from pipeline.stages.export_kernels import compiling_beside

assert not is_compiled()
with suppress(KeyboardInterrupt), compiling_beside():
    if os.cpu_count() != 1:  # a single core compiles nothing beside its work
        assert os.waitpid(-1, os.WNOHANG) == (0, 0)  # it runs
    raise KeyboardInterrupt
with suppress(ChildProcessError):
    os.waitpid(-1, os.WNOHANG)
    raise AssertionError("the process was left behind")
"""


def run(*command: str | Path, cache: Path, scratch: Path) -> str:
    """What a command of Python prints, with the kernels' cache and its temporary files in these folders."""
    scratch.mkdir(exist_ok=True)
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "TMPDIR": str(scratch)}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_one_process_compiles_no_later_one_compiles(tmp_path: Path) -> None:
    folders = {"cache": tmp_path / "cache", "scratch": tmp_path / "scratch"}

    run("-m", "pipeline.stages.export_kernels", tmp_path, **folders)

    assert int(run("-c", COUNTS, tmp_path, **folders)) == 0


def test_the_first_command_of_a_machine_writes_what_later_ones_write(tmp_path: Path) -> None:
    folders = {"cache": tmp_path / "cache", "scratch": tmp_path / "scratch"}
    image = tmp_path / "figure.png"
    image.write_bytes(encode(draw_figure(128)))
    outputs = [tmp_path / "first" / "figure.glb", tmp_path / "second" / "figure.glb"]

    for output in outputs:
        command = ["-m", "pipeline.cli", "generate", image, "-o", output, "--seed", "1", "--resolution", "64"]
        run(*command, **folders)

    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert list(folders["scratch"].iterdir()) == []


def test_a_block_that_is_left_early_leaves_neither_process_nor_files(tmp_path: Path) -> None:
    folders = {"cache": tmp_path / "cache", "scratch": tmp_path / "scratch"}

    run("-c", LEAVES, **folders)

    assert list(folders["scratch"].iterdir()) == []
