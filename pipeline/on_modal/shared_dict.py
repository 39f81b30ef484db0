"""A shared map of short notes, such as a `modal.Dict` is one: what is worth nothing once its job has ended."""

from __future__ import annotations

from typing import Any, Protocol


class SharedDict(Protocol):
    """A map that every container reaches; each method is one atomic step."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        ...

    def put(self, key: str, value: Any) -> Any:
        """Set the value of a key."""
        ...

    def pop(self, key: str, default: Any = None) -> Any:
        """Take a key away."""
        ...


class InMemoryDict:
    """The twin in one process."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """As `SharedDict.get`."""
        return self._values.get(key, default)

    def put(self, key: str, value: Any) -> None:
        """As `SharedDict.put`."""
        self._values[key] = value

    def pop(self, key: str, default: Any = None) -> Any:
        """As `SharedDict.pop`."""
        return self._values.pop(key, default)

    def keys(self) -> list[str]:
        """All keys."""
        return list(self._values)
