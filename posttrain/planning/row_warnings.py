"""What `posttrain data describe` would warn of in the rows that a plan has read, as far as it takes no time."""

from __future__ import annotations

from posttrain.data import Survey
from posttrain.data.describe import describe_mapped, warnings_of
from posttrain.data.describe.described_rows import words_of_turns
from posttrain.data.describe.description import evenly
from posttrain.data.files import Row
from posttrain.data.known import TASKS
from posttrain.recipe.data_sections import DataSection

LOOKED_AT = 2_000
"""Rows, evenly spaced."""
MOST_CHARACTERS = 4_000_000
"""Of these rows together; about a second."""


def row_warnings(section: DataSection, found: Survey) -> list[str]:
    """A line each, with the number of rows looked at where it is not all of them. Of generated tasks none."""
    if section.name in TASKS or not found.rows:
        return []
    rows = _some(found.rows)
    of = "" if len(rows) == len(found.rows) else f", of {len(rows):,} of {len(found.rows):,} rows"
    return [
        f"data{of}: {warning}"
        for warning in warnings_of(describe_mapped(rows, section.path or str(section.name)))
    ]


def _some(rows: list[Row]) -> list[Row]:
    """Evenly spaced, fewer where they are long."""
    picked = evenly(rows, LOOKED_AT)
    characters = sum(map(_characters, picked))
    if characters > MOST_CHARACTERS:
        picked = evenly(rows, max(1, len(picked) * MOST_CHARACTERS // characters))
    return picked


def _characters(row: Row) -> int:
    names = ("prompt", "completion", "chosen", "rejected")
    return sum(len(words_of_turns(said)) for name in names if isinstance(said := row.get(name), str | list))
