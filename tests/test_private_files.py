"""A deployment's data is for its own user only, whatever the umask is, and also where an earlier version made it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.deployment import open_store
from pipeline.private_files import close_to_others, make_private_file, make_private_folder
from pipeline.secrets import load_master_keys
from pipeline.service import local_outputs
from pipeline.settings import Settings
from pipeline.storage.base import OutputFile


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o7777)


def settings_in(folder: Path) -> Settings:
    return Settings(data_dir=folder, database_url=None)


def test_folders_and_files_of_a_deployment_are_private(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "new" / "data")
    master_keys = load_master_keys(settings)
    store = open_store(settings)
    (tmp_path / "a.glb").write_bytes(b"glTF")
    file = OutputFile(tmp_path / "a.glb", kind="model", content_type="model/gltf-binary")
    local_outputs(settings, master_keys).store([file], file_prefix="p")

    for path in [settings.data_dir, *settings.data_dir.rglob("*")]:
        assert mode(path) == ("0o700" if path.is_dir() else "0o600"), path
    names = {path.name for path in settings.data_dir.rglob("*")}
    assert {"jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm", "secret.key", "files", "p", "a.glb"} <= names
    store.close()


def test_what_an_earlier_version_made_is_closed(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "data")
    open_store(settings).close()
    for path in (settings.files_dir, settings.work_dir):
        path.mkdir(mode=0o755)
    settings.data_dir.chmod(0o755)
    (settings.data_dir / "jobs.sqlite").chmod(0o644)

    open_store(settings).close()

    assert {mode(path) for path in (settings.data_dir, settings.files_dir, settings.work_dir)} == {"0o700"}
    assert mode(settings.data_dir / "jobs.sqlite") == "0o600"


def test_a_folder_that_others_use_stays_open_to_them(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o775)
    (shared / "notes.txt").write_text("of others")

    open_store(settings_in(shared)).close()

    assert mode(shared) == "0o775" and mode(shared / "jobs.sqlite") == "0o600"


def test_existing_folders_and_files_keep_what_they_hold(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "file").write_text("content")
    make_private_folder(tmp_path / "a" / "b")
    make_private_file(tmp_path / "a" / "b" / "file")
    close_to_others([tmp_path / "a" / "b" / "file", tmp_path / "nowhere"])

    assert (tmp_path / "a" / "b" / "file").read_text() == "content" and mode(tmp_path / "a" / "b" / "file") == "0o600"
    with pytest.raises(FileExistsError):
        make_private_folder(tmp_path / "a" / "b" / "file")
