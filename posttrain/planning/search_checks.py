"""The built-in tool `search` in a recipe: its settings, and the first row of its corpus. No index is made."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.data import DataError
from posttrain.data.files import iter_rows
from posttrain.judges.bm25_index import INSTALL


def search_faults(args: Mapping[str, Any]) -> list[str]:
    """Why the tool cannot serve with these settings, a sentence each."""
    if importlib.util.find_spec("bm25s") is None:
        return [f"search needs the package bm25s: {INSTALL}"]
    if not isinstance(args.get("corpus"), str):
        return ["search needs its setting 'corpus', a file of passages; give it under args"]
    faults = []
    for key in ("k", "passage_characters"):
        value = args.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            faults.append(f"search: args.{key} must be a whole number of at least 1, not {value!r}")
    for key in ("text", "title"):
        if not isinstance(args.get(key, ""), str):
            faults.append(f"search: args.{key} must be the name of a column, not {args[key]!r}")
    column = args.get("text", "text")
    if faults or not Path(args["corpus"]).exists():
        return faults or [f"search: there is no corpus {args['corpus']!r} here or beside the recipe"]
    try:
        first = next(iter(iter_rows(args["corpus"])), None)
    except DataError as error:
        return [f"search: {error}"]
    if first is None:
        return [f"search: {args['corpus']} holds no passage to search"]
    if column not in first:
        return [
            f"search: {args['corpus']} has no column {column!r}; its columns are {', '.join(first)}: name one in "
            "args.text"
        ]
    return []
