"""Temporary outputs on a volume that is not mounted."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pipeline.api.app import create_app
from pipeline.errors import DeliveryFailed, NotFound, StoreUnavailable
from pipeline.on_modal.volume_files import COPIES_KEPT_S, COPY_LIFETIME_S, VolumeStorage
from pipeline.service import open_service
from pipeline.settings import Settings
from pipeline.storage.base import OutputFile
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from tests.reference.memory_store import MemoryStore

PREFIX = "7d3f0f0e-5a0e-4d0c-9b8e-3a4f5b6c7d8e"
OTHER = "0f1e2d3c-5a0e-4d0c-9b8e-3a4f5b6c7d8e"
MODEL = b"glTF" + bytes(range(256)) * 8


class Missing(Exception):
    """What a volume's client raises for a file that does not exist."""


class MemoryVolume:
    """A volume in memory, read in chunks; only the first chunk shows that a file does not exist.

    Attributes:
        reads: the paths that were read, in order.
        error: raised instead of an answer.
        on_read: called with the path before a file is read.
        on_remove: called before a file is removed.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.reads: list[str] = []
        self.error: Exception | None = None
        self.on_read: Callable[[str], object] = lambda path: None
        self.on_remove: Callable[[], object] = lambda: None

    @contextmanager
    def batch_upload(self, force: bool = False) -> Iterator[MemoryVolume]:
        yield self
        if self.error is not None:
            raise self.error

    def put_file(self, local_file: Path, remote_path: str) -> None:
        self.files[remote_path] = local_file.read_bytes()

    def read_file(self, path: str) -> Iterator[bytes]:
        self.reads.append(path)
        self.on_read(path)
        if self.error is not None:
            raise self.error
        if path not in self.files:
            raise Missing(path)
        content = self.files[path]
        for start in range(0, len(content), 100):
            yield content[start : start + 100]

    def remove_file(self, path: str, recursive: bool = False) -> None:
        assert recursive
        self.on_remove()
        if self.error is not None:
            raise self.error
        inside = [name for name in self.files if name.startswith(f"{path}/")]
        if not inside:
            raise FileNotFoundError(path)
        for name in inside:
            del self.files[name]


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def volume() -> MemoryVolume:
    volume = MemoryVolume()
    volume.files = {f"files/{PREFIX}/a.glb": MODEL, f"files/{PREFIX}/a.png": b"png", f"files/{OTHER}/b.glb": b"other"}
    return volume


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the copies."""
    return tmp_path / "copies"


@pytest.fixture
def storage(volume: MemoryVolume, clock: Clock, folder: Path) -> VolumeStorage:
    copies = LocalStorage(folder, signer=LinkSigner([b"a master key of the tests"]))
    return VolumeStorage(volume, "files", copies=copies, missing=(FileNotFoundError, Missing), clock=clock)


def url_of(storage: VolumeStorage, name: str, *, file_prefix: str = PREFIX, created_at: float | None = None) -> str:
    created_at = time.time() if created_at is None else created_at
    return storage.predict_urls([name], file_prefix=file_prefix, created_at=created_at)[0]


def token_of(storage: VolumeStorage, *, file_prefix: str = PREFIX) -> str:
    return url_of(storage, "x", file_prefix=file_prefix).split("/")[-2]


def content_of(storage: VolumeStorage, name: str, *, file_prefix: str = PREFIX) -> bytes:
    return storage.open_file(token_of(storage, file_prefix=file_prefix), name).path.read_bytes()


def test_a_stored_file_is_on_the_volume_and_opens_by_its_link(
    storage: VolumeStorage, volume: MemoryVolume, tmp_path: Path
) -> None:
    path = tmp_path / "image1.png"
    path.write_bytes(b"an image")

    (stored,) = storage.store([OutputFile(path, "extra", "image/png")], file_prefix="upload-1")

    assert volume.files["files/upload-1/image1.png"] == b"an image"
    assert storage.open_file(*stored.url.split("/")[-2:]).path.read_bytes() == b"an image"
    assert volume.reads == []  # the web process that stored it has a copy already


def test_a_file_that_the_volume_does_not_accept_has_no_link(
    storage: VolumeStorage, volume: MemoryVolume, tmp_path: Path
) -> None:
    path = tmp_path / "image1.png"
    path.write_bytes(b"an image")
    volume.error = OSError("no quota")

    with pytest.raises(DeliveryFailed, match="does not accept files"):
        storage.store([OutputFile(path, "extra", "image/png")], file_prefix="upload-1")


def test_a_file_of_the_volume_is_opened_by_its_predicted_link(storage: VolumeStorage, volume: MemoryVolume) -> None:
    stored = storage.open_file(token_of(storage), "a.glb")

    assert stored.path.read_bytes() == MODEL
    assert (stored.size_bytes, stored.content_type) == (len(MODEL), "model/gltf-binary")
    assert stored.etag == f'"{hashlib.sha256(MODEL).hexdigest()}"'
    assert content_of(storage, "b.glb", file_prefix=OTHER) == b"other"


def test_a_file_of_the_volume_is_served_with_ranges_and_validators(storage: VolumeStorage, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=None)
    service = open_service(settings, store=MemoryStore(), temporary=storage)
    client = TestClient(create_app(settings, service=service))
    url = url_of(storage, "a.glb")

    whole = client.get(url)
    part = client.get(url, headers={"range": "bytes=5-14", "if-range": whole.headers["etag"]})
    again = client.get(url, headers={"if-none-match": whole.headers["etag"]})

    assert (whole.status_code, whole.content) == (200, MODEL)
    assert (part.status_code, part.content) == (206, MODEL[5:15])
    assert again.status_code == 304
    service.close()


def test_files_of_one_job_are_copied_to_one_folder(storage: VolumeStorage) -> None:
    model = storage.open_file(token_of(storage), "a.glb")
    thumbnail = storage.open_file(token_of(storage), "a.png")

    assert model.path.parent == thumbnail.path.parent
    assert (model.path.read_bytes(), thumbnail.path.read_bytes()) == (MODEL, b"png")


def test_two_web_processes_send_the_same_etag(storage: VolumeStorage, volume: MemoryVolume, tmp_path: Path) -> None:
    copies = LocalStorage(tmp_path / "elsewhere", signer=LinkSigner([b"a master key of the tests"]))
    second = VolumeStorage(volume, "files", copies=copies)

    one, other = (each.open_file(token_of(storage), "a.glb") for each in (storage, second))

    assert one.etag == other.etag
    assert one.path != other.path


def test_a_copy_is_served_without_reading_the_volume_for_its_lifetime(
    storage: VolumeStorage, volume: MemoryVolume, clock: Clock
) -> None:
    before = storage.open_file(token_of(storage), "a.glb")
    volume.files[f"files/{PREFIX}/a.glb"] = b"glTF, another"

    clock.now += COPY_LIFETIME_S - 1
    assert storage.open_file(token_of(storage), "a.glb") == before
    assert len(volume.reads) == 1

    clock.now += 1
    after = storage.open_file(token_of(storage), "a.glb")
    assert after.path.read_bytes() == b"glTF, another"
    assert after.etag == f'"{hashlib.sha256(b"glTF, another").hexdigest()}"'
    assert len(volume.reads) == 2


def test_a_file_that_was_deleted_elsewhere_is_not_found_after_the_lifetime_of_the_copy(
    storage: VolumeStorage, volume: MemoryVolume, clock: Clock
) -> None:
    assert content_of(storage, "a.glb") == MODEL
    volume.files.clear()

    clock.now += COPY_LIFETIME_S
    with pytest.raises(NotFound, match="there is no such file"):
        content_of(storage, "a.glb")


def test_deleting_a_jobs_files_takes_effect_at_once_and_leaves_other_jobs_files(
    storage: VolumeStorage, volume: MemoryVolume
) -> None:
    for name, prefix in (("a.glb", PREFIX), ("a.png", PREFIX), ("b.glb", OTHER)):
        content_of(storage, name, file_prefix=prefix)

    assert storage.delete(PREFIX)

    for name in ("a.glb", "a.png"):
        with pytest.raises(NotFound, match="there is no such file"):
            content_of(storage, name)
    assert content_of(storage, "b.glb", file_prefix=OTHER) == b"other"
    assert volume.reads.count(f"files/{OTHER}/b.glb") == 1
    assert list(volume.files) == [f"files/{OTHER}/b.glb"]
    assert not storage.delete(PREFIX)


def test_a_download_during_a_delete_leaves_no_copy(storage: VolumeStorage, volume: MemoryVolume) -> None:
    volume.on_remove = lambda: content_of(storage, "a.glb")

    assert storage.delete(PREFIX)

    with pytest.raises(NotFound, match="there is no such file"):
        content_of(storage, "a.glb")


def test_a_missing_file_is_found_once_it_exists(storage: VolumeStorage, volume: MemoryVolume) -> None:
    with pytest.raises(NotFound, match="there is no such file"):
        content_of(storage, "a.mp4")

    volume.files[f"files/{PREFIX}/a.mp4"] = b"mp4"
    assert content_of(storage, "a.mp4") == b"mp4"


def test_an_expired_link_reads_nothing(storage: VolumeStorage, volume: MemoryVolume) -> None:
    old = url_of(storage, "a.glb", created_at=time.time() - 30 * 24 * 3600.0)

    with pytest.raises(NotFound, match="this link has expired"):
        storage.open_file(old.split("/")[-2], "a.glb")
    with pytest.raises(NotFound, match="there is no such file"):
        storage.open_file("no-token", "a.glb")
    assert volume.reads == []


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "/etc/passwd", "sub/a.glb", ".hidden", "a\0b", "a\nb"])
def test_no_name_leads_out_of_the_jobs_folder(storage: VolumeStorage, volume: MemoryVolume, name: str) -> None:
    volume.files |= {f"files/{PREFIX}/{name}": b"secret"}

    with pytest.raises(NotFound, match="there is no such file"):
        content_of(storage, name)
    assert volume.reads == []


@pytest.mark.parametrize("file_prefix", ["", ".", "..", "../files", "a/b", ".hidden"])
def test_no_prefix_deletes_another_folder(storage: VolumeStorage, volume: MemoryVolume, file_prefix: str) -> None:
    before = dict(volume.files) | {"files/../files/x": b"", "files/a/b/x": b"", "files/.hidden/x": b""}
    volume.files = dict(before)

    assert not storage.delete(file_prefix)
    assert volume.files == before


def test_an_unavailable_volume_raises_store_unavailable_and_leaves_no_partial_copy(
    storage: VolumeStorage, volume: MemoryVolume
) -> None:
    volume.error = ConnectionError("no route")

    with pytest.raises(StoreUnavailable, match="temporary outputs cannot be read at the moment"):
        content_of(storage, "a.glb")
    with pytest.raises(StoreUnavailable, match="temporary outputs cannot be deleted at the moment"):
        storage.delete(PREFIX)

    volume.error = None
    assert content_of(storage, "a.glb") == MODEL


def test_a_full_disk_raises_store_unavailable(storage: VolumeStorage, folder: Path) -> None:
    folder.write_bytes(b"a file where the folder of the copies should be")

    with pytest.raises(StoreUnavailable, match="temporary outputs cannot be copied at the moment"):
        content_of(storage, "a.glb")


def test_simultaneous_requests_read_the_volume_once(storage: VolumeStorage, volume: MemoryVolume) -> None:
    volume.on_read = lambda path: time.sleep(0.05)
    barrier = threading.Barrier(8)

    def request() -> bytes:
        barrier.wait()
        return content_of(storage, "a.glb")

    with ThreadPoolExecutor(8) as pool:
        contents = [future.result() for future in [pool.submit(request) for _ in range(8)]]

    assert contents == [MODEL] * 8
    assert volume.reads == [f"files/{PREFIX}/a.glb"]


def test_a_slow_file_delays_no_other(storage: VolumeStorage, volume: MemoryVolume) -> None:
    is_reading, may_continue = threading.Event(), threading.Event()

    def wait(path: str) -> None:
        if path.endswith("a.glb"):
            is_reading.set()
            may_continue.wait(5.0)

    volume.on_read = wait
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(content_of, storage, "a.glb")
        assert is_reading.wait(5.0)
        quick = pool.submit(content_of, storage, "a.png")
        assert quick.result(timeout=2.0) == b"png"
        may_continue.set()
        assert slow.result(timeout=5.0) == MODEL


def test_copies_that_nobody_requests_are_deleted(
    storage: VolumeStorage, volume: MemoryVolume, clock: Clock, folder: Path
) -> None:
    content_of(storage, "a.glb")
    content_of(storage, "a.png")
    clock.now += COPIES_KEPT_S
    content_of(storage, "b.glb", file_prefix=OTHER)
    assert {path.name for path in folder.rglob("[ab].*")} == {"a.glb", "a.png", "b.glb"}

    clock.now += 1
    content_of(storage, "b.glb", file_prefix=OTHER)
    assert {path.name for path in folder.rglob("[ab].*")} == {"b.glb"}

    assert content_of(storage, "a.glb") == MODEL


def test_a_job_with_a_recent_copy_keeps_its_older_ones(storage: VolumeStorage, clock: Clock, folder: Path) -> None:
    content_of(storage, "a.glb")
    clock.now += COPIES_KEPT_S - 1
    content_of(storage, "a.png")

    clock.now += 2
    content_of(storage, "b.glb", file_prefix=OTHER)

    assert {path.name for path in folder.rglob("[ab].*")} == {"a.glb", "a.png", "b.glb"}
