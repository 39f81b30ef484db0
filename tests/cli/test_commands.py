"""Options that have one value."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.cli.commands import Commands, OneValueCommand

REFUSED = 2


def leaves(command: object, name: str = "image-to-3d") -> dict[str, object]:
    """Every command that runs, by its words."""
    below = getattr(command, "commands", None)
    if below is None:
        return {name: command}
    return {words: leaf for word, each in below.items() for words, leaf in leaves(each, f"{name} {word}").items()}


def test_every_command_refuses_a_second_value() -> None:
    commands = leaves(get_command(app))

    assert len(commands) > 15
    assert {name for name, command in commands.items() if not isinstance(command, OneValueCommand)} == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("generate", "a.png", "-o", "a.glb", "-o", "b.glb"), "-o / --output takes one value, and is given 2 times"),
        (("generate", "a.png", "-o", "a.glb", "--output=b.glb"), "-o / --output takes one value, and is given 2 times"),
        (("generate", "a.png", "-o", "a.glb", *(("--seed", "1") * 3)), "--seed takes one value, and is given 3 times"),
        (("keys", "create", "shop", "--data", "a", "--data", "b"), "--data takes one value, and is given 2 times"),
    ],
)
def test_a_second_value_is_refused_before_anything_runs(words: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200", "NO_COLOR": "1"})

    assert result.exit_code == REFUSED and said in result.output


def test_flags_and_options_of_several_values_may_be_repeated() -> None:
    several = Commands()

    @several.command()
    def show(
        tag: Annotated[list[str], typer.Option()],
        verbose: Annotated[bool, typer.Option("--verbose")] = False,
    ) -> None:
        typer.echo(f"{tag} {verbose}")

    result = CliRunner().invoke(several, ["--tag", "a", "--tag", "b", "--verbose", "--verbose"])

    assert (result.exit_code, result.output) == (0, "['a', 'b'] True\n")
