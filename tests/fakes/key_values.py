"""`KeyValues` in memory, for tests and benchmarks of the key-value store."""

from __future__ import annotations

import threading
from collections.abc import Sequence


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
