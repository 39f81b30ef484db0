"""Maps with an atomic create."""

from __future__ import annotations

import inspect
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
    """A dict whose server does not answer."""

    def get(self, key: Any, default: Any = None) -> Any:
        raise ConnectionError("no route")


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


def test_a_network_error_becomes_store_unavailable() -> None:
    entries = DictKeyValues(AwayDict(), errors=(ConnectionError,))

    with pytest.raises(StoreUnavailable, match=r"busy or unavailable \(ConnectionError\)"):
        entries.get("a")


def test_a_modal_dict_has_the_methods_that_are_used() -> None:
    modal = pytest.importorskip("modal")

    for name in ("get", "put", "pop", "keys"):
        theirs = inspect.signature(getattr(modal.Dict, name)).parameters
        ours = inspect.signature(getattr(DictLike, name)).parameters
        assert set(ours) <= set(theirs), name
