"""For the site: the pages of methods and their reference follow from what is there, so that no list names them again.

docs/methods/NAME.md makes an entry under "Methods"; a file of a method makes a section where a page of the API says
`<!-- methods of posttrain/objectives -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_MARK = re.compile(r"<!-- methods of posttrain/(\w+) -->")


def cards() -> list[dict[str, str]]:
    """Navigation entries of the cards, by name: {"BAPO": "methods/bapo.md"}; the name is the page's own."""
    found = []
    for page in sorted((ROOT / "docs" / "methods").glob("*.md")):
        title = page.read_text().partition("\n")[0].removeprefix("# ").partition(":")[0]
        found.append({title: f"methods/{page.name}"})
    return found


def references(text: str) -> str:
    """A page's marks replaced by one `:::` per method of that room, in the order of the list of methods."""
    sys.path.insert(0, str(ROOT))
    from posttrain.recipe.methods import METHODS

    def of_room(mark: re.Match[str]) -> str:
        modules = (method.settings.partition(":")[0] for method in METHODS.values())
        inside = dict.fromkeys(one for one in modules if one.startswith(f"posttrain.{mark[1]}."))
        return "\n\n".join(f"::: {module}" for module in inside)

    return _MARK.sub(of_room, text)


def on_config(config: Any) -> Any:
    for entry in config["nav"]:
        if "Methods" in entry:
            entry["Methods"] = cards()
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    return references(markdown)
