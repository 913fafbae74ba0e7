"""From a recipe's `data` section to rows, with an account of every row that was not used.

    rows, counts, *_ = load_rows(recipe.data, tokenizer)      # counts.read == counts.used + dropped

`survey` looks at the same rows for `posttrain plan`: columns and counts, no tokenizer, nothing downloaded. Both take
what the method needs of a row (`layout.Needs`), and count alike.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from posttrain.data.files import DataError, Row, iter_rows, size_of
from posttrain.data.known import DATASETS, TASKS
from posttrain.data.labels import PAIRS_SPLIT, all_unpaired, pair_columns, unpaired
from posttrain.data.lengths import Limits
from posttrain.data.mapping import Dropped, map_row
from posttrain.data.row_filter import RowQuestion
from posttrain.data.row_layout import TEXTS, Layout, Needs, layout_of, missing_columns, read_columns
from posttrain.data.row_order import Curriculum
from posttrain.recipe.data_sections import DataSection, OrderSection
from posttrain.recipe.errors import explain, suggest
from posttrain.recipe.methods import load

if TYPE_CHECKING:
    from datasets import Dataset

SURVEY_LIMIT_BYTES = 64 * 2**20
"""Larger files are not read through by `survey`, only looked into."""
LOOKED_INTO = 1000
"""Rows of a larger file among which `survey` looks for one that can be used."""


@dataclass(frozen=True)
class RowCounts:
    """read == used + sum(dropped.values()); `truncated` and `echoes` are among the used ones.

    echoes  rows whose every answer begins with the whole prompt, which then stands twice in what is trained on
    notes   how the columns were found, where the recipe does not name them
    """

    read: int
    used: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    truncated: int = 0
    left_out_columns: tuple[str, ...] = ()
    echoes: int = 0
    notes: tuple[str, ...] = ()

    def in_words(self) -> str:
        text = f"{self.used} of {self.read} rows"
        if self.dropped:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.dropped.items()))
            text += f"; dropped {self.read - self.used} ({reasons})"
        if self.truncated:
            text += f"; truncated {self.truncated}"
        if self.left_out_columns:
            text += f"; columns of mixed types left out: {', '.join(self.left_out_columns)}"
        return text


class LoadedRows(NamedTuple):
    """
    numbers  of each of the rows its place in the source, from 1; a pair that was read as two rows stands twice
    last     place of the last row that was read; with data.shuffle of the last there is
    order    the curriculum that data.order asks for
    """

    rows: Dataset
    counts: RowCounts
    numbers: list[int]
    last: int
    order: Curriculum | None


class Collected(NamedTuple):
    """Mapped rows with their account; `numbers`, `last` and `order` as in LoadedRows."""

    rows: list[Row]
    counts: RowCounts
    numbers: list[int]
    last: int
    order: Curriculum | None = None


class Survey(NamedTuple):
    """What can be known before anything is loaded: None where only the download would tell.

    columns  of the dataset itself
    counts   without the rules on length, which need the tokenizer
    rows     mapped rows: all of them where counts is known, of a large file the first that can be used
    notes    as in the counts
    """

    columns: list[str] | None
    counts: RowCounts | None
    rows: list[Row]
    notes: tuple[str, ...] = ()


def load_rows(
    section: DataSection, tokenizer: Any = None, *, needs: Needs | None = None, max_length: int | None = None
) -> LoadedRows:
    """The section's rows as a `datasets.Dataset`.

    tokenizer   needed for max_prompt_tokens and max_length
    needs       what the method reads; None: all that the dataset has
    max_length  of prompt and completion together, for trainers that cut there: rows whose prompt fills it are
                dropped here rather than inside the trainer, rows that will be cut are counted as truncated
    Raises DataError where a file or column is at fault.
    """
    from datasets import Dataset

    section = settle(section)
    needs = needs or Needs()
    found = _collect(section, needs, raw_rows(section), Limits(section, tokenizer, max_length))
    rows, counts = found.rows, found.counts
    if not rows:
        raise DataError(f"no rows to train on: {counts.in_words()}")
    columns = {name: [row.get(name) for row in rows] for name in _names(rows)}
    mixed = tuple(name for name, values in columns.items() if not _has_one_type(values))
    needed = {"prompt", *TEXTS, "answer", *section.columns, *needs.columns}
    if needed & set(mixed):
        raise DataError(
            f"column {sorted(needed & set(mixed))[0]!r} mixes types, e.g. text and numbers, or holds numbers of more "
            "than 64 bits; make it one"
        )
    kept = {name: values for name, values in columns.items() if name not in mixed}
    return LoadedRows(
        Dataset.from_dict(kept),
        replace(counts, left_out_columns=mixed),
        found.numbers,
        found.last,
        found.order,
    )


def survey(section: DataSection, needs: Needs | None = None, tokenizer: Any = None) -> Survey:
    """Look at the rows as `load_rows` would map them, without download or `datasets`, and whatever their length.

    tokenizer  where one is at hand: its chat template has a say in which rows can be used
    """
    section = settle(section)
    if section.path is None and section.name not in TASKS:
        return Survey(None, None, [])
    needs = needs or Needs()
    source = raw_rows(section)
    first = next(source, None)
    if first is None:
        raise DataError(f"{section.path}: holds no rows")
    source = chain([first], source)
    large = section.path is not None and size_of(section.path) > SURVEY_LIMIT_BYTES
    if large:
        source = islice(source, LOOKED_INTO)
        if section.order is not None:
            _question(section.order.by, "order: by", first, section.path)
        section = section.model_copy(update={"limit": 1, "shuffle": None, "order": None})
    rows, counts, *_ = _collect(section, needs, source, Limits(section, tokenizer, lengths=False))
    return Survey(list(first), None if large else counts, rows, counts.notes)


def settle(section: DataSection) -> DataSection:
    """The section with what a known dataset's name implies filled in where the recipe is silent."""
    if section.name not in DATASETS:
        return section
    implied = DATASETS[section.name]
    silent = {k: v for k, v in implied.items() if k == "name" or k not in section.changed()}
    values = json.loads(section.model_dump_json(exclude={"eval"})) | silent
    if section.template is not None:
        values["prompt"] = section.prompt
    return DataSection.model_validate(values).model_copy(update={"eval": section.eval})


def raw_rows(section: DataSection) -> Iterator[Row]:
    """The dataset's own rows; `section` is settled."""
    if section.path is not None:
        return iter_rows(section.path)
    assert section.name is not None
    if section.name in TASKS:
        return _task_rows(section.name, section)
    return _hub_rows(section)


def task_settings(name: str, args: Mapping[str, Any]) -> Any:
    """The settings of a built-in task; DataError names an argument it does not have or cannot take."""
    task: Any = load(TASKS[name])
    known = [field.name for field in fields(task)]
    try:
        return TypeAdapter(task).validate_json(json.dumps(dict(args)), strict=True)
    except ValidationError as error:
        faults = explain(
            error,
            "args",
            dict(args),
            lambda place: (
                f"task {name!r} has no argument {place[-1]!r}"
                + (suggest(str(place[-1]), known) or f"; it has {', '.join(known)}")
            ),
        )
        raise DataError("; ".join(faults)) from None


def _task_rows(name: str, section: DataSection) -> Iterator[Row]:
    if section.split not in ("train", "test"):
        raise DataError(f"task {name!r} has no split {section.split!r}; it has train and test")
    completions = section.completion is not None or bool(
        {"teacher_accuracy", "demonstrations"} & section.args.keys()
    )
    return task_settings(name, section.args).rows(section.split, completions=completions)


def _hub_rows(section: DataSection) -> Iterator[Row]:
    from datasets import load_dataset

    assert section.name is not None
    try:
        found = load_dataset(section.name, section.config, split=section.split)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{section.name!r} is no built-in name ({', '.join([*TASKS, *DATASETS])}) and the hub did not give it: "
            f"{reason}. For a file write data.path"
        ) from None
    return iter(found)  # type: ignore[arg-type]  # with a split it is one Dataset, whose rows are mappings


def _collect(
    section: DataSection,
    needs: Needs,
    source: Iterable[Row],
    limits: Limits,
) -> Collected:
    """Map rows until `limit` are used, reading no further, and account for the others."""
    numbered = _Numbered(source)
    where = section.path or section.name
    first = next(numbered, None)
    if first is None:
        return Collected([], RowCounts(0, 0), [], 0)
    pair = _pair_columns(section, needs, first[1], where)
    dropped: Counter[str] = Counter()
    raw = _kept(section, chain([first], numbered), first[1], dropped, halves=1 if pair is None else 2)
    order = None if section.order is None else _question(section.order.by, "order: by", first[1], where)
    shown = first[1]
    if pair is not None:
        raw, shown = all_unpaired(raw, *pair), unpaired(shown, *pair)[0]
        section = section.model_copy(update={"chosen": None, "rejected": None})
    layout = layout_of(section, needs, shown)
    missing = missing_columns(section, layout, needs, shown)
    if missing:
        raise DataError("; ".join(f"{where}: {sentence}" for sentence in missing))
    split = () if pair is None else (PAIRS_SPLIT.format(*pair),)
    notes = (*split, *layout.notes, *_unread(section, layout, needs, shown))
    if section.shuffle is not None:
        raw = list(raw)
        random.Random(section.shuffle).shuffle(raw)
    rows: list[Row] = []
    numbers: list[int] = []
    keys: list[float | None] = []
    truncated = echoes = 0
    for number, row in raw:
        try:
            mapped = map_row(row, section, layout, needs)
            mapped, cut = limits.check(mapped, needs)
            keys += [] if order is None else [order.number(row)]
            truncated += cut
            rows.append(mapped)
            numbers.append(number)
            echoes += _echoes(mapped)
        except Dropped as reason:
            dropped[str(reason)] += 1
        except DataError as error:
            raise DataError(f"{where}: row {number}: {error}") from None
        if len(rows) == section.limit:
            break
    curriculum = None if section.order is None else _curriculum(section.order, keys, where)
    if curriculum is not None and section.order is not None:
        notes = (*notes, curriculum.in_words(section.order.by))
    read = len(rows) + sum(dropped.values())
    counts = RowCounts(read, len(rows), dict(dropped), truncated, echoes=echoes, notes=notes)
    return Collected(rows, counts, numbers, numbered.last, curriculum)


class _Numbered:
    """Rows with their places, from 1; `last` is that of the row which was given last."""

    def __init__(self, source: Iterable[Row]) -> None:
        self._source = iter(source)
        self.last = 0

    def __iter__(self) -> _Numbered:
        return self

    def __next__(self) -> tuple[int, Row]:
        row = next(self._source)
        self.last += 1
        return self.last, row


def _kept(
    section: DataSection,
    raw: Iterable[tuple[int, Row]],
    first: Row,
    dropped: Counter[str],
    *,
    halves: int,
) -> Iterable[tuple[int, Row]]:
    """The rows that data.filter keeps; the others are counted in `dropped`, as they are read."""
    if section.filter is None:
        return raw
    where = section.path or section.name
    question = _question(section.filter, "filter", first, where)
    return question.kept(raw, dropped, halves, where)


def _question(text: str, key: str, first: Row, where: str | None) -> RowQuestion:
    try:
        return RowQuestion(text, key, first)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _curriculum(section: OrderSection, keys: Sequence[float | None], where: str | None) -> Curriculum | None:
    """None where no row is used, which is said elsewhere."""
    if not keys:
        return None
    if len(found := set(keys)) == 1:
        (value,) = found
        of = "have no value" if value is None else f"have {value:g}"
        raise DataError(f"{where}: order: by {section.by!r}: all rows {of}, so it orders nothing; remove it")
    return Curriculum(tuple(keys), section.first, section.bands)


def _pair_columns(section: DataSection, needs: Needs, row: Row, where: str | None) -> tuple[str, str] | None:
    try:
        return pair_columns(section, needs, row)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _unread(section: DataSection, layout: Layout, needs: Needs, row: Row) -> list[str]:
    """A sentence about columns that stay behind; where rewards see all of them, there are none."""
    if needs.others or section.name in TASKS:
        return []
    read = {name.split(".")[0] for name in read_columns(section, layout, needs)}
    unread = [name for name in row if name not in {*read, *needs.columns}]
    return [f"columns not read: {', '.join(unread)}"] if unread else []


def _echoes(row: Row) -> bool:
    """Whether every answer of a row of text begins with the whole prompt."""
    answers = [row[name] for name in TEXTS if name in row]
    prompt = row["prompt"]
    return isinstance(prompt, str) and bool(answers) and all(answer.startswith(prompt) for answer in answers)


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _has_one_type(values: list[Any]) -> bool:
    import pyarrow

    try:
        pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError, UnicodeEncodeError):
        return False
    return True
