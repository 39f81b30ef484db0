"""What the jobs of a day cost, container by container. Takes durations and prices; knows no files.

A job uses three containers. The web function serves many jobs at once and stays awake while any is in flight. One
`call` container (Modal's function `run_call`) downloads and prepares the image, waits for the GPU, exports and
delivers; beside its first job it compiles the export's kernels. One GPU container generates; it is started when the job
begins, so its cold start overlaps the intake.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from scripts.cost_model.autoscaler import Autoscaler, PoolRun, simulate
from scripts.cost_model.data import Prices, StageSeconds
from scripts.cost_model.days import DAY_S


@dataclass(frozen=True)
class Bill:
    """Dollars, split by container and by what it did.

    Attributes:
        web: the web function, awake or starting.
        call_busy, call_other: the `call` containers: working, and starting or idle.
        gpu_startup, gpu_busy, gpu_idle: the GPU containers.
    """

    web: float
    call_busy: float
    call_other: float
    gpu_startup: float
    gpu_busy: float
    gpu_idle: float

    @property
    def total(self) -> float:
        return self.web + self.call_busy + self.call_other + self.gpu_startup + self.gpu_busy + self.gpu_idle

    def __add__(self, other: Bill) -> Bill:
        return Bill(*(mine + theirs for mine, theirs in zip(self.parts, other.parts, strict=True)))

    def __truediv__(self, count: float) -> Bill:
        return Bill(*(part / count for part in self.parts))

    @property
    def parts(self) -> tuple[float, ...]:
        return (self.web, self.call_busy, self.call_other, self.gpu_startup, self.gpu_busy, self.gpu_idle)


@dataclass(frozen=True)
class Rates:
    """Dollars per second of each container."""

    web: float
    call: float
    gpu: float


@dataclass(frozen=True)
class Deployment:
    """The autoscaler of the GPU function and that of the other two."""

    gpu: Autoscaler
    others: Autoscaler = field(default_factory=Autoscaler)


@dataclass(frozen=True)
class Day:
    """One day: its bill, and the runs of the two pools."""

    bill: Bill
    gpu: PoolRun
    call: PoolRun


def rates_of(times: StageSeconds, prices: Prices, multipliers: Iterable[str] = ()) -> Rates:
    """Dollars per second of the three containers of an engine on a GPU."""
    names = tuple(multipliers)
    return Rates(**{name: prices.usd_per_s(container, names) for name, container in times.containers.items()})


def run_day(
    arrivals_s: Sequence[float], times: StageSeconds, rates: Rates, deployment: Deployment, *, horizon_s: float = DAY_S
) -> Day:
    """Simulate the jobs of one day in the three functions.

    The pools are simulated one after the other: the GPU's waits lengthen the jobs, but the start of a `call`
    container does not delay the GPU's work. A caller waits for both, one after the other.

    Args:
        arrivals_s: when the jobs arrive, ascending.
        horizon_s: until when `min_containers` are paid.
    """
    count = len(arrivals_s)
    gpu_s, intake_s = times.stage_s("generate"), times.stage_s("intake")
    after_s = times.stage_s("export") + times.stage_s("deliver")
    cold_gpu_s, cold_call_s = times.startup_s("gpu"), times.startup_s("call")
    gpu = simulate(arrivals_s, [gpu_s] * count, deployment.gpu, cold_start_s=cold_gpu_s, horizon_s=horizon_s)
    until_export_s = [max(intake_s, wait_s) + gpu_s for wait_s in gpu.waits_s]
    call = simulate(
        arrivals_s,
        [before_s + after_s for before_s in until_export_s],
        deployment.others,
        cold_start_s=cold_call_s,
        first_service_s=[max(before_s, times.beside_first_call_s) + after_s for before_s in until_export_s],
        horizon_s=horizon_s,
    )
    ends_s = [at + wait + last for at, wait, last in zip(arrivals_s, call.waits_s, call.served_s, strict=True)]
    web_s = awake_s(arrivals_s, ends_s, deployment.others, startup_s=times.startup_s("web"), horizon_s=horizon_s)
    bill = Bill(
        web=rates.web * web_s,
        call_busy=rates.call * call.busy_s,
        call_other=rates.call * (call.startup_s + call.idle_s),
        gpu_startup=rates.gpu * gpu.startup_s,
        gpu_busy=rates.gpu * gpu.busy_s,
        gpu_idle=rates.gpu * gpu.idle_s,
    )
    return Day(bill, gpu, call)


def awake_s(
    begins_s: Sequence[float], ends_s: Sequence[float], settings: Autoscaler, *, startup_s: float, horizon_s: float
) -> float:
    """Seconds that a container runs, starts included, that serves any number of inputs concurrently.

    Args:
        begins_s, ends_s: of each input, the first ascending.
    """
    if settings.min_containers:
        return settings.min_containers * max([horizon_s, *ends_s])
    total_s = until_s = 0.0
    for begin_s, end_s in zip(begins_s, ends_s, strict=True):
        rests_s = end_s + settings.scaledown_window
        if total_s == 0 or begin_s > until_s:
            total_s += startup_s + rests_s - begin_s
            until_s = rests_s
        elif rests_s > until_s:
            total_s += rests_s - until_s
            until_s = rests_s
    return total_s


def warm_job(times: StageSeconds, rates: Rates) -> Bill:
    """One more job where every container is awake anyway: the work alone, no start, no idle time, no web."""
    gpu_s = times.stage_s("generate")
    call_s = times.stage_s("intake") + gpu_s + times.stage_s("export") + times.stage_s("deliver")
    return Bill(0.0, rates.call * call_s, 0.0, 0.0, rates.gpu * gpu_s, 0.0)


def cold_job(times: StageSeconds, rates: Rates, deployment: Deployment) -> Bill:
    """One job alone in the day: every container starts for it, works, and idles until it stops."""
    return run_day([0.0], times, rates, deployment, horizon_s=0.0).bill
