"""Kept generations: found while they are young and fit in, deleted oldest first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.storage.generations import KeptGenerations
from tests.jobs.store_fixtures import Clock


def kept(folder: Path, clock: Clock, *, max_bytes: int = 1000, lifetime_s: float = 100.0) -> KeptGenerations:
    return KeptGenerations(folder / "kept", lifetime_s=lifetime_s, max_bytes=max_bytes, clock=clock)


def checkpoint(folder: Path, size_bytes: int = 10) -> Path:
    path = folder / "generate.pickle"
    path.write_bytes(os.urandom(size_bytes))
    return path


def test_a_generation_is_found_for_its_lifetime_though_its_checkpoint_is_deleted(tmp_path: Path) -> None:
    clock = Clock()
    generations, source = kept(tmp_path, clock), checkpoint(tmp_path)
    content = source.read_bytes()
    generations.keep("a", source)
    source.unlink()

    clock.advance(99)
    found = generations.find("a")
    assert found is not None and found.read_bytes() == content and not generations.has("b")
    clock.advance(1)
    assert not generations.has("a")
    generations.clean()
    assert list((tmp_path / "kept").iterdir()) == []


def test_the_oldest_go_first_when_the_space_is_used_up(tmp_path: Path) -> None:
    clock = Clock()
    generations = kept(tmp_path, clock, max_bytes=250)
    for name in "abc":
        generations.keep(name, checkpoint(tmp_path, 100))
        clock.advance(1)

    assert [generations.has(name) for name in "abc"] == [False, True, True]
    generations.keep("too large", checkpoint(tmp_path, 251))
    assert [generations.has(name) for name in "bc"] == [True, True]


def test_nothing_is_kept_without_a_lifetime_or_a_checkpoint(tmp_path: Path) -> None:
    clock = Clock()
    kept(tmp_path, clock, lifetime_s=0).keep("a", checkpoint(tmp_path))
    kept(tmp_path, clock).keep("b", tmp_path / "missing")

    assert not kept(tmp_path, clock).has("a") and not kept(tmp_path, clock).has("b")


def test_a_file_system_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    generations, source = kept(tmp_path, Clock()), checkpoint(tmp_path)

    generations.keep("a", source)

    found = generations.find("a")
    assert found is not None and found.read_bytes() == source.read_bytes() and not found.samefile(source)


def test_a_deleted_generation_is_gone_and_deleting_is_repeatable(tmp_path: Path) -> None:
    generations = kept(tmp_path, Clock())
    generations.keep("a", checkpoint(tmp_path))

    generations.delete("a")
    generations.delete("a")

    assert not generations.has("a")
    with pytest.raises(ValueError, match="cannot name a kept generation"):
        generations.has("../a")
