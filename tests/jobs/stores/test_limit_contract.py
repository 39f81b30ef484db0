"""API keys and their limits in every store, also under concurrency."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import InvalidRequest, LimitReached, NotFound, QuotaSpent, RateLimited, Unauthorized
from pipeline.jobs.api_keys import authenticate, hash_key, key_record, make_key
from pipeline.jobs.model import ApiKey, JobFilter, JobResult, JobState, KeyLimits, KeyUse
from pipeline.jobs.store import Store
from tests.jobs.store_fixtures import NOON, Clock, new_job

AddKey = Callable[..., ApiKey]


def submit_all(store: Store, key: ApiKey, count: int) -> list[object]:
    """Submit from 16 threads at once; returns jobs and the types of refusals."""

    def submit(_: int) -> object:
        try:
            return store.submit(new_job(key)).job
        except LimitReached as refusal:
            return type(refusal)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(submit, range(count)))


@pytest.mark.parametrize(
    ("limit", "refusal"), [("queued", RateLimited), ("per_minute", RateLimited), ("per_month", QuotaSpent)]
)
def test_a_limit_admits_exactly_its_number_from_many_threads(
    store: Store, add_key: AddKey, limit: str, refusal: type[LimitReached]
) -> None:
    key, other = add_key(**{limit: 10}), add_key()

    answers = submit_all(store, key, 40)

    assert answers.count(refusal) == 30
    assert len(store.list_jobs(JobFilter(key.id))) == 10
    assert store.submit(new_job(other)).is_new


def test_the_running_limit_holds_for_many_workers(store: Store, add_key: AddKey) -> None:
    limited, free = add_key(running=3), add_key()
    for owner in [limited] * 8 + [free] * 2:
        store.submit(new_job(owner))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: store.claim(f"w{number}", lease_s=30), range(16)))

    owners = [job.api_key_id for job in answers if job is not None]
    assert sorted(owners) == sorted([limited.id] * 3 + [free.id] * 2)
    assert store.key_use(limited.id) == KeyUse(queued=5, running=3, this_minute=8, this_month=8)


def test_a_completed_job_makes_room_for_the_next(store: Store, add_key: AddKey) -> None:
    key = add_key(running=1)
    for _ in range(2):
        store.submit(new_job(key))
    first = store.claim("w1", lease_s=30)
    assert first is not None and store.claim("w2", lease_s=30) is None

    store.complete(first.lease, JobResult(JobState.SUCCESS))

    assert store.claim("w2", lease_s=30) is not None


def test_a_rate_limit_names_the_time_of_its_reset(store: Store, add_key: AddKey, clock: Clock) -> None:
    key = add_key(per_minute=2)
    clock.advance(20.5)
    first, second = store.submit(new_job(key)), store.submit(new_job(key))

    with pytest.raises(RateLimited, match=r"Rate limit exceeded\. This key may submit 2 jobs per minute\.") as refused:
        store.submit(new_job(key))

    assert first.rate is not None and second.rate is not None
    assert (first.rate.limit, first.rate.remaining, second.rate.remaining) == (2, 1, 0)
    assert (refused.value.limit, refused.value.remaining) == (2, 0)
    assert (refused.value.reset_at, refused.value.retry_after_s) == (NOON + 60, 40)
    clock.advance(40)
    assert store.submit(new_job(key)).is_new


def test_a_monthly_quota_names_the_time_of_its_reset(store: Store, add_key: AddKey, clock: Clock) -> None:
    key = add_key(per_month=1)
    store.submit(new_job(key))

    message = r"The quota of 1 jobs per month is used up; it resets on 2026-07-01 \(UTC\)\."
    with pytest.raises(QuotaSpent, match=message) as refused:
        store.submit(new_job(key))

    clock.now = refused.value.reset_at - 1
    with pytest.raises(QuotaSpent):
        store.submit(new_job(key))
    clock.advance(1)
    assert store.submit(new_job(key)).is_new


def test_a_full_queue_names_its_length_and_the_limit(store: Store, add_key: AddKey) -> None:
    key = add_key(queued=1)
    store.submit(new_job(key))

    with pytest.raises(RateLimited, match="1 jobs are queued; this key may have 1") as refused:
        store.submit(new_job(key))

    assert refused.value.retry_after_s >= 1
    assert store.claim("w1", lease_s=30) is not None
    assert store.submit(new_job(key)).is_new


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_a_job_without_success_gives_its_quota_back(
    store: Store, add_key: AddKey, clock: Clock, state: JobState
) -> None:
    key = add_key(per_month=1)
    store.submit(new_job(key))
    job = store.claim("w1", lease_s=30)
    assert job is not None
    clock.now = NOON + 40 * 86400  # July: the quota of June is given back

    store.complete(job.lease, JobResult(state))  # pyright: ignore[reportArgumentType]

    clock.now = NOON
    assert store.key_use(key.id).this_month == 0
    assert store.submit(new_job(key)).is_new
    with pytest.raises(QuotaSpent):
        store.submit(new_job(key))


def test_a_refused_submit_counts_towards_no_limit(store: Store, add_key: AddKey) -> None:
    key = add_key(queued=1, per_minute=2)
    store.submit(new_job(key))
    for _ in range(5):
        with pytest.raises(RateLimited, match="queued"):
            store.submit(new_job(key))

    assert store.key_use(key.id) == KeyUse(queued=1, running=0, this_minute=1, this_month=1)


def test_deleting_a_job_gives_no_quota_back(store: Store, add_key: AddKey) -> None:
    key = add_key(per_month=1)
    store.submit(new_job(key))
    job = store.claim("w1", lease_s=30)
    assert job is not None
    store.complete(job.lease, JobResult(JobState.SUCCESS))
    store.delete(job.id, api_key_id=key.id)

    with pytest.raises(QuotaSpent):
        store.submit(new_job(key))


def test_limits_can_be_changed_and_lifted(store: Store, add_key: AddKey) -> None:
    key = add_key(queued=1)
    store.submit(new_job(key))

    changed = store.limit_key(key.id, KeyLimits(queued=2))
    store.submit(new_job(key))
    with pytest.raises(RateLimited):
        store.submit(new_job(key))
    store.limit_key(key.id, KeyLimits())

    assert changed.limits == KeyLimits(queued=2)
    assert store.submit(new_job(key)).is_new
    with pytest.raises(NotFound, match="There is no key with the id nobody"):
        store.limit_key("nobody", KeyLimits())


def test_the_webhook_secret_of_a_key_can_be_rotated(store: Store, add_key: AddKey, clock: Clock) -> None:
    key = add_key()
    clock.advance(100)

    store.rotate_secret(key.id)
    rotated = store.rotate_secret(key.id)

    assert (key.secret_number, key.secret_rotated_at) == (0, None)
    assert (rotated.secret_number, rotated.secret_rotated_at) == (2, clock.now)
    assert store.get_key(key.id) == store.find_key(key.sha256) == rotated
    for change in (store.rotate_secret, store.get_key, store.revoke_key):
        with pytest.raises(NotFound, match="There is no key with the id nobody"):
            change("nobody")


def test_a_key_is_recognised_until_it_is_revoked(store: Store, clock: Clock) -> None:
    plain, record = make_key("shop", limits=KeyLimits(running=2), clock=clock)
    store.add_key(record)

    assert authenticate(store, plain) == record
    assert store.revoke_key(record.id).revoked_at == clock.now

    with pytest.raises(Unauthorized, match=r"^Invalid API key$"):
        authenticate(store, plain)
    with pytest.raises(Unauthorized, match=r"^Invalid API key$"):
        authenticate(store, plain + "x")
    with pytest.raises(Unauthorized, match=r"^API key required$"):
        authenticate(store, "")


def test_a_record_does_not_contain_its_key(clock: Clock) -> None:
    plain, record = make_key("shop", limits=KeyLimits(), clock=clock)
    short = key_record("hunter2", name="short", limits=KeyLimits(), clock=clock)

    assert len(plain) >= 40 and plain not in repr(record)
    assert plain.startswith(record.shown.rstrip("…"))
    assert "hunter2" not in repr(short)
    assert record.sha256 == hash_key(plain) != hash_key(make_key("shop", limits=KeyLimits())[0])


def test_adding_a_known_key_again_changes_nothing(store: Store, clock: Clock) -> None:
    first = key_record("from the environment", name="environment", limits=KeyLimits(queued=1), clock=clock)
    again = key_record("from the environment", name="environment", limits=KeyLimits(), clock=clock)

    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(store.add_key, [first, *[again] * 7]))

    assert len({key.id for key in added}) == 1
    assert len(store.list_keys()) == 1


def test_a_name_is_unique_among_keys_in_use(store: Store) -> None:
    first, second = (make_key("shop", limits=KeyLimits())[1] for _ in range(2))
    store.add_key(first)
    with pytest.raises(InvalidRequest, match="There is a key named 'shop' already"):
        store.add_key(second)

    store.revoke_key(first.id)
    store.add_key(second)

    assert {key.id: key.revoked_at is None for key in store.list_keys()} == {first.id: False, second.id: True}


def test_each_key_has_its_own_bucket(store: Store, add_key: AddKey) -> None:
    key, other = add_key(), add_key()

    store.save_s3(key.id, b"first\0")
    store.save_s3(key.id, b"second\xff")

    assert store.s3_of(key.id) == b"second\xff"
    assert store.s3_of(other.id) is None
    assert (store.reset_s3(key.id), store.reset_s3(key.id)) == (True, False)
    assert store.s3_of(key.id) is None
