"""One round of what keeps a deployment vacuum, whose container may be killed at any moment of it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("numba", reason="needs the extra 'local'")

from pydantic import SecretStr

from pipeline.jobs.api_keys import key_record
from pipeline.jobs.model import KeyLimits, OutboxTask, TaskKind
from pipeline.on_modal.dispatch import LOST_AFTER_S, Dispatcher
from pipeline.on_modal.functions import Shared, clean_up
from pipeline.on_modal.shared_dict import InMemoryDict
from pipeline.settings import Settings
from tests.jobs.store_fixtures import Clock, new_job
from tests.reference.memory_store import MemoryStore


class Killed(BaseException):
    """Ends a process wherever it stands."""


class StoreBeforeHangingBucket(MemoryStore):
    """A store of which a late upload is due, to a bucket that hangs until the container is killed."""

    def claim_task(self, kind: TaskKind, *, claim_s: float) -> OutboxTask | None:
        if kind == "upload":
            raise Killed
        return super().claim_task(kind, claim_s=claim_s)


def test_a_bucket_that_hangs_keeps_no_lost_job_from_being_handed_over(tmp_path: Path) -> None:
    clock, handed_over = Clock(), []
    store = StoreBeforeHangingBucket(clock=clock)
    key = store.add_key(key_record("a-key-of-this-test", name="shop", limits=KeyLimits(), clock=clock))
    lost = store.submit(new_job(key)).job
    clock.advance(LOST_AFTER_S + 1)

    def spawn(job_id: int) -> str:
        handed_over.append(job_id)
        return "hand-over"

    dispatch = Dispatcher(spawn, is_in_flight=lambda name: False, notes=InMemoryDict(), clock=clock)
    settings = Settings(data_dir=tmp_path, database_url=None, secret_keys=(SecretStr("a-secret-of-this-test"),))
    shared = Shared(settings, store, commit_work=lambda: None, commit_outputs=lambda: None, dispatch=dispatch)

    with pytest.raises(Killed):
        clean_up(shared)

    assert handed_over == [lost.id]
