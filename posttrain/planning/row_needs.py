"""What a method reads of a row."""

from __future__ import annotations

from posttrain.data.row_layout import TEXTS, Needs
from posttrain.recipe import Recipe
from posttrain.recipe.methods import Method

LABEL = "label"
BY_FAMILY: dict[str, tuple[str, ...]] = {"sft": ("completion",), "preference": ("chosen", "rejected")}


def needs_of(recipe: Recipe) -> Needs:
    """What the recipe's method reads."""
    return needs_of_method(recipe.spec)


def needs_of_method(method: Method) -> Needs:
    """The texts of the family or of the method's own `needs_columns`; other columns only where rewards see them."""
    settings = method.load_settings()
    asked = needed_columns(method)
    return Needs(
        texts=tuple(name for name in asked if name in TEXTS),
        columns=(*(name for name in asked if name not in (*TEXTS, LABEL)), *settings.reads_columns),
        others=method.family in ("policy", "diffusion", "images"),
        without_template=settings.writes_plain_lines,
        turns=method.family == "sft" and not settings.masked_diffusion,
        labels=settings.marked_answers,
    )


def needed_columns(method: Method) -> tuple[str, ...]:
    """Columns without which the method cannot train."""
    own = method.load_settings().needs_columns
    return BY_FAMILY.get(method.family, ()) if own is None else own
