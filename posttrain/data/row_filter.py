"""`data.filter` and `data.order.by`: an expression asked of each row as the source has it, before it is mapped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from posttrain.data.decoding import DataError
from posttrain.data.values import has_column, lookup, plain
from posttrain.recipe.errors import suggest
from posttrain.recipe.row_expression import ExpressionFault, RowExpression, row_expression

NOT_KEPT = "not kept by data.filter"
UNKNOWN = "data.filter reads a missing value"

Numbered = tuple[int, dict[str, Any]]


class RowQuestion:
    """An expression over the columns of a data set.

    key    of the recipe it stands under, for messages: "filter", "order: by"
    first  row of the source, which has its columns
    Raises DataError where a column is missing.
    """

    def __init__(self, text: str, key: str, first: Mapping[str, Any]) -> None:
        self.key = key
        self.expression: RowExpression = row_expression(text)
        lacking = [name for name in self.expression.columns if not has_column(first, name)]
        if lacking:
            columns = [str(name) for name in first]
            near = suggest(lacking[0], columns) or f"; the columns are {', '.join(columns)}"
            raise DataError(f"{key}: no column {lacking[0]!r}{near}{_measured_by(lacking[0])}")

    def of(self, row: Mapping[str, Any]) -> Any:
        """Its value for a row; None where it is not known. DataError where values do not go together."""
        try:
            return self.expression.value_of(lambda name: plain(lookup(row, name)))
        except ExpressionFault as error:
            raise DataError(f"{self.key}: {error}") from None

    def kept(
        self, rows: Iterable[Numbered], dropped: Counter[str], halves: int, where: str | None
    ) -> Iterator[Numbered]:
        """The rows of which it is true; the others are counted, each as the `halves` rows it would become."""
        for number, row in rows:
            try:
                answer = self._truth(row)
            except DataError as error:
                raise DataError(f"{where}: row {number}: {error}") from None
            if answer:
                yield number, row
            else:
                dropped[UNKNOWN if answer is None else NOT_KEPT] += halves

    def _truth(self, row: Mapping[str, Any]) -> bool | None:
        answer = self.of(row)
        if answer is None or isinstance(answer, bool):
            return answer
        raise DataError(
            f"{self.key}: {self.expression.text!r} is {answer!r}, not true or false; write a comparison"
        )

    def number(self, row: Mapping[str, Any]) -> float | None:
        """Its value as a number to sort by; true is 1. DataError where it is none."""
        value = self.of(row)
        if value is None or isinstance(value, int | float):
            return None if value is None else float(value)
        raise DataError(
            f"{self.key}: {self.expression.text!r} is {value!r}, not a number; where a column holds numbers as text, "
            f"write float({self.expression.text})"
        )


def _measured_by(column: str) -> str:
    """Columns that a command makes, and how."""
    if column not in ("pass_rate", "mean_reward", "samples"):
        return ""
    return " (`posttrain data difficulty RECIPE` measures it, and writes a file that has it)"
