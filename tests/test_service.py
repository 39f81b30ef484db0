"""The live parts of a deployment: opened from its settings, or handed in."""

from __future__ import annotations

from pathlib import Path

from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.service import open_service
from pipeline.settings import Settings
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from tests.reference.memory_store import MemoryStore


def test_a_deployment_without_parts_of_its_own_opens_its_database(tmp_path: Path) -> None:
    service = open_service(Settings(data_dir=tmp_path, database_url=None))

    assert isinstance(service.store, SqlStore)
    service.close()


def test_a_deployment_works_with_the_store_and_the_storage_that_it_is_given(tmp_path: Path) -> None:
    store = MemoryStore()
    temporary = LocalStorage(tmp_path / "elsewhere", signer=LinkSigner([b"a master secret, long enough"]))

    service = open_service(Settings(data_dir=tmp_path, database_url=None), store=store, temporary=temporary)

    assert service.store is store
    assert service.temporary is temporary
    assert list(tmp_path.rglob("*.sqlite*")) == []
    service.close()
