"""Creating and recognising API keys. Knows nothing of where in a request a key is.

Keys are long random strings, so a plain SHA-256 is a sufficient hash: a slow hash protects guessable passwords, and
every request would pay for it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import uuid
from collections.abc import Callable

from pipeline.errors import Unauthorized
from pipeline.jobs.model import ApiKey, KeyLimits
from pipeline.jobs.store import KeyStore

PREFIX = "i3d_"
TEST_PREFIX = "i3d_test_"
"""What test keys begin with. Keys are random, so none of another kind begins so."""
SHOWN_CHARS = 8


def hash_key(key: str) -> str:
    """Hex SHA-256 of a key, the only form in which it is stored."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def key_record(key: str, *, name: str, limits: KeyLimits, clock: Callable[[], float] = time.time) -> ApiKey:
    """The record of an existing key."""
    # Lists must not show a large part of a short key that an operator chose.
    shown = f"{key[:SHOWN_CHARS]}…" if len(key) >= 4 * SHOWN_CHARS else "…"
    return ApiKey(id=uuid.uuid4().hex, name=name, sha256=hash_key(key), shown=shown, created_at=clock(), limits=limits)


def is_test_key(key: ApiKey) -> bool:
    """Whether a key is answered with a fixed asset: the first characters of every long key are on record."""
    return key.shown.startswith(TEST_PREFIX[:SHOWN_CHARS])


def make_key(
    name: str, *, limits: KeyLimits, clock: Callable[[], float] = time.time, is_test: bool = False
) -> tuple[str, ApiKey]:
    """Create a random key.

    Args:
        is_test: a key whose submits are answered with a fixed asset.

    Returns:
        The key itself, to be shown once, and its record, to be stored.
    """
    key = (TEST_PREFIX if is_test else PREFIX) + secrets.token_urlsafe(32)
    while not is_test and key.startswith(TEST_PREFIX[:SHOWN_CHARS]):  # once in 17 million keys
        key = PREFIX + secrets.token_urlsafe(32)
    return key, key_record(key, name=name, limits=limits, clock=clock)


def describe_limit(number: int | None) -> str:
    """A limit in words."""
    return "no limit" if number is None else str(number)


def authenticate(store: KeyStore, presented: str | None) -> ApiKey:
    """The record of a key that a caller presents.

    Raises:
        Unauthorized: there is no such key, or it was revoked.
    """
    if not presented:
        raise Unauthorized("API key required")
    return authenticate_by_hash(store, hash_key(presented))


def authenticate_by_hash(store: KeyStore, digest: str) -> ApiKey:
    """The record of a key by its hash.

    Raises:
        Unauthorized: there is no such key, or it was revoked.
    """
    key = store.find_key(digest)
    # The lookup is by digest, so its timing reveals nothing of the key; this comparison takes constant time.
    if key is None or not hmac.compare_digest(key.sha256, digest) or key.revoked_at is not None:
        raise Unauthorized("Invalid API key")
    return key
