"""Aligned two-column blocks of a docstring ("name   meaning") as Markdown lists."""

from __future__ import annotations

import re

_ROW = re.compile(r"^(?P<name>\S.*?) {2,}(?P<text>\S.*)$")


def as_markdown(text: str) -> str:
    return "\n\n".join(_block(block) for block in re.split(r"\n\s*\n", text))


def _block(block: str) -> str:
    lines = block.splitlines()
    rows: list[tuple[str, str]] = []
    for line in lines:
        row = _ROW.match(line)
        if row is not None:
            rows.append((row["name"], row["text"]))
        elif rows and line.startswith("  "):  # goes on under its text
            name, said = rows.pop()
            rows.append((name, f"{said} {line.strip()}"))
        else:
            return block
    return "\n".join(f"- `{name}`: {said}" for name, said in rows)
