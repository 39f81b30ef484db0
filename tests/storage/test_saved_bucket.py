"""A customer's bucket as it is kept at rest, and used again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from pipeline.deliver import deliver
from pipeline.errors import DeliveryFailed
from pipeline.storage.base import OutputFile
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from pipeline.storage.s3_client import Bucket, make_client
from pipeline.storage.saved_bucket import SavedBucket, open_bucket, seal_bucket
from pipeline.storage.vault import Vault
from tests.storage.s3_servers import answer, fault_proxy, moto_server

pytestmark = pytest.mark.xdist_group("s3")

MASTER = b"a master secret, long enough"
BUCKET = Bucket(
    endpoint_url="https://s3.example",
    name="models",
    region="eu-west-1",
    is_path_style=True,
    directory="out/ü",
    public_url="https://cdn.example/out",
    access_key_id="AKIAEXAMPLE",
    secret_access_key="never/shown",
)


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto_server(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture
def file(tmp_path: Path) -> OutputFile:
    (tmp_path / "p.glb").write_bytes(b"glTF" * 100)
    return OutputFile(tmp_path / "p.glb", kind="model", content_type="model/gltf-binary")


@pytest.fixture
def temporary(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "temporary", signer=LinkSigner([MASTER]))


@pytest.mark.parametrize("bucket", [BUCKET, replace(BUCKET, endpoint_url=None, directory="")])
def test_a_sealed_bucket_opens_as_it_was(bucket: Bucket):
    vault = Vault([MASTER])

    assert open_bucket(seal_bucket(bucket, owner="key-1", vault=vault), owner="key-1", vault=vault) == bucket


def test_a_sealed_bucket_shows_none_of_its_details():
    sealed = seal_bucket(BUCKET, owner="key-1", vault=Vault([MASTER]))

    for detail in (b"AKIAEXAMPLE", b"never/shown", b"models", b"s3.example"):
        assert detail not in sealed


def test_a_bucket_sealed_by_another_version_fails_in_words():
    vault = Vault([MASTER])

    for content in (b'{"endpoint_url": null}', b"[]", b"not json"):
        with pytest.raises(DeliveryFailed, match="is of another version of this service; save it again"):
            open_bucket(vault.seal(content, owner="key-1"), owner="key-1", vault=vault)


def test_files_go_to_a_saved_bucket(moto: str, file: OutputFile, temporary: LocalStorage):
    bucket = replace(BUCKET, endpoint_url=moto, region="us-east-1", public_url=f"{moto}/models/out/%C3%BC")
    vault = Vault([MASTER])
    with httpx.Client() as http:
        make_client(bucket, http).create_bucket(Bucket="models")
        saved = SavedBucket(seal_bucket(bucket, owner="key-1", vault=vault), owner="key-1", vault=vault, http=http)

        delivery = deliver([file], file_prefix="p", temporary=temporary, bucket=saved)

        assert delivery.warnings == ()
        assert http.get(delivery.artifacts[0].url).content == file.path.read_bytes()


def test_a_bucket_whose_secrets_were_lost_leaves_files_in_temporary_storage(file: OutputFile, temporary: LocalStorage):
    sealed = seal_bucket(BUCKET, owner="key-1", vault=Vault([b"a secret that is gone for good"]))
    with httpx.Client() as http:
        saved = SavedBucket(sealed, owner="key-1", vault=Vault([MASTER]), http=http)

        delivery = deliver([file], file_prefix="p", temporary=temporary, bucket=saved)

    assert delivery.artifacts[0].url.startswith("/files/")
    assert delivery.is_upload_pending
    assert "cannot be decrypted with this deployment's secrets; save it again" in delivery.warnings[0]


def test_a_bucket_that_is_overloaded_leaves_files_in_temporary_storage(
    moto: str, file: OutputFile, temporary: LocalStorage
):
    vault = Vault([MASTER])
    with fault_proxy(moto) as proxy, httpx.Client() as http:
        proxy.add(lambda seen: seen.method == "HEAD", answer(403, "AccessDenied"))
        proxy.add(lambda seen: True, answer(507, "QuotaExceeded"))
        sealed = seal_bucket(replace(BUCKET, endpoint_url=proxy.url), owner="key-1", vault=vault)

        delivery = deliver(
            [file],
            file_prefix="p",
            temporary=temporary,
            bucket=SavedBucket(sealed, owner="key-1", vault=vault, http=http),
        )

    assert delivery.is_upload_pending
    assert "(QuotaExceeded on PutObject: the bucket is full)" in delivery.warnings[0]
