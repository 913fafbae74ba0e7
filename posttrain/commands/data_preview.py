"""`posttrain data preview RECIPE`: rows as the trainer reads them, before anything is trained."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

from rich.console import Console
from rich.text import Text

from posttrain.data import DataError, RowCounts, load_rows, survey
from posttrain.data.files import Row
from posttrain.planning.checks import row_faults
from posttrain.planning.rendered import EDGE, Part, chat_warnings, parts_of
from posttrain.planning.row_needs import needs_of
from posttrain.planning.tokenizer import plan_tokenizer
from posttrain.recipe import Recipe, RecipeError, load_recipe
from posttrain.recipe.sections import ModelSection
from posttrain.run.plan import add_recipe_arguments


def add_arguments(parser: ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="how many rows to show (default 3)")


def main(args: Namespace) -> int:
    """Show rows as the trainer reads them: a bar between two tokens, and which of them are learned from."""
    if args.rows < 1:
        print(f"posttrain data preview: --rows {args.rows}: at least 1", file=sys.stderr)
        return 2
    console = Console(highlight=False, soft_wrap=True)
    try:
        recipe = load_recipe(args.recipe, args.set)
        tokenizer = tokenizer_of(recipe.model)
        rows, counts = rows_of(recipe, tokenizer, args.rows)
        faults = [f"{recipe.path}: {fault}" for fault in row_faults(recipe, rows[0])]
        if faults:
            raise RecipeError(*faults)
    except (RecipeError, DataError) as error:
        prefix = "" if isinstance(error, RecipeError) else f"{args.recipe}: data: "
        print(f"{prefix}{error}", file=sys.stderr)
        return 2
    console.print(counts.in_words(), markup=False)
    for note in counts.notes:
        console.print(note, markup=False)
    for warning in chat_warnings(recipe, rows[0], tokenizer):
        console.print(f"warning: {warning}", markup=False, style="yellow")
    if vars(recipe.train).get("assistant_only_loss"):
        console.print(
            "train.assistant_only_loss: of what is learned here, only what the chat template marks",
            markup=False,
        )
    for number, row in enumerate(rows, start=1):
        console.print(f"\nrow {number}", style="bold")
        for part in parts_of(recipe, row, tokenizer):
            console.print(drawn(part))
    return 0


def tokenizer_of(section: ModelSection) -> Any:
    """From the model's files where they are here; else as training gets it, which may download it."""
    try:
        found = plan_tokenizer(section)
    except ValueError as error:
        raise RecipeError(f"model: {error}") from None
    if found is not None:
        return found
    from transformers import AutoTokenizer

    name = section.tokenizer or section.path
    try:
        return AutoTokenizer.from_pretrained(
            name,
            trust_remote_code=section.trust_remote_code,
            revision=None if section.tokenizer else section.revision,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(f"model: no tokenizer from {str(name)!r}: {reason}") from None


def rows_of(recipe: Recipe, tokenizer: Any, count: int) -> tuple[list[Row], RowCounts]:
    """The first rows that are used, and the account of all; of a hub data set or a large file, read as far as that, of
    those."""
    found = survey(recipe.data, needs_of(recipe), tokenizer)
    if found.counts is not None:
        if not found.rows:
            raise DataError(f"no row can be used: {found.counts.in_words()}")
        return found.rows[:count], found.counts
    wanted = min(count, recipe.data.limit or count)
    loaded = load_rows(
        recipe.data.model_copy(update={"limit": wanted, "order": None}), tokenizer, needs=needs_of(recipe)
    )
    return loaded.rows.to_list(), loaded.counts  # type: ignore[return-value]  # a list of mappings


def drawn(part: Part) -> Text:
    """One part, what is learned from in colour."""
    text = Text(f"{part.title} ({len(part.ids)}): ", style="dim")
    style = "bold green" if part.learned else ""
    for position, token in enumerate(part.tokens):
        text.append(EDGE if position else "", style="dim")
        text.append(token, style=style or "default")
    return text
