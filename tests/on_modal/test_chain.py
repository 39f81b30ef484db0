"""A job's chain of calls with its containers killed at every step, dispatched twice, cancelled and given up."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="needs the extra 'local'")

from pipeline.errors import Cancelled
from pipeline.jobs.model import Job, JobState
from pipeline.jobs.transitions import PASSIVE_LEASE_S, is_passive
from pipeline.on_modal import functions
from pipeline.on_modal.control_channel import ControlChannel
from pipeline.on_modal.dispatch import LOST_AFTER_S
from pipeline.on_modal.engine_client import MAX_TRIES
from pipeline.on_modal.waiting_jobs import FIRST_SIGN_TIMEOUT_S
from tests.on_modal.chain import OF_ENGINES, OF_JOBS, Call, Chain, Killed, LightHandler
from tests.on_modal.containers import ScriptedEngine, fails, never, steps_until

SEEDS = range(20)
ROUNDS = 12
"""Visits of the scheduled functions until a job must have ended; only a failing test needs so many."""


@pytest.fixture(autouse=True)
def light_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "JobHandler", LightHandler)
    monkeypatch.setattr(functions, "start_prewarm", lambda: None)


class Steps:
    """A hook that acts at some of the steps of the containers, which are counted; threads beside them go on."""

    def __init__(self, act: Callable[[int], None] = lambda number: None) -> None:
        self.number = 0
        self.by_name = Counter[str]()
        self.is_counting = False
        self._act = act

    def __call__(self, step: str) -> None:
        if self.is_counting and threading.current_thread() is threading.main_thread():
            self.number += 1
            self.by_name[step] += 1
            self._act(self.number)


class Platform:
    """Runs the calls of a chain, one at a time, until all have ended."""

    def __init__(
        self,
        folder: Path,
        act: Callable[[Platform, int], None] = lambda platform, number: None,
        engine: Callable[[], ScriptedEngine] = lambda: ScriptedEngine(gpu_seconds=1.0),
    ) -> None:
        self.steps = Steps(lambda number: act(self, number))
        self.queue: list[Call] = []
        self.chain = Chain(folder, hook=self.steps, enqueue=self.queue.append, engine=engine)

    def run_calls(self) -> None:
        """Run what waits; a killed call runs again."""
        while self.queue:
            call = self.queue.pop(0)
            if call.is_ended.is_set():
                continue
            self.steps.is_counting = True
            if not self.chain.run(call):
                self.queue.append(call)
            self.steps.is_counting = False

    def run_to_end(self, job: Job) -> Job:
        """Run what waits; then let time pass and the scheduled functions look, until the job has ended."""
        found = job
        for _ in range(ROUNDS):
            self.run_calls()
            found = self.chain.store.get(job.id, api_key_id=None)
            if found.state.is_final:
                return found
            self.chain.clock_offset_s += LOST_AFTER_S + 2
            self.chain.on_schedule()
        raise AssertionError(f"the job has not ended: {found}")

    def ran(self, function: str) -> list[Call]:
        return [call for call in self.chain.calls.values() if call.function == function and call.runs]


def submitted(platform: Platform) -> Job:
    job = platform.chain.submit()
    platform.chain.dispatch(job.id)
    return job


def check_ended_once(platform: Platform, job: Job) -> None:
    """The job succeeded, once; what comes afterwards changes nothing."""
    chain = platform.chain
    ended = chain.store.get(job.id, api_key_id=None)
    assert ended.result is not None and ended.state is JobState.SUCCESS, ended.result
    assert chain.rows(job.id) == 1 and len(chain.webhook_ids(job.id)) == 1
    chain.dispatch(job.id)
    platform.run_to_end(job)
    assert chain.store.get(job.id, api_key_id=None) == ended
    assert chain.rows(job.id) == 1 and len(chain.webhook_ids(job.id)) == 1


def steps_of_a_job(folder: Path) -> int:
    """How many steps the containers of an undisturbed job make."""
    platform = Platform(folder)
    platform.run_to_end(submitted(platform))
    return platform.steps.number


def test_a_job_takes_two_dispatches_and_one_generation_and_no_container_waits(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    job = submitted(platform)

    ended = platform.run_to_end(job)

    assert [call.function for call in platform.chain.calls.values() if call.runs] == [OF_JOBS, OF_ENGINES, OF_JOBS]
    assert ended.result is not None and ended.attempts == 1
    assert list(ended.result.stage_seconds) == ["intake", "generate", "export", "deliver"]
    assert ended.result.gpu_seconds == 1.0 and ended.result.stage_seconds["intake"] > 0
    left = [key for key in platform.chain.entries.keys() if key.startswith((job.file_prefix, "dispatch/"))]  # noqa: SIM118
    assert left == []
    check_ended_once(platform, job)


def test_an_undisturbed_job_asks_little_of_the_platform(tmp_path: Path) -> None:
    """What its containers ask for is what all jobs together wait for. Heartbeats and progress are not counted."""
    platform = Platform(tmp_path)

    platform.run_to_end(submitted(platform))

    asked = platform.steps.by_name
    assert asked["VolumeCommit"] == 1  # the checkpoint before the transfer
    assert asked["FunctionMap"] == 3  # the start of a container, the generation, the second dispatch
    assert asked["FunctionCallCancel"] == asked["FunctionGetOutputs"] == 1
    assert sum(count for step, count in asked.items() if step.startswith("Dict")) <= 26


@pytest.mark.parametrize("part", range(4))
def test_a_container_that_is_killed_at_any_step_leaves_one_result(tmp_path: Path, part: int) -> None:
    total = steps_of_a_job(tmp_path / "whole")
    assert total > 30
    for killed_at in range(1 + part, total + 1, 4):

        def kill(platform: Platform, number: int, killed_at: int = killed_at) -> None:
            if number == killed_at:
                raise Killed

        platform = Platform(tmp_path / str(killed_at), kill)
        job = submitted(platform)
        platform.run_to_end(job)
        check_ended_once(platform, job)
        assert len(platform.ran(OF_ENGINES)) <= 2, killed_at


@pytest.mark.parametrize("seed", SEEDS)
def test_containers_that_are_killed_and_dispatched_twice_at_random_leave_one_result(tmp_path: Path, seed: int) -> None:
    """Up to three faults: a kill, or a second dispatch of the job that runs to its end between two steps."""
    drawn = random.Random(seed)
    total = steps_of_a_job(tmp_path / "whole")
    faults = {drawn.randrange(1, total): drawn.choice(("kill", "dispatch", "schedule")) for _ in range(3)}
    jobs: list[Job] = []

    def act(platform: Platform, number: int) -> None:
        fault = faults.pop(number, None)
        if fault == "kill":
            raise Killed
        if fault is not None:
            platform.steps.is_counting = False
            if fault == "dispatch":
                platform.chain.run(platform.chain.spawn(OF_JOBS, jobs[0].id, ""))
            else:
                platform.chain.clock_offset_s += LOST_AFTER_S + 2
                platform.chain.on_schedule()
            platform.steps.is_counting = True

    platform = Platform(tmp_path / "disturbed", act)
    jobs.append(submitted(platform))
    platform.run_to_end(jobs[0])

    check_ended_once(platform, jobs[0])


def test_a_submit_whose_process_died_before_the_dispatch_is_found(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    job = platform.chain.submit()

    platform.run_to_end(job)

    check_ended_once(platform, job)


def waiting_job(platform: Platform) -> Job:
    """A job that was transferred, and whose generation waits."""
    job = submitted(platform)
    platform.steps.is_counting = True
    assert platform.chain.run(platform.queue.pop(0))
    platform.steps.is_counting = False
    found = platform.chain.store.get(job.id, api_key_id=None)
    assert is_passive(found.worker_id) and found.progress.stage == "generate"
    return found


def test_two_processes_that_take_a_job_over_at_once_do_not_both_get_it(tmp_path: Path) -> None:
    def rival(platform: Platform, number: int) -> None:
        if rivals:
            platform.steps.is_counting = False
            platform.chain.run(platform.chain.spawn(OF_JOBS, rivals.pop(), announced[0]))

    rivals: list[int] = []
    announced: list[str] = []
    platform = Platform(tmp_path, rival)
    job = waiting_job(platform)
    generation = next(call for call in platform.queue if call.function == OF_ENGINES)
    platform.chain.run(generation)
    announced.append(generation.object_id)
    rivals.append(job.id)  # it runs before the first step of the dispatch that the generation made

    platform.run_to_end(job)

    check_ended_once(platform, job)
    assert len(platform.ran(OF_ENGINES)) == 1


def test_a_generation_that_waits_long_keeps_its_job(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    job = waiting_job(platform)
    ControlChannel(platform.chain.entries, "any").report_alive("preview")

    for _ in range(5):
        platform.chain.clock_offset_s += PASSIVE_LEASE_S / 2 + 60
        ControlChannel(platform.chain.entries, "any").report_alive("preview")
        platform.chain.entries.put("alive/preview", time.time() + platform.chain.clock_offset_s)
        assert platform.chain.on_schedule() == 0
        assert platform.chain.store.claim("another", lease_s=30) is None

    assert platform.run_to_end(job).attempts == 1
    check_ended_once(platform, job)


def test_a_generation_for_which_no_container_comes_fails_its_job_with_the_reason(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    job = waiting_job(platform)
    generation = platform.queue.pop()
    platform.chain.clock_offset_s += FIRST_SIGN_TIMEOUT_S + 1

    assert platform.chain.on_schedule() == 1
    ended = platform.run_to_end(job)

    assert generation.was_cancelled and generation.runs == 0
    assert ended.result is not None and (ended.state, ended.result.retryable) == (JobState.FAILED, True)
    assert ended.result.message == "no container of engine preview started within 960 s"
    assert platform.chain.rows(job.id) == 1


def test_a_cancellation_of_a_job_whose_generation_waits_ends_it_without_a_generation(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    job = waiting_job(platform)

    platform.chain.waiting.stop(platform.chain.store.request_cancel(job.id, api_key_id=None))
    ended = platform.run_to_end(job)

    assert ended.state is JobState.CANCELLED and platform.ran(OF_ENGINES) == []
    assert platform.chain.rows(job.id) == 1


def test_a_cancellation_whose_process_died_is_found(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    job = waiting_job(platform)
    platform.chain.store.request_cancel(job.id, api_key_id=None)
    generation = platform.queue.pop()

    assert platform.chain.on_schedule() == 1
    assert platform.run_to_end(job).state is JobState.CANCELLED
    assert generation.was_cancelled


def test_a_cancellation_of_a_running_generation_stops_it_and_counts_its_gpu_seconds(tmp_path: Path) -> None:
    platform = Platform(tmp_path, engine=lambda: ScriptedEngine(steps_until(never), gpu_seconds=1.0))
    job = waiting_job(platform)
    generation = platform.queue.pop()
    running = threading.Thread(target=platform.chain.run, args=(generation,), daemon=True)
    running.start()
    channel = ControlChannel(platform.chain.entries, job.file_prefix)
    deadline_s = time.monotonic() + 20
    while channel.progress(None) is None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    shown = platform.chain.waiting.with_progress(platform.chain.store.get(job.id, api_key_id=None))

    platform.chain.waiting.stop(platform.chain.store.request_cancel(job.id, api_key_id=None))
    ended = platform.run_to_end(job)
    running.join(20)

    assert (shown.progress.stage, shown.progress.percent) == ("generate", 28)
    assert ended.result is not None and ended.state is JobState.CANCELLED and ended.result.gpu_seconds > 0
    assert isinstance(generation.get(timeout=0).error, Cancelled) and platform.chain.rows(job.id) == 1


def test_a_device_that_is_lost_again_and_again_fails_the_job_and_its_gpu_seconds_add_up(tmp_path: Path) -> None:
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    platform = Platform(tmp_path, engine=lambda: ScriptedEngine(fails(lost, after_s=0.01), gpu_seconds=1.0))
    job = submitted(platform)

    ended = platform.run_to_end(job)

    assert len(platform.ran(OF_ENGINES)) == MAX_TRIES and ended.state is JobState.FAILED
    assert ended.result is not None and ended.result.gpu_seconds >= MAX_TRIES * 0.01 and ended.attempts == 1
