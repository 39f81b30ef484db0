"""Keys as steps and questions on the head."""

from __future__ import annotations

from dataclasses import replace

from pipeline.errors import InvalidRequest, NotFound
from pipeline.jobs.limits import minute_of, month_of
from pipeline.jobs.model import ApiKey, KeyLimits, KeyUse
from pipeline.jobs.stores.kv.state import Account, Head


def add_key(head: Head, key: ApiKey) -> ApiKey:
    """Keep a key; the known one where its hash is known."""
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


def revoke_key(head: Head, api_key_id: str, *, now: float) -> ApiKey:
    """End a key, once."""
    account = _account(head, api_key_id)
    account.key = replace(account.key, revoked_at=account.key.revoked_at or now)
    return account.key


def limit_key(head: Head, api_key_id: str, limits: KeyLimits) -> ApiKey:
    """Replace a key's limits."""
    account = _account(head, api_key_id)
    account.key = replace(account.key, limits=limits)
    return account.key


def use_of(account: Account | None, *, now: float) -> KeyUse:
    """What a key has in use; nothing where there is none."""
    if account is None:
        return KeyUse(0, 0, 0, 0)
    this_minute = account.minute_calls if account.minute == minute_of(now) else 0
    return KeyUse(account.queued, account.running, this_minute, account.months.get(month_of(now), 0))


def _account(head: Head, api_key_id: str) -> Account:
    if api_key_id not in head.accounts:
        raise NotFound(f"There is no key with the id {api_key_id}.")
    return head.accounts[api_key_id]
