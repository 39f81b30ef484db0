"""A dictionary that all containers share, such as a `modal.Dict`, for entries that are worthless after their job."""

from __future__ import annotations

from typing import Any, Protocol


class SharedDict(Protocol):
    """A dictionary that every container can reach; each method is atomic."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        ...

    def put(self, key: str, value: Any) -> Any:
        """Set the value of a key."""
        ...

    def pop(self, key: str, default: Any = None) -> Any:
        """Remove a key."""
        ...
