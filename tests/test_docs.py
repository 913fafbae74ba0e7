"""The documentation's site: every page has its place, and docstrings come through as they are meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


def pages(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]


def test_every_page_stands_in_the_navigation_once(root: Path) -> None:
    listed = pages(yaml.safe_load((root / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(str(p.relative_to(root / "docs")) for p in (root / "docs").rglob("*.md"))


def test_the_reference_names_modules_that_exist(root: Path) -> None:
    for page in (root / "docs" / "api").glob("*.md"):
        for path in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE):
            parts = path.split(".")
            file = root.joinpath(*parts)
            owner = root.joinpath(*parts[:-1]).with_suffix(".py")
            known = file.with_suffix(".py").is_file() or (file / "__init__.py").is_file()
            assert known or f"class {parts[-1]}" in owner.read_text(), f"{page.name}: {path}"


def test_aligned_columns_become_a_list() -> None:
    from docs.docstring_columns import as_markdown

    text = "A class.\n\nrewards   (P, G) sums\nanswers   P lists,\n          or None\n\nLast words, in\n  two lines."
    assert as_markdown(text) == (
        "A class.\n\n- `rewards`: (P, G) sums\n- `answers`: P lists, or None\n\nLast words, in\n  two lines."
    )
