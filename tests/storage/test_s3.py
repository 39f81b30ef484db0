"""Customers' buckets, against S3 servers in processes of their own, in success and in failure."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from pipeline.errors import BlockedAddress, DeliveryFailed, InvalidRequest
from pipeline.storage.base import OutputFile, content_type_of
from pipeline.storage.s3 import LATE_PATIENCE, MULTIPART_FROM_BYTES, PART_BYTES, Patience, S3Storage
from pipeline.storage.s3_client import Bucket, make_client
from tests.servers.s3 import (
    FaultProxy,
    Seen,
    answer,
    cut_in_the_middle,
    damage,
    fault_proxy,
    installed_s3rver,
    moto_server,
    s3rver_server,
)

pytestmark = pytest.mark.xdist_group("s3")  # one process's servers serve all of these tests

PREFIX = "7d3f0f0e"
SECRET = "wJalrXUtnFEMI/never/shown"


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto_server(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture(scope="module")
def s3rver(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[str]:
    program = installed_s3rver(pytestconfig.cache.mkdir("s3rver"))
    if isinstance(program, str):
        pytest.skip(f"the second S3 server is not available: {program}")
    with s3rver_server(program, tmp_path_factory.mktemp("s3rver"), bucket="models") as url:
        yield url


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


@pytest.fixture
def bucket(moto: str, http: httpx.Client) -> Bucket:
    """An empty bucket of its own for each test."""
    made = a_bucket(moto)
    make_client(made, http).create_bucket(Bucket=made.name)
    return made


@pytest.fixture
def proxy(moto: str) -> Iterator[FaultProxy]:
    with fault_proxy(moto) as proxy:
        yield proxy


@pytest.fixture
def files(tmp_path: Path) -> list[OutputFile]:
    contents = {"model": "model.obj", "companion": "model.mtl", "thumbnail": "thumb.png"}
    for name in contents.values():
        (tmp_path / name).write_bytes(name.encode() * (100 if name == "thumb.png" else 500))
    return [
        OutputFile(tmp_path / name, kind=kind, content_type=content_type_of(name)) for kind, name in contents.items()
    ]


@pytest.fixture
def large_file(tmp_path: Path) -> OutputFile:
    """Three parts, the last of them short, no two alike."""
    path = tmp_path / "large.glb"
    size = MULTIPART_FROM_BYTES + 1234
    path.write_bytes(hashlib.shake_128(b"large").digest(size))
    return OutputFile(path, kind="model", content_type="model/gltf-binary")


def a_bucket(endpoint_url: str, **changes: Any) -> Bucket:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    made = Bucket(
        endpoint_url=endpoint_url,
        name=name,
        region="us-east-1",
        is_path_style=True,
        directory="out",
        public_url=f"{endpoint_url}/{name}/out",
        access_key_id="AKIAEXAMPLE",
        secret_access_key=SECRET,
    )
    return replace(made, **changes)


def through(proxy: FaultProxy, bucket: Bucket) -> Bucket:
    return replace(bucket, endpoint_url=proxy.url)


def read_object(bucket: Bucket, http: httpx.Client, name: str) -> httpx.Response:
    """The response to a plain request for an object, with a presigned URL."""
    params = {"Bucket": bucket.name, "Key": bucket.key_of(name)}
    return http.get(make_client(bucket, http).generate_presigned_url("get_object", Params=params)).raise_for_status()


def is_put(seen: Seen) -> bool:
    return seen.method == "PUT"


def has_acl(seen: Seen) -> bool:
    return "x-amz-acl" in seen.headers


def is_part(number: int) -> Callable[[Seen], bool]:
    return lambda seen: f"partNumber={number}&" in f"{seen.query}&"


# ---- uploads ----


def test_every_url_answers_with_the_file_when_store_returns(
    bucket: Bucket, http: httpx.Client, files: list[OutputFile]
):
    artifacts = S3Storage(bucket, http=http).store(files, file_prefix=PREFIX)

    assert [artifact.name for artifact in artifacts] == ["model.obj", "model.mtl", "thumb.png"]
    for artifact, file in zip(artifacts, files, strict=True):
        content = file.path.read_bytes()
        fetched = httpx.get(artifact.url)
        assert fetched.status_code == 200
        assert fetched.content == content
        assert fetched.headers["content-type"] == file.content_type
        assert (artifact.size_bytes, artifact.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (artifact.kind, artifact.url) == (file.kind, f"{bucket.public_url}/{artifact.name}")


def test_a_large_file_is_uploaded_in_verified_parts(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, large_file: OutputFile
):
    (artifact,) = S3Storage(through(proxy, bucket), http=http).store([large_file], file_prefix=PREFIX)

    fetched = read_object(bucket, http, "large.glb")
    assert fetched.content == large_file.path.read_bytes()
    assert fetched.headers["content-type"] == "model/gltf-binary"
    assert artifact.size_bytes == MULTIPART_FROM_BYTES + 1234
    parts = [seen for seen in proxy.seen if seen.method == "PUT"]
    assert [seen.size for seen in parts] == [PART_BYTES, PART_BYTES, 1234]
    assert all("content-md5" in seen.headers for seen in parts)


def test_no_request_uses_a_feature_that_old_services_refuse(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile], large_file: OutputFile
):
    S3Storage(through(proxy, bucket), http=http).store([*files, large_file], file_prefix=PREFIX)

    for seen in proxy.seen:
        assert seen.headers["x-amz-content-sha256"] != "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
        assert not {"x-amz-trailer", "x-amz-sdk-checksum-algorithm", "expect", "transfer-encoding"} & set(seen.headers)


def test_storing_again_uploads_nothing(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile], large_file: OutputFile
):
    everything = [*files, large_file]
    first = S3Storage(through(proxy, bucket), http=http).store(everything, file_prefix=PREFIX)
    puts_before = proxy.count("PUT") + proxy.count("POST")

    second = S3Storage(through(proxy, bucket), http=http).store(everything, file_prefix=PREFIX)

    assert second == first
    assert proxy.count("PUT") + proxy.count("POST") == puts_before


def test_an_object_with_other_content_is_replaced(bucket: Bucket, http: httpx.Client, files: list[OutputFile]):
    storage = S3Storage(bucket, http=http)
    storage.store(files, file_prefix=PREFIX)
    files[0].path.write_bytes(files[0].path.read_bytes().swapcase())

    storage.store(files, file_prefix=PREFIX)

    assert read_object(bucket, http, "model.obj").content == files[0].path.read_bytes()


def test_the_model_is_uploaded_last(bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]):
    files[1].path.write_bytes(b"x" * 100_000)

    S3Storage(through(proxy, bucket), http=http).store(files, file_prefix=PREFIX)

    puts = [seen.path.rpartition("/")[2] for seen in proxy.seen if seen.method == "PUT"]
    assert puts == ["thumb.png", "model.mtl", "model.obj"]


class TowardsLoopback(httpx.BaseTransport):
    """Sends requests for every host to one loopback server, with the Host header unchanged."""

    def __init__(self, url: str) -> None:
        self._inner = httpx.HTTPTransport()
        self._address = httpx.URL(url)
        self.hosts: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.hosts.append(request.url.host)
        request.url = request.url.copy_with(scheme="http", host=self._address.host, port=self._address.port)
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize(
    ("endpoint_url", "host"),
    [("http://s3.amazonaws.com", "{}.s3.amazonaws.com"), (None, "{}.s3.eu-west-1.amazonaws.com")],
)
def test_the_host_of_a_virtual_hosted_bucket_starts_with_its_name(
    moto: str, http: httpx.Client, files: list[OutputFile], endpoint_url: str | None, host: str
):
    at_path = a_bucket(moto)
    make_client(at_path, http).create_bucket(Bucket=at_path.name)
    virtual = replace(at_path, endpoint_url=endpoint_url, is_path_style=False, region="eu-west-1")
    towards_loopback = TowardsLoopback(moto)

    with httpx.Client(transport=towards_loopback) as client:
        S3Storage(virtual, http=client).probe()
        S3Storage(virtual, http=client).store(files, file_prefix=PREFIX)

    assert set(towards_loopback.hosts) == {host.format(at_path.name)}
    assert read_object(at_path, http, "model.obj").content == files[0].path.read_bytes()


@pytest.mark.parametrize("directory", ["", "a/b", "mit Leerzeichen/und ü", "a+b/(c)~'d'!*", "100%/&=?#"])
def test_any_directory_works(moto: str, http: httpx.Client, files: list[OutputFile], directory: str):
    bucket = a_bucket(moto, directory=directory)
    make_client(bucket, http).create_bucket(Bucket=bucket.name)

    S3Storage(bucket, http=http).probe()
    S3Storage(bucket, http=http).store(files[:1], file_prefix=PREFIX)

    assert read_object(bucket, http, "model.obj").content == files[0].path.read_bytes()


@pytest.mark.parametrize("directory", ["", "a/b", "mit Leerzeichen/und ü", "a+b/(c)~d!"])
def test_a_second_server_implementation_accepts_all_requests(
    s3rver: str, http: httpx.Client, files: list[OutputFile], large_file: OutputFile, directory: str
):
    bucket = a_bucket(s3rver, name="models", directory=directory, access_key_id="S3RVER", secret_access_key="S3RVER")
    storage = S3Storage(bucket, http=http)

    storage.probe()
    storage.store([*files, large_file], file_prefix=PREFIX)

    for file in [*files, large_file]:
        fetched = read_object(bucket, http, file.path.name)
        assert fetched.content == file.path.read_bytes()
        assert fetched.headers["content-type"] == file.content_type
    listed = make_client(bucket, http).list_objects_v2(Bucket="models", Prefix=bucket.key_of(""))
    assert not [entry["Key"] for entry in listed["Contents"] if "probe" in entry["Key"]]


@pytest.fixture(scope="module")
def strict_moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A server that checks signatures and policies, and the keys of a user who may put but not delete."""
    import boto3

    with moto_server(tmp_path_factory.mktemp("strict")) as url:
        root = {"endpoint_url": url, "region_name": "us-east-1", "aws_access_key_id": "x", "aws_secret_access_key": "x"}
        iam = boto3.client("iam", **root)
        iam.create_user(UserName="writer")
        policy = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": ACTIONS, "Resource": "*"}}
        iam.put_user_policy(UserName="writer", PolicyName="write", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName="writer")["AccessKey"]
        boto3.client("s3", **root).create_bucket(Bucket="strict")
        httpx.post(f"{url}/moto-api/reset-auth", content=b"0").raise_for_status()
        yield url, {"access_key_id": key["AccessKeyId"], "secret_access_key": key["SecretAccessKey"]}


ACTIONS = ["s3:PutObject", "s3:GetObject", "s3:PutObjectAcl"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"access_key_id": "AKIAUNKNOWN"}, "InvalidAccessKeyId on PutObject: the access key id is not known there"),
        (
            {"secret_access_key": SECRET},
            "SignatureDoesNotMatch on PutObject: the secret access key does not fit the access key id",
        ),
        ({}, "AccessDenied on DeleteObject: the credentials may not do this"),
    ],
)
def test_refusals_of_a_server_that_checks_keys_and_policies_are_explained(
    strict_moto: tuple[str, dict[str, str]], http: httpx.Client, changes: dict[str, str], words: str
):
    url, keys = strict_moto
    bucket = a_bucket(url, name="strict", **{**keys, **changes})

    with pytest.raises(InvalidRequest) as refused:
        S3Storage(bucket, http=http).probe()

    assert str(refused.value) == words


def test_a_server_that_checks_signatures_accepts_all_requests(
    strict_moto: tuple[str, dict[str, str]], http: httpx.Client, files: list[OutputFile], large_file: OutputFile
):
    url, keys = strict_moto
    bucket = a_bucket(url, name="strict", directory="mit Leerzeichen/und ü", **keys)

    S3Storage(bucket, http=http).store([*files, large_file], file_prefix=PREFIX)

    client = make_client(bucket, http)  # this server takes no presigned URLs
    for file in [*files, large_file]:
        begin = client.get_object(Bucket="strict", Key=bucket.key_of(file.path.name), Range="bytes=0-999")
        assert begin["Body"].read() == file.path.read_bytes()[:1000]
        assert begin["ContentRange"].endswith(f"/{file.path.stat().st_size}")


def test_the_aws_configuration_of_this_machine_is_ignored(
    bucket: Bucket,
    http: httpx.Client,
    files: list[OutputFile],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    (tmp_path / "config").write_text("[default]\nregion = mars-1\ns3 =\n  addressing_style = virtual\n")
    for name, value in {
        "AWS_PROFILE": "no-such-profile",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "of-this-machine",
        "AWS_REGION": "mars-1",
        "AWS_CA_BUNDLE": "/no/such/file",
        "HTTP_PROXY": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)

    S3Storage(bucket, http=http).store(files, file_prefix=PREFIX)

    assert httpx.Client(trust_env=False).get(f"{bucket.public_url}/model.obj").status_code == 200


# ---- what a bucket may refuse ----


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "AccessControlListNotSupported"), (403, "AccessDenied"), (501, "NotImplemented"), (400, "InvalidArgument")],
)
def test_a_bucket_that_refuses_acls_gets_the_files_without_them(
    bucket: Bucket,
    http: httpx.Client,
    proxy: FaultProxy,
    files: list[OutputFile],
    large_file: OutputFile,
    status: int,
    code: str,
):
    proxy.add(has_acl, answer(status, code), times=100)

    S3Storage(through(proxy, bucket), http=http).store([*files, large_file], file_prefix=PREFIX)

    assert read_object(bucket, http, "large.glb").content == large_file.path.read_bytes()
    assert [seen.path.rpartition("/")[2] for seen in proxy.seen if has_acl(seen)] == ["thumb.png"]


def test_a_bucket_that_accepts_acls_gets_public_objects(bucket: Bucket, http: httpx.Client, files: list[OutputFile]):
    S3Storage(bucket, http=http).store(files, file_prefix=PREFIX)

    grants = make_client(bucket, http).get_object_acl(Bucket=bucket.name, Key="out/model.obj")["Grants"]
    assert ("AllUsers", "READ") in [
        (grant["Grantee"].get("URI", "").split("/")[-1], grant["Permission"]) for grant in grants
    ]


def test_a_missing_bucket_fails_with_a_message(moto: str, http: httpx.Client, files: list[OutputFile]):
    bucket = a_bucket(moto)

    with pytest.raises(InvalidRequest, match=f"^NoSuchBucket on PutObject: there is no bucket '{bucket.name}'$"):
        S3Storage(bucket, http=http).probe()
    with pytest.raises(DeliveryFailed, match=f"^NoSuchBucket on PutObject: there is no bucket '{bucket.name}'$"):
        S3Storage(bucket, http=http).store(files, file_prefix=PREFIX)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDenied", "AccessDenied on PutObject: the credentials may not do this"),
        ("InvalidAccessKeyId", "InvalidAccessKeyId on PutObject: the access key id is not known there"),
        ("SomethingNew", "SomethingNew on PutObject"),
        ("no code: AKIAEXAMPLE", "AccessDenied on PutObject: the credentials may not do this"),
    ],
)
def test_the_message_of_a_refusal_contains_nothing_that_the_service_repeats(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile], code: str, words: str
):
    proxy.add(is_put, answer(403, code))

    with pytest.raises(DeliveryFailed) as refused:
        S3Storage(through(proxy, bucket), http=http).store(files, file_prefix=PREFIX)

    assert str(refused.value) == words
    assert "AKIAEXAMPLE" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "operation"), [("PUT", "PutObject"), ("GET", "GetObject"), ("DELETE", "DeleteObject")]
)
def test_a_probe_names_the_refused_operation(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, method: str, operation: str
):
    proxy.add(lambda seen: seen.method == method, answer(403, "AccessDenied"))

    with pytest.raises(InvalidRequest, match=f"^AccessDenied on {operation}: the credentials may not do this$"):
        S3Storage(through(proxy, bucket), http=http).probe()


def test_a_probe_deletes_its_object_even_if_reading_is_refused(bucket: Bucket, http: httpx.Client, proxy: FaultProxy):
    S3Storage(bucket, http=http).probe()
    proxy.add(lambda seen: seen.method == "GET", answer(403, "AccessDenied"))
    with pytest.raises(InvalidRequest):
        S3Storage(through(proxy, bucket), http=http).probe()

    assert "Contents" not in make_client(bucket, http).list_objects_v2(Bucket=bucket.name)


def test_a_probe_detects_a_server_that_accepts_everything(bucket: Bucket, http: httpx.Client, proxy: FaultProxy):
    def answer_everything(handler: Any, body: bytes) -> bool:
        handler.reply(200, b"<html>welcome</html>", {"content-type": "text/html"})
        return True

    proxy.add(lambda seen: True, answer_everything)

    with pytest.raises(InvalidRequest, match="GetObject returned other content than PutObject had stored"):
        S3Storage(through(proxy, bucket), http=http).probe()


def test_a_wrong_region_is_corrected_if_the_service_names_the_right_one(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]
):
    proxy.add(
        lambda seen: "/eu-central-1/" not in seen.headers.get("authorization", ""),
        answer(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-central-1"}),
    )

    S3Storage(through(proxy, bucket), http=http).store(files, file_prefix=PREFIX)

    assert read_object(bucket, http, "model.obj").content == files[0].path.read_bytes()


def test_a_wrong_region_that_cannot_be_corrected_fails_with_a_message(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]
):
    proxy.add(is_put, answer(400, "AuthorizationHeaderMalformed", extra="<Region>eu-central-1</Region>"))

    with pytest.raises(DeliveryFailed, match="wrong region for the bucket, it is in eu-central-1"):
        S3Storage(through(proxy, bucket), http=http).store(files, file_prefix=PREFIX)


# ---- failures ----


def test_slow_down_is_retried(bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]):
    proxy.add(is_put, answer(503, "SlowDown"), times=1)

    S3Storage(through(proxy, bucket), http=http).store(files, file_prefix=PREFIX)

    assert read_object(bucket, http, "model.obj").content == files[0].path.read_bytes()
    assert proxy.count("PUT") == 4


def test_a_service_that_stays_overloaded_fails_with_a_message(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]
):
    proxy.add(is_put, answer(503, "SlowDown"))

    with pytest.raises(DeliveryFailed, match=r"^SlowDown on PutObject: the service asks for fewer requests$"):
        S3Storage(through(proxy, bucket), http=http, patience=replace(LATE_PATIENCE, attempts=2)).store(
            files, file_prefix=PREFIX
        )


def test_a_connection_that_is_cut_during_a_part_is_retried(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, large_file: OutputFile
):
    proxy.add(is_part(2), cut_in_the_middle, times=1)

    S3Storage(through(proxy, bucket), http=http).store([large_file], file_prefix=PREFIX)

    assert read_object(bucket, http, "large.glb").content == large_file.path.read_bytes()
    assert len([seen for seen in proxy.seen if is_part(2)(seen)]) == 2
    assert len([seen for seen in proxy.seen if is_part(1)(seen)]) == 1


def test_a_failed_upload_leaves_no_parts(bucket: Bucket, http: httpx.Client, proxy: FaultProxy, large_file: OutputFile):
    proxy.add(is_part(2), cut_in_the_middle)

    with pytest.raises(DeliveryFailed, match=r"^the connection to the bucket's endpoint was cut$"):
        S3Storage(through(proxy, bucket), http=http, patience=replace(LATE_PATIENCE, attempts=2)).store(
            [large_file], file_prefix=PREFIX
        )

    client = make_client(bucket, http)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket.name)
    assert "Contents" not in client.list_objects_v2(Bucket=bucket.name)


@pytest.mark.parametrize("is_large", [False, True])
def test_content_that_was_damaged_in_transit_is_never_delivered_even_if_the_server_does_not_notice(
    bucket: Bucket,
    http: httpx.Client,
    proxy: FaultProxy,
    files: list[OutputFile],
    large_file: OutputFile,
    is_large: bool,
):
    file = large_file if is_large else files[0]
    proxy.add(is_part(2) if is_large else is_put, damage, times=1)
    storage = S3Storage(through(proxy, bucket), http=http)

    with pytest.raises(DeliveryFailed, match=r"^the object in the bucket differs from the file that was sent$"):
        storage.store([file], file_prefix=PREFIX)

    storage.store([file], file_prefix=PREFIX)
    assert read_object(bucket, http, file.path.name).content == file.path.read_bytes()


def test_content_that_the_server_finds_damaged_fails_with_a_message(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]
):
    proxy.add(is_put, answer(400, "BadDigest"))

    with pytest.raises(DeliveryFailed, match=r"^BadDigest on PutObject: the content was damaged on the way$"):
        S3Storage(through(proxy, bucket), http=http).store(files, file_prefix=PREFIX)
    assert proxy.count("PUT") == 1


@pytest.mark.parametrize("is_large", [False, True])
def test_an_object_without_a_usable_etag_is_read_back(
    bucket: Bucket,
    http: httpx.Client,
    proxy: FaultProxy,
    files: list[OutputFile],
    large_file: OutputFile,
    is_large: bool,
):
    file = large_file if is_large else files[0]

    def unusable_etag(handler: Any, body: bytes) -> bool:
        handler.reply(200, b"", {"content-length": str(file.path.stat().st_size), "etag": '"of-its-own"'})
        return True

    proxy.add(lambda seen: seen.method == "HEAD", answer(404, "NotFound"), times=1)
    proxy.add(lambda seen: seen.method == "HEAD", unusable_etag)

    S3Storage(through(proxy, bucket), http=http).store([file], file_prefix=PREFIX)

    assert proxy.count("GET") == (3 if is_large else 1)


def test_an_object_that_appears_late_is_waited_for(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]
):
    proxy.add(lambda seen: seen.method == "HEAD", answer(404, "NotFound"), times=3)  # one before the upload, two after

    S3Storage(through(proxy, bucket), http=http).store(files[:1], file_prefix=PREFIX)

    assert proxy.count("HEAD") == 4


def test_an_object_that_never_appears_is_a_failure(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]
):
    proxy.add(lambda seen: seen.method == "HEAD", answer(404, "NotFound"))

    with pytest.raises(DeliveryFailed, match=r"^NotFound on HeadObject$"):
        S3Storage(through(proxy, bucket), http=http).store(files[:1], file_prefix=PREFIX)


def test_a_key_that_may_write_but_not_read_still_delivers(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]
):
    proxy.add(lambda seen: seen.method == "HEAD", answer(403, "AccessDenied"))

    S3Storage(through(proxy, bucket), http=http).store(files[:1], file_prefix=PREFIX)

    assert read_object(bucket, http, "model.obj").content == files[0].path.read_bytes()


def test_a_truncated_object_is_a_failure(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]
):
    def report_too_few_bytes(handler: Any, body: bytes) -> bool:
        handler.reply(200, b"", {"content-length": "7", "etag": '"x"'})
        return True

    proxy.add(lambda seen: seen.method == "HEAD", report_too_few_bytes)

    with pytest.raises(DeliveryFailed, match=r"^the bucket holds 7 bytes of 4500$"):
        S3Storage(through(proxy, bucket), http=http).store(files[:1], file_prefix=PREFIX)


def test_an_unreachable_endpoint_fails_with_a_message(http: httpx.Client, files: list[OutputFile]):
    bucket = a_bucket("http://127.0.0.1:1")

    with pytest.raises(DeliveryFailed, match=r"^the bucket's endpoint cannot be reached$"):
        S3Storage(bucket, http=http, patience=replace(LATE_PATIENCE, attempts=2)).store(files, file_prefix=PREFIX)
    with pytest.raises(InvalidRequest, match=r"^the bucket's endpoint cannot be reached$"):
        S3Storage(bucket, http=http, patience=replace(LATE_PATIENCE, attempts=1)).probe()


def test_an_endpoint_that_hangs_fails_with_a_message(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]
):
    release = threading.Event()
    proxy.add(is_put, lambda handler, body: release.wait(20))
    hasty = httpx.Timeout(0.3)

    with pytest.raises(DeliveryFailed, match=r"^the bucket's endpoint does not answer$"):
        S3Storage(through(proxy, bucket), http=http, patience=Patience(2, hasty, base_s=60)).store(
            files, file_prefix=PREFIX
        )
    assert proxy.count("PUT") == 2
    release.set()


def test_an_endpoint_that_is_not_s3_fails_with_a_message(bucket: Bucket, http: httpx.Client, proxy: FaultProxy):
    def gateway(handler: Any, body: bytes) -> bool:
        handler.reply(404, b"<!doctype html><p>Nothing here & nothing there", {"content-type": "text/html"})
        return True

    proxy.add(lambda seen: True, gateway)

    with pytest.raises(InvalidRequest, match=r"^(the endpoint does not answer like S3|NotFound on PutObject)$"):
        S3Storage(through(proxy, bucket), http=http).probe()


def test_a_missing_source_file_fails_with_a_message(bucket: Bucket, http: httpx.Client, files: list[OutputFile]):
    files[0].path.unlink()

    with pytest.raises(DeliveryFailed, match="a file to upload cannot be read: No such file or directory"):
        S3Storage(bucket, http=http).store(files, file_prefix=PREFIX)


# ---- addresses and secrets ----


class Guard(httpx.BaseTransport):
    """Refuses every address, as the egress guard does when the connection is made."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise BlockedAddress(f"{request.url.host} is not an address for this service")


def test_an_endpoint_that_the_guard_blocks_is_never_reached(bucket: Bucket, proxy: FaultProxy, files: list[OutputFile]):
    storage = S3Storage(through(proxy, bucket), http=httpx.Client(transport=Guard()))

    with pytest.raises(BlockedAddress, match=r"127\.0\.0\.1 is not an address for this service"):
        storage.probe()
    with pytest.raises(DeliveryFailed, match=r"127\.0\.0\.1 is not an address for this service"):
        storage.store(files, file_prefix=PREFIX)
    assert proxy.seen == []


def test_redirects_of_an_endpoint_are_not_followed(
    moto: str, bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]
):
    with fault_proxy(moto) as elsewhere:
        proxy.add(
            lambda seen: True,
            answer(307, "TemporaryRedirect", headers={"location": f"{elsewhere.url}/{bucket.name}/out/x"}),
        )

        with pytest.raises(DeliveryFailed, match="wrong region for the bucket"):
            S3Storage(through(proxy, bucket), http=http, patience=replace(LATE_PATIENCE, attempts=2)).store(
                files, file_prefix=PREFIX
            )

        assert elsewhere.seen == []


def test_the_repr_of_a_bucket_contains_neither_key_nor_secret(bucket: Bucket):
    assert SECRET not in repr(bucket)
    assert bucket.access_key_id not in repr(bucket)


@pytest.mark.parametrize("endpoint_url", ["http://[", "nonsense", "ftp://x.example"])
def test_an_endpoint_that_is_not_an_address_fails_with_a_message(http: httpx.Client, endpoint_url: str):
    with pytest.raises(InvalidRequest, match=r"do not make an address of a bucket|cannot be reached|cannot be used"):
        S3Storage(a_bucket(endpoint_url), http=http, patience=replace(LATE_PATIENCE, attempts=1)).probe()


# ---- the public address ----


def test_a_public_url_that_answers_gives_no_warning(bucket: Bucket, http: httpx.Client, files: list[OutputFile]):
    storage = S3Storage(bucket, http=http)

    assert storage.check_public_url(storage.store(files, file_prefix=PREFIX)) is None


def test_a_public_url_that_does_not_support_head_is_requested_with_get(
    bucket: Bucket, http: httpx.Client, proxy: FaultProxy, files: list[OutputFile]
):
    storage = S3Storage(replace(bucket, public_url=f"{proxy.url}/{bucket.name}/out"), http=http)
    artifacts = storage.store(files, file_prefix=PREFIX)
    proxy.add(lambda seen: seen.method == "HEAD", answer(405, "MethodNotAllowed"))

    assert storage.check_public_url(artifacts) is None
    assert urlsplit(proxy.url).netloc in artifacts[0].url


@pytest.mark.parametrize(
    ("public_url", "words"),
    [
        ("http://127.0.0.1:1", "The files are in your bucket, but public_url does not answer."),
        ("{moto}/no-such-bucket", "The files are in your bucket, but public_url answers 404."),
    ],
)
def test_a_public_url_that_does_not_answer_gives_a_warning(
    moto: str, bucket: Bucket, http: httpx.Client, files: list[OutputFile], public_url: str, words: str
):
    storage = S3Storage(replace(bucket, public_url=public_url.format(moto=moto)), http=http)

    assert storage.check_public_url(storage.store(files, file_prefix=PREFIX)) == words


@pytest.mark.parametrize(
    "host", ["0177.0.0.1", "127.000.000.001", "\uff11\uff12\uff17.0.0.1", "\u0661\u0662\u0667.0.0.1"]
)
def test_an_endpoint_whose_host_is_not_an_address_is_refused_with_a_message(http: httpx.Client, host: str) -> None:
    bucket = a_bucket(f"http://{host}:9")

    with pytest.raises(InvalidRequest, match="endpoint_url does not hold a host that can be reached"):
        S3Storage(bucket, http=http, patience=replace(LATE_PATIENCE, attempts=1)).probe()
