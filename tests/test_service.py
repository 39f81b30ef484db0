"""The objects that the processes of a deployment share, and the re-encryption of its buckets."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from pipeline.errors import DeliveryFailed
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import ApiKey, KeyLimits
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.service import Rotation, generation_gone, open_service, reencrypt_buckets
from pipeline.settings import Settings
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from pipeline.storage.secret_box import SecretBox
from tests.reference.memory_store import MemoryStore

NEW, OLD, LOST = b"the new master key", b"the old master key", b"a lost master key"


def test_a_service_opens_the_database_of_its_settings_by_default(tmp_path: Path) -> None:
    service = open_service(Settings(data_dir=tmp_path, database_url=None))

    assert isinstance(service.store, SqlStore)
    service.close()


def test_a_service_uses_the_store_and_the_storage_that_it_gets(tmp_path: Path) -> None:
    store = MemoryStore()
    temporary = LocalStorage(tmp_path / "elsewhere", signer=LinkSigner([b"a master key of the tests"]))

    service = open_service(Settings(data_dir=tmp_path, database_url=None), store=store, temporary=temporary)

    assert service.store is store
    assert service.temporary is temporary
    assert list(tmp_path.rglob("*.sqlite*")) == []
    service.close()


@pytest.mark.parametrize("has_storage_of_its_own", [False, True])
def test_a_lost_generation_names_the_setting_only_where_it_applies(
    tmp_path: Path, has_storage_of_its_own: bool
) -> None:
    settings = Settings(data_dir=tmp_path, database_url=SecretStr("postgresql://host/jobs"))
    temporary = LocalStorage(tmp_path / "elsewhere", signer=LinkSigner([b"a master key of the tests"]))
    given = {"temporary": temporary} if has_storage_of_its_own else {}

    service = open_service(settings, master_keys=[NEW], store=MemoryStore(), **given)

    assert ("OUTPUTS_URL" in str(generation_gone(7, service))) is not has_storage_of_its_own
    service.close()


def key_with_bucket(store: MemoryStore, name: str, *, master_key: bytes) -> ApiKey:
    """A key with a saved bucket; the store does not look inside."""
    key = store.add_key(make_key(name, limits=KeyLimits())[1])
    store.save_s3(key.id, SecretBox([master_key]).encrypt(name.encode(), owner=key.id))
    return key


def test_after_reencryption_the_old_master_key_can_be_removed() -> None:
    store = MemoryStore()
    keys = [key_with_bucket(store, name, master_key=OLD) for name in ("one", "two")]
    revoked = store.revoke_key(keys[1].id)
    current = key_with_bucket(store, "three", master_key=NEW)
    store.add_key(make_key("without a bucket", limits=KeyLimits())[1])

    rotation = reencrypt_buckets(store, [NEW, OLD])

    assert rotation == Rotation(reencrypted=2, current=1, unreadable=())
    for key in (keys[0], revoked, current):
        saved = store.s3_of(key.id)
        assert saved is not None
        assert SecretBox([NEW]).decrypt(saved, owner=key.id) == key.name.encode()
        if key is not current:
            with pytest.raises(DeliveryFailed):
                SecretBox([OLD]).decrypt(saved, owner=key.id)


def test_a_second_reencryption_changes_nothing() -> None:
    store = MemoryStore()
    key = key_with_bucket(store, "one", master_key=OLD)
    reencrypt_buckets(store, [NEW, OLD])
    saved = store.s3_of(key.id)

    assert reencrypt_buckets(store, [NEW, OLD]) == Rotation(reencrypted=0, current=1, unreadable=())
    assert store.s3_of(key.id) == saved


def test_a_bucket_that_no_master_key_decrypts_is_reported_and_stays_as_it_is() -> None:
    store = MemoryStore()
    lost = key_with_bucket(store, "lost", master_key=LOST)
    key_with_bucket(store, "one", master_key=OLD)
    saved = store.s3_of(lost.id)

    assert reencrypt_buckets(store, [NEW, OLD]) == Rotation(reencrypted=1, current=0, unreadable=("lost",))
    assert store.s3_of(lost.id) == saved


def test_a_bucket_that_its_owner_replaces_meanwhile_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    key = key_with_bucket(store, "one", master_key=OLD)
    replacement = SecretBox([NEW]).encrypt(b"another bucket", owner=key.id)
    reencrypt = SecretBox.reencrypt

    def replace_first(box: SecretBox, encrypted: bytes) -> bytes:
        store.save_s3(key.id, replacement)
        return reencrypt(box, encrypted)

    monkeypatch.setattr(SecretBox, "reencrypt", replace_first)
    reencrypt_buckets(store, [NEW, OLD])

    assert store.s3_of(key.id) == replacement
