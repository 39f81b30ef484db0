"""Temporary outputs in a local folder."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.errors import DeliveryFailed, NotFound
from pipeline.storage.atomic_copy import staging_age_s, staging_name
from pipeline.storage.base import OutputFile, content_type_of
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import RUN_ALLOWANCE_S, STORED_FILE, LocalStorage

PREFIX = "7d3f0f0e-5a0e-4d0c-9b8e-3a4f5b6c7d8e"
DAY_S = 24 * 3600.0


class Clock:
    """A clock that tests set."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def storage(tmp_path: Path, clock: Clock) -> LocalStorage:
    signer = LinkSigner([b"a master key of the tests"])
    return LocalStorage(tmp_path / "files", signer=signer, base_url="https://here.example/", clock=clock)


@pytest.fixture
def files(tmp_path: Path) -> list[OutputFile]:
    """An OBJ with its companions, as the export stage writes them."""
    made = tmp_path / "made"
    made.mkdir()
    contents = {"model": "model.obj", "companion": "model.mtl", "thumbnail": "thumb.png"}
    for name in contents.values():
        (made / name).write_bytes(name.encode() * 1000)
    return [OutputFile(made / name, kind=kind, content_type=content_type_of(name)) for kind, name in contents.items()]


def opened(storage: LocalStorage, url: str) -> bytes:
    """The stored file that a URL opens."""
    _, files, token, name = urlsplit(url).path.split("/")
    assert files == "files"
    return storage.open_file(token, name).path.read_bytes()


def everything_under(folder: Path) -> list[str]:
    """Every path below a folder, without the notes of when files were stored."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != STORED_FILE)


def test_every_stored_file_can_be_opened_by_its_url(storage: LocalStorage, files: list[OutputFile]):
    artifacts = storage.store(files, file_prefix=PREFIX)

    assert [artifact.name for artifact in artifacts] == ["model.obj", "model.mtl", "thumb.png"]
    for artifact, file in zip(artifacts, files, strict=True):
        content = file.path.read_bytes()
        assert artifact.url.startswith("https://here.example/files/")
        assert opened(storage, artifact.url) == content
        assert artifact.size_bytes == len(content)
        assert artifact.sha256 == hashlib.sha256(content).hexdigest()
        assert (artifact.kind, artifact.content_type) == (file.kind, file.content_type)


def test_relative_references_to_companions_resolve(storage: LocalStorage, files: list[OutputFile]):
    model, material, _ = storage.store(files, file_prefix=PREFIX)

    assert model.url.rpartition("/")[0] == material.url.rpartition("/")[0]


def test_predicted_urls_equal_the_final_ones(storage: LocalStorage, files: list[OutputFile], clock: Clock):
    submitted_at = clock.now
    predicted = storage.predict_urls(["model.obj", "model.mtl", "thumb.png"], file_prefix=PREFIX, created_at=clock.now)
    with pytest.raises(NotFound, match="there is no such file"):
        opened(storage, predicted[0])
    clock.now += RUN_ALLOWANCE_S - 1

    artifacts = storage.for_job(created_at=submitted_at).store(files, file_prefix=PREFIX)

    assert [artifact.url for artifact in artifacts] == predicted
    assert opened(storage, predicted[1]) == files[1].path.read_bytes()


@pytest.mark.parametrize("waited_s", [0.0, RUN_ALLOWANCE_S - 1, RUN_ALLOWANCE_S + 1, 10 * DAY_S, -DAY_S])
def test_outputs_are_available_for_their_whole_lifetime_however_long_the_job_took(
    storage: LocalStorage, files: list[OutputFile], clock: Clock, waited_s: float
):
    submitted_at = clock.now
    clock.now += waited_s
    (artifact, *_) = storage.for_job(created_at=submitted_at).store(files, file_prefix=PREFIX)

    clock.now += DAY_S - 1
    storage.clean()
    assert opened(storage, artifact.url)

    clock.now += RUN_ALLOWANCE_S + 2
    with pytest.raises(NotFound, match="this link has expired"):
        opened(storage, artifact.url)


def test_storing_again_changes_nothing(storage: LocalStorage, files: list[OutputFile], tmp_path: Path, clock: Clock):
    created_at = clock.now
    first = storage.store(files, file_prefix=PREFIX, created_at=created_at)
    stat_before = (tmp_path / "files" / PREFIX / "model.obj").stat()
    clock.now += 60

    second = storage.store(files, file_prefix=PREFIX, created_at=created_at)

    stat_after = (tmp_path / "files" / PREFIX / "model.obj").stat()
    assert second == first
    assert (stat_after.st_ino, stat_after.st_mtime_ns) == (stat_before.st_ino, stat_before.st_mtime_ns)


def test_storing_other_content_under_the_same_name_replaces_it_and_its_etag(
    storage: LocalStorage, files: list[OutputFile]
):
    (artifact, *_) = storage.store(files, file_prefix=PREFIX)
    token = artifact.url.split("/")[-2]
    before = storage.open_file(token, "model.obj")
    files[0].path.write_bytes(b"v 0 0 0\n")

    storage.store(files, file_prefix=PREFIX)

    after = storage.open_file(token, "model.obj")
    assert after.path.read_bytes() == b"v 0 0 0\n"
    assert after.size_bytes == 8
    assert after.etag != before.etag


def test_simultaneous_writers_of_one_job_leave_one_complete_set(
    storage: LocalStorage, files: list[OutputFile], tmp_path: Path
):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: storage.store(files, file_prefix=PREFIX), range(24)))

    assert everything_under(tmp_path / "files") == [PREFIX] + [f"{PREFIX}/{file.path.name}" for file in sorted_(files)]
    for file in files:
        assert (tmp_path / "files" / PREFIX / file.path.name).read_bytes() == file.path.read_bytes()


def sorted_(files: list[OutputFile]) -> list[OutputFile]:
    return sorted(files, key=lambda file: file.path.name)


def test_a_stored_file_has_type_size_and_etag(storage: LocalStorage, files: list[OutputFile]):
    artifacts = storage.store(files, file_prefix=PREFIX)
    token = artifacts[0].url.split("/")[-2]

    stored = storage.open_file(token, "thumb.png")

    assert stored.content_type == "image/png"
    assert stored.size_bytes == len(b"thumb.png") * 1000
    assert stored.etag.startswith('"')
    assert stored.etag == storage.open_file(token, "thumb.png").etag
    assert stored.etag != storage.open_file(token, "model.obj").etag


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret",
        "..%2fsecret",
        "/etc/passwd",
        "sub/model.obj",
        "model.obj/",
        ".hidden",
        "a\0b",
        "a\nb",
    ],
)
def test_no_name_leads_out_of_the_jobs_folder(storage: LocalStorage, files: list[OutputFile], name: str):
    (artifact, *_) = storage.store(files, file_prefix=PREFIX)

    with pytest.raises(NotFound, match="there is no such file"):
        storage.open_file(artifact.url.split("/")[-2], name)


def test_a_symbolic_link_in_the_folder_is_not_followed(storage: LocalStorage, files: list[OutputFile], tmp_path: Path):
    (artifact, *_) = storage.store(files, file_prefix=PREFIX)
    (tmp_path / "files" / PREFIX / "leak.obj").symlink_to("/etc/passwd")

    with pytest.raises(NotFound, match="there is no such file"):
        storage.open_file(artifact.url.split("/")[-2], "leak.obj")


@pytest.mark.parametrize("prefix", ["..", "../other", "a/b", ""])
def test_an_unsafe_prefix_is_refused(storage: LocalStorage, files: list[OutputFile], prefix: str):
    with pytest.raises(DeliveryFailed, match="is not a safe file name for a link"):
        storage.store(files, file_prefix=prefix)
    assert storage.delete(prefix) is False


def test_two_files_with_the_same_name_are_refused(storage: LocalStorage, files: list[OutputFile]):
    with pytest.raises(DeliveryFailed, match="two files to deliver have the same name"):
        storage.store([files[0], files[0]], file_prefix=PREFIX)


def test_a_missing_source_leaves_no_partial_files(storage: LocalStorage, files: list[OutputFile], tmp_path: Path):
    files[2].path.unlink()

    with pytest.raises(DeliveryFailed, match=r"did not accept 3 files of 0\.0 MB: No such file or directory"):
        storage.store(files, file_prefix=PREFIX)
    assert everything_under(tmp_path / "files") == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from pipeline.errors import DeliveryFailed
from pipeline.storage.base import OutputFile
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage

root, limit = Path(sys.argv[1]), int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
storage = LocalStorage(root / "disk", signer=LinkSigner([b"a master key of the tests"]))
files = [OutputFile(root / name, "extra", "image/png") for name in ("small.glb", "big.png")]
try:
    storage.store(files, file_prefix="p")
except DeliveryFailed as error:
    print(error)
print(sorted(str(path) for path in (root / "disk").rglob("*")))
"""


def run_on_a_full_disk(root: Path, *, limit: int, shell: list[str]) -> list[str]:
    """Store two files, of which the second does not fit, in a process of its own; returns the lines that it prints."""
    (root / "disk").mkdir()
    (root / "small.glb").write_bytes(b"g" * 1000)
    (root / "big.png").write_bytes(b"p" * 3_000_000)
    command = [sys.executable, "-c", FULL_DISK, str(root), str(limit)]
    finished = subprocess.run([*shell, *command], capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


def test_a_file_above_the_size_limit_fails_with_a_message_and_leaves_no_partial_files(tmp_path: Path):
    printed = run_on_a_full_disk(tmp_path, limit=1_000_000, shell=[])

    assert printed == ["the temporary storage has no space left for 2 files of 3.0 MB", "[]"]


def test_a_full_disk_fails_with_a_message_and_leaves_no_partial_files(tmp_path: Path):
    mount = f'mount -t tmpfs -o size=1m tmpfs "{tmp_path}/disk"'
    (tmp_path / "disk").mkdir()
    tried = subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True, text=True, check=False)
    (tmp_path / "disk").rmdir()
    if tried.returncode:
        pytest.skip(f"this machine does not let a test mount a small disk: {tried.stderr.strip()}")

    printed = run_on_a_full_disk(
        tmp_path, limit=0, shell=["unshare", "-Urm", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    )

    assert printed == ["the temporary storage has no space left for 2 files of 3.0 MB", "[]"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_fails_with_a_message(
    storage: LocalStorage, files: list[OutputFile], tmp_path: Path
):
    (tmp_path / "files").mkdir(mode=0o500)

    with pytest.raises(DeliveryFailed, match=r"did not accept 3 files of .* MB: Permission denied"):
        storage.store(files, file_prefix=PREFIX)


def test_a_folder_that_is_a_file_fails_with_a_message(storage: LocalStorage, files: list[OutputFile], tmp_path: Path):
    (tmp_path / "files").write_bytes(b"")

    with pytest.raises(DeliveryFailed, match=r"did not accept 3 files of .* MB: File exists"):
        storage.store(files, file_prefix=PREFIX)


def test_deleting_the_files_of_a_job_leaves_those_of_others(
    storage: LocalStorage, files: list[OutputFile], tmp_path: Path
):
    (artifact, *_) = storage.store(files, file_prefix=PREFIX)
    (other, *_) = storage.store(files, file_prefix="another")

    assert storage.delete(PREFIX) is True
    assert storage.delete(PREFIX) is False
    with pytest.raises(NotFound):
        opened(storage, artifact.url)
    assert opened(storage, other.url)
    assert {path.name for path in (tmp_path / "files").iterdir()} == {"another"}


def test_the_cleaner_deletes_only_expired_files(storage: LocalStorage, files: list[OutputFile], clock: Clock):
    storage.store(files, file_prefix="early")
    clock.now += DAY_S
    (late, *_) = storage.store(files, file_prefix="late")
    clock.now += RUN_ALLOWANCE_S + 1

    assert storage.clean() == 1
    assert storage.clean() == 0
    assert opened(storage, late.url)


def test_the_cleaner_deletes_old_files_of_a_killed_writer(
    storage: LocalStorage, files: list[OutputFile], tmp_path: Path, clock: Clock
):
    (artifact, *_) = storage.store(files, file_prefix=PREFIX)
    for name, age_s in ((".arriving-young", 60), (".arriving-old", 2 * RUN_ALLOWANCE_S), (".leaving-old", DAY_S)):
        (tmp_path / "files" / name).mkdir()
        (tmp_path / "files" / name / "half.glb").write_bytes(b"half")
        os.utime(tmp_path / "files" / name, (clock.now - age_s, clock.now - age_s))

    assert storage.clean() == 0
    assert {path.name for path in (tmp_path / "files").iterdir()} == {PREFIX, ".arriving-young"}
    assert opened(storage, artifact.url)


@pytest.mark.parametrize("lifetime_s", [60.0, 3 * DAY_S])
def test_files_with_a_lifetime_of_their_own_end_with_it(
    storage: LocalStorage, files: list[OutputFile], clock: Clock, lifetime_s: float
):
    names = [file.path.name for file in files]
    predicted = storage.predict_urls(names, file_prefix=PREFIX, created_at=clock.now, lifetime_s=lifetime_s)
    storage.store(files, file_prefix="others")
    submitted_at = clock.now
    clock.now += 100
    of_job = storage.for_job(created_at=submitted_at, lifetime_s=lifetime_s)
    artifacts = of_job.store(files, file_prefix=PREFIX)
    assert [artifact.url for artifact in artifacts] == predicted
    assert {artifact.expires_at for artifact in artifacts} == {clock.now + lifetime_s}

    clock.now += lifetime_s - 1
    storage.clean()
    assert opened(storage, artifacts[0].url)
    clock.now += 1
    with pytest.raises(NotFound, match="this link has expired"):
        opened(storage, artifacts[0].url)
    storage.clean()

    assert everything_under(storage._folder / PREFIX) == []
    assert (storage._folder / "others").exists() == (lifetime_s < DAY_S)


def test_the_stated_end_of_a_file_is_that_of_its_link(storage: LocalStorage, files: list[OutputFile], clock: Clock):
    (artifact, *_) = storage.for_job(created_at=clock.now).store(files, file_prefix=PREFIX)
    assert artifact.expires_at is not None

    clock.now = artifact.expires_at - 1
    assert opened(storage, artifact.url)
    clock.now += 1
    with pytest.raises(NotFound, match="this link has expired"):
        opened(storage, artifact.url)


def test_the_cleaner_works_without_a_folder(storage: LocalStorage):
    assert storage.clean() == 0


def test_stored_files_can_be_uploaded_later(storage: LocalStorage, files: list[OutputFile]):
    storage.store(files, file_prefix=PREFIX)

    (again,) = storage.stored_files([("thumb.png", "thumbnail")], file_prefix=PREFIX)

    assert again.path.read_bytes() == files[2].path.read_bytes()
    assert (again.kind, again.content_type) == ("thumbnail", "image/png")
    with pytest.raises(NotFound, match="there is no such file"):
        storage.stored_files([("gone.glb", "model")], file_prefix=PREFIX)


def test_the_cleaner_relies_on_no_time_of_a_folder(
    storage: LocalStorage, files: list[OutputFile], tmp_path: Path, clock: Clock
):
    storage.store(files, file_prefix="early")
    clock.now += DAY_S
    storage.store(files, file_prefix="late")
    clock.now += RUN_ALLOWANCE_S + 1
    for name in ("early", "late"):  # as where every folder has the time of the mount, or none
        os.utime(tmp_path / "files" / name, (clock.now, clock.now) if name == "early" else (0, 0))

    assert storage.clean() == 1
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["late"]


def test_an_unfinished_folder_has_its_time_in_its_name(storage: LocalStorage, tmp_path: Path, clock: Clock):
    clock.now = time.time()
    arriving = tmp_path / "files" / staging_name("arriving")
    arriving.mkdir(parents=True)
    os.utime(arriving, (0, 0))

    assert staging_age_s(arriving, now=clock.now + 60) == pytest.approx(60, abs=2)
    clock.now += RUN_ALLOWANCE_S / 2
    storage.clean()
    assert arriving.exists()
    clock.now += RUN_ALLOWANCE_S
    storage.clean()
    assert not arriving.exists()


def test_files_without_a_time_are_kept_for_one_lifetime(
    storage: LocalStorage, files: list[OutputFile], tmp_path: Path, clock: Clock
):
    storage.store(files, file_prefix=PREFIX)
    (tmp_path / "files" / PREFIX / STORED_FILE).unlink()  # as version 0.1.0 stored them
    clock.now += 100 * DAY_S

    assert storage.clean() == 0
    clock.now += DAY_S - 1
    assert storage.clean() == 0
    clock.now += RUN_ALLOWANCE_S + 2
    assert storage.clean() == 1


@pytest.mark.parametrize(("number", "is_ignored"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_sync_folders_is_written(
    number: int, is_ignored: bool, storage: LocalStorage, files: list[OutputFile], monkeypatch: pytest.MonkeyPatch
):
    sync = os.fsync

    def refuse_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)

    if is_ignored:
        storage.store(files, file_prefix=PREFIX)
    else:
        with pytest.raises(DeliveryFailed):
            storage.store(files, file_prefix=PREFIX)
