"""Handing jobs over: none is lost, none is handed over while somebody has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import StoreUnavailable
from pipeline.jobs.model import ApiKey, Job, JobResult, JobState, Progress
from pipeline.jobs.store import Store
from pipeline.on_modal.dispatch import LOST_AFTER_S, PAGE, Dispatcher
from pipeline.on_modal.shared_dict import InMemoryDict
from tests.jobs.store_fixtures import Clock, new_job
from tests.reference.memory_store import MemoryStore

LEASE_S = 20.0


class Platform:
    """Takes hand-overs, and tells of each what became of it.

    Attributes:
        taken: the jobs, in the order in which they were handed over.
        running: names of the hand-overs that wait or run.
        ended_in: what those raise that ended in an error, when asked about.
        is_away: takes nothing.
    """

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.running: set[str] = set()
        self.ended_in: dict[str, Exception] = {}
        self.is_away = False

    def spawn(self, job_id: int) -> str:
        if self.is_away:
            raise ConnectionError("no route")
        self.taken.append(job_id)
        name = f"hand-over {len(self.taken)}"
        self.running.add(name)
        return name

    def is_in_flight(self, name: str) -> bool:
        if name in self.ended_in:
            raise self.ended_in[name]
        return name in self.running


class ForgetfulNotes(InMemoryDict):
    """A map that is down while something is to be kept."""

    def put(self, key: str, value: Any) -> None:
        raise ConnectionError("no route")


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def key(add_key: Callable[..., ApiKey]) -> ApiKey:
    return add_key()


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def notes() -> InMemoryDict:
    return InMemoryDict()


@pytest.fixture
def dispatch(platform: Platform, notes: InMemoryDict, clock: Clock) -> Dispatcher:
    return Dispatcher(platform.spawn, is_in_flight=platform.is_in_flight, notes=notes, clock=clock)


def submitted(store: Store, key: ApiKey) -> int:
    return store.submit(new_job(key)).job.id


def test_a_job_that_was_handed_over_is_not_handed_over_again(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_id = submitted(store, key)
    dispatch(job_id)
    clock.advance(10 * LOST_AFTER_S)

    assert dispatch.dispatch_waiting(store) == 0
    assert platform.taken == [job_id]


def test_a_hand_over_that_fails_is_no_error_and_is_made_up_for(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_id = submitted(store, key)
    platform.is_away = True
    dispatch(job_id)
    platform.is_away = False
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == 1
    assert platform.taken == [job_id]


def test_a_hand_over_that_was_not_noted_is_made_again(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_id = submitted(store, key)
    Dispatcher(platform.spawn, is_in_flight=platform.is_in_flight, notes=ForgetfulNotes(), clock=clock)(job_id)
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == 1
    assert platform.taken == [job_id, job_id]


def test_a_hand_over_whose_process_is_gone_is_made_again(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_id = submitted(store, key)
    dispatch(job_id)
    platform.running.clear()
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == 1
    assert dispatch.dispatch_waiting(store) == 0  # the new one is under way
    assert platform.taken == [job_id, job_id]


def test_a_hand_over_that_ended_in_an_error_is_made_again_and_holds_up_no_other(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    first, second = submitted(store, key), submitted(store, key)
    dispatch(first)
    platform.ended_in["hand-over 1"] = StoreUnavailable("the database is away")
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == 2
    assert platform.taken == [first, first, second]


def test_a_job_that_has_just_come_is_left_to_whoever_hands_it_over(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    submitted(store, key)

    clock.advance(LOST_AFTER_S)
    assert dispatch.dispatch_waiting(store) == 0

    clock.advance(1)
    assert dispatch.dispatch_waiting(store) == 1


def test_a_shorter_wait_can_be_asked_for(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    submitted(store, key)
    clock.advance(1)

    assert dispatch.dispatch_waiting(store, lost_after_s=2.0) == 0
    assert dispatch.dispatch_waiting(store, lost_after_s=0.0) == 1


def test_a_running_job_is_handed_over_when_its_lease_has_long_run_out(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_id = submitted(store, key)
    clock.advance(2 * LOST_AFTER_S)
    store.claim("w", lease_s=LEASE_S)

    clock.advance(LEASE_S + LOST_AFTER_S)
    assert dispatch.dispatch_waiting(store) == 0

    clock.advance(1)
    assert dispatch.dispatch_waiting(store) == 1
    assert platform.taken == [job_id]


def test_a_job_that_has_ended_is_not_handed_over(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    submitted(store, key)
    job = store.claim("w", lease_s=LEASE_S)
    assert job is not None
    store.complete(job.lease, JobResult(JobState.SUCCESS))
    clock.advance(LEASE_S + LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == 0
    assert platform.taken == []


def test_the_oldest_are_handed_over_first_and_at_most_as_many_as_asked(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    oldest, running, queued, youngest = (submitted(store, key) for _ in range(4))
    for job_id in (oldest, running):
        store.claim("w", lease_s=LEASE_S, job_id=job_id)
    store.expire_leases("w")
    clock.advance(LEASE_S + LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store, limit=3) == 3
    assert platform.taken == [oldest, running, queued]
    assert dispatch.dispatch_waiting(store, limit=3) == 1
    assert platform.taken[3:] == [youngest]


def test_one_keys_jobs_can_be_asked_for_alone(
    dispatch: Dispatcher, platform: Platform, store: Store, add_key: Callable[..., ApiKey], clock: Clock
) -> None:
    mine, other = add_key(), add_key()
    submitted(store, other)
    job_id = submitted(store, mine)
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store, api_key_id=mine.id) == 1
    assert platform.taken == [job_id]


def test_more_jobs_than_a_page_holds_are_all_handed_over(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_ids = [submitted(store, key) for _ in range(2 * PAGE + 1)]
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == len(job_ids)
    assert platform.taken == job_ids


def test_a_death_is_excused_when_the_job_came_further_than_before(
    dispatch: Dispatcher, store: Store, key: ApiKey
) -> None:
    job = at_stage(store.get(submitted(store, key), api_key_id=None), "intake")
    other = at_stage(store.get(submitted(store, key), api_key_id=None), "intake")

    assert dispatch.made_progress(job)
    assert not dispatch.made_progress(job)
    assert dispatch.made_progress(at_stage(job, "generate"))
    assert not dispatch.made_progress(at_stage(job, "generate"))
    assert dispatch.made_progress(other)


def at_stage(job: Job, stage: str) -> Job:
    return replace(job, progress=Progress(stage, 10))


def test_nothing_is_kept_of_a_job_that_has_ended(
    dispatch: Dispatcher, notes: InMemoryDict, store: Store, key: ApiKey
) -> None:
    job_id, other = submitted(store, key), submitted(store, key)
    dispatch(job_id)
    dispatch(other)
    dispatch.made_progress(store.get(job_id, api_key_id=None))

    dispatch.forget(job_id)
    dispatch.forget(job_id)

    assert notes.keys() == [f"dispatch/{other}"]
