"""`posttrain data describe FILE`: a data set in numbers before anything is trained on it."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console

from posttrain.data import DataError
from posttrain.data.describe import warnings_of
from posttrain.data.describe.coverage import coverage_of, steps_of
from posttrain.data.describe.described_rows import DescribedRow
from posttrain.data.describe.description import Description, ModelFit, described_by, read
from posttrain.data.describe.row_roles import ROLES, first_values
from posttrain.data.files import Row, files_of, iter_rows, kind_of, split_of
from posttrain.data.known import DATASETS, TASKS
from posttrain.data.rows import raw_rows, settle
from posttrain.data.values import has_column
from posttrain.observe.description_page import print_description, write_description
from posttrain.planning.saved_model import DTYPES, model_of
from posttrain.planning.tokenizer import plan_tokenizer
from posttrain.recipe.data_sections import DataSection
from posttrain.recipe.sections import ModelSection
from posttrain.rollout.adapter_base import base_of, holds_adapter

MODEL_ROWS = 128
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "data",
        help="a file, folder or pattern (.jsonl .json .parquet .csv, .gz .zst), a built-in task or a data set's name",
    )
    parser.add_argument(
        "--split", help="of a name: train (default), test, ...; of a folder: its shards of that split"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="read the first N rows only")
    parser.add_argument(
        "--role",
        action="append",
        default=[],
        metavar="ROLE=COLUMN",
        help=f"a column that its name does not tell; roles: {', '.join(ROLES)}",
    )
    parser.add_argument(
        "--model", metavar="FOLDER", help="lengths in its tokens, and the answers' log-probability under it"
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help="lengths in its tokens, without a model")
    parser.add_argument(
        "--model-rows", type=int, default=MODEL_ROWS, metavar="N",
        help=f"rows whose log-probability is computed (default {MODEL_ROWS}); 0: tokens only",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the model; default: bfloat16 on a GPU, float32 on a CPU"
    )
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument(
        "--reference",
        metavar="FILE",
        help="rows to compare with: trajectory quality (TQ) and coverage (SACo)",
    )
    parser.add_argument(
        "--minimum", type=float, metavar="RETURN",
        help="mean score of a random or untrained policy, where the reference has one answer per prompt",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="do not look for near duplicates, which take longest"
    )
    parser.add_argument("--html", metavar="OUT", help="write one HTML page with plots")
    parser.add_argument("--json", action="store_true", help="print the description as JSON instead of tables")


def main(args: Namespace) -> int:
    """Describe a data set before training: roles of its columns, lengths, duplicates, languages, faults, labels."""
    try:
        _check(args)
        found = describe_data(args)
    except (
        ValueError,
        OSError,
        ImportError,
        RuntimeError,
    ) as error:  # torch's own: no such device, no room on it
        print(f"posttrain data describe: {str(error).strip().partition(chr(10))[0]}", file=sys.stderr)
        return 2
    warnings = warnings_of(found)
    if args.json:
        print(json.dumps(asdict(found) | {"warnings": warnings}, ensure_ascii=False, indent=1))
    else:
        console = Console(highlight=False)
        # a pipe is as wide as a page, not as a terminal that is not there
        console = console if console.is_terminal else Console(highlight=False, width=100)
        print_description(found, warnings, console)
    if args.html is not None:
        path = write_description(found, warnings, args.html)
        print(f"page: {path}", file=sys.stderr if args.json else sys.stdout)
    return 0


def describe_data(args: Namespace) -> Description:
    """All that the arguments ask for."""
    tokenizer = None
    if args.model is not None:
        args.model = model_of(args.model)
    named: str | None = args.tokenizer or args.model
    if named is not None:
        tokenizer = tokenizer_in(named)
    raw, roles, rows, faults = read(
        islice(rows_of_data(args.data, args.split), args.limit), args.data, roles=dict(map(_role, args.role))
    )
    found = described_by(raw, roles, rows, faults, args.data, tokenizer=tokenizer, near=not args.quick)
    if args.reference is not None:
        reference = reference_rows(args.reference, dict(map(_role, args.role)))
        found = replace(
            found, coverage=coverage_of(steps_of(rows), steps_of(reference), args.reference, args.minimum)
        )
    if args.model is not None and args.model_rows:
        found = replace(found, model=_fit(rows, args))
        if found.model is None:
            note = "no log-probabilities: no row has an answer to learn from (--role completion=COLUMN names one)"
            found = replace(found, notes=(*found.notes, note))
    return found


def reference_rows(given: str, roles: Mapping[str, str]) -> list[DescribedRow]:
    """The reference's rows; a role that was named for the data holds for it too where it has the column."""
    raw = list(rows_of_data(given, None))
    present = first_values(raw)
    *_, rows, _ = read(
        raw, given, roles={role: name for role, name in roles.items() if has_column(present, name)}
    )
    return rows


def _check(args: Namespace) -> None:
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit}: at least 1")
    if args.model_rows < 0:
        raise ValueError(f"--model-rows {args.model_rows}: 0 or more")
    if args.minimum is not None and args.reference is None:
        raise ValueError("--minimum is the lower end of TQ, which needs --reference FILE")
    if args.html is not None and not Path(args.html).resolve().parent.is_dir():
        raise ValueError(f"--html {args.html}: no folder {Path(args.html).resolve().parent}; make it first")
    if Path(args.data).suffix in (".yaml", ".yml"):
        raise ValueError(
            f"{args.data} is a recipe: give the file its data section names, or posttrain data preview {args.data}"
        )


def _role(given: str) -> tuple[str, str]:
    role, equals, column = given.partition("=")
    if not equals or not column:
        raise ValueError(f"--role {given}: write ROLE=COLUMN, for example prompt=question")
    return role, column


def rows_of_data(given: str, split: str | None) -> Iterator[Row]:
    """The rows of a file, folder or pattern, of a built-in task, or of a hub's data set. DataError, or ValueError where
    `split` means nothing."""
    path = Path(given)
    if path.is_dir() and split is not None:
        files = [
            file for file in sorted(path.iterdir()) if kind_of(file) in SUFFIXES and split_of(file) == split
        ]
        if not files:
            raise DataError(
                f"{given!r} holds no file of split {split!r}; a shard's name begins with its split"
            )
        return chain.from_iterable(map(iter_rows, files))
    looks_like_files = path.exists() or any(one in given for one in "*?[") or kind_of(path) in SUFFIXES
    if looks_like_files or (given not in {*TASKS, *DATASETS} and given.count("/") != 1):
        files_of(given)  # says what is wrong with the path
        if split is not None:
            raise ValueError(
                f"--split {split} means nothing for a file; leave it out, or give the folder of the shards"
            )
        return iter_rows(given)
    options: dict[str, Any] = {} if split is None else {"split": split}
    return raw_rows(settle(DataSection(name=given, **options)))


def tokenizer_in(name: str) -> Any:
    """The tokenizer of a folder or cached hub name, or of an adapter's base. ValueError where no file is here."""
    found = plan_tokenizer(ModelSection(path=name))
    if found is None and holds_adapter(name):
        found = plan_tokenizer(ModelSection(path=str(base_of(name))))
    if found is None:
        raise ValueError(f"no tokenizer.json with tokenizer_config.json in {name!r}; give a model's folder")
    return found


def _fit(rows: list[DescribedRow], args: Namespace) -> ModelFit | None:
    import torch
    import transformers.utils.logging

    from posttrain.evaluation.answer_fit import answer_fit

    transformers.utils.logging.disable_progress_bar()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = args.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    return answer_fit(rows, args.model, count=args.model_rows, device=device, dtype=dtype)
