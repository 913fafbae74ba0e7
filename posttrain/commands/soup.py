"""`posttrain soup A B --weights 0.5 0.5 --out DIR`: average the weights of models that share their start."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

CHECK_ROWS = 200
"""Rows of the check data that are read; perplexity is steady long before."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="+", help="model folders; an adapter folder is merged into its base first"
    )
    parser.add_argument(
        "--weights", nargs="+", type=float, help="one a model, together 1; default: all equal"
    )
    parser.add_argument("--out", required=True, help="folder for the soup")
    parser.add_argument(
        "--check-data",
        metavar="FILE",
        help="rows with text, or prompt and completion, that the models were tuned on: a soup worse there is refused",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        help="how much worse than the worst model, as a share (default 0.1)",
    )


def main(args: Namespace) -> int:
    """Write a model folder whose weights are the average of the given models' weights."""
    from posttrain.data.files import DataError

    out = Path(args.out)
    if out.exists() and any(out.iterdir()):
        print(f"posttrain soup: {out} is not empty; name another folder", file=sys.stderr)
        return 2
    weights = args.weights or [1 / len(args.models)] * len(args.models)
    if len(weights) != len(args.models):
        print(f"posttrain soup: {len(args.models)} models but {len(weights)} weights", file=sys.stderr)
        return 2
    try:
        texts = check_texts(args.check_data) if args.check_data else None
        import transformers.utils.logging

        from posttrain.trainers.models.soups import save_soup

        transformers.utils.logging.disable_progress_bar()
        measured = save_soup(args.models, weights, out, check_texts=texts, tolerance=args.tolerance)
    except (DataError, OSError, ValueError) as error:
        print(f"posttrain soup: {str(error).removeprefix('soup: ')}", file=sys.stderr)
        return 2
    for path, weight in zip(args.models, weights, strict=True):
        print(f"{weight:g} x {path}")
    if measured:
        models = ", ".join(f"{value:.4g}" for value in measured["models"])
        print(f"perplexity on {args.check_data}: models {models}; soup {measured['soup']:.4g}")
    print(f"written: {out}")
    return 0


def check_texts(path: str) -> list[tuple[str, str]]:
    """Prompt and answer of the first rows: columns prompt and completion (or chosen), or `text` without a prompt."""
    from posttrain.data.files import DataError, iter_rows

    texts = []
    for number, row in zip(range(1, CHECK_ROWS + 1), iter_rows(path), strict=False):
        name = next((name for name in ("text", "completion", "chosen") if name in row), "text")
        prompt, answer = "" if name == "text" else row.get("prompt"), row.get(name)
        if not isinstance(prompt, str) or not isinstance(answer, str) or not answer:
            raise DataError(
                f"{path}: row {number}: check data needs rows with 'text', or with 'prompt' and 'completion' as text, "
                f"which is not empty; mend '{name}' or leave the row out"
            )
        texts.append((prompt, answer))
    if not texts:
        raise DataError(f"{path}: no rows")
    return texts
