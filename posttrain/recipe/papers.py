"""The paper of a method: the first link in its file's docstring, read without importing it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from posttrain.recipe.methods import Method

_ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"https://(?:arxiv\.org|doi\.org)/[^\s,;)]+[^\s,;).]")


def paper_of(method: Method) -> str | None:
    """A link, or None for a method that names no paper (plain supervised fine-tuning)."""
    module = method.settings.partition(":")[0]
    stem = _ROOT.joinpath(*module.split("."))
    file = stem / f"{stem.name}.py" if stem.is_dir() else stem.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    found = _LINK.search(text)
    return None if found is None else found.group(0)
