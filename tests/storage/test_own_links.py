"""Links of this deployment: which addresses are, and what they open."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InvalidRequest
from pipeline.storage.base import OutputFile
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from pipeline.storage.own_links import OwnLinks

BASE = "https://3d.example.com/studio"


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files", signer=LinkSigner([b"a master key of the tests"]), base_url=BASE)


@pytest.fixture
def url(storage: LocalStorage, tmp_path: Path) -> str:
    path = tmp_path / "image1.png"
    path.write_bytes(b"an image")
    return storage.store([OutputFile(path, "extra", "image/png")], file_prefix="upload-1")[0].url


def test_a_link_is_read_in_every_spelling_of_its_address(storage: LocalStorage, url: str) -> None:
    links = OwnLinks(storage, base_url=f"{BASE}/")
    for spelled in (
        url,
        url.replace("~", "%7E"),
        url.replace("https://3d.example.com", "HTTPS://3D.Example.com:443"),
        url.replace("example.com", "example.com."),
        f"{url}?download=1#part",
    ):
        assert links.read(spelled, most_bytes=100) == b"an image"
    assert links.read(url, most_bytes=2) == b"an"


@pytest.mark.parametrize(
    "address",
    [
        "https://3d.example.com/files/a/b.png",
        "https://3d.example.com.evil.example/studio/files/a/b.png",
        "http://3d.example.com/studio/files/a/b.png",
        "https://3d.example.com:8443/studio/files/a/b.png",
        "https://3d.example.com/studio/docs",
        "https://[broken/studio/files/a/b.png",
    ],
)
def test_another_address_is_no_link(storage: LocalStorage, address: str) -> None:
    assert OwnLinks(storage, base_url=BASE).open(address) is None


def test_a_link_that_opens_nothing_is_refused(storage: LocalStorage, url: str) -> None:
    links = OwnLinks(storage, base_url=BASE)
    token, name = url.split("/")[-2:]
    for broken in (f"{token[:-2]}AA/{name}", f"{token}/other.png", f"{token}/../{name}", f"{token}/%2e%2e%2fx", token):
        with pytest.raises(InvalidRequest, match="image is a link of this service, but"):
            links.open(f"{BASE}/files/{broken}")
    storage.delete("upload-1")
    with pytest.raises(InvalidRequest, match="there is no such file"):
        links.open(url)
