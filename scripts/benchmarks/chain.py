"""Many jobs submitted at once to a deployment on Modal: how many containers run, how often they ask, what is lost.

Containers are threads of this process, with the real functions around the work of the stages (`tests.on_modal.chain`);
100 processes with their imports would measure this machine. Each operation on a Dict or a call takes `--latency-s`. A
share of them is lost, as the client reports it after its own repetitions, or takes effect `--late-s` later.

What the containers of jobs do is read from their stacks four times a second: they work, wait for an operation (which
includes the pauses between tries), wait for the lease of another container, or wait for a GPU.
"""

from __future__ import annotations

import argparse
import queue
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

SCHEDULE_S = 60.0
"""How long the scheduled functions wait between two runs, as on Modal."""
SAMPLE_S = 0.25


WORKS, ASKS, OF_LEASE, OF_GPU = "works", "waits for an operation", "waits for a lease", "waits for a GPU"


@dataclass(frozen=True)
class Sample:
    """What runs at one moment.

    Attributes:
        doing: the containers of jobs, by what they do.
        gpus: containers of the engine that work.
        waiting: generations that no container has begun.
    """

    doing: Counter[str]
    gpus: int
    waiting: int


def what_it_does(frame: FrameType | None) -> str:
    """What the thread of a container does; "" for one that waits for a call."""
    names = []
    while frame is not None:
        names.append((frame.f_code.co_filename.rpartition("/")[2], frame.f_code.co_name))
        frame = frame.f_back
    if ("chain.py", "run") not in names:
        return ""
    pauses = {("commit_log.py", "_pause"), ("worker_loop.py", "_written")}
    if ("chain.py", "hook") in names or ("worker_loop.py", "__exit__") in names or names[0] in pauses:
        return ASKS
    if ("chain.py", "get") in names:
        return OF_GPU
    if ("worker_loop.py", "run_dispatched") in names and names[1] == ("threading.py", "wait"):
        return OF_LEASE
    return WORKS


def main(argv: list[str]) -> int:
    """Print the numbers; returns 1 where a job did not end once or the rate of calls is too high."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks chain", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--gpus", type=int, default=3)
    parser.add_argument("--generation-s", type=float, default=2.0)
    parser.add_argument("--intake-s", type=float, default=0.0)
    parser.add_argument("--export-s", type=float, default=0.0)
    parser.add_argument("--latency-s", type=float, default=0.04)
    parser.add_argument("--lost", type=float, default=0.0, help="share of operations")
    parser.add_argument("--late", type=float, default=0.0, help="share of operations")
    parser.add_argument("--late-s", type=float, default=130.0)
    parser.add_argument("--most-rpcs", type=float, default=1.5, help="per running job and second")
    parser.add_argument("--timeout-s", type=float, default=500.0)
    return measure(parser.parse_args(argv))


def measure(options: argparse.Namespace) -> int:
    """Run the jobs."""
    import structlog

    from pipeline.jobs.model import JobState
    from pipeline.jobs.worker_loop import QueueWorker
    from pipeline.on_modal import functions
    from pipeline.on_modal.early_start import EarlyStart, mark_startable
    from tests.on_modal.chain import OF_ENGINES, OF_JOBS, Call, Chain, LightHandler
    from tests.on_modal.containers import ScriptedEngine, steps_for

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    LightHandler.intake_s, LightHandler.deliver_s = options.intake_s, options.export_s
    functions.JobHandler = LightHandler
    functions.start_prewarm = lambda: None
    lost_leases = Counter[str]()
    write = QueueWorker._written

    def counted(worker: QueueWorker, *arguments: Any) -> Any:
        written = write(worker, *arguments)
        if isinstance(written, str):
            lost_leases[written] += 1
        return written

    QueueWorker._written = counted  # pyright: ignore[reportAttributeAccessIssue]
    drawn, asked, is_measuring = random.Random(1), Counter[str](), threading.Event()
    queues: dict[str, queue.Queue[Call]] = {OF_JOBS: queue.Queue(), OF_ENGINES: queue.Queue(), "wake": queue.Queue()}

    def hook(step: str) -> None:
        if not step.startswith(("Dict", "Function", "Volume")) or not is_measuring.is_set():
            return
        asked[step] += 1
        time.sleep(options.latency_s)
        fault = drawn.random()
        if fault < options.lost:
            raise ConnectionError("lost")
        if fault < options.lost + options.late:
            time.sleep(options.late_s)

    with tempfile.TemporaryDirectory(prefix="chain-") as name:
        chain = Chain(
            Path(name),
            hook=hook,
            enqueue=lambda call: queues[call.function].put(call),
            patience_s=30.0,
            lease_s=30.0,
        )
        start_early = EarlyStart({"preview": chain.containers}, default="preview", entries=chain.entries)
        busy: Counter[str] = Counter()
        samples: list[Sample] = []
        is_over = threading.Event()

        def container(function: str) -> None:
            server, store = None, chain.open_store()
            if function == OF_ENGINES:
                engine = ScriptedEngine(*[steps_for(options.generation_s)] * 10_000, gpu_seconds=1.0)
                server = chain.start_server(engine)
            while not is_over.is_set():
                try:
                    call = queues[function].get(timeout=0.2)
                except queue.Empty:
                    continue
                if not call.is_ended.is_set():
                    busy[function] += 1
                    chain.run(call, server, store)
                    busy[function] -= 1

        def watch() -> None:
            while not is_over.wait(SCHEDULE_S):
                try:
                    chain.on_schedule()
                except Exception as error:  # noqa: BLE001  # the next run tries again
                    print(f"scheduled functions: {error}", file=sys.stderr)

        def sample() -> None:
            while not is_over.wait(SAMPLE_S):
                frames = sys._current_frames()
                doing = Counter(
                    what_it_does(frames[thread.ident]) for thread in threads[:cpus] if thread.ident in frames
                )
                samples.append(Sample(doing, busy[OF_ENGINES], queues[OF_ENGINES].qsize()))

        cpus = min(40, 3 * options.gpus + 4)
        threads = [threading.Thread(target=container, args=(OF_JOBS,), daemon=True) for _ in range(cpus)]
        threads += [threading.Thread(target=container, args=(OF_ENGINES,), daemon=True) for _ in range(options.gpus)]
        threads += [threading.Thread(target=watch, daemon=True), threading.Thread(target=sample, daemon=True)]
        jobs = [chain.submit() for _ in range(options.jobs)]
        mark_startable(chain.entries, "preview")
        for job in jobs:
            start_early(job)  # as the web container does
        started_s = time.monotonic()
        is_measuring.set()
        for thread in threads:
            thread.start()
        for job in jobs:
            threading.Thread(target=chain.dispatch, args=(job.id,), daemon=True).start()
        running_s, seen_s = 0.0, time.monotonic()
        while time.monotonic() - started_s < options.timeout_s:
            time.sleep(0.5)
            states = Counter(job.state for job in chain.read_quietly([job.id for job in jobs]))
            now_s = time.monotonic()
            running_s += states[JobState.RUNNING] * (now_s - seen_s)
            seen_s = now_s
            if not states[JobState.RUNNING] and not states[JobState.QUEUED]:
                break
        is_measuring.clear()
        is_over.set()
        total_s = time.monotonic() - started_s
        for thread in threads:
            thread.join(10)
        ended = chain.read_quietly([job.id for job in jobs])
        once = sum(
            job.state is JobState.SUCCESS and chain.rows(job.id) == 1 and len(chain.webhook_ids(job.id)) == 1
            for job in ended
        )
        generations = sum(call.function == OF_ENGINES and call.runs > 0 for call in chain.calls.values())
        while_waiting = [sample for sample in samples if sample.gpus == options.gpus and sample.waiting]
        rate = asked.total() / max(running_s, 1e-9)
        print(
            f"{once} of {len(jobs)} jobs ended once, in {total_s:.1f} s; "
            f"attempts {Counter(job.attempts for job in ended)}; not written: {dict(lost_leases)}"
        )
        print(
            f"generations begun: {generations}; calls by function: {Counter(c.function for c in chain.calls.values())}"
        )
        print("CPU containers in the mean, while all GPUs work and generations wait; most at once:")
        for name in (WORKS, ASKS, OF_LEASE, OF_GPU):
            mean = sum(sample.doing[name] for sample in while_waiting) / max(1, len(while_waiting))
            print(f"  {name}: {mean:.2f}; {max((sample.doing[name] for sample in samples), default=0)}")
        print(f"operations: {asked.total()}, {rate:.2f} per running job and second; {dict(asked)}")
    return int(once != len(jobs) or rate > options.most_rpcs)
