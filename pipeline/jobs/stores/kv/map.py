"""A map of short names to bytes with an atomic create: all that `pipeline.jobs.stores.kv.store` needs from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

MAX_VALUE_BYTES = 4_000_000
"""Values stay below this; a Modal Dict takes 5 MB."""


class KeyValues(Protocol):
    """Entries by name. Every method is atomic for its entry, none for two; all are safe from several threads.

    Any method may raise `StoreUnavailable`, after which the operation may have happened or not.
    """

    def get(self, key: str) -> bytes | None:
        """The value, None where there is none."""
        ...

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of several entries, read one by one, in the order of the keys."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Write an entry, whether it exists or not."""
        ...

    def create(self, key: str, value: bytes) -> bool:
        """Write an entry that does not exist yet; False where it does. Of several at once, one is True."""
        ...

    def delete(self, key: str) -> None:
        """Delete an entry, if it exists."""
        ...

    def names(self) -> list[str]:
        """All names, in any order: slow, for maintenance."""
        ...
