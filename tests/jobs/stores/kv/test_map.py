"""Maps with an atomic create."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.errors import StoreUnavailable
from pipeline.jobs.stores.kv.map import KeyValues
from pipeline.on_modal.dict_key_values import DictKeyValues, DictLike
from tests.fakes.key_values import MemoryKeyValues


class FakeDict(dict[Any, Any]):
    """A plain dict with the methods of a `modal.Dict`."""

    def put(self, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool:
        if skip_if_exists:
            return self.setdefault(key, value) is value
        self[key] = value
        return True


class AwayDict(FakeDict):
    """A dict whose client raises this."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def _raise(self, *arguments: Any, **options: Any) -> Any:
        raise self._error

    get = put = pop = keys = _raise


@pytest.fixture(params=["memory", "dict"])
def entries(request: pytest.FixtureRequest) -> KeyValues:
    return MemoryKeyValues() if request.param == "memory" else DictKeyValues(FakeDict())


def test_entries_are_written_read_and_deleted(entries: KeyValues) -> None:
    entries.put("a", b"1")
    entries.put("a", b"2")

    assert entries.get("a") == b"2"
    assert entries.get_many(["b", "a", "a"]) == [None, b"2", b"2"]
    assert entries.names() == ["a"]
    entries.delete("a")
    entries.delete("a")
    assert entries.get("a") is None
    assert entries.get_many([]) == []


def test_an_entry_is_created_once(entries: KeyValues) -> None:
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: entries.create("a", b"value %d" % number), range(32)))

    assert created.count(True) == 1
    assert entries.get("a") == b"value %d" % created.index(True)


def client_errors() -> list[Exception]:
    """What Modal's client raises when a server, a connection or a limit fails, also from the libraries below it."""
    grpclib = pytest.importorskip("grpclib")
    modal = pytest.importorskip("modal")
    exceptions = [grpclib.exceptions.StreamTerminatedError("lost"), grpclib.GRPCError(grpclib.const.Status.UNAVAILABLE)]
    own = [modal.exception.ResourceExhaustedError("slow"), modal.exception.ServiceError("no")]
    return [*exceptions, *own, ConnectionError("no route"), TimeoutError(), AttributeError("_write_appdata")]


OPERATIONS: dict[str, Callable[[KeyValues], object]] = {
    "get": lambda entries: entries.get("a"),
    "get_many": lambda entries: entries.get_many(["a", "b"]),
    "put": lambda entries: entries.put("a", b"1"),
    "create": lambda entries: entries.create("a", b"1"),
    "delete": lambda entries: entries.delete("a"),
    "names": lambda entries: entries.names(),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_every_exception_of_the_client_becomes_store_unavailable(operation: Callable[[KeyValues], object]) -> None:
    for error in client_errors():
        with pytest.raises(StoreUnavailable, match=rf"busy or unavailable \({type(error).__name__}\)"):
            operation(DictKeyValues(AwayDict(error)))


def test_a_modal_dict_has_the_methods_that_are_used() -> None:
    modal = pytest.importorskip("modal")

    for name in ("get", "put", "pop", "keys"):
        theirs = inspect.signature(getattr(modal.Dict, name)).parameters
        ours = inspect.signature(getattr(DictLike, name)).parameters
        assert set(ours) <= set(theirs), name
