"""The backup of a map that may be lost: who restores it, and what never replaces it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.deployment import ensure_key
from pipeline.errors import LimitReached, StoreUnavailable
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import ApiKey, JobResult, JobState, KeyLimits, LedgerFilter
from pipeline.jobs.stores.kv.backup import KEPT_S, KEYS_FILE, read_from
from pipeline.jobs.stores.kv.store import MAINTENANCE_INTERVAL_S, KvStore
from pipeline.settings import Settings
from tests.fakes.key_values import MemoryKeyValues
from tests.jobs.store_fixtures import Clock, new_job

SUCCESS = JobResult(JobState.SUCCESS, stage_seconds={"generate": 1.5}, gpu_seconds=0.5)
SETTINGS = Settings(api_key="k" * 20)  # pyright: ignore[reportArgumentType]  # pydantic makes it a secret


class Deployment:
    """The stores of containers that share a map, which may be lost, and a backup."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock
        self.entries = MemoryKeyValues()

    def lose_the_map(self) -> None:
        self.entries = MemoryKeyValues()

    def container(self, entries: MemoryKeyValues | None = None) -> KvStore:
        """A store as a fresh container opens it."""
        backup = read_from(self.folder)
        entries = self.entries if entries is None else entries
        return KvStore(entries, clock=self.clock, wall_clock=self.clock, backup=backup)

    def names(self) -> set[str]:
        return {key.name for key in self.container().list_keys()}

    def saved_names(self, file: str = KEYS_FILE) -> set[str]:
        saved = json.loads((self.folder / file).read_bytes())
        return {account["key"]["name"] for account in saved["head"]["accounts"].values()}


@pytest.fixture
def deployment(tmp_path: Path, clock: Clock) -> Deployment:
    return Deployment(tmp_path / "backup", clock)


def add_key(store: KvStore, name: str, **limits: int) -> ApiKey:
    return store.add_key(make_key(name, limits=KeyLimits(**limits))[1])


def run_job(store: KvStore, key: ApiKey) -> None:
    store.submit(new_job(key))
    job = store.claim("w", lease_s=30)
    assert job is not None
    store.complete(job.lease, SUCCESS)


def test_keys_buckets_and_ledger_of_a_lost_map_are_restored(deployment: Deployment) -> None:
    store = deployment.container()
    key = add_key(store, "shop", per_month=2)
    store.save_s3(key.id, b"encrypted\xff")
    run_job(store, key)
    store.maintain(deployment.folder)
    rows = store.usage_rows(LedgerFilter(key.id))
    deployment.lose_the_map()

    fresh = deployment.container()

    assert (fresh.list_keys(), fresh.s3_of(key.id)) == ([key], b"encrypted\xff")
    assert fresh.usage_rows(LedgerFilter(key.id)) == rows
    assert len(rows) == fresh.key_use(key.id).this_month == 1
    assert fresh.submit(new_job(key)).job.seq == 2
    assert deployment.container().s3_of(key.id) == b"encrypted\xff"
    with pytest.raises(LimitReached):
        deployment.container().submit(new_job(key))


@pytest.mark.parametrize("order", ["web then clean", "clean then web", "operator then web", "all at once"])
def test_whoever_writes_first_to_a_lost_map_restores_it(order: str, deployment: Deployment, clock: Clock) -> None:
    old = deployment.container()
    ensure_key(old, SETTINGS)
    add_key(old, "shop")
    add_key(old, "bakery")
    old.maintain(deployment.folder)
    before = deployment.names()
    deployment.lose_the_map()
    clock.advance(2 * MAINTENANCE_INTERVAL_S)

    def web() -> None:
        ensure_key(deployment.container(), SETTINGS)

    def clean() -> None:
        deployment.container().maintain(deployment.folder)

    def operator() -> None:
        add_key(deployment.container(), "new")

    if order == "all at once":
        with ThreadPoolExecutor(3) as pool:
            for future in [pool.submit(one) for one in (web, clean, operator)]:
                future.result()
    else:
        for name in order.split(" then "):
            {"web": web, "clean": clean, "operator": operator}[name]()
    clean()

    assert before <= deployment.names()
    assert before <= deployment.saved_names()
    assert len(deployment.names()) == len(before) + ("operator" in order or order == "all at once")
    assert any(name.startswith("head/") for name in deployment.entries.names())


def test_a_store_whose_backup_cannot_be_read_does_not_begin_anew(deployment: Deployment) -> None:
    store = deployment.container()
    add_key(store, "shop")
    store.maintain(deployment.folder)
    deployment.lose_the_map()
    good = (deployment.folder / KEYS_FILE).read_bytes()
    dated = next(deployment.folder.glob("keys-*.json"))

    for damaged in (good[:100], b"[]", b"{}"):
        (deployment.folder / KEYS_FILE).write_bytes(damaged)
        with pytest.raises(StoreUnavailable, match="backup cannot be read"):
            ensure_key(deployment.container(), SETTINGS)
        assert deployment.entries.names() == []

    dated.replace(deployment.folder / KEYS_FILE)  # as the log tells the operator
    assert deployment.names() == {"shop"}


def test_a_volume_that_does_not_answer_is_no_empty_volume() -> None:
    def read(path: str) -> bytes | None:
        raise ConnectionError("no route")

    with pytest.raises(StoreUnavailable, match="ConnectionError"):
        ensure_key(KvStore(MemoryKeyValues(), backup=read), SETTINGS)


def test_a_backup_is_written_once_a_day_and_kept_for_a_week(deployment: Deployment, clock: Clock) -> None:
    store = deployment.container()
    for day in range(12):
        add_key(store, f"key {day}")
        store.maintain(deployment.folder)
        clock.advance(MAINTENANCE_INTERVAL_S / 2)
        add_key(store, f"later {day}")
        store.maintain(deployment.folder)
        clock.advance(MAINTENANCE_INTERVAL_S / 2)

    files = sorted(file.name for file in deployment.folder.glob("keys-*.json"))
    assert len(files) == KEPT_S / MAINTENANCE_INTERVAL_S + 1
    assert deployment.saved_names() == deployment.saved_names(files[-1]) >= {"key 11", "later 10"}
    assert deployment.saved_names(files[0]) == {
        *(f"key {day}" for day in range(5)),
        *(f"later {day}" for day in range(4)),
    }


@pytest.mark.parametrize("has_keys", [True, False], ids=["fewer keys", "an earlier job"])
def test_a_backup_never_replaces_one_that_knows_more(has_keys: bool, deployment: Deployment, clock: Clock) -> None:
    store = deployment.container()
    key = add_key(store, "shop")
    if not has_keys:
        run_job(store, key)
    store.maintain(deployment.folder)
    rows = store.usage_rows(LedgerFilter(None))
    clock.advance(MAINTENANCE_INTERVAL_S)
    anew = KvStore(MemoryKeyValues(), clock=clock, wall_clock=clock)  # knows no backup
    other = anew.add_key(key) if not has_keys else add_key(anew, "other")
    if has_keys:
        run_job(anew, other)

    anew.maintain(deployment.folder)

    newest = max(file.name for file in deployment.folder.glob("keys-*.json"))
    assert deployment.saved_names(newest) == {other.name}
    assert deployment.saved_names() == {"shop"}
    deployment.lose_the_map()
    restored = deployment.container()
    assert restored.list_keys() == [key]
    assert {row.job_id for row in rows} <= {row.job_id for row in restored.usage_rows(LedgerFilter(None))}
