"""Rows with their pass rates: what is kept while they are measured, and the file that comes of it. No torch.

While rows are measured, OUT.part holds a line for what was asked and one for each batch that is done; a line is written
and synced as a whole, and one that a kill cut short is taken away. Of several processes the first writes that file, and
each of the others one of its own beside it, OUT.part-1 and so on. When all rows are measured, OUT is written beside
them and renamed.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.data.decoding import DataError
from posttrain.data.files import Row
from posttrain.data.rows import raw_rows, settle
from posttrain.data.values import plain
from posttrain.recipe.data_sections import DataSection

COLUMNS = ("pass_rate", "mean_reward", "samples")
SUFFIXES = (".jsonl", ".parquet")
_KEY = "posttrain difficulty"


@dataclass(frozen=True)
class RowRate:
    """
    number       of the row in its source, from 1
    pass_rate    share of the judged responses that passed; None where none was judged
    mean_reward  of the judged responses
    samples      responses that were judged
    """

    number: int
    pass_rate: float | None
    mean_reward: float | None
    samples: int


@dataclass(frozen=True)
class MeasuredBatch:
    """
    responses  that were sampled; `unjudged` and `cut` (at rollout.max_new_tokens) are among them
    tokens     that the model wrote
    seconds    of sampling and judging
    """

    rates: list[RowRate] = field(default_factory=list)
    responses: int = 0
    unjudged: int = 0
    cut: int = 0
    tokens: int = 0
    seconds: float = 0.0


class PartFile:
    """What a process has measured so far. `asked` is what decides the numbers; a file of other questions is not
    continued."""

    def __init__(self, out: Path, rank: int = 0) -> None:
        self.path = out.with_name(f"{out.name}.part-{rank}" if rank else f"{out.name}.part")

    def exists(self) -> bool:
        return self.path.exists()

    def begin(self, asked: Mapping[str, Any]) -> None:
        self.path.write_bytes(_line({_KEY: 1, **asked}))

    def add(self, batch: MeasuredBatch) -> None:
        """Appends a batch, on the disk when this returns."""
        with self.path.open("ab") as file:
            file.write(_line(asdict(batch)))
            file.flush()
            os.fsync(file.fileno())

    def read(self, *, mend: bool = True) -> tuple[dict[str, Any], list[MeasuredBatch]]:
        """What was asked, and the batches that are whole; the rest of a line is cut off the file where it is to be gone
        on with (`mend`: no other process writes it). DataError where it is no such file."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.decode(errors="replace").splitlines()
        try:
            asked, *batches = [json.loads(line) for line in lines]
            if asked.pop(_KEY) != 1:
                raise KeyError(_KEY)
            found = [
                MeasuredBatch(**{**one, "rates": [RowRate(**rate) for rate in one["rates"]]})
                for one in batches
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{self.path} holds no measured rows; remove it, or name another --out") from None
        if mend and len(whole) != len(content):
            os.truncate(self.path, len(whole))
        return asked, found

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def part_files(out: Path) -> list[PartFile]:
    """Those of all processes that measured for `out`, the first process's before the others'."""
    ranks = [int(path.name.rpartition("-")[2]) for path in out.parent.glob(f"{glob.escape(out.name)}.part-*")]
    return [part for rank in (0, *sorted(ranks)) if (part := PartFile(out, rank)).exists()]


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def source_rows(section: DataSection, last: int) -> list[tuple[int, Row]]:
    """The source's own rows up to the `last`-th, each with its number, from 1."""
    return list(enumerate(islice(raw_rows(settle(section)), last), start=1))


def write_measured(rows: Sequence[tuple[int, Row]], rates: Mapping[int, RowRate], out: Path) -> None:
    """Each numbered row with its rate behind its own columns; null, null and 0 where it was not measured."""
    joined = [{**row, **_columns(rates.get(number))} for number, row in rows]
    aside = out.with_name(f".{out.name}.tmp")
    if out.suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(_table(joined), aside)
    else:
        aside.write_bytes(b"".join(_json_row(number, row) for number, row in enumerate(joined, start=1)))
    os.replace(aside, out)


def check_writable(rows: Sequence[tuple[int, Row]], out: Path, *, replace: bool = False) -> None:
    """DataError where the rows cannot be written to `out`, or have columns of these names and no leave to `replace`."""
    taken = [name for name in COLUMNS if any(name in row for _, row in rows)]
    if taken and not replace:
        raise DataError(
            f"the rows have a column {taken[0]!r} already; --replace writes the new values over it, or rename it"
        )
    if out.suffix == ".parquet":
        _table([row for _, row in rows])
        return
    for number, row in rows:
        _json_row(number, row)


def _columns(rate: RowRate | None) -> Row:
    if rate is None:
        return dict(zip(COLUMNS, (None, None, 0), strict=True))
    return {name: vars(rate)[name] for name in COLUMNS}


def _json_row(number: int, row: Row) -> bytes:
    for column, value in row.items():
        try:
            json.dumps(_jsonable(value))
        except (TypeError, ValueError):
            raise DataError(
                f"row {number}: column {column!r} holds a {type(value).__name__}, for which JSON has no word; write "
                "--out FILE.parquet"
            ) from None
    return json.dumps(_jsonable(row), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _jsonable(value: Any) -> Any:
    """numpy's values as Python's own, NaN as null, at any depth."""
    value = plain(value)
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, list) else value


def _table(rows: Sequence[Row]) -> Any:
    import pyarrow

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise DataError(
                f"column {name!r} cannot be written as Parquet: {str(error).splitlines()[0]}; write --out FILE.jsonl"
            ) from None
    return pyarrow.table(columns)
