"""The map of the key-value store in a `modal.Dict`. Imports nothing of Modal: any object with its methods will do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from pipeline.errors import StoreUnavailable

GETS_AT_ONCE = 16

R = TypeVar("R")


class DictLike(Protocol):
    """The methods of a `modal.Dict` (1.6.4) that are used here."""

    def get(self, key: Any, default: Any = None) -> Any:
        """The value, else the default."""
        ...

    def put(self, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool:
        """Write; returns False where the entry existed and was skipped."""
        ...

    def pop(self, key: Any, default: Any = ...) -> Any:
        """Delete the entry and return its value, else the default."""
        ...

    def keys(self) -> Iterable[Any]:
        """All keys: a scan."""
        ...


class DictKeyValues:
    """`KeyValues` over a `modal.Dict`, or an object with its methods.

    Args:
        entries: the Dict, for this store alone. Every exception of its methods becomes `StoreUnavailable`: Modal's
            client raises its own, those of the connection, and those of the libraries below it.
    """

    def __init__(self, entries: DictLike) -> None:
        self._dict = entries

    def get(self, key: str) -> bytes | None:
        return self._translated(lambda: self._dict.get(key, None))

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if len(keys) < 2:
            return [self.get(key) for key in keys]
        # New threads each time: the threads of a pool do not survive a memory snapshot of the process.
        with ThreadPoolExecutor(min(len(keys), GETS_AT_ONCE)) as pool:
            return list(pool.map(self.get, keys))

    def put(self, key: str, value: bytes) -> None:
        self._translated(lambda: self._dict.put(key, value))

    def create(self, key: str, value: bytes) -> bool:
        return self._translated(lambda: self._dict.put(key, value, skip_if_exists=True))

    def delete(self, key: str) -> None:
        self._translated(lambda: self._dict.pop(key, None))

    def names(self) -> list[str]:
        return self._translated(lambda: list(self._dict.keys()))

    def _translated(self, operation: Callable[[], R]) -> R:
        try:
            return operation()
        except Exception as error:
            raise StoreUnavailable(f"The store is busy or unavailable ({type(error).__name__}).") from error
