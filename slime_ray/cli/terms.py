"""What all subcommands share: the words of their arguments, and how they print."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console, RenderableType

# A file or what a URL names: a Path would make one slash of two.
RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE.toml", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[dotted.key=value]...", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_wide(table: RenderableType) -> None:
    """Print for people on a terminal, and in a log without cutting lines to a terminal's width."""
    console = Console()
    console.print(table) if console.is_terminal else Console(width=1000).print(table)


def warn(warnings: Iterable[str]) -> None:
    """Print each warning as a line on standard error."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
