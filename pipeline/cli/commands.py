"""Groups of commands whose options have one value: an option that is given twice is refused, whatever the command.

The command line parser itself takes the last one, so a second `-o` would silently replace the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption


class OneValueCommand(TyperCommand):
    """A command that refuses an option that is given several times, unless it is a flag or takes several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in given:
            if not isinstance(parameter, TyperOption) or parameter.is_flag or parameter.count or parameter.multiple:
                continue
            if (times := given.count(parameter)) > 1:
                ctx.fail(f"{' / '.join(parameter.opts)} takes one value, and is given {times} times")
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """A group of such commands."""

    def command(  # pyright: ignore[reportIncompatibleMethodOverride]  # the other options by name, as they are
        self, name: str | None = None, *, cls: type[TyperCommand] = OneValueCommand, **options: Any
    ) -> Callable[..., Any]:
        """As `typer.Typer.command`; `cls` should be a `OneValueCommand` too."""
        return super().command(name, cls=cls, **options)
