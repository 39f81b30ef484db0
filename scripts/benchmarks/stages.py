"""Measures the CPU seconds of a job's parts that need no GPU, as a file for `scripts/cost_model/__main__.py --stages`.

CPU seconds do not depend on what else runs on the machine; waiting for disk and network is not included.
The export is that of a job of TRELLIS at its defaults: a mesh of half a million faces, coloured by 640,000 Gaussians.
Needs the extra `local`; with the extra `trellis`, the imports of the GPU container are measured too.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.engines.base import Generation
from pipeline.engines.trellis.colours import GaussianColours, VertexColours
from pipeline.stages.export import export
from pipeline.stages.intake import load_views
from schemas.request import GenerationRequest, parse_request
from scripts.benchmarks.export import organic_mesh, sample

ROOT = Path(__file__).resolve().parents[2]
CELLS = 342  # about 527,000 faces
GAUSSIANS = 640_000
IMPORTS = {
    "web": "import pipeline.local.web",
    "call": "import pipeline.run_job, pipeline.stages.intake, pipeline.stages.export, pipeline.stages.deliver",
    "gpu": "import torch, pipeline.engines.trellis.engine; from transformers import Dinov2WithRegistersModel",
}


def request() -> GenerationRequest:
    """The sample image on grey, so that its background has to be removed."""
    with Image.open(ROOT / "pipeline/api/playground/sample.png") as sample:
        opaque = Image.new("RGB", sample.size, (128, 128, 128))
        opaque.paste(sample, mask=sample.convert("RGBA").getchannel("A"))
    content = io.BytesIO()
    opaque.save(content, "PNG")
    return parse_request({"image": base64.b64encode(content.getvalue()).decode(), "seed": 1}).request


def generation(cells: int) -> Generation:
    """A generation of the size that TRELLIS returns."""
    mesh = organic_mesh(cells)
    centres, _ = sample(mesh, GAUSSIANS, 1)
    rng = np.random.default_rng(2)
    turns = rng.standard_normal((GAUSSIANS, 4))
    source = GaussianColours(
        xyz=centres.astype(np.float32),
        scaling=rng.uniform(0.001, 0.004, (GAUSSIANS, 3)).astype(np.float16),
        rotation=(turns / np.linalg.norm(turns, axis=1, keepdims=True)).astype(np.float16),
        opacity=rng.uniform(0.1, 1, GAUSSIANS).astype(np.float16),
        rgb=rng.integers(0, 256, (GAUSSIANS, 3), np.uint8),
        fallback=VertexColours(mesh.vertices, np.full((len(mesh.vertices), 3), 128, np.uint8)),
    )
    return Generation(mesh=mesh, attribute_source=source, engine="trellis", seed=1)


def export_once(made: Generation) -> None:
    asked = parse_request({"image": "unread", "seed": 1}).request
    with tempfile.TemporaryDirectory() as folder:
        export(made, request=asked, file_prefix="bench", folder=Path(folder), on_step=lambda share: None)


def intake_once(asked: GenerationRequest) -> None:
    def no_download(url: str) -> bytes:
        raise AssertionError(url)

    load_views(asked, fetch=no_download)


def cpu_s_of(work: Callable[[], object]) -> float:
    started_s = time.process_time()
    work()
    return time.process_time() - started_s


def printed_seconds(code: str, *variables: str) -> float:
    """Run Python code in a new process with more environment variables; return the seconds that it prints."""
    command = ["env", *variables, sys.executable, "-c", code]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(answer.stdout.split()[-1])


def import_s(code: str) -> float:
    return printed_seconds(f"{code}\nimport time; print(time.process_time())")


def compile_s() -> float:
    """Seconds that a container's first export takes longer, because it compiles the kernels."""
    code = (
        "from scripts.benchmarks.stages import export_once, generation, cpu_s_of\n"
        "made = generation(40)\n"
        "first = cpu_s_of(lambda: export_once(made))\n"
        "print(first - cpu_s_of(lambda: export_once(made)))"
    )
    with tempfile.TemporaryDirectory() as folder:
        return printed_seconds(code, f"NUMBA_CACHE_DIR={folder}")


def main(argv: list[str]) -> int:
    """Measure, print the rows, and write them to a file if requested."""
    parser = argparse.ArgumentParser(prog="bench.py stages", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each measurement; medians are taken")
    parser.add_argument("--cells", type=int, default=CELLS, help="cells of the mesh's grid along each side")
    parser.add_argument("--out", type=Path, help="file for scripts/cost_model/__main__.py --stages")
    options = parser.parse_args(argv)

    def row(what: str, work: Callable[[], float]) -> dict[str, object]:
        runs = [work() for _ in range(options.runs)]
        spread = f"{min(runs):.3g} to {max(runs):.3g} s"
        how = f"CPU seconds, median of {options.runs} on {os.cpu_count()} CPUs, {spread}"
        by = f"scripts/benchmarks/__main__.py stages, {how}"
        print(f"{what:<22} {statistics.median(runs):8.3f} s   {spread}", flush=True)
        return {"seconds": round(statistics.median(runs), 3), "how": "measured", "by": by}

    containers = [name for name in IMPORTS if name != "gpu" or importlib.util.find_spec("torch")]
    startup = {name: {"imports": row(f"imports, {name}", lambda n=name: import_s(IMPORTS[n]))} for name in containers}
    beside = {"compiling kernels": row("compiling kernels", compile_s)}
    made = generation(options.cells)
    print(f"{len(made.mesh.faces)} faces, {GAUSSIANS} Gaussians")
    asked = request()
    intake_once(asked)
    stages = {
        "intake": {"work": row("intake", lambda: cpu_s_of(lambda: intake_once(asked)))},
        "export": {"work": row("export", lambda: cpu_s_of(lambda: export_once(made)))},
    }
    if options.out:
        dated = datetime.datetime.now(datetime.UTC).date().isoformat()
        overlay = {
            "dated": dated,
            "startup": startup,
            "beside_first_call": beside,
            "engines": {"trellis": {"stages": stages}},
        }
        options.out.write_text(json.dumps(overlay, indent=2) + "\n")
    return 0
