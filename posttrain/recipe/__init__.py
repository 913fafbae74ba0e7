"""A recipe: one YAML file that is the complete account of a run, read strictly and without torch.

    recipe = load_recipe("recipes/demo/bapo.yaml", ["train.learning_rate=1e-5"])

What cannot be right is refused here, a line for each fault: file, section, key, and what to write instead.
What needs a look at files, columns or arithmetic is refused by posttrain/run/plan.py.
"""

from __future__ import annotations

from posttrain.recipe.errors import RecipeError
from posttrain.recipe.loader import load_recipe
from posttrain.recipe.recipe import FAMILIES, FamilySections, Recipe

__all__ = ["FAMILIES", "FamilySections", "Recipe", "RecipeError", "load_recipe"]
