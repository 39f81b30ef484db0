"""One run of the cleaner, whose container may be killed at any point."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("numba", reason="needs the extra 'local'")

from pipeline.jobs.api_keys import key_record
from pipeline.jobs.model import KeyLimits, OutboxTask, TaskKind
from pipeline.on_modal.deployment import Deployment
from pipeline.on_modal.dispatch import LOST_AFTER_S, Dispatcher
from pipeline.on_modal.functions import clean_up
from pipeline.on_modal.waiting_jobs import WaitingJobs
from pipeline.settings import Settings
from tests.fakes.shared_dict import InMemoryDict
from tests.jobs.store_fixtures import Clock, new_job
from tests.on_modal.containers import ThreadCall
from tests.reference.memory_store import MemoryStore


class Killed(BaseException):
    """Kills a process at any point."""


class StoreWithHangingUpload(MemoryStore):
    """A store with a due late upload to a bucket that hangs until the container is killed."""

    def claim_task(self, kind: TaskKind, *, claim_s: float) -> OutboxTask | None:
        if kind == "upload":
            raise Killed
        return super().claim_task(kind, claim_s=claim_s)


def test_a_hanging_bucket_does_not_keep_lost_jobs_from_being_dispatched(tmp_path: Path) -> None:
    clock, dispatched = Clock(), []
    store = StoreWithHangingUpload(clock=clock)
    key = store.add_key(key_record("an-api-key-of-this-test", name="shop", limits=KeyLimits(), clock=clock))
    lost = store.submit(new_job(key)).job
    clock.advance(LOST_AFTER_S + 1)

    def spawn(job_id: int, call_id: str) -> str:
        dispatched.append(job_id)
        return "dispatch"

    dispatch = Dispatcher(spawn, is_in_flight=lambda name: False, entries=InMemoryDict(), clock=clock)
    settings = Settings(data_dir=tmp_path, database_url=None)
    waiting = WaitingJobs(
        dispatch, find_call=lambda _: ThreadCall("", int), is_in_flight=bool, entries=InMemoryDict(), default="preview"
    )
    keys = [b"a-master-key-of-this-test"]
    deployment = Deployment(settings, keys, store, dispatch, waiting, lambda: None, lambda: None)

    with pytest.raises(Killed):
        clean_up(deployment)

    assert dispatched == [lost.id]
