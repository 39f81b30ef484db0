"""Starts the tests of the kernels in Triton's interpreter, and compiles the kernels for the GPUs in use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.ops.kernels.triton_folder import ROOT, environment, needs_triton

LIMIT_S = 900  # against a hang; the tests take half a minute on a free core


def run(*arguments: str, interpret: bool) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(interpret=interpret),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout


@needs_triton
@pytest.mark.parametrize("file", ["test_sparse_conv.py", "test_field_kernel.py"])
def test_kernels_agree_with_their_references_in_the_interpreter(file: str) -> None:
    out = run("-m", "pytest", f"tests/ops/kernels/interpreted/{file}", interpret=True)

    assert "[100%]" in out, out
    assert "SKIPPED" not in out, out


@needs_triton
def test_kernels_compile_for_every_gpu_in_use_with_few_spilled_registers() -> None:
    out = run("-m", "tests.ops.kernels.compile_kernels", interpret=False)

    assert "radiance_field sm_90" in out


@needs_triton
def test_kernels_that_fail_to_compile_or_to_launch_are_replaced() -> None:
    run("-m", "tests.ops.kernels.failing_kernels", interpret=False)


@needs_triton
def test_a_process_on_the_cpu_does_not_import_triton() -> None:
    run(
        "-c",
        "import sys, torch\n"
        "from pipeline.ops.sparse import sparse_conv3\n"
        "from pipeline.ops.voxels import VoxelSet\n"
        "from pipeline.render.orbit import orbit_cameras\n"
        "from pipeline.render.radiance_field import render_field\n"
        "from tests.render.test_radiance_field import random_field\n"
        "voxels = VoxelSet(torch.tensor([[0, 1, 1, 1]]))\n"
        "sparse_conv3(torch.ones(1, 1, 2), voxels, torch.ones(2, 3, 3, 3, 2), None)\n"
        "render_field(random_field(2), orbit_cameras(2)[0], resolution=4, chunk_size=512)\n"
        "assert 'triton' not in sys.modules",
        interpret=False,
    )
