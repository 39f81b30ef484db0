"""A customer's bucket, encrypted at rest and used again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from pipeline.errors import DeliveryFailed
from pipeline.stages.deliver import deliver
from pipeline.storage.base import OutputFile
from pipeline.storage.encrypted_bucket import EncryptedBucket, decrypt_bucket, encrypt_bucket
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from pipeline.storage.s3_client import Bucket, make_client
from pipeline.storage.secret_box import SecretBox
from tests.servers.s3 import answer, fault_proxy, moto_server

pytestmark = pytest.mark.xdist_group("s3")

MASTER_KEY = b"a master key of the tests"
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
    return LocalStorage(tmp_path / "temporary", signer=LinkSigner([MASTER_KEY]))


@pytest.mark.parametrize("bucket", [BUCKET, replace(BUCKET, endpoint_url=None, directory="")])
def test_a_decrypted_bucket_equals_the_encrypted_one(bucket: Bucket) -> None:
    secret_box = SecretBox([MASTER_KEY])

    encrypted = encrypt_bucket(bucket, owner="key-1", secret_box=secret_box)

    assert decrypt_bucket(encrypted, owner="key-1", secret_box=secret_box) == bucket


def test_an_encrypted_bucket_contains_none_of_its_details() -> None:
    encrypted = encrypt_bucket(BUCKET, owner="key-1", secret_box=SecretBox([MASTER_KEY]))

    for detail in (b"AKIAEXAMPLE", b"never/shown", b"models", b"s3.example"):
        assert detail not in encrypted


def test_a_bucket_of_another_version_fails_with_a_message() -> None:
    secret_box = SecretBox([MASTER_KEY])

    for content in (b'{"endpoint_url": null}', b"[]", b"not json"):
        with pytest.raises(DeliveryFailed, match="another version of this service saved the bucket; save it again"):
            decrypt_bucket(secret_box.encrypt(content, owner="key-1"), owner="key-1", secret_box=secret_box)


def test_files_are_uploaded_to_a_saved_bucket(moto: str, file: OutputFile, temporary: LocalStorage) -> None:
    bucket = replace(BUCKET, endpoint_url=moto, region="us-east-1", public_url=f"{moto}/models/out/%C3%BC")
    secret_box = SecretBox([MASTER_KEY])
    with httpx.Client() as http:
        make_client(bucket, http).create_bucket(Bucket="models")
        saved = EncryptedBucket(
            encrypt_bucket(bucket, owner="key-1", secret_box=secret_box),
            owner="key-1",
            secret_box=secret_box,
            http=http,
        )

        delivery = deliver([file], file_prefix="p", temporary=temporary, bucket=saved)

        assert delivery.warnings == ()
        assert http.get(delivery.artifacts[0].url).content == file.path.read_bytes()


def test_without_the_master_key_of_a_bucket_files_stay_in_temporary_storage(
    file: OutputFile, temporary: LocalStorage
) -> None:
    encrypted = encrypt_bucket(BUCKET, owner="key-1", secret_box=SecretBox([b"a master key that is lost"]))
    with httpx.Client() as http:
        saved = EncryptedBucket(encrypted, owner="key-1", secret_box=SecretBox([MASTER_KEY]), http=http)

        delivery = deliver([file], file_prefix="p", temporary=temporary, bucket=saved)

    assert delivery.artifacts[0].url.startswith("/files/")
    assert delivery.upload_warning
    assert "cannot be decrypted with this deployment's master keys; save it again" in delivery.upload_warning


def test_with_a_full_bucket_files_stay_in_temporary_storage(
    moto: str, file: OutputFile, temporary: LocalStorage
) -> None:
    secret_box = SecretBox([MASTER_KEY])
    with fault_proxy(moto) as proxy, httpx.Client() as http:
        proxy.add(lambda seen: seen.method == "HEAD", answer(403, "AccessDenied"))
        proxy.add(lambda seen: True, answer(507, "QuotaExceeded"))
        encrypted = encrypt_bucket(replace(BUCKET, endpoint_url=proxy.url), owner="key-1", secret_box=secret_box)

        delivery = deliver(
            [file],
            file_prefix="p",
            temporary=temporary,
            bucket=EncryptedBucket(encrypted, owner="key-1", secret_box=secret_box, http=http),
        )

    assert delivery.upload_warning
    assert "(QuotaExceeded on PutObject: the bucket is full)" in delivery.upload_warning
