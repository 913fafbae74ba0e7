"""`posttrain methods [NAME]`: the table of methods, or one method's settings as a recipe may write them."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from rich.console import Console
from rich.table import Table

from posttrain.methods import METHODS
from posttrain.recipe_errors import suggest
from posttrain.settings import REQUIRED, list_settings


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a method, to see its settings")


def main(args: Namespace) -> int:
    """List the methods; with a name, the keys of its `objective` section, their types, defaults and meaning."""
    if args.name is None:
        return _list()
    if args.name not in METHODS:
        print(f"posttrain methods: no method '{args.name}'{suggest(args.name, METHODS)}", file=sys.stderr)
        return 2
    return _show(args.name)


def _list() -> int:
    table = Table(box=None, padding=(0, 2))
    for title in ("method", "family", "what it is"):
        table.add_column(title, overflow="fold")
    for method in METHODS.values():
        table.add_row(method.name, method.family, method.summary)
    Console(highlight=False).print(table)
    return 0


def _show(name: str) -> int:
    method = METHODS[name]
    table = Table(box=None, padding=(0, 2))
    for title in ("setting", "type", "default", "meaning"):
        table.add_column(title, overflow="fold")
    for setting in list_settings(method.settings):
        default = "required" if setting.default is REQUIRED else repr(setting.default)
        table.add_row(setting.name, setting.source.replace("Annotated", ""), default, setting.note)
    console = Console(highlight=False, markup=False)
    console.print(f"{name}: {method.summary} ({method.family})", style="bold")
    if table.row_count:
        console.print(table)
    else:
        console.print("no settings: leave out the objective section")
    return 0
