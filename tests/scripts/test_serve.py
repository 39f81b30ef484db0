"""What the load benchmark says about jobs that have not ended."""

from __future__ import annotations

from pathlib import Path

from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import Job, JobResult, JobState, KeyLimits, NewJob
from pipeline.jobs.stores.sql.store import SqlStore
from scripts.benchmarks.serve import outcome_of, wait_for_the_queue


def opened(folder: Path) -> SqlStore:
    store = SqlStore(f"sqlite:///{folder / 'jobs.sqlite'}")
    store.add_key(make_key("load", limits=KeyLimits())[1])
    return store


def submitted(store: SqlStore) -> Job:
    (key,) = store.list_keys()
    return store.submit(NewJob(key.id, "prefix", b"{}", "0" * 64)).job


def end(store: SqlStore, job: Job) -> None:
    claimed = store.claim("worker", lease_s=60, job_id=job.id)
    assert claimed is not None
    store.complete(claimed.lease, JobResult(JobState.SUCCESS))


def test_a_job_that_waits_is_queued_while_others_end_and_lost_when_none_does(tmp_path: Path) -> None:
    store = opened(tmp_path)
    ended, waiting = submitted(store), submitted(store)
    end(store, ended)

    assert wait_for_the_queue(store, most_s=0.0)
    behind = outcome_of(store, [ended.id, waiting.id], is_moving=True)
    assert not wait_for_the_queue(store, quiet_s=0.0)
    stopped = outcome_of(store, [ended.id, waiting.id], is_moving=False)

    assert (behind.queued, behind.lost) == (1, 0)
    assert (stopped.queued, stopped.lost) == (0, 1)
    assert behind.duplicated == stopped.duplicated == 0


def test_an_accepted_job_without_a_record_is_lost(tmp_path: Path) -> None:
    store = opened(tmp_path)
    job, deleted = submitted(store), submitted(store)
    for one in (job, deleted):
        end(store, one)
    store.delete(deleted.id, api_key_id=None)

    assert not wait_for_the_queue(store)
    outcome = outcome_of(store, [job.id, deleted.id], is_moving=False)

    assert (outcome.lost, outcome.queued, outcome.states) == (1, 0, {"success": 1})


def test_a_job_that_started_twice_and_an_id_that_was_given_twice_are_duplicated(tmp_path: Path) -> None:
    store = opened(tmp_path)
    again, once = submitted(store), submitted(store)
    first = store.claim("worker", lease_s=60, job_id=again.id)
    assert first is not None
    store.expire_leases("worker")
    end(store, again)
    end(store, once)

    assert outcome_of(store, [again.id, once.id], is_moving=False).duplicated == 1
    assert outcome_of(store, [once.id, once.id], is_moving=False).duplicated == 1
