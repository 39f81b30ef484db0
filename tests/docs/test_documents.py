"""The documents keep their promises: links lead somewhere, commands exist, terms are the project's."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pipeline.cli import app
from tests.docs.tables import EXAMPLES, ROOT, documents

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
RETIRED = (
    r"pictures?|hand(?:ed|ing)?[- ]?overs?|handed? over|tak(?:e|en|es|ing) up|take in|twins?|storms?|wish(?:es)?"
    r"|bur(?:y|ied)|tend(?:s|ed)?|spent|held back|beats?|doors?|house|outlook|placing|matte(?:r|d)|goodbye|sealed"
    r"|masters"
)
"""Words of the project's former vocabulary, which the glossary replaced."""
by_path = pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))


def anchors_of(document: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", LINK.sub("", heading).lower()).replace(" ", "-") for heading in headings}


@by_path
def test_internal_links_and_anchors_resolve(document: Path) -> None:
    text = FENCE.sub("", document.read_text())
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors_of(found), f"{target}: there is no such heading"


@by_path
def test_paths_in_code_spans_exist(document: Path) -> None:
    spans = re.findall(r"`((?:pipeline|tests|scripts|schemas|docs)/[\w./-]*)`", FENCE.sub("", document.read_text()))

    assert [span for span in spans if "NAME" not in span and not (ROOT / span).exists()] == []


@by_path
def test_python_files_in_code_spans_exist(document: Path) -> None:
    folders = ("docs", "pipeline", "schemas", "scripts", "tests")
    files = ["modal_app.py", *(path.as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    spans = set(re.findall(r"`([\w/]+\.py)`", FENCE.sub("", document.read_text()))) - {"utils.py"}  # there is none

    assert [span for span in spans if not any(f"/{file}".endswith(f"/{span}") for file in files)] == []


def commands_of(document: Path) -> Iterator[str]:
    """Lines of shell blocks, and code spans."""
    text = document.read_text()
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def our_commands(document: Path) -> Iterator[list[str]]:
    """The arguments of each `image-to-3d` command in a document."""
    for line in commands_of(document):
        for command in re.findall(r"(?:^|&& |\bexec web |\bworker |\bIMAGE_\S+ )(image-to-3d [a-z][^|>;&]*)", line):
            yield shlex.split(command, comments=True)[1:]


@by_path
def test_commands_and_their_options_exist(document: Path) -> None:
    for words in our_commands(document):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while hasattr(command, "commands") and rest:  # a group; typer brings a click of its own
            assert rest[0] in command.commands, f"image-to-3d {' '.join(words)}"
            command = command.commands[rest.pop(0)]
        parameters = command.get_params(command.context_class(command))
        options = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0] in {*options, "--help"}, f"image-to-3d {' '.join(words)}"


@by_path
def test_the_package_is_installed_from_the_clone_with_extras_that_exist(document: Path) -> None:
    """It is not on PyPI, as README says; once it is, both change."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in commands_of(document):
        for words in re.findall(r"pip install ([^&|;#]*)", line):
            packages = [word for word in shlex.split(words) if not word.startswith("-")]
            assert not any(word.startswith("image-to-3d") for word in packages), line
            for named in (re.fullmatch(r"\.\[(.*)\]", word) for word in packages):
                assert named is None or set(named[1].split(",")) <= set(extras), line


@by_path
def test_modules_that_are_run_exist(document: Path) -> None:
    for line in commands_of(document):
        for module in re.findall(r"python3? -m ((?:pipeline|scripts|tests)[\w.]*)", line):
            assert importlib.util.find_spec(module) is not None, line
        for entry in re.findall(r"modal (?:run|deploy) (\S+\.py)(?:::(\w+))?", line):
            assert entry[0] == "modal_app.py"
            assert not entry[1] or re.search(rf"def _?{entry[1]}\b", (ROOT / entry[0]).read_text()), line


@by_path
def test_words_that_the_glossary_replaced_are_not_used(document: Path) -> None:
    assert re.findall(rf"\b(?:{RETIRED})\b", document.read_text(), flags=re.IGNORECASE) == []


def test_examples_are_plain_too() -> None:
    for path in (path for path in EXAMPLES.rglob("*") if path.is_file()):
        assert not re.findall(rf"\b(?:{RETIRED})\b", path.read_text(), flags=re.IGNORECASE), path.name


def test_readme_begins_with_the_two_commands() -> None:
    block = re.search(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)

    assert block is not None
    assert [line.split("#")[0].split() for line in block[1].splitlines()] == [
        ["scripts/try", "[IMAGE]"],
        ["scripts/check", "[--fix]"],
    ]


def test_each_folder_of_the_package_has_a_folder_of_tests() -> None:
    folders = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}

    assert {name for name in folders if not [*(ROOT / "tests" / name).rglob("test_*.py")]} == set()
