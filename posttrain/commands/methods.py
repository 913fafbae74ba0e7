"""`posttrain methods [NAME]`: the table of methods, or one method's settings as a recipe may write them."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from posttrain.recipe.errors import suggest
from posttrain.recipe.methods import METHODS, bases_of, not_here
from posttrain.settings.base import REQUIRED, list_settings
from posttrain.settings.spelling import spell_type


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a method, to see its settings")


def main(args: Namespace) -> int:
    """List the methods; with a name, the keys of its `objective` section, their types, defaults and meaning."""
    if args.name is None:
        return _list()
    if args.name not in METHODS:
        reason = not_here(args.name) or f"no method '{args.name}'{suggest(args.name, METHODS)}"
        print(f"posttrain methods: {reason}", file=sys.stderr)
        return 2
    return _show(args.name)


def _list() -> int:
    table = Table(box=None, padding=(0, 2))
    for title in ("method", "family"):
        table.add_column(title, no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for method in METHODS.values():
        table.add_row(method.name, method.family, method.summary)
    Console(highlight=False).print(table)
    return 0


def spell_default(value: Any) -> str:
    """As a recipe would write it: null, true, [0.6, 0.9]."""
    if value is REQUIRED:
        return "required"
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("\n...\n").strip()


def _show(name: str) -> int:
    method = METHODS[name]
    table = Table(box=None, padding=(0, 2))
    table.add_column("setting", no_wrap=True)  # a name cut in two cannot be copied into a recipe
    for title in ("type", "default", "meaning"):
        table.add_column(title, overflow="fold")
    cls = method.load_settings()
    chosen = {} if cls.built_on is None else {cls.built_on.chooser: ", ".join(bases_of(cls))}
    for setting in list_settings(cls):
        kind = chosen.get(setting.name) or spell_type(setting.annotation)
        table.add_row(setting.name, kind, spell_default(setting.default), setting.meaning)
    console = Console(highlight=False, markup=False)
    console.print(f"{name}: {method.summary} ({method.family})", style="bold")
    if table.row_count:
        console.print(table)
    else:
        console.print("no settings: leave out the objective section")
    return 0
