"""The cold start of a scale-to-zero deployment's containers, from the start of the process, part by part.

The web container: imports, and the application that answers /health. The GPU container: imports, then 4.2 GB of random
weights of the released sizes, read from a disk whose cache was dropped, and, where there is an accelerator, moved to it
and warmed up. Each part runs in a process of its own, as a container does. `main` returns 0 when the targets are met.
`--path` instead runs one job on the fake Modal server and tells each part from the submit to the webhook.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.benchmarks import cold_path

ROOT = Path(__file__).resolve().parents[2]
MAX_WEB_S, MAX_IMPORTS_S, LEAST_GB_PER_S = 1.2, 4.0, 1.5
DISK_SHARE = 0.9  # of the disk's own speed that is enough: two readings of one disk differ by that much
BLOCK_BYTES = 16 * 2**20

WEB = """
import asyncio, json, sys
import modal
from tests.fakes.key_values import MemoryKeyValues
from pipeline.jobs.stores.kv.store import KvStore
from pipeline.on_modal.deployment import Deployment
from pipeline.on_modal.waiting_jobs import WaitingJobs
from pipeline.on_modal.web import web_app
from pipeline.secrets import load_master_keys
from pipeline.settings import Settings

def no_dispatch(job_id): pass

settings = Settings(database_url=None, api_key="a-key-of-the-benchmark", secret_keys="a-secret-of-the-benchmark")
deployment = Deployment(
    settings, load_master_keys(settings), KvStore(MemoryKeyValues()),
    dispatch=no_dispatch,
    waiting=WaitingJobs(no_dispatch, find_call=None, is_in_flight=bool, entries=None, default="preview"),
    commit_work=lambda: None, commit_outputs=lambda: None,
)
app = web_app(deployment, outputs=None, state=None, missing=())
statuses = []

async def receive(): return {"type": "http.request", "body": b"", "more_body": False}
async def send(message): statuses.append(message.get("status"))

scope = {"type": "http", "method": "GET", "path": "/health", "raw_path": b"/health", "headers": []}
asyncio.run(app(scope, receive, send))
assert statuses[0] == 200
heavy = [name for name in ("torch", "numpy", "scipy", "trimesh") if name in sys.modules]
print(json.dumps({"heavy": heavy, "modules": len(sys.modules)}))
"""
GPU = """
import json, sys
from pipeline.on_modal.engine_server import EngineServer

server = EngineServer("trellis", weights=sys.argv[1])
server.load_weights()
import torch
if torch.cuda.is_available():
    server.to_device()
if server.start_failure is not None:
    raise server.start_failure.error
print(json.dumps(server.seconds))
"""


def run(script: str, *arguments: str) -> tuple[float, dict[str, object]]:
    """Wall seconds of a fresh process, and the last line that it printed."""
    started_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started_s
    if done.returncode:
        raise SystemExit(done.stderr)
    return seconds, json.loads(done.stdout.splitlines()[-1])


def drop_cache(folder: Path) -> int:
    """Drop the files of a folder from the page cache; return their bytes."""
    size_bytes = 0
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size_bytes += path.stat().st_size
    return size_bytes


def disk_bytes_per_s(folder: Path) -> float:
    """The disk's own speed on these files, read once from end to end."""
    size_bytes = drop_cache(folder)
    started_s = time.perf_counter()
    for path in folder.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass
    return size_bytes / (time.perf_counter() - started_s)


def measure_web(runs: int) -> bool:
    """Print the web container's time; return whether the target is met."""
    run(WEB)
    measured = [run(WEB) for _ in range(runs)]
    median_s = statistics.median(seconds for seconds, _ in measured)
    modules = measured[0][1]
    print(f"web: process start to /health {median_s:.2f} s, median of {runs} (target {MAX_WEB_S})")
    print(f"web: {modules['modules']} modules, heavy ones: {modules['heavy'] or 'none'}")
    return median_s < MAX_WEB_S and not modules["heavy"]


def measure_gpu() -> bool:
    """Print the GPU container's time by part; return whether the targets are met."""
    from pipeline.engines.trellis.weights import WEIGHTS_FOLDER
    from tests.parity.full_size import write_set

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder / WEIGHTS_FOLDER)
        disk = disk_bytes_per_s(folder)
        size_bytes = drop_cache(folder)
        total_s, parts = run(GPU, name)
        warm_s, warm_parts = run(GPU, name)
    imports_s, weights_s = float(str(parts["imports"])), float(str(parts["weights"]))
    rate, target = size_bytes / weights_s, min(LEAST_GB_PER_S * 1e9, DISK_SHARE * disk)
    print(f"gpu: process start to loaded {total_s:.2f} s, {warm_s:.2f} s with the files in the cache; by part, cold:")
    for part, seconds in parts.items():
        print(f"  {part:16} {float(str(seconds)):6.2f} s")
    print(f"  imports, warm    {float(str(warm_parts['imports'])):6.2f} s (target {MAX_IMPORTS_S})")
    print(
        f"  weights          {rate / 1e9:6.2f} GB/s of {size_bytes / 1e9:.2f} GB; the disk alone {disk / 1e9:.2f} GB/s"
    )
    print(f"  weights, warm    {size_bytes / float(str(warm_parts['weights'])) / 1e9:6.2f} GB/s")
    return min(imports_s, float(str(warm_parts["imports"]))) < MAX_IMPORTS_S and rate >= target


def main(argv: list[str]) -> int:
    """Measure and print; return 0 when the targets are met."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks cold", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="starts of the web container")
    parser.add_argument("--web-only", action="store_true", help="write no weights")
    parser.add_argument("--path", action="store_true", help="one cold job on the fake Modal server, part by part")
    cold_path.add_options(parser.add_argument_group("with --path, in seconds and bytes per second"))
    arguments = parser.parse_args(argv)
    if arguments.path:
        return cold_path.main(arguments)
    is_met = measure_web(arguments.runs)
    is_met = (arguments.web_only or measure_gpu()) and is_met
    print("targets met" if is_met else "a target was MISSED")
    return 0 if is_met else 1
