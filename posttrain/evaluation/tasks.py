"""Benchmarks: one YAML each, strict; where their data lie, what a prompt looks like, how an answer is read.

No torch here: `posttrain eval tasks` runs on a laptop. The definitions travel inside the package
(posttrain/evaluation/benchmarks; eval/benchmarks is a link to it), so that an installed wheel finds them by
name.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posttrain.recipe.strict_yaml import parse

FOLDER = Path(__file__).parent / "benchmarks"
DATA_VARIABLE = "POSTTRAIN_DATA"
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hub(_Strict):
    """The same rows on the Hugging Face hub; `columns` renames hub columns to those of the file."""

    path: str
    name: str | None = None
    split: str = "test"
    columns: dict[str, str] = {}


class KeptRows(_Strict):
    """The rows of a file that are the benchmark's: those whose number in `column` lies between the two, both
    included."""

    column: str
    first: int
    last: int


class Data(_Strict):
    """`file` is relative to the data folder; `sha256` is of the uncompressed content (null: not checked); `rows` are
    those left by `keep`."""

    file: str
    keep: KeptRows | None = None
    rows: int = Field(gt=0)
    sha256: str | None = Field(pattern=r"^[0-9a-f]{64}$")
    hub: Hub | None = None


class Gold(_Strict):
    """How the reference answer is read from a row.

    text      the column as it stands (27.0 reads 27)
    integer   the column as an integer (025 reads 25)
    hash      what follows the last ####
    boxed     the last \\boxed{} of a worked solution
    list      a list of strings, joined by commas
    columns   several columns, handed to the grader under the names of `columns`
    """

    rule: Literal["text", "integer", "hash", "boxed", "list", "columns"]
    column: str | None = None
    columns: dict[str, str] = {}
    id: str | None = None
    group: str | None = None

    def model_post_init(self, context: Any) -> None:
        if (self.rule == "columns") != (self.column is None):
            raise ValueError("rule 'columns' takes `columns`, every other rule takes `column`")


class Prompt(_Strict):
    """`chat: auto` uses the tokenizer's chat template where it has one; what was used stands in run.json."""

    template: str
    system: str | None = None
    chat: Literal["auto", "always", "never"] = "auto"


class BenchmarkSampling(_Strict):
    """Names as in a recipe's `rollout`; temperature 0 is greedy. `samples` is n, the samples of a problem."""

    samples: int = Field(1, ge=1)
    max_new_tokens: int = Field(gt=0)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)

    def model_post_init(self, context: Any) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                "samples > 1 at temperature 0 gives n equal answers; set temperature, or samples: 1"
            )


class Answer(_Strict):
    """Which grader judges and its arguments; `judge` means a model does (posttrain eval judge)."""

    grader: Literal["math", "countdown", "sudoku", "ifeval", "code", "judge"]
    args: dict[str, Any] = {}


class Benchmark(_Strict):
    """One benchmark, as its YAML says."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    title: str
    licence: str
    source: str
    data: Data
    gold: Gold
    prompt: Prompt
    sampling: BenchmarkSampling
    answer: Answer

    def fingerprint(self) -> str:
        """Hash of everything that decides what is asked and what counts as right; sampling is not part of
        it."""
        part = self.model_dump(include={"name", "gold", "prompt", "answer"})
        return _digest(part)


@dataclass(frozen=True)
class Problem:
    """One question: `gold` is a string, or a mapping for graders that read several columns."""

    id: str
    prompt: str
    gold: str | dict[str, Any]
    group: str | None = None


def names() -> list[str]:
    """Built-in benchmarks."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name_or_path: str | Path) -> Benchmark:
    """A built-in benchmark by name, or one of your own by the path of its YAML."""
    text = str(name_or_path)
    path = Path(text) if text.endswith((".yaml", ".yml")) else FOLDER / f"{text}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(text, names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; built in: {', '.join(names())}"
        raise ValueError(f"no benchmark {text!r}{hint}")
    try:
        document = parse(path.read_text(encoding="utf-8"))
        return Benchmark.model_validate(document)
    except ValidationError as error:
        # a misspelt key is also a missing one: speak of the misspelling
        first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {where}: {first['msg']}{_did_you_mean(first)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _did_you_mean(error: Any) -> str:
    if error["type"] != "extra_forbidden":
        return ""
    model: type[BaseModel] = Benchmark
    for part in error["loc"][:-1]:
        inner = {
            "data": Data,
            "hub": Hub,
            "keep": KeptRows,
            "gold": Gold,
            "prompt": Prompt,
            "sampling": BenchmarkSampling,
            "answer": Answer,
        }
        model = inner.get(str(part), model)
    near = difflib.get_close_matches(str(error["loc"][-1]), list(model.model_fields), 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(model.model_fields)}"


def data_folder(given: str | Path | None) -> Path | None:
    """The folder of benchmark files: the argument, else $POSTTRAIN_DATA, else None (the hub)."""
    chosen = given if given is not None else os.environ.get(DATA_VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def find_file(benchmark: Benchmark, folder: Path) -> Path | None:
    """The benchmark's file below `folder`, compressed or not; None where it is absent."""
    plain = folder / benchmark.data.file.removesuffix(".gz")
    for path in (plain, plain.with_name(plain.name + ".gz")):
        if path.is_file():
            return path
    return None


def check(benchmark: Benchmark, folder: Path) -> str | None:
    """None where file, hash, row count and every gold are as defined; else what is wrong."""
    path = find_file(benchmark, folder)
    if path is None:
        return f"absent: {folder / benchmark.data.file}"
    try:
        problems(benchmark, folder)
    except ValueError as error:
        return str(error)
    return None


def problems(benchmark: Benchmark, folder: Path | None, limit: int | None = None) -> list[Problem]:
    """The benchmark's problems in file order: from `folder`, or from the hub where it is None.

    ValueError where the file is absent, differs from the definition, or a row has no readable gold.
    """
    rows = _rows_of_file(benchmark, folder) if folder is not None else _rows_of_hub(benchmark)
    rows = _kept(benchmark, rows)
    if len(rows) != benchmark.data.rows:
        raise ValueError(f"{benchmark.name}: {len(rows)} rows, defined are {benchmark.data.rows}")
    found = [_problem(benchmark, row, index) for index, row in enumerate(rows)]
    if len({p.id for p in found}) != len(found):
        raise ValueError(f"{benchmark.name}: column {benchmark.gold.id!r} does not name rows uniquely")
    return found[:limit] if limit else found


def _kept(benchmark: Benchmark, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keep = benchmark.data.keep
    if keep is None:
        return rows
    numbers = (int(_column(row, keep.column, f"{benchmark.name}: row {i}")) for i, row in enumerate(rows))
    return [row for row, number in zip(rows, numbers, strict=True) if keep.first <= number <= keep.last]


def questions(benchmark: Benchmark, found: Sequence[Problem]) -> list[str]:
    """What each problem asks, without the template's own words: those may stand in training prompts too."""
    literals = _PLACEHOLDER.split(benchmark.prompt.template)[::2]
    asked = re.compile("(.*)".join(map(re.escape, literals)), re.DOTALL)
    return [" ".join(match.groups()) if (match := asked.fullmatch(p.prompt)) else p.prompt for p in found]


def task_hash(benchmark: Benchmark, found: Sequence[Problem]) -> str:
    """Equal where two runs asked the same questions in the same words and judge by the same rule."""
    return _digest([benchmark.fingerprint(), content_hash(found)])


def content_hash(found: Sequence[Problem]) -> str:
    """Hash of what is asked and what is right: equal for a local file and the hub where their rows agree."""
    return _digest([[p.id, p.prompt, p.gold] for p in found])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _rows_of_file(benchmark: Benchmark, folder: Path) -> list[dict[str, Any]]:
    path = find_file(benchmark, folder)
    if path is None:
        raise ValueError(
            f"{benchmark.name}: no file {folder / benchmark.data.file}; give the folder with --data or "
            f"${DATA_VARIABLE}, or put the file there ({benchmark.source})"
        )
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    found = hashlib.sha256(content).hexdigest()
    if benchmark.data.sha256 not in (None, found):
        raise ValueError(
            f"{benchmark.name}: {path} has sha256 {found[:12]}, defined is {benchmark.data.sha256[:12]}: another "
            "version of the file; to use it, copy the benchmark's YAML, change its hash, and name the copy"
        )
    text = content.decode("utf-8")
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "csv":
        reader = csv.reader(io.StringIO(text))
        header = next(reader)
        return [dict(zip(header, row, strict=True)) for row in reader]
    if kind == "json":
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _rows_of_hub(benchmark: Benchmark) -> list[dict[str, Any]]:
    hub = benchmark.data.hub
    if hub is None:
        raise ValueError(
            f"{benchmark.name}: has no place on the hub; give the folder that holds {benchmark.data.file} "
            f"with --data or ${DATA_VARIABLE}"
        )
    from datasets import load_dataset

    rows: Any = load_dataset(hub.path, hub.name, split=hub.split)
    return [{str(hub.columns.get(key, key)): value for key, value in dict(row).items()} for row in rows]


def _problem(benchmark: Benchmark, row: dict[str, Any], index: int) -> Problem:
    where = f"{benchmark.name}: row {index}"
    gold = benchmark.gold
    number = str(index) if gold.id is None else str(_column(row, gold.id, where))
    group = None if gold.group is None else _group(_column(row, gold.group, where))
    prompt = _PLACEHOLDER.sub(
        lambda match: _written(_column(row, match.group(1), where)), benchmark.prompt.template
    )
    return Problem(number, prompt, _gold(gold, row, where), group)


def _written(value: Any) -> str:
    """A column in a prompt: a list (of tests) has a line for each."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _group(value: Any) -> str:
    return str(value).removeprefix("Level ").strip()


def _column(row: dict[str, Any], name: str, where: str) -> Any:
    if name not in row:
        near = difflib.get_close_matches(name, list(row), 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(row)}"
        raise ValueError(f"{where} has no column {name!r}{hint}")
    return row[name]


def _gold(gold: Gold, row: dict[str, Any], where: str) -> str | dict[str, Any]:
    if gold.rule == "columns":
        return {name: _column(row, column, where) for name, column in gold.columns.items()}
    assert gold.column is not None  # Gold refuses to be built otherwise
    value = _column(row, gold.column, where)
    if gold.rule == "integer":
        text = str(int(float(value)))
    elif gold.rule == "list":
        text = ",".join(str(part) for part in value)
    elif gold.rule == "hash":
        text = str(value).rsplit("####", 1)[1].strip().replace(",", "") if "####" in str(value) else ""
    elif gold.rule == "boxed":
        text = last_boxed(str(value)) or ""
    elif isinstance(value, float) and value.is_integer():
        text = str(int(value))
    else:
        text = "" if value is None else str(value)
    if not text.strip():
        raise ValueError(f"{where}: no gold answer by rule {gold.rule!r} in column {gold.column!r}")
    return text


def last_boxed(text: str) -> str | None:
    r"""Content of the last closed `\boxed{...}` of a reference solution, or of `\boxed 5`; None without
    one."""
    for match in reversed(list(re.finditer(r"\\f?boxed\s*", text))):
        rest = text[match.end() :]
        if not rest.startswith("{"):
            word = re.match(r"[^\s$.,\\]+", rest)
            if word:
                return word.group(0)
            continue
        depth = 0
        for position, char in enumerate(rest):
            escaped = position > 0 and rest[position - 1] == "\\"
            if char == "{" and not escaped:
                depth += 1
            elif char == "}" and not escaped:
                depth -= 1
                if depth == 0:
                    return rest[1:position]
    return None
