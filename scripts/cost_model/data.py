"""The two data files of the cost tables, read and checked: Modal's price list, and how long each stage takes.

Both are dated. Every price names its source; every duration says how it was obtained: measured, arithmetic, published
or assumed. An operator's file of own measurements replaces rows of the second one.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PRICES, STAGE_SECONDS = HERE / "prices.json", HERE / "stage_seconds.json"
HOW = ("measured", "arithmetic", "published", "assumed")


@dataclass(frozen=True)
class Duration:
    """Seconds of one part, how they were obtained (one of `HOW`) and from what."""

    what: str
    seconds: float
    how: str
    by: str


@dataclass(frozen=True)
class Container:
    """What a function reserves: physical cores and GiB of memory, and a GPU or none."""

    cores: float
    memory_gib: float
    gpu: str | None = None


@dataclass(frozen=True)
class Peer:
    """A hosted service: dollars for one job, None where not found; `seen`: in what copy or report of the source."""

    name: str
    usd_per_call: float | None
    source: str
    seen: str
    is_own_page: bool


@dataclass(frozen=True)
class Prices:
    """Modal's list, in dollars per second, and hosted peers beside it."""

    dated: str
    gpu_usd_per_s: Mapping[str, float]
    core_usd_per_s: float
    memory_gib_usd_per_s: float
    least_cores: float
    multipliers: Mapping[str, tuple[float, frozenset[str]]]
    peers: tuple[Peer, ...]

    def usd_per_s(self, container: Container, multipliers: Iterable[str] = ()) -> float:
        """Dollars for one second of a container, under the named multipliers.

        Raises:
            KeyError: a GPU or a multiplier that is not on the list.
        """
        factor = {"gpu": 1.0, "cpu": 1.0, "memory": 1.0}
        for name in multipliers:
            times, kinds = self.multipliers[name]
            if container.gpu and "gpu" not in kinds:
                continue  # nonpreemptible is not offered for functions with a GPU
            for kind in kinds:
                factor[kind] *= times
        gpu = self.gpu_usd_per_s[container.gpu] if container.gpu else 0.0
        cores = max(container.cores, self.least_cores)
        return (
            gpu * factor["gpu"]
            + cores * self.core_usd_per_s * factor["cpu"]
            + container.memory_gib * self.memory_gib_usd_per_s * factor["memory"]
        )


@dataclass(frozen=True)
class StageSeconds:
    """How long everything takes for one engine on one GPU.

    Attributes:
        stages: `intake`, `generate`, `export`, `deliver`, each as its steps.
        startups: of the containers `web`, `call`, `gpu`, each as its steps.
        beside_first_call: what a `call` container does beside its first job, whose export waits until it has ended.
        containers: what each of the three reserves.
    """

    dated: str
    stages: Mapping[str, tuple[Duration, ...]]
    startups: Mapping[str, tuple[Duration, ...]]
    beside_first_call: tuple[Duration, ...]
    containers: Mapping[str, Container]

    def stage_s(self, stage: str) -> float:
        return sum(step.seconds for step in self.stages[stage])

    def startup_s(self, container: str) -> float:
        return sum(step.seconds for step in self.startups[container])

    @property
    def beside_first_call_s(self) -> float:
        return sum(step.seconds for step in self.beside_first_call)


def read_prices(path: Path = PRICES) -> Prices:
    """Read a price list.

    Raises:
        ValueError: a row without its source, or a price that is not positive.
    """
    said = json.loads(path.read_text())
    modal = said["modal"]
    sourced = [modal, *modal["multipliers"], *said["peers"]]
    if any(not row.get("source") or not row.get("seen") for row in sourced):
        raise ValueError(f"{path.name}: every row needs source and seen")
    prices = Prices(
        dated=said["dated"],
        gpu_usd_per_s=modal["gpu_usd_per_s"],
        core_usd_per_s=modal["cpu_core_usd_per_s"],
        memory_gib_usd_per_s=modal["memory_gib_usd_per_s"],
        least_cores=modal["least_cores"],
        multipliers={row["name"]: (row["factor"], frozenset(row["applies_to"])) for row in modal["multipliers"]},
        peers=tuple(Peer(**row) for row in said["peers"]),
    )
    if min(*prices.gpu_usd_per_s.values(), prices.core_usd_per_s, prices.memory_gib_usd_per_s) <= 0:
        raise ValueError(f"{path.name}: prices are positive")
    return prices


def read_stage_data(overlay: Path | None = None, path: Path = STAGE_SECONDS) -> dict[str, Any]:
    """The durations in the file, merged with an operator's own: objects merge, other values replace."""
    said = json.loads(path.read_text())
    return _merged(said, json.loads(overlay.read_text())) if overlay else said


def stage_seconds(data: Mapping[str, Any], *, engine: str, gpu: str, slowdown: float = 1.0) -> StageSeconds:
    """All durations for an engine on a GPU.

    Args:
        data: as `read_stage_data` gives it.
        slowdown: factor on the GPU seconds that are arithmetic; measured ones stay.

    Raises:
        KeyError: an engine that is not in the data, or a GPU without a published rate.
        ValueError: a row that does not say how it was obtained, or a negative duration.
    """
    said = data["engines"][engine]
    generate = said["generate"]
    if gpu in generate:
        step = _duration("sampling and decoding", generate[gpu])
    else:
        step = _by_arithmetic(generate["arithmetic"], data["gpus"][gpu], gpu, slowdown)
    containers = {
        name: Container(row["cores"], row["memory_gib"], gpu if name == "gpu" else None)
        for name, row in data["containers"].items()
    }
    return StageSeconds(
        dated=data["dated"],
        stages=_stages(said["stages"], data) | {"generate": (step, *_durations(data["beside_generate"]))},
        startups={
            name: _durations(rows | (said["startup"] if name == "gpu" else {}))
            for name, rows in data["startup"].items()
        },
        beside_first_call=_durations(data["beside_first_call"]),
        containers=containers,
    )


def overlay_of_runs(runs: Iterable[str], *, engine: str, gpu: str | None, dated: str) -> dict[str, Any]:
    """An overlay from answers of `image-to-3d generate --json`, one a line: medians of the runs of this engine.

    The first run of a container also compiles and warms up, so leave it out or take several.

    Args:
        gpu: the GPU that they ran on; without one the `generate` stage is not taken over.

    Raises:
        ValueError: no line is a successful run of this engine.
    """
    answers = [json.loads(line) for line in runs if line.strip()]
    seconds = [
        answer["stage_seconds"]
        for answer in answers
        if answer.get("status") == "success" and answer["meta"]["engine"] == engine
    ]
    if not seconds:
        raise ValueError(f"none of {len(answers)} answers is a successful run of {engine}")

    def row(stage: str) -> dict[str, Any]:
        median = statistics.median(run[stage] for run in seconds)
        by = f"image-to-3d generate, median of {len(seconds)}"
        return {"seconds": median, "how": "measured", "by": by}

    stages = {stage: {"work": row(stage)} for stage in ("intake", "export", "deliver")}
    generate = {gpu: row("generate")} if gpu else {}
    return {"dated": dated, "engines": {engine: {"stages": stages, "generate": generate}}}


def _by_arithmetic(generate: Mapping[str, Any], rates: Mapping[str, Any], gpu: str, slowdown: float) -> Duration:
    kind = f"dense_{generate['precision']}_tflops"
    if kind not in rates:
        raise KeyError(f"no {kind} of {gpu} in the data")
    seconds = slowdown * generate["tflop"] / (generate["efficiency"] * rates[kind])
    by = f"{generate['tflop']:g} TFLOP ({generate['of']}) at {generate['efficiency']:.0%} of {rates[kind]:g} TFLOPS"
    slowed = f", x {slowdown:g}" if slowdown != 1 else ""
    return Duration("sampling and decoding", seconds, "arithmetic", f"{by} {generate['precision']}{slowed}")


def _stages(rows: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, tuple[Duration, ...]]:
    """The stages of an engine, with what Modal adds to the delivery."""
    stages = {stage: _durations(steps) for stage, steps in rows.items()}
    return stages | {"deliver": (*stages["deliver"], *_durations(data["deliver_on_modal"]))}


def _durations(rows: Mapping[str, Mapping[str, Any]]) -> tuple[Duration, ...]:
    return tuple(_duration(what, row) for what, row in rows.items())


def _duration(what: str, row: Mapping[str, Any]) -> Duration:
    step = Duration(what, **row)
    if step.how not in HOW or not step.by or step.seconds < 0:
        raise ValueError(f"{step.what}: {step.seconds} s, {step.how!r} by {step.by!r}; how is one of {', '.join(HOW)}")
    return step


def _merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _merged(below.get(key), value) for key, value in above.items()}
    return above
