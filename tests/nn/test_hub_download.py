from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import WeightsUnusable
from pipeline.nn import hub_download
from pipeline.nn.hub_download import RECORD_NAME, fetch_files, verify_record
from tests.fakes.model_hub import CONTENT, REVISION, Hub, serving


@pytest.fixture
def hub() -> Iterator[str]:
    with serving("ckpts/part.safetensors") as address:
        yield address


def test_a_file_is_downloaded_at_its_revision_and_only_once(hub: str, tmp_path: Path) -> None:
    for _ in range(2):
        fetch_files("someone/model", ["ckpts/part.safetensors"], tmp_path, revision=REVISION, endpoint=hub)

    assert (tmp_path / "ckpts/part.safetensors").read_bytes() == CONTENT
    assert [method for method, _, _ in Hub.asked].count("GET") == 1


def test_a_transfer_resumes_where_its_connection_broke(hub: str, tmp_path: Path) -> None:
    Hub.cut_after = 12 << 20

    fetch_files("someone/model", ["ckpts/part.safetensors"], tmp_path, revision=REVISION, endpoint=hub)

    assert (tmp_path / "ckpts/part.safetensors").read_bytes() == CONTENT
    first, second = (wanted for method, _, wanted in Hub.asked if method == "GET")
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 12 << 20


def test_a_transfer_whose_process_was_killed_resumes_in_the_next_process(hub: str, tmp_path: Path) -> None:
    part = tmp_path / f"ckpts/part.safetensors.{REVISION[:12]}.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT[: 9 << 20])
    seen: list[tuple[str, int, int]] = []

    fetch_files(
        "someone/model",
        ["ckpts/part.safetensors"],
        tmp_path,
        revision=REVISION,
        endpoint=hub,
        on_bytes=lambda *progress: seen.append(progress),
    )

    assert (tmp_path / "ckpts/part.safetensors").read_bytes() == CONTENT
    assert [wanted for method, _, wanted in Hub.asked if method == "GET"] == [f"bytes={9 << 20}-"]
    assert seen[0][1] > 9 << 20
    assert seen[-1] == ("ckpts/part.safetensors", len(CONTENT), len(CONTENT))
    assert not part.exists()


def test_a_file_that_the_hub_does_not_have_is_named(hub: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnusable, match=r"^other\.safetensors of someone/model cannot be downloaded: "):
        fetch_files("someone/model", ["other.safetensors"], tmp_path, revision=REVISION, endpoint=hub)


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://models.invalid", "models.invalid cannot be reached: its name does not resolve"),
        ("http://127.0.0.1:1", "127.0.0.1 cannot be reached: connection refused"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str, words: str
) -> None:
    monkeypatch.setattr(hub_download, "PAUSE_S", 0.0)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(WeightsUnusable) as failed:
        fetch_files("someone/model", ["a.safetensors"], tmp_path, revision=REVISION, endpoint=endpoint)

    assert str(failed.value) == f"a.safetensors of someone/model cannot be downloaded: {words}"


def test_the_first_verification_records_a_file_and_later_ones_compare_it(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"weights")
    verify_record(tmp_path, ["a.bin"])
    verify_record(tmp_path, ["a.bin"])
    assert set(json.loads((tmp_path / RECORD_NAME).read_text())) == {"a.bin"}

    (tmp_path / "a.bin").write_bytes(b"others")

    with pytest.raises(WeightsUnusable, match=r"^a\.bin has changed since it was downloaded"):
        verify_record(tmp_path, ["a.bin"])
