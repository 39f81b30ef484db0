"""Many jobs submitted at once to a deployment on Modal: how many containers run, how often they ask, what is lost.

Containers are threads of this process, with the real functions around the work of the stages (`tests.on_modal.chain`);
100 processes with their imports would measure this machine. Each operation on a Dict or a call takes `--latency-s`. A
share of them is lost, as the client reports it after its own repetitions, or takes effect `--late-s` later.
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
from pathlib import Path

IDLE_S = 5.0
"""How long the scheduled functions wait between two runs; one minute on Modal."""


def main(argv: list[str]) -> int:
    """Print the numbers; returns 1 where a job did not end once or the rate of calls is too high."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks chain", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--gpus", type=int, default=3)
    parser.add_argument("--generation-s", type=float, default=2.0)
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
    from pipeline.on_modal import functions
    from tests.on_modal.chain import OF_ENGINES, OF_JOBS, Call, Chain, LightHandler
    from tests.on_modal.containers import ScriptedEngine, steps_for

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    functions.JobHandler = LightHandler
    functions.start_prewarm = lambda: None
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
        busy: Counter[str] = Counter()
        samples: list[tuple[int, int, int]] = []
        is_over = threading.Event()

        def container(function: str) -> None:
            server = None
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
                    chain.run(call, server)
                    busy[function] -= 1

        def watch() -> None:
            while not is_over.wait(IDLE_S):
                try:
                    chain.on_schedule()
                except Exception as error:  # noqa: BLE001  # the next run tries again
                    print(f"scheduled functions: {error}", file=sys.stderr)

        def sample() -> None:
            while not is_over.wait(0.25):
                samples.append((busy[OF_JOBS], busy[OF_ENGINES], queues[OF_ENGINES].qsize()))

        cpus = min(40, 3 * options.gpus + 4)
        threads = [threading.Thread(target=container, args=(OF_JOBS,), daemon=True) for _ in range(cpus)]
        threads += [threading.Thread(target=container, args=(OF_ENGINES,), daemon=True) for _ in range(options.gpus)]
        threads += [threading.Thread(target=watch, daemon=True), threading.Thread(target=sample, daemon=True)]
        jobs = [chain.submit() for _ in range(options.jobs)]
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
        while_waiting = [cpu for cpu, gpu, waiting in samples if gpu == options.gpus and waiting]
        rate = asked.total() / max(running_s, 1e-9)
        print(
            f"{once} of {len(jobs)} jobs ended once, in {total_s:.1f} s; attempts {Counter(j.attempts for j in ended)}"
        )
        print(
            f"generations begun: {generations}; calls by function: {Counter(c.function for c in chain.calls.values())}"
        )
        print(
            f"CPU containers busy: most {max(cpu for cpu, _, _ in samples)}, mean "
            f"{sum(while_waiting) / max(1, len(while_waiting)):.2f} while all GPUs work and generations wait"
        )
        print(f"operations: {asked.total()}, {rate:.2f} per running job and second; {dict(asked)}")
    return int(once != len(jobs) or rate > options.most_rpcs)
