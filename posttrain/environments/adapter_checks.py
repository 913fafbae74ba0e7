"""What `posttrain plan` says of a built-in environment: it asks the server, or loads the tasks, as the run will."""

from __future__ import annotations

from posttrain.environments.openenv import openenv_lines
from posttrain.environments.tool_specs import ToolFault
from posttrain.environments.verifiers import verifiers_lines
from posttrain.recipe import Recipe

_LINES = {"openenv": openenv_lines, "verifiers": verifiers_lines}


def built_in_environment(recipe: Recipe) -> tuple[list[str], list[str]]:
    """(lines to read, reasons not to start)."""
    section = recipe.environment
    if section is None or section.name not in _LINES:
        return [], []
    try:
        return _LINES[section.name](section.args), []
    except ToolFault as error:
        return [], [f"environment: {error}"]
