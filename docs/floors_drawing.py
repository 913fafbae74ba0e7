"""The floors of the house as a drawing, from the tables of architecture.md:

python docs/floors_drawing.py          # writes docs/assets/floors.svg; a test holds it to the tables
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
DRAWING = DOCS / "assets" / "floors.svg"
WIDTH, ROOM, GAP, LEFT = 960, 44, 10, 70


def floors(text: str) -> dict[str, list[str]]:
    """Floor -> its rooms, from the top; of wings the floor is like "4.1"."""
    found: dict[str, list[str]] = {}
    for floor, room in re.findall(r"^\| (\d(?:\.\d)?) \| `(\w+)/`", text, re.MULTILINE):
        found.setdefault(floor, []).append(room)
    return dict(sorted(found.items(), key=lambda one: float(one[0]), reverse=True))


def draw(text: str) -> str:
    """The drawing as SVG; it follows the page's colours."""
    table = floors(text)
    rooms = {floor: names for floor, names in table.items() if "." not in floor}
    wings = {floor: names for floor, names in table.items() if "." in floor}
    height = (len(rooms) + len(wings)) * (ROOM + GAP) + 4 * GAP + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="Floors of the house: a room imports only from floors below its own" '
        'font-family="system-ui, sans-serif" font-size="14" fill="currentColor">'
        "<style>svg{color:#222}@media(prefers-color-scheme:dark){svg{color:#ddd}}</style>"
    ]
    y = GAP
    for floor, names in rooms.items():
        inside = {sub: found for sub, found in wings.items() if sub.startswith(f"{floor}.")}
        parts += _row(floor, names, y, "none" if inside else "currentColor")
        y += ROOM + GAP
        if inside:
            top = y
            y += 2 * GAP
            for sub, found in inside.items():
                parts += _row(sub, found, y, "currentColor", size=12, indent=24)
                y += ROOM + GAP - 8
            parts.append(
                f'<rect x="{LEFT + 10}" y="{top}" width="{WIDTH - LEFT - 20}" height="{y - top}" fill="none" '
                'stroke="currentColor" stroke-dasharray="4 4" rx="6"/>'
                f'<text x="{LEFT + 18}" y="{top + 14}" font-size="11">wings of trainers/</text>'
            )
            y += GAP
    parts.append(f'<text x="{LEFT}" y="{y + 14}" font-size="12">imports point down only</text></svg>')
    return "\n".join(parts) + "\n"


def _row(floor: str, names: list[str], y: int, tint: str, size: int = 14, indent: int = 0) -> list[str]:
    width = (WIDTH - LEFT - 2 * indent - GAP * (len(names) + 1)) / len(names)
    parts = [f'<text x="{14 + indent / 3}" y="{y + 28}" font-size="{size}">{floor}</text>']
    for at, name in enumerate(names):
        x = LEFT + indent + GAP + at * (width + GAP)
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROOM - 8}" rx="6" fill="{tint}" '
            'fill-opacity="0.08" stroke="currentColor"/>'
            f'<text x="{x + width / 2:.1f}" y="{y + 23}" text-anchor="middle" font-size="{size}">{escape(name)}</text>'
        )
    return parts


if __name__ == "__main__":
    DRAWING.write_text(draw((DOCS / "architecture.md").read_text(encoding="utf-8")), encoding="utf-8")
