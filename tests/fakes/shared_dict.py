"""A `SharedDict` in the memory of one process."""

from __future__ import annotations

from typing import Any


class InMemoryDict:
    """See `pipeline.on_modal.shared_dict.SharedDict`."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def put(self, key: str, value: Any) -> None:
        self._values[key] = value

    def pop(self, key: str, default: Any = None) -> Any:
        return self._values.pop(key, default)

    def keys(self) -> list[str]:
        """All keys."""
        return list(self._values)
