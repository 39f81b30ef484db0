"""API keys and their counters in the head."""

from __future__ import annotations

from dataclasses import replace

from pipeline.errors import InvalidRequest, NotFound
from pipeline.jobs import limits
from pipeline.jobs.limits import month_of
from pipeline.jobs.model import ApiKey, KeyLimits, KeyUse
from pipeline.jobs.stores.kv.state import Account, Head
from pipeline.jobs.transitions import UsageChange


def add_key(head: Head, key: ApiKey) -> ApiKey:
    """Add a key; returns the existing one where its hash is known.

    Raises:
        InvalidRequest: its name is taken by another key in use.
    """
    known = find_key(head, key.sha256)
    if known is not None:
        return known
    if any(account.key.name == key.name and account.key.revoked_at is None for account in head.accounts.values()):
        raise InvalidRequest(f"There is a key named {key.name!r} already.")
    head.accounts[key.id] = Account(key)
    return key


def find_key(head: Head, sha256: str) -> ApiKey | None:
    """The key with this hash."""
    return next((account.key for account in head.accounts.values() if account.key.sha256 == sha256), None)


def change_key(
    head: Head, api_key_id: str, *, limits: KeyLimits | None = None, revoked_at: float | None = None
) -> ApiKey:
    """Replace a key's limits, or revoke it, which has no effect on a key that was revoked before.

    Raises:
        NotFound: there is no such key.
    """
    account = head.accounts.get(api_key_id)
    if account is None:
        raise NotFound(f"There is no key with the id {api_key_id}.")
    key = account.key
    account.key = replace(key, limits=limits or key.limits, revoked_at=key.revoked_at or revoked_at)
    return account.key


def use_of(account: Account | None, *, now: float) -> KeyUse:
    """What a key has in use; nothing where there is none."""
    if account is None:
        return KeyUse(0, 0, 0, 0)
    return limits.key_use(
        queued=account.queued,
        running=account.running,
        minute=account.minute,
        minute_calls=account.minute_calls,
        month_calls=account.months.get(month_of(now), 0),
        now=now,
    )


def count(account: Account, change: UsageChange) -> None:
    """Apply a transition's change of the counters."""
    account.queued += change.queued
    account.running += change.running
    if change.month_calls:
        account.months[change.month] = account.months.get(change.month, 0) + change.month_calls
