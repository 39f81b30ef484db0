"""Short-lived tokens that stand for an API key in a browser: encrypted, bounded in time, in submits and in jobs.

A token is stored nowhere. It names its key, so it ends with it. Its jobs are found by their idempotency key, which
names the token and the number of the submit, so no two submits can have the same number. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from pydantic import TypeAdapter

from pipeline.errors import DeliveryFailed, IdempotencyKeyReused, Unauthorized
from pipeline.jobs.model import ApiKey, Job, NewJob, Submitted
from pipeline.storage.secret_box import SecretBox

PREFIX = "i3dt_"
OWNER = "browser token"
"""What tokens are encrypted for: nothing else that this deployment encrypts is a token."""
ALL = "all"
MAX_TOKEN_CHARS = 4096


@dataclass(frozen=True)
class BrowserToken:
    """What a token says.

    Attributes:
        key_sha256: the hash of the API key that it stands for.
        expires_at: when it ends, seconds since 1970.
        max_submits: how many jobs may be submitted with it.
        origin: the only origin whose pages may use it; None is any.
        jobs: `all` jobs of the key, or the ids of jobs beside its own.
    """

    id: str
    key_sha256: str
    expires_at: float
    max_submits: int
    origin: str | None
    jobs: str | tuple[int, ...]

    def may_see(self, job: Job) -> bool:
        """Whether the token's holder may fetch, follow and cancel a job of its key."""
        if self.jobs == ALL or (isinstance(self.jobs, tuple) and job.id in self.jobs):
            return True
        return (job.idempotency_key or "").startswith(self._mark)

    def submit(self, submit: Callable[[NewJob], Submitted], new: NewJob) -> Submitted:
        """Submit a job as the first free one of the token's submits.

        The same idempotency key with the same body gives the same job again, as without a token.

        Raises:
            Unauthorized: all of the token's submits are used.
        """
        own = new.idempotency_key or secrets.token_hex(16)
        digest = hashlib.sha256(f"{own}\n{new.request_sha256}".encode()).hexdigest()
        for number in range(self.max_submits):
            try:
                return submit(replace(new, idempotency_key=f"{self._mark}{number}", request_sha256=digest))
            except IdempotencyKeyReused:  # by an earlier submit with this token
                continue
        raise Unauthorized(f"This browser token was for {self.max_submits} submits, which are used; ask for another.")

    @property
    def _mark(self) -> str:
        return f"{PREFIX}{self.id} "


@dataclass(frozen=True)
class Caller:
    """Who sent a request: a key, or a browser with a token for it."""

    key: ApiKey
    token: BrowserToken | None = None


def issue_token(
    secret_box: SecretBox,
    key: ApiKey,
    *,
    expires_in_s: int,
    max_submits: int,
    origin: str | None,
    jobs: str | tuple[int, ...],
    clock: Callable[[], float] = time.time,
) -> tuple[str, BrowserToken]:
    """A new token for a key, and what it says."""
    expires_at = float(int(clock()) + expires_in_s)
    token = BrowserToken(secrets.token_hex(12), key.sha256, expires_at, max_submits, origin, jobs)
    text = json.dumps(asdict(token), separators=(",", ":")).encode()
    return PREFIX + secret_box.encrypt(text, owner=OWNER).decode("ascii"), token


def read_token(
    secret_box: SecretBox,
    text: str,
    *,
    origin: str | None,
    is_origin_checked: bool = True,
    clock: Callable[[], float] = time.time,
) -> BrowserToken:
    """What a token says.

    Args:
        origin: of the page that sent it, None without one.

    Raises:
        Unauthorized: it was not issued here, has expired, or is for pages of another origin.
    """
    try:
        if len(text) > MAX_TOKEN_CHARS:
            raise Unauthorized("Invalid browser token")
        encrypted = text.removeprefix(PREFIX).encode("ascii")
        stated = json.loads(secret_box.decrypt(encrypted, owner=OWNER))
    except (DeliveryFailed, ValueError) as error:
        raise Unauthorized("Invalid browser token") from error
    token = TypeAdapter(BrowserToken).validate_python(stated)
    if clock() >= token.expires_at:
        raise Unauthorized("This browser token has expired; ask for another.")
    if is_origin_checked and token.origin is not None and origin != token.origin:
        raise Unauthorized(f"This browser token is for pages of {token.origin} only.")
    return token
