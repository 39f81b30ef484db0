"""What one generation asks of a GPU, counted without one, and the seconds and cents that follow: `device [ENGINE ...]`.

Each engine runs at its released depth and width on a pretended CUDA device that computes shapes and counts: kernels,
waits of the host, FLOPs, bytes and memory of each stage. Nothing is counted for one block and multiplied. Weights have
no values; what the host looks at, such as occupied voxels, is that of a ball with as many voxels as an object. The
seconds are those of `scripts.cost_model.gpu_time`: predicted, not measured.

Names: trellis, trellis-render, triposr, trellis-text, trellis2-512, trellis2-1024, trellis2-1536; by default all.
With `--out FILE` the predicted seconds as a file for `python -m scripts.cost_model table --stages FILE`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.engines.base import GenerationOptions
from pipeline.engines.registry import defaults_of
from scripts.cost_model.data import read_prices, read_stage_data, stage_seconds
from scripts.cost_model.gpu_time import KINDS, StageWork, bounds_s, predicted_s
from scripts.cost_model.jobs import rates_of, warm_job
from scripts.cost_model.report import aligned
from tests.fakes.cuda.counts import OUTSIDE, Counts
from tests.fakes.cuda.device import pretended_cuda
from tests.fakes.cuda.full_size import trellis_engine, trellis_text_engine, triposr_engine
from tests.fakes.cuda.full_size_trellis2 import trellis2_engine
from tests.fakes.cuda.stages import STAGES
from tests.fakes.images import draw_disc

RADIUS = 21.5
"""Of TRELLIS's ball, in voxels of 64: 17,400 voxels, as many as the surface that the cost model's arithmetic takes."""
GPUS = ("H100", "A100-80GB", "L40S", "L4")
VENDOR_S = {"trellis2-512": 3, "trellis2-1024": 17, "trellis2-1536": 60}
"""Of an H100, as the authors of TRELLIS.2 state."""
CONVOLUTIONS = ("implicit_conv3", "convolution")


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        engine: its name in requests, for the request's defaults and the containers of the cost model.
        make: builds the engine on the device that is pretended.
        changes: of the options of a default request.
        takes_text: it gets a prompt instead of a view.
        without: a stage that is counted and left out, so that two calls need one count.
    """

    engine: str
    make: Callable[[], Any]
    changes: Mapping[str, Any]
    takes_text: bool = False
    without: str = ""


def _make_trellis() -> Any:
    return trellis_engine(radius=RADIUS)


CASES: dict[str, Case] = {
    "trellis": Case("trellis", _make_trellis, {"render": True}, without="render"),
    "trellis-render": Case("trellis", _make_trellis, {"render": True}),
    "triposr": Case("triposr", triposr_engine, {}),
    "trellis-text": Case("trellis-text", lambda: trellis_text_engine(radius=RADIUS), {"prompt": "a robot"}, True),
    **{
        f"trellis2-{detail}": Case("trellis2", lambda detail=detail: trellis2_engine(detail), {"detail": detail})
        for detail in (512, 1024, 1536)
    },
}


def count(case: Case, *, changes: Mapping[str, Any] | None = None) -> Counts:
    """Run one call and return what it asked of the device.

    Args:
        case: the call.
        changes: further changes of its options, for a smaller run.
    """
    options = replace(GenerationOptions(seed=7, **defaults_of(case.engine)), **case.changes, **(changes or {}))
    with pretended_cuda(STAGES, follows_rays=True) as counts:
        engine = case.make()
        engine.load()
        counts.reset()
        engine.generate([] if case.takes_text else [draw_disc()], options)
    return counts


def work_of(counts: Counts) -> dict[str, StageWork]:
    """What each stage asked of the device, in the order of their first kernels."""
    stages = {}
    for stage in counts.stages():
        launches = [launch for launch in counts.launched if launch.stage == stage]
        flops: Counter[tuple[str, str]] = Counter()
        for launch in launches:
            if launch.flops:
                flops[kind_of(launch.op), launch.precision] += launch.flops
        moved = sum(launch.moved_bytes for launch in launches)
        name = "around" if stage == OUTSIDE else stage
        stages[name] = StageWork(len(launches), counts.waits(stage), moved, flops, counts.peak_bytes(stage))
    return stages


def kind_of(op: str) -> str:
    """Kind of an operation, a key of `scripts.cost_model.gpu_time.SHARES`."""
    if op in ("scaled_dot_product_attention", "_varlen_attn"):
        return "attention"
    if op in CONVOLUTIONS:
        return "convolution"
    return "rays" if op == "render_rays" else "product"


def stages_table(work: Mapping[str, Mapping[str, StageWork]], rates: Mapping[str, float], gpu: str) -> str:
    """Counts of each stage, and what it takes on one GPU."""
    rows = [["call", "stage", "launches", "waits", "TFLOP", "GB moved", "GB in use", f"s on {gpu}", "bound by"]]
    for name, stages in work.items():
        for stage, one in stages.items():
            bounds = bounds_s(one, rates)
            slowest = max(KINDS, key=bounds.__getitem__)
            rows.append(
                [
                    name,
                    stage,
                    f"{one.launches:,}",
                    str(one.waits),
                    f"{one.tflop:.2f}",
                    f"{one.moved_bytes / 1e9:.1f}",
                    f"{one.peak_bytes / 1e9:.2f}",
                    f"{bounds[slowest]:.3f}",
                    slowest,
                ]
            )
    return aligned(rows)


def calls_table(seconds: Mapping[str, Mapping[str, float]], work: Mapping[str, Mapping[str, StageWork]]) -> str:
    """Predicted seconds of each call on each GPU, beside the vendor's; the peak of memory."""
    rows = [["call", "GB in use", *(f"{gpu}, s" for gpu in GPUS), "stated for an H100, s"]]
    for name, by_gpu in seconds.items():
        peak = max(stage.peak_bytes for stage in work[name].values()) / 1e9
        stated = str(VENDOR_S[name]) if name in VENDOR_S else ""
        rows.append([name, f"{peak:.1f}", *(f"{by_gpu[gpu]:.2f}" for gpu in GPUS), stated])
    return aligned(rows)


def cents_table(seconds: Mapping[str, Mapping[str, float]]) -> str:
    """Cents of the GPU container's time alone and, after a stroke, of a whole warm job."""
    prices = read_prices()
    rows = [["call", *(f"{gpu}: GPU / warm job, cents" for gpu in GPUS)]]
    for name, by_gpu in seconds.items():
        row = [name]
        for gpu in GPUS:
            times = stage_seconds(overlaid({name: {gpu: by_gpu[gpu]}}), engine=CASES[name].engine, gpu=gpu)
            rates = rates_of(times, prices)
            row.append(f"{100 * rates.gpu * by_gpu[gpu]:.2f} / {100 * warm_job(times, rates).total:.2f}")
        rows.append(row)
    return aligned(rows)


def overlay(seconds: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Predicted seconds in the form of `stage_seconds.json`; of two calls of an engine the last."""
    by = "python -m scripts.benchmarks device: predicted from a count, not measured"
    engines: dict[str, Any] = {}
    for name, by_gpu in seconds.items():
        generate = {gpu: {"seconds": round(s, 3), "how": "arithmetic", "by": by} for gpu, s in by_gpu.items()}
        engines[CASES[name].engine] = {"generate": generate}
    return {"engines": engines}


def overlaid(seconds: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The durations of the cost model with predicted ones."""
    data = read_stage_data()
    for engine, rows in overlay(seconds)["engines"].items():
        data["engines"][engine]["generate"] |= rows["generate"]
    return data


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("calls", nargs="*", metavar="ENGINE", default=[*CASES])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the predicted seconds for the cost model")
    options = parser.parse_args(arguments)
    if unknown := {*options.calls} - {*CASES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    rates = read_stage_data()["gpus"]
    work: dict[str, dict[str, StageWork]] = {}
    counted: dict[Callable[[], Any], dict[str, StageWork]] = {}
    for name in options.calls:
        case, started = CASES[name], time.process_time()
        if case.make not in counted:
            counted[case.make] = work_of(count(case))
        work[name] = {stage: one for stage, one in counted[case.make].items() if stage != case.without}
        print(f"counted {name} in {time.process_time() - started:.0f} s of CPU", file=sys.stderr, flush=True)
    seconds = {name: {gpu: predicted_s(stages, rates[gpu]) for gpu in GPUS} for name, stages in work.items()}
    print(stages_table(work, rates[GPUS[0]], GPUS[0]))
    print(f"\npredicted\n\n{calls_table(seconds, work)}\n\n{cents_table(seconds)}")
    if options.out:
        options.out.write_text(json.dumps(overlay(seconds), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
