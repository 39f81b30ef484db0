"""The tables and the command line of `python -m scripts.cost_model`. The tables are aligned Markdown."""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.cost_model.autoscaler import Autoscaler, quantile
from scripts.cost_model.data import (
    PRICES,
    Duration,
    Prices,
    StageSeconds,
    overlay_of_runs,
    read_prices,
    read_stage_data,
    stage_seconds,
)
from scripts.cost_model.days import DayShape, jobs_of_day
from scripts.cost_model.jobs import Bill, Day, Deployment, Rates, cold_job, rates_of, run_day, warm_job

HELP = """\
What a job costs on Modal, from a dated price list and the seconds of each stage, and which autoscaler settings to
deploy. Tables are aligned Markdown.

  table                                  cents per job by GPU and volume, beside hosted services
  simulate --gpu L40S --calls 3000       waits and dollars of bursty days, by settings
  sources                                where each price and each duration comes from
  measured runs.jsonl --gpu H100 > my.json, then any of the above with --stages my.json
"""

VOLUMES = (1, 100, 10_000)
LEAST_JOBS, MOST_DAYS = 3000, 30  # a volume is averaged over days until it has so many jobs, or so many days
SCALEDOWN_WINDOWS_S = (2, 10, 30, 60, 300)
BUFFERS, MINIMA, MAXIMA = (0, 1), (0, 1), (2, 4, 10)  # 10 GPUs is the limit of Modal's Starter plan
GPUS = {
    "trellis": ("H100", "A100-80GB", "A100-40GB", "L40S"),
    "trellis-text": ("H100", "A100-80GB", "A100-40GB", "L40S"),
    "trellis2": ("H100", "A100-80GB", "L40S"),
    "triposr": ("L4", "A10", "T4"),
}

TABLE_NOTES = """\
cents per job. warm: one more job where every container is awake anyway. cold: one job alone, with the start and
the idle time of every container. N/day: the mean over days with a wave and bursts, scaledown_window {window:g} s.
Prices of {prices}, durations of {times}: `python -m scripts.cost_model sources` lists where each comes from."""

SIMULATE_NOTES = """\
min, max, buffer, scaledown: the settings of the GPU function; the other two have Modal's defaults. waited: the share of
the jobs that found no free GPU; p50 to p99: seconds until one took the job. $/day: all three functions, and of them
the GPU's. {rows}"""


@dataclass(frozen=True)
class Trial:
    """One setting of the GPU function and what its days gave, all days together.

    Attributes:
        waits_s: for a GPU, by job.
        call_p95_s: 95th percentile of the wait for a `call` container, which precedes them and adds to them.
    """

    settings: Autoscaler
    waits_s: tuple[float, ...]
    call_p95_s: float
    usd_per_day: float
    gpu_usd_per_day: float
    cents_per_job: float

    def wait_s(self, share: float) -> float:
        return quantile(self.waits_s, share)


def days_for(jobs: int) -> int:
    """How many days are averaged for a volume."""
    return max(1, min(MOST_DAYS, -(-LEAST_JOBS // jobs)))


def run_days(
    jobs: int, times: StageSeconds, rates: Rates, deployment: Deployment, *, seed: int, shape: DayShape
) -> list[Day]:
    """Days of so many jobs each, as many as `days_for` says."""
    return [
        run_day(jobs_of_day(jobs, shape, seed=seed + day), times, rates, deployment) for day in range(days_for(jobs))
    ]


def mean_bill(days: Sequence[Day], jobs: int) -> Bill:
    """The bill of one job, the mean over days of so many jobs each."""
    return sum((day.bill for day in days[1:]), start=days[0].bill) / (jobs * len(days))


def try_settings(
    grid: Sequence[Autoscaler], jobs: int, times: StageSeconds, rates: Rates, *, seed: int, shape: DayShape
) -> list[Trial]:
    """Simulate every setting of the GPU function on the same days, cheapest first."""
    trials = []
    for settings in grid:
        days = run_days(jobs, times, rates, Deployment(settings), seed=seed, shape=shape)
        bill = mean_bill(days, jobs)
        trials.append(
            Trial(
                settings=settings,
                waits_s=tuple(wait for day in days for wait in day.gpu.waits_s),
                call_p95_s=quantile([wait for day in days for wait in day.call.waits_s], 0.95),
                usd_per_day=bill.total * jobs,
                gpu_usd_per_day=(bill.gpu_startup + bill.gpu_busy + bill.gpu_idle) * jobs,
                cents_per_job=100 * bill.total,
            )
        )
    return sorted(trials, key=lambda trial: trial.usd_per_day)


def recommend(trials: Sequence[Trial], p95_s: float) -> Trial | None:
    """The cheapest setting whose 95th percentile of the wait is at most so long; None where none is."""
    return min((trial for trial in trials if trial.wait_s(0.95) <= p95_s), key=lambda t: t.usd_per_day, default=None)


def default_grid(maxima: Sequence[int]) -> list[Autoscaler]:
    """The settings that `simulate` tries."""
    return [
        Autoscaler(least, most, buffer, window)
        for least, most, buffer, window in itertools.product(MINIMA, maxima, BUFFERS, SCALEDOWN_WINDOWS_S)
    ]


def undominated(trials: Sequence[Trial]) -> list[Trial]:
    """Of trials, cheapest first, those that wait less at p95 (or the same, and less at p99) than all cheaper ones."""
    kept: list[Trial] = []
    for trial in trials:
        waits = trial.wait_s(0.95), trial.wait_s(0.99)
        if not kept or waits < (kept[-1].wait_s(0.95), kept[-1].wait_s(0.99)):
            kept.append(trial)
    return kept


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table whose columns line up; the first row is the head, columns but the first to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(cells)} |"

    rule = [f"{'-' * widths[0]}", *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def cost_table(
    costs: Sequence[tuple[str, StageSeconds, Rates]], deployment: Deployment, *, seed: int, shape: DayShape
) -> str:
    """Cents per job by GPU: warm, cold, and at each volume."""
    rows = [["GPU", "GPU seconds", "warm", "cold", *(f"{volume:,}/day" for volume in VOLUMES)]]
    for gpu, times, rates in costs:
        bills = [warm_job(times, rates), cold_job(times, rates, deployment)]
        bills += [
            mean_bill(run_days(volume, times, rates, deployment, seed=seed, shape=shape), volume) for volume in VOLUMES
        ]
        rows.append([gpu, f"{times.stage_s('generate'):.2f}", *(f"{100 * bill.total:.2f}" for bill in bills)])
    return aligned(rows)


def parts_table(
    gpu: str, times: StageSeconds, rates: Rates, deployment: Deployment, *, seed: int, shape: DayShape
) -> str:
    """Where the cents of a job go, at each volume."""
    names = ["web", "call: work", "call: start, idle", "GPU: start", "GPU: work", "GPU: idle"]
    columns = []
    for volume in VOLUMES:
        bill = mean_bill(run_days(volume, times, rates, deployment, seed=seed, shape=shape), volume)
        columns.append([f"{100 * part:.3f}" for part in (*bill.parts, bill.total)])
    head = [f"{gpu}, cents per job", *(f"{volume:,}/day" for volume in VOLUMES)]
    return aligned([head, *([name, *cells] for name, *cells in zip([*names, "sum"], *columns, strict=True))])


def peers_table(prices: Prices) -> str:
    """Hosted services' published prices; a mark where the figure is not from the provider's own page."""
    rows = [["hosted service", "cents per job", "its own page"]]
    for peer in prices.peers:
        cents = "not found" if peer.usd_per_call is None else f"{100 * peer.usd_per_call:.2f}"
        rows.append([peer.name, cents, "yes" if peer.is_own_page and peer.usd_per_call is not None else "no"])
    return aligned(rows)


def trials_table(trials: Sequence[Trial]) -> str:
    """The grid: settings, waits, dollars."""
    rows = [["min", "max", "buffer", "scaledown", "waited", "p50", "p95", "p99", "$/day", "GPU", "cents/job"]]
    for trial in trials:
        settings, waits = trial.settings, trial.waits_s
        rows.append(
            [
                str(settings.min_containers),
                "-" if settings.max_containers is None else str(settings.max_containers),
                str(settings.buffer_containers),
                f"{settings.scaledown_window:g} s",
                f"{sum(wait > 0 for wait in waits) / len(waits):.1%}",
                *(f"{trial.wait_s(share):.1f}" for share in (0.5, 0.95, 0.99)),
                f"{trial.usd_per_day:.2f}",
                f"{trial.gpu_usd_per_day:.2f}",
                f"{trial.cents_per_job:.2f}",
            ]
        )
    return aligned(rows)


def recommendation(trials: Sequence[Trial], p95_s: float) -> str:
    """The settings to deploy for a stated p95, in two lines."""
    best = recommend(trials, p95_s)
    if best is None:
        return f"p95 <= {p95_s:g} s: no setting of the grid reaches it"
    settings = best.settings
    said = (
        f"min_containers={settings.min_containers}, max_containers={settings.max_containers}, "
        f"buffer_containers={settings.buffer_containers}, scaledown_window={settings.scaledown_window:g}"
    )
    waits = f"p95 {best.wait_s(0.95):.1f} s, and {best.call_p95_s:.1f} s for a call container"
    return f"p95 <= {p95_s:g} s: {said}\n  {waits}; {best.cents_per_job:.2f} cents per job"


def sources_text(prices: Prices, path: Path, times: StageSeconds, *, label: str, note: str) -> str:
    """Every price and every duration with its source."""
    said = json.loads(path.read_text())
    lines = [f"Prices, {prices.dated}. {said['note']}", f"  Modal: {said['modal']['source']}; {said['modal']['seen']}"]
    lines += [
        f"  {row['name']}: x {row['factor']:g} on {', '.join(row['applies_to'])}; {row['source']}; {row['seen']}"
        for row in said["modal"]["multipliers"]
    ]
    lines += [f"  {peer.name}: {peer.source}; {peer.seen}" for peer in prices.peers]
    lines += ["", f"Durations, {times.dated}, {label}. {note}"]
    for kind, group in (("stage", times.stages), ("start of", times.startups)):
        for name, steps in group.items():
            lines += [f"  {kind} {name}: {_duration_text(step)}" for step in steps]
    lines += [f"  beside a first job: {_duration_text(step)}" for step in times.beside_first_call]
    for name, container in times.containers.items():
        lines.append(
            f"  container {name}: {container.cores:g} cores, {container.memory_gib:g} GiB, {container.gpu or 'no GPU'}"
        )
    return "\n".join(lines)


def _duration_text(step: Duration) -> str:
    return f"{step.what} {step.seconds:.3f} s, {step.how}: {step.by}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--engine", choices=sorted(GPUS), default="trellis", help="default: trellis")
    common.add_argument("--stages", type=Path, metavar="FILE", help="your own durations, merged over the shipped file")
    common.add_argument("--prices", type=Path, metavar="FILE", default=PRICES, help="another price list")
    common.add_argument(
        "--multiplier",
        action="append",
        default=[],
        metavar="NAME",
        help="region-broad, region-narrow or nonpreemptible",
    )
    common.add_argument(
        "--gpu-slowdown", type=float, default=1.0, metavar="X", help="factor on GPU seconds that are arithmetic"
    )
    common.add_argument("--seed", type=int, default=0, help="of the days' arrivals")
    whole = argparse.ArgumentParser(
        prog="python -m scripts.cost_model", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = whole.add_subparsers(dest="verb", required=True)
    table = verbs.add_parser("table", parents=[common], help="cents per job by GPU and volume, beside hosted services")
    table.add_argument("--scaledown", type=float, default=60, metavar="S", help="scaledown_window of all functions")
    table.add_argument("--gpu", action="append", metavar="NAME", help="these GPUs only; may be repeated")
    trial = verbs.add_parser(
        "simulate", parents=[common], help="waits and dollars of a bursty day for a grid of settings, and which to take"
    )
    trial.add_argument("--gpu", metavar="NAME", help="default: the engine's first")
    trial.add_argument("--calls", type=int, default=10_000, help="jobs a day")
    trial.add_argument("--p95", type=float, nargs="+", default=[1.0, 10.0], metavar="S", help="waits to recommend for")
    trial.add_argument("--max-containers", type=int, nargs="+", default=MAXIMA, metavar="N", help="those tried")
    trial.add_argument(
        "--all", action="store_true", help="also print settings that cost and wait more than another one"
    )
    sources = verbs.add_parser("sources", parents=[common], help="where each price and each duration comes from")
    sources.add_argument("--gpu", metavar="NAME", help="default: the engine's first")
    measured = verbs.add_parser(
        "measured", help="make a file for --stages of answers of `image-to-3d generate --json`, one a line"
    )
    measured.add_argument("runs", type=Path, metavar="RUNS")
    measured.add_argument("--engine", choices=sorted(GPUS), default="trellis")
    measured.add_argument("--gpu", metavar="NAME", help="the GPU they ran on; without one `generate` is left out")
    return whole


def main(argv: Sequence[str]) -> int:
    """Print the report; return 2 after one sentence where the arguments do not fit the data."""
    options = parser().parse_args(argv)
    try:
        text = _measured(options) if options.verb == "measured" else _report(options)
    except (KeyError, ValueError, OSError) as error:
        print(f"cost_model: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _measured(options: argparse.Namespace) -> str:
    lines = options.runs.read_text().splitlines()
    dated = datetime.datetime.now(datetime.UTC).date().isoformat()
    return json.dumps(overlay_of_runs(lines, engine=options.engine, gpu=options.gpu, dated=dated), indent=2)


def _report(options: argparse.Namespace) -> str:
    prices, data = read_prices(options.prices), read_stage_data(options.stages)
    asked = options.gpu or None
    gpus = asked if isinstance(asked, list) else [asked] if asked else GPUS[options.engine]
    costs = []
    for gpu in gpus:
        times = stage_seconds(data, engine=options.engine, gpu=gpu, slowdown=options.gpu_slowdown)
        costs.append((gpu, times, rates_of(times, prices, options.multiplier)))
    gpu, times, rates = costs[0]
    shape = DayShape()
    if options.verb == "sources":
        return sources_text(prices, options.prices, times, label=f"{options.engine} on {gpu}", note=data["note"])
    if options.verb == "simulate":
        grid = default_grid(options.max_containers)
        trials = try_settings(grid, options.calls, times, rates, seed=options.seed, shape=shape)
        shown = trials if options.all else undominated(trials)
        left_out = len(trials) - len(shown)
        notes = SIMULATE_NOTES.format(
            rows=f"Left out, because another setting costs and waits less: {left_out}." if left_out else ""
        )
        head = f"{options.engine} on {gpu}, {options.calls:,} jobs a day; days: {days_for(options.calls)}"
        best = "\n".join(recommendation(trials, p95_s) for p95_s in options.p95)
        return f"{head}\n\n{trials_table(shown)}\n\n{notes}\n\n{best}"
    settings = Autoscaler(scaledown_window=options.scaledown)
    deployment = Deployment(settings, settings)
    table = cost_table(costs, deployment, seed=options.seed, shape=shape)
    parts = parts_table(gpu, times, rates, deployment, seed=options.seed, shape=shape)
    notes = TABLE_NOTES.format(window=options.scaledown, prices=prices.dated, times=times.dated)
    return f"{options.engine}\n\n{table}\n\n{notes}\n\n{parts}\n\n{peers_table(prices)}"
