"""Outputs and checkpoints that two machines share in one bucket, on a real S3 server."""

from __future__ import annotations

import json
import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from pipeline.errors import CannotStart, DeliveryFailed, NotFound, StoreUnavailable
from pipeline.settings import Settings
from pipeline.shared_storage import own_bucket
from pipeline.storage import shared_outputs, shared_work
from pipeline.storage.base import OutputFile, StoredFile
from pipeline.storage.links import LinkSigner
from pipeline.storage.own_bucket import OwnBucket
from pipeline.storage.s3_client import Bucket, make_client
from pipeline.storage.shared_generations import SharedGenerations
from pipeline.storage.shared_outputs import SharedOutputs
from pipeline.storage.shared_work import SharedWork
from tests.servers.s3 import FaultProxy, answer, fault_proxy, moto_server

pytestmark = pytest.mark.xdist_group("s3")

SECRET = (b"a master key of the deployment",)
PREFIX = "7d3f0f0e"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with moto_server(tmp_path_factory.mktemp("moto")) as url, fault_proxy(url) as proxy:
        yield proxy


@pytest.fixture
def bucket(proxy: FaultProxy) -> Iterator[OwnBucket]:
    """A directory in a bucket of its own for each test; the proxy has no fault."""
    proxy.faults.clear()
    proxy.seen.clear()
    made = Bucket(proxy.url, f"b-{uuid.uuid4().hex[:12]}", "us-east-1", True, "a/prefix", "", "id", "secret-key")
    with httpx.Client() as http:
        make_client(made, http).create_bucket(Bucket=made.name)
        yield OwnBucket(made, http=http)


@dataclass
class Machines:
    """Two machines with a folder each, and the time on their clocks."""

    bucket: OwnBucket
    folder: Path
    now: float = field(default_factory=time.time)
    outputs: list[SharedOutputs] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outputs = [
            SharedOutputs(
                self.folder / name,
                bucket=self.bucket,
                signer=LinkSigner(SECRET),
                lifetime_s=3600,
                clock=lambda: self.now,
            )
            for name in ("writer", "reader")
        ]

    def store(self, *, lifetime_s: float | None = None, prefix: str = PREFIX) -> list[str]:
        """Store a model and its companion on the first machine; returns their links."""
        files = []
        for name, kind in (("model.obj", "model"), ("model.mtl", "companion")):
            (self.folder / name).write_bytes(f"{name} of {prefix}".encode() * 100)
            files.append(OutputFile(self.folder / name, kind, "model/obj"))
        stored = self.outputs[0].store(files, file_prefix=prefix, created_at=self.now, lifetime_s=lifetime_s)
        return [artifact.url for artifact in stored]

    def open(self, url: str, machine: int = 1) -> StoredFile:
        _, _, token, name = url.split("/")
        return self.outputs[machine].open_file(token, name)


@pytest.fixture
def machines(bucket: OwnBucket, tmp_path: Path) -> Machines:
    return Machines(bucket, tmp_path)


def fail(proxy: FaultProxy) -> None:
    proxy.add(lambda seen: True, answer(503, "SlowDown"))


def test_another_machine_opens_every_file_under_the_predicted_link_with_the_same_etag(
    machines: Machines, proxy: FaultProxy
) -> None:
    predicted = machines.outputs[1].predict_urls(
        ["model.obj", "model.mtl"], file_prefix=PREFIX, created_at=machines.now
    )
    assert machines.store() == predicted

    opened = [[machines.open(url, machine) for machine in (0, 1)] for url in predicted]

    for here, there in opened:
        assert here.etag == there.etag and here.path != there.path
        assert here.path.read_bytes() == there.path.read_bytes() != b""
    assert not any("x-amz-acl" in seen.headers for seen in proxy.seen)  # nothing is public


def test_a_download_asks_the_bucket_once(machines: Machines, proxy: FaultProxy) -> None:
    (url, _) = machines.store()
    machines.open(url)
    proxy.seen.clear()

    assert machines.open(url).size_bytes > 0

    assert [seen.method for seen in proxy.seen] == []


def test_deleted_files_are_gone_on_every_machine(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    (url, _) = machines.store()
    kept = machines.store(prefix="another")[0]
    machines.open(url)
    monkeypatch.setattr(shared_outputs, "COPY_LIFETIME_S", 0.0)

    assert machines.outputs[0].delete(PREFIX) and not machines.outputs[0].delete(PREFIX)

    for machine in (0, 1):
        with pytest.raises(NotFound):
            machines.open(url, machine)
    assert machines.open(kept)


def test_a_lifetime_of_its_own_ends_on_every_machine(machines: Machines) -> None:
    short, long = machines.store(lifetime_s=60)[0], machines.store(prefix="another")[0]
    assert machines.open(short)

    machines.now += 61

    with pytest.raises(NotFound, match="expired"):
        machines.open(short)
    assert machines.open(long)
    assert machines.outputs[1].clean() == 1
    assert {found.name.partition("/")[0] for found in machines.bucket.objects()} == {"another"}


def test_expired_files_are_deleted_from_the_bucket(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_outputs, "CLEAN_EVERY_S", 0.0)
    machines.store()
    written_at = max(found.modified_at for found in machines.bucket.objects())

    machines.now = written_at + 2 * 3600 - 5
    assert machines.outputs[1].clean() == 0
    machines.now = written_at + 2 * 3600
    assert machines.outputs[1].clean() == 1

    assert [*machines.bucket.objects()] == []


def test_copies_that_nobody_used_lately_leave_the_machine(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    (url, _) = machines.store()
    copy = machines.open(url).path
    monkeypatch.setattr(shared_outputs, "COPIES_KEPT_S", -1.0)

    machines.outputs[1].clean()

    assert not copy.exists()
    assert machines.open(url).path.exists()


def test_without_the_bucket_copies_are_served_and_nothing_else(
    machines: Machines, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (url, companion) = machines.store()
    machines.open(url)
    monkeypatch.setattr(shared_outputs, "COPY_LIFETIME_S", 0.0)
    fail(proxy)

    assert machines.open(url).size_bytes > 0
    with pytest.raises(StoreUnavailable, match="bucket is unavailable"):
        machines.open(companion)
    with pytest.raises(DeliveryFailed, match="the deployment's bucket did not accept the files"):
        machines.store(prefix="new")


@pytest.mark.parametrize("name", ["..", "../other", ".expires", "manifest", "a/b", ""])
def test_a_link_opens_no_other_name(machines: Machines, name: str) -> None:
    url = machines.store(lifetime_s=60)[0]

    with pytest.raises(NotFound):
        machines.outputs[1].open_file(url.split("/")[2], name)


def test_files_for_a_late_upload_are_fetched(machines: Machines) -> None:
    machines.store()

    (file,) = machines.outputs[1].stored_files([("model.obj", "model")], file_prefix=PREFIX)

    assert file.path.read_bytes().startswith(b"model.obj of")


# ---- checkpoints ----


@pytest.fixture
def work(bucket: OwnBucket) -> Callable[[], SharedWork]:
    return lambda: SharedWork(bucket.within("work"), master_keys=SECRET)


def a_work_folder(folder: Path) -> Path:
    """A job's folder with a checkpoint and a file."""
    (folder / "7-abc" / "files").mkdir(parents=True)
    (folder / "7-abc" / "generate.pickle").write_bytes(pickle.dumps("a generation"))
    (folder / "7-abc" / "files" / "abc.glb").write_bytes(b"a model")
    return folder / "7-abc"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_machine_gets_the_checkpoints_of_a_job(work: Callable[[], SharedWork], tmp_path: Path) -> None:
    folder, there = a_work_folder(tmp_path / "a"), tmp_path / "b" / "7-abc"
    work().save(folder)

    work().restore(there)

    assert contents(there) == contents(folder)
    assert [path.name for path in there.parent.iterdir()] == ["7-abc"]


def test_only_what_changed_is_sent_again(work: Callable[[], SharedWork], tmp_path: Path, proxy: FaultProxy) -> None:
    folder, sender = a_work_folder(tmp_path), work()
    sender.save(folder)
    (folder / "export.pickle").write_bytes(b"later")
    proxy.seen.clear()

    sender.save(folder)

    sent = [seen.path.rpartition("/")[2] for seen in proxy.seen if seen.method == "PUT"]
    assert sent == ["export.pickle", "manifest.json"]


def test_a_job_without_checkpoints_starts_anew(work: Callable[[], SharedWork], tmp_path: Path) -> None:
    work().restore(tmp_path / "work" / "7-abc")

    assert not any((tmp_path / "work").iterdir())


def test_checkpoints_of_somebody_else_are_never_read(
    work: Callable[[], SharedWork], bucket: OwnBucket, tmp_path: Path
) -> None:
    folder = a_work_folder(tmp_path / "a")
    SharedWork(bucket.within("work"), master_keys=(b"a secret of another deployment",)).save(folder)

    work().restore(tmp_path / "b" / "7-abc")

    assert contents(tmp_path / "b") == {}


def test_a_checkpoint_that_the_manifest_does_not_name_as_it_is_is_left_out(
    work: Callable[[], SharedWork], bucket: OwnBucket, tmp_path: Path
) -> None:
    folder = a_work_folder(tmp_path / "a")
    work().save(folder)
    (tmp_path / "generate.pickle").write_bytes(b"replaced")
    place = bucket.within("work/7-abc")
    place.store([OutputFile(tmp_path / "generate.pickle", "extra", "")], file_prefix="")

    work().restore(tmp_path / "b" / "7-abc")

    assert contents(tmp_path / "b" / "7-abc") == {"files/abc.glb": b"a model"}


def test_an_unavailable_bucket_costs_a_job_its_checkpoints_only(
    work: Callable[[], SharedWork], tmp_path: Path, proxy: FaultProxy
) -> None:
    folder = a_work_folder(tmp_path / "a")
    fail(proxy)

    work().save(folder)
    work().restore(tmp_path / "b" / "7-abc")
    work().forget(folder)

    assert not (tmp_path / "b" / "7-abc").exists()


def test_checkpoints_are_deleted_with_their_job(
    work: Callable[[], SharedWork], bucket: OwnBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_work_folder(tmp_path)
    work().save(folder)
    work().clean(lambda name, changed_at: False)
    assert [*bucket.objects()] != []

    work().clean(lambda name, changed_at: name == "7-abc" and changed_at > 1.7e9)
    assert [*bucket.objects()] == []

    again = work()
    again.save(folder)
    again.forget(folder)
    assert [*bucket.objects()] == []


# ---- kept generations ----


@dataclass
class Keepers:
    """Two machines that keep generations in one bucket, and the time on their clocks."""

    bucket: OwnBucket
    folder: Path
    now: float = field(default_factory=time.time)

    def on(self, machine: str, *, max_bytes: int = 10_000) -> SharedGenerations:
        return SharedGenerations(
            self.folder / machine / "generations",
            bucket=self.bucket.within("generations"),
            master_keys=SECRET,
            lifetime_s=100,
            max_bytes=max_bytes,
            clock=lambda: self.now,
        )

    def keep(self, name: str, size_bytes: int = 10) -> None:
        (self.folder / "generate.pickle").write_bytes(name.encode() * size_bytes)
        self.on("a").keep(name, self.folder / "generate.pickle")


@pytest.fixture
def keepers(bucket: OwnBucket, tmp_path: Path) -> Keepers:
    return Keepers(bucket, tmp_path)


def test_a_generation_is_found_on_another_machine_for_its_lifetime(keepers: Keepers) -> None:
    keepers.keep("x")
    kept_at = keepers.now

    assert keepers.on("b").has("x") and not keepers.on("b").has("y") and keepers.on("b").find("y") is None
    keepers.now = kept_at + 90
    found = keepers.on("b").find("x")
    assert found is not None and found.read_bytes() == b"x" * 10
    assert [path.name for path in found.parent.parent.iterdir()] == ["generations"]  # nothing is left of the transfer

    keepers.now = kept_at + 130  # the age counts from the server's own clock, once the upload is complete
    for machine in "abc":
        assert not keepers.on(machine).has("x") and keepers.on(machine).find("x") is None
    keepers.on("c").clean()
    assert [*keepers.bucket.objects()] == []


def test_a_deleted_generation_is_gone_on_every_machine_that_did_not_fetch_it(keepers: Keepers) -> None:
    keepers.keep("x")

    keepers.on("b").delete("x")

    assert not keepers.on("c").has("x") and [*keepers.bucket.objects()] == []


def test_the_oldest_generations_leave_the_bucket_first(keepers: Keepers) -> None:
    keepers.keep("x", 300)
    time.sleep(1.1)  # S3 tells the time of a change in seconds
    keepers.keep("y", 300)

    keepers.on("b", max_bytes=900).clean()

    assert {found.name.split("/")[1] for found in keepers.bucket.objects()} == {"y"}


def test_an_unavailable_bucket_costs_no_job(keepers: Keepers, proxy: FaultProxy) -> None:
    fail(proxy)

    keepers.keep("x")

    assert keepers.on("a").find("x") is not None
    with pytest.raises(StoreUnavailable):
        keepers.on("b").has("x")


# ---- settings ----


def settings(**given: object) -> Settings:
    credentials = {"outputs_access_key_id": SecretStr("id"), "outputs_secret_access_key": SecretStr("secret-key")}
    return Settings(**{**credentials, "database_url": None, **given})  # type: ignore[arg-type]


def test_the_bucket_is_named_by_the_settings_or_the_usual_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "AWS_ENDPOINT_URL_S3": "http://minio.internal:9000",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_REGION": "eu-central-1",
        "IMAGE_TO_3D_OUTPUTS_URL": "s3://models/a%20b/c/",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    opened = own_bucket(Settings())

    assert opened is not None
    bucket = opened._bucket
    assert (bucket.endpoint_url, bucket.is_path_style) == ("http://minio.internal:9000", True)
    assert (bucket.name, bucket.directory, bucket.region) == ("models", "a b/c", "eu-central-1")
    opened._http.close()


@pytest.mark.parametrize("url", ["http://bucket/prefix", "s3:///prefix", "bucket", "s3://bucket?x=1"])
def test_an_address_that_names_no_bucket_is_one_sentence(url: str) -> None:
    with pytest.raises(CannotStart, match="must be s3://bucket"):
        own_bucket(settings(outputs_url=url))


def test_missing_credentials_are_one_sentence() -> None:
    with pytest.raises(CannotStart, match="needs OUTPUTS_ACCESS_KEY_ID"):
        own_bucket(settings(outputs_url="s3://bucket", outputs_access_key_id=None))


def test_without_the_setting_there_is_no_bucket() -> None:
    assert own_bucket(settings()) is None


def test_the_manifest_holds_no_path_of_the_machine(
    work: Callable[[], SharedWork], bucket: OwnBucket, tmp_path: Path
) -> None:
    work().save(a_work_folder(tmp_path))

    bucket.within("work/7-abc").fetch("manifest.json", tmp_path / "read")

    assert set(json.loads((tmp_path / "read").read_bytes())["files"]) == {"generate.pickle", "files/abc.glb"}
    assert shared_work.MANIFEST == "manifest.json"
