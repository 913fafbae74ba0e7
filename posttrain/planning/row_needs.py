"""What a recipe's method reads of a row."""

from __future__ import annotations

from posttrain.data.layout import TEXTS, Needs
from posttrain.recipe import Recipe

BY_FAMILY: dict[str, tuple[str, ...]] = {"sft": ("completion",), "preference": ("chosen", "rejected")}


def needs_of(recipe: Recipe) -> Needs:
    """The texts of the family or of the method's own `needs_columns`; other columns only where rewards see them."""
    flags = recipe.flags()
    asked = needed_columns(recipe)
    return Needs(
        texts=tuple(name for name in asked if name in TEXTS),
        columns=(*(name for name in asked if name not in TEXTS), *flags.get("reads_columns", ())),
        others=recipe.spec.family in ("policy", "diffusion"),
        without_template=bool(flags.get("writes_plain_lines")),
        turns=recipe.spec.family == "sft" and not flags.get("masked_diffusion"),
    )


def needed_columns(recipe: Recipe) -> tuple[str, ...]:
    """Columns without which the method cannot train."""
    return tuple(recipe.flags().get("needs_columns", BY_FAMILY.get(recipe.spec.family, ())))
