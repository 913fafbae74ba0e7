"""What the methods of a run say of its numbers: once while it runs, and again in its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.observe.curves import metric_names
from posttrain.recipe.methods import METHODS, bases_of
from posttrain.settings import WINDOW, RunCurves, Settings


def methods_in(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The methods under whose names something was logged, as METHOD/name."""
    found = {name.partition("/")[0] for name in metric_names(rows) if "/" in name}
    return sorted(found & METHODS.keys())


def who_logs_as(method: str) -> Iterator[type[Settings]]:
    """The settings classes whose numbers can stand under a method's name: its own, and those it may be built on."""
    own = METHODS[method].load_settings()
    yield own
    yield from bases_of(own).values()


def run_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of a run as it is in its log."""
    notes = []
    for method in methods_in(rows):
        of_method = [row for row in rows if _speaks_of(row, method)]
        curves = RunCurves(method, of_method, len(of_method), ended=True)
        notes += [note.text for note in METHODS[method].load_settings().notes(curves)]
    return notes


class Watch:
    """The same, from the lines of a run that is still going: `see` gives what is new to be said."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Mapping[str, Any]]] = {}
        self._logged: dict[str, int] = {}
        self._said: set[tuple[str, str]] = set()

    def see(self, row: Mapping[str, Any]) -> list[str]:
        """`row` is a logged line with its step."""
        return [text for method in methods_in([row]) for text in self._new(method, row)]

    def _new(self, method: str, row: Mapping[str, Any]) -> Iterator[str]:
        rows = self._rows[method] = [*self._rows.get(method, [])[1 - WINDOW :], row]
        self._logged[method] = self._logged.get(method, 0) + 1
        curves = RunCurves(method, rows, self._logged[method], ended=False)
        for note in METHODS[method].load_settings().notes(curves):
            if (method, note.about) not in self._said:
                self._said.add((method, note.about))
                yield note.text


def _speaks_of(row: Mapping[str, Any], method: str) -> bool:
    return any(name.startswith(f"{method}/") for name in row)
