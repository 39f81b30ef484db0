"""Dispatching jobs: none is lost, and none is dispatched again while a dispatch is in flight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import StoreUnavailable
from pipeline.jobs.model import ApiKey, Job, JobResult, JobState, Progress
from pipeline.jobs.store import Store
from pipeline.on_modal.dispatch import LOST_AFTER_S, PAGE, Dispatcher
from tests.fakes.shared_dict import InMemoryDict
from tests.jobs.store_fixtures import Clock, new_job
from tests.reference.memory_store import MemoryStore

LEASE_S = 20.0


class Platform:
    """Accepts dispatches, and knows the state of each.

    Attributes:
        dispatched: the jobs, in the order of their dispatch.
        running: ids of the dispatches that wait or run.
        errors: by id, the error that a dispatch ended with; raised when its state is requested.
        is_unavailable: accepts nothing.
    """

    def __init__(self) -> None:
        self.dispatched: list[int] = []
        self.running: set[str] = set()
        self.errors: dict[str, Exception] = {}
        self.is_unavailable = False

    def spawn(self, job_id: int, call_id: str = "") -> str:
        if self.is_unavailable:
            raise ConnectionError("no route")
        self.dispatched.append(job_id)
        dispatch_id = f"dispatch {len(self.dispatched)}"
        self.running.add(dispatch_id)
        return dispatch_id

    def is_in_flight(self, dispatch_id: str) -> bool:
        if dispatch_id in self.errors:
            raise self.errors[dispatch_id]
        return dispatch_id in self.running


class UnwritableDict(InMemoryDict):
    """A dictionary that cannot be written."""

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
def entries() -> InMemoryDict:
    return InMemoryDict()


@pytest.fixture
def dispatch(platform: Platform, entries: InMemoryDict, clock: Clock) -> Dispatcher:
    return Dispatcher(platform.spawn, is_in_flight=platform.is_in_flight, entries=entries, clock=clock)


def submitted(store: Store, key: ApiKey) -> int:
    return store.submit(new_job(key)).job.id


def test_a_job_whose_dispatch_is_in_flight_is_not_dispatched_again(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_id = submitted(store, key)
    dispatch(job_id)
    clock.advance(10 * LOST_AFTER_S)

    assert dispatch.dispatch_waiting(store) == 0
    assert platform.dispatched == [job_id]


def test_a_failed_dispatch_raises_nothing_and_is_repeated(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_id = submitted(store, key)
    platform.is_unavailable = True
    dispatch(job_id)
    platform.is_unavailable = False
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == 1
    assert platform.dispatched == [job_id]


def test_a_dispatch_that_was_not_recorded_is_repeated(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_id = submitted(store, key)
    Dispatcher(platform.spawn, is_in_flight=platform.is_in_flight, entries=UnwritableDict(), clock=clock)(job_id)
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == 1
    assert platform.dispatched == [job_id, job_id]


def test_a_dispatch_whose_process_died_is_repeated(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_id = submitted(store, key)
    dispatch(job_id)
    platform.running.clear()
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == 1
    assert dispatch.dispatch_waiting(store) == 0  # the new one is in flight
    assert platform.dispatched == [job_id, job_id]


def test_a_dispatch_that_ended_with_an_error_is_repeated_and_delays_no_other(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    first, second = submitted(store, key), submitted(store, key)
    dispatch(first)
    platform.errors["dispatch 1"] = StoreUnavailable("the database cannot be reached")
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == 2
    assert platform.dispatched == [first, first, second]


def test_a_new_job_is_left_to_the_process_that_submitted_it(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    submitted(store, key)

    clock.advance(LOST_AFTER_S)
    assert dispatch.dispatch_waiting(store) == 0

    clock.advance(1)
    assert dispatch.dispatch_waiting(store) == 1


def test_the_waiting_time_before_a_new_dispatch_can_be_shorter(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    submitted(store, key)
    clock.advance(1)

    assert dispatch.dispatch_waiting(store, lost_after_s=2.0) == 0
    assert dispatch.dispatch_waiting(store, lost_after_s=0.0) == 1


def test_a_running_job_is_dispatched_some_time_after_its_lease_expired(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_id = submitted(store, key)
    clock.advance(2 * LOST_AFTER_S)
    store.claim("w", lease_s=LEASE_S)

    clock.advance(LEASE_S + LOST_AFTER_S)
    assert dispatch.dispatch_waiting(store) == 0

    clock.advance(1)
    assert dispatch.dispatch_waiting(store) == 1
    assert platform.dispatched == [job_id]


def test_a_job_that_has_ended_is_not_dispatched(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    submitted(store, key)
    job = store.claim("w", lease_s=LEASE_S)
    assert job is not None
    store.complete(job.lease, JobResult(JobState.SUCCESS))
    clock.advance(LEASE_S + LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == 0
    assert platform.dispatched == []


def test_the_oldest_jobs_are_dispatched_first_up_to_the_limit(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    oldest, running, queued, youngest = (submitted(store, key) for _ in range(4))
    for job_id in (oldest, running):
        store.claim("w", lease_s=LEASE_S, job_id=job_id)
    store.expire_leases("w")
    clock.advance(LEASE_S + LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store, limit=3) == 3
    assert platform.dispatched == [oldest, running, queued]
    assert dispatch.dispatch_waiting(store, limit=3) == 1
    assert platform.dispatched[3:] == [youngest]


def test_the_jobs_of_one_key_can_be_dispatched_alone(
    dispatch: Dispatcher, platform: Platform, store: Store, add_key: Callable[..., ApiKey], clock: Clock
) -> None:
    mine, other = add_key(), add_key()
    submitted(store, other)
    job_id = submitted(store, mine)
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store, api_key_id=mine.id) == 1
    assert platform.dispatched == [job_id]


def test_more_jobs_than_one_page_are_all_dispatched(
    dispatch: Dispatcher, platform: Platform, store: Store, key: ApiKey, clock: Clock
) -> None:
    job_ids = [submitted(store, key) for _ in range(2 * PAGE + 1)]
    clock.advance(LOST_AFTER_S + 1)

    assert dispatch.dispatch_waiting(store) == len(job_ids)
    assert platform.dispatched == job_ids


def test_an_attempt_made_progress_if_it_reached_a_later_stage_than_the_one_before(
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


def test_no_entry_of_a_forgotten_job_is_left(
    dispatch: Dispatcher, entries: InMemoryDict, store: Store, key: ApiKey
) -> None:
    job_id, other = submitted(store, key), submitted(store, key)
    dispatch(job_id)
    dispatch(other)
    dispatch.made_progress(store.get(job_id, api_key_id=None))

    dispatch.forget(job_id)
    dispatch.forget(job_id)

    assert set(entries.keys()) == {f"dispatch/{other}", f"died/{job_id}"}  # the latter expires
