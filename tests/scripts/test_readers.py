"""The words of the table of readers: each is there only if what it says was found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scripts.benchmarks.readers import Found, Reader, cell

RESULT: Any = SimpleNamespace(meta={"mesh": {"bounds": [[-0.1, 0.0, -0.2], [0.1, 1.0, 0.2]]}})  # 0.2 × 1 × 0.4 m
PATH = Path("robot.glb")


def words(found: Found, output_format: str = "glb", *, turns_up: bool = False) -> str:
    reader = Reader("a reader", ("glb", "3mf"), lambda path: found, turns_up=turns_up)
    return cell(reader, RESULT, output_format, PATH)


def test_size_and_orientation_are_told_apart() -> None:
    assert words(Found((0.2, 1.0, 0.4))) == "opens, size, upright"
    assert words(Found((0.2, 0.4, 1.0))) == "opens, size"
    assert words(Found((0.2, 0.4, 1.0)), turns_up=True) == "opens, size, upright"
    assert words(Found((200, 1000, 400))) == "opens"
    assert words(Found((20, 40, 100)), "3mf") == "opens, size, upright"


def test_what_a_reader_does_not_tell_is_left_out() -> None:
    assert words(Found()) == "opens"
    assert words(Found(texture=True, material=True, names=("robot",))) == "opens, colours, material, names"
    assert words(Found(texture=False, material=False, names=("mesh",))) == "opens"


def test_a_reader_that_fails_or_has_no_such_format_says_so() -> None:
    def fail(path: Path) -> Found:
        raise ValueError("no | such\nthing")

    assert cell(Reader("a reader", ("glb",), fail), RESULT, "glb", PATH) == "fails: no   such thing"
    assert words(Found(), "stl") == "–"
