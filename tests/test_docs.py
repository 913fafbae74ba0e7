"""The documentation's site: every page has its place, and docstrings come through as they are meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from docs.docstring_methods import on_config, references
from docs.floors_drawing import draw, floors
from posttrain.recipe.methods import METHODS


def pages(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]


def test_every_page_stands_in_the_navigation_once(root: Path) -> None:
    config = on_config(yaml.safe_load((root / "mkdocs.yml").read_text()))
    listed = pages(config["nav"])
    assert sorted(listed) == sorted(str(p.relative_to(root / "docs")) for p in (root / "docs").rglob("*.md"))


def test_the_reference_names_modules_that_exist(root: Path) -> None:
    for page in (root / "docs" / "api").glob("*.md"):
        text = references(page.read_text())
        assert "<!-- methods" not in text
        for path in re.findall(r"^::: (\S+)", text, re.MULTILINE):
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


def test_every_method_has_its_place_in_the_reference(root: Path) -> None:
    text = references((root / "docs" / "api" / "objectives.md").read_text())
    text += references((root / "docs" / "api" / "preferences.md").read_text())
    for method in METHODS.values():
        module = method.settings.partition(":")[0]
        assert f"::: {module}\n" in text + "\n" or module.startswith("posttrain.references."), method.name


def test_the_drawing_of_the_floors_is_that_of_the_tables(root: Path) -> None:
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert (root / "docs" / "assets" / "floors.svg").read_text(encoding="utf-8") == draw(text), (
        "run python docs/floors_drawing.py"
    )
    assert list(floors(text))[:3] == ["6", "5", "4.5"]
