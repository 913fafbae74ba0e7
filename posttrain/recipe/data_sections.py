"""The section `data` of recipes: which rows, how one is read, and in which order they are taken. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le
from pydantic import model_validator

from posttrain.recipe.row_expression import ExpressionFault, row_expression
from posttrain.recipe.sections import Count, Section, Seed, Text


class AnswerSection(Section):
    """Where the gold answer stands: a column, or a part of its text.

    `after` keeps what follows its last occurrence, `before` what precedes its first, `boxed` the content
    of the last closed \\boxed{...}.
    """

    column: Text = "answer"
    after: Text | None = None
    before: Text | None = None
    boxed: bool = False

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.boxed and (self.after or self.before):
            raise ValueError("'boxed' and 'after'/'before' exclude each other; keep one")
        return self


class OrderSection(Section):
    """A curriculum of methods that learn from rewards or from pairs; data/row_order.py says what the keys decide."""

    by: Text  # a column, or an expression over columns that is a number
    first: Literal["highest", "lowest"]
    bands: Annotated[int, Ge(2), Le(10**6)] = 10

    @model_validator(mode="after")
    def _readable(self) -> Self:
        _check_expression("by", self.by)
        return self


def _check_expression(key: str, text: str) -> None:
    try:
        row_expression(text)
    except ExpressionFault as error:
        raise ValueError(f"'{key}': {error}") from None


class DataSection(Section):
    name: Text | None = None  # a built-in task, a known dataset, or a hub name
    path: Text | None = (
        None  # .jsonl .json .parquet .csv, each also with .gz or .zst; a folder or pattern of them
    )
    args: dict[str, Any] = {}  # settings of a built-in task
    config: Text | None = None  # of a hub dataset
    split: Text = "train"
    prompt: Text | None = None  # column; None: "prompt"
    template: Text | None = None  # "{question}\nThink first." over the row's columns
    system: str | None = None
    chat: bool = False
    completion: Text | None = None  # column; None: "completion" (sft)
    chosen: Text | None = None  # column; None: "chosen" (preference)
    rejected: Text | None = None  # column; None: "rejected" (preference)
    label: Text | None = None  # column of true or false, 1 or 0; None: "label" (kto)
    answer: AnswerSection | None = None
    columns: dict[Text, Text] = {}  # reward's column: dataset's column
    max_prompt_tokens: Count | None = None
    on_long: Literal["drop", "truncate", "error"] = "drop"
    filter: Text | None = None  # "pass_rate > 0.1 and len(prompt) < 400" over the row's columns
    order: OrderSection | None = None
    shuffle: Seed | None = None  # seed
    limit: Count | None = None
    eval: DataSection | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.name is None):
            raise ValueError("give exactly one of 'path' (a file) and 'name' (a built-in task or hub name)")
        if self.path is not None:
            for key in ("config", "split", "args"):
                if key in self.changed():
                    raise ValueError(f"'{key}' has no effect on a file; remove it")
        if self.eval is not None and self.eval.eval is not None:
            raise ValueError("'eval' inside 'eval' has no effect; remove it")
        if self.eval is not None and self.eval.order is not None:
            raise ValueError("'order' inside 'eval' has no effect: held-out rows are all measured; remove it")
        if self.filter is not None:
            _check_expression("filter", self.filter)
        if (
            self.template is not None
            and self.prompt is not None
            and f"{{{self.prompt}}}" not in self.template
        ):
            raise ValueError(
                f"'template' never uses the prompt column: put {{{self.prompt}}} in it, or drop 'prompt'"
            )
        return self


INHERITED = frozenset(DataSection.model_fields) - {
    "name",
    "path",
    "args",
    "config",
    "split",
    "filter",
    "order",
    "shuffle",
    "limit",
    "eval",
}
"""What `data.eval` takes over from `data` unless it says otherwise: how a row is read, not where it lies, nor which
rows there are."""
