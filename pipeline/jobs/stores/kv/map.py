"""A map of short names to bytes with an atomic create: all that `pipeline.jobs.stores.kv.store` asks of the world.

Knows nothing of Modal; `DictKeyValues` takes whatever looks like its Dict.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from pipeline.errors import StoreUnavailable

MAX_VALUE_BYTES = 4_000_000
"""Values are kept below this; a Modal Dict takes 5 MB."""
GETS_AT_ONCE = 16

R = TypeVar("R")


class KeyValues(Protocol):
    """Entries by name. Every method is atomic for its entry, none for two; all are safe from several threads.

    Any method may raise `StoreUnavailable`, after which the operation may have happened or not.
    """

    def get(self, key: str) -> bytes | None:
        """The value, None where there is none."""
        ...

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of several entries, each read for itself, in the order asked for."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Write an entry, whether it is there or not."""
        ...

    def create(self, key: str, value: bytes) -> bool:
        """Write an entry that is not there yet; False where it is. Of several at once only one is True."""
        ...

    def delete(self, key: str) -> None:
        """Remove an entry, if it is there."""
        ...

    def names(self) -> list[str]:
        """All names, in any order: slow, for maintenance."""
        ...


class MemoryKeyValues:
    """`KeyValues` in this process's memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        with self._lock:
            return self._entries.get(key)

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def put(self, key: str, value: bytes) -> None:
        with self._lock:
            self._entries[key] = value

    def create(self, key: str, value: bytes) -> bool:
        with self._lock:
            if key in self._entries:
                return False
            self._entries[key] = value
            return True

    def delete(self, key: str) -> None:
        with self._lock:
            self._entries.pop(key, None)

    def names(self) -> list[str]:
        with self._lock:
            return list(self._entries)


class DictLike(Protocol):
    """The methods of a `modal.Dict` (1.6.4) that are used here."""

    def get(self, key: Any, default: Any = None) -> Any:
        """The value, else the default."""
        ...

    def put(self, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool:
        """Write; returns False where the entry was there and was to be skipped."""
        ...

    def pop(self, key: Any, default: Any = ...) -> Any:
        """Remove and return the value, else the default."""
        ...

    def keys(self) -> Iterable[Any]:
        """All keys: a scan."""
        ...


class DictKeyValues:
    """`KeyValues` over a `modal.Dict` or what looks like one.

    Args:
        entries: the Dict, for this store alone.
        errors: what its methods raise when the network or the service fails; translated to `StoreUnavailable`.
    """

    def __init__(self, entries: DictLike, *, errors: tuple[type[Exception], ...] = (OSError,)) -> None:
        self._dict = entries
        self._errors = errors

    def get(self, key: str) -> bytes | None:
        return self._ask(lambda: self._dict.get(key, None))

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) < 2:
            return [self.get(key) for key in keys]
        # Threads of its own for each call: a pool kept over a memory snapshot of the process would be dead after it.
        with ThreadPoolExecutor(min(len(keys), GETS_AT_ONCE)) as pool:
            return list(pool.map(self.get, keys))

    def put(self, key: str, value: bytes) -> None:
        self._ask(lambda: self._dict.put(key, value))

    def create(self, key: str, value: bytes) -> bool:
        return self._ask(lambda: self._dict.put(key, value, skip_if_exists=True))

    def delete(self, key: str) -> None:
        self._ask(lambda: self._dict.pop(key, None))

    def names(self) -> list[str]:
        return self._ask(lambda: list(self._dict.keys()))

    def _ask(self, operation: Callable[[], R]) -> R:
        try:
            return operation()
        except self._errors as error:
            raise StoreUnavailable(f"The store is busy or away ({type(error).__name__}).") from error
