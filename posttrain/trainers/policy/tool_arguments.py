"""A recipe's tools and environment as arguments of TRL's trainer."""

from __future__ import annotations

import atexit
import warnings
from collections.abc import Callable
from typing import Any

from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException
from trl.chat_template_utils import add_response_schema, supports_tool_calling

from posttrain.environments.tool_specs import EnvironmentSpec, ToolFault, ToolSpec
from posttrain.environments.toolbox import Toolbox
from posttrain.recipe import Recipe, RecipeError
from posttrain.recipe.sections import EnvironmentSection, ToolSection

_ANSWERS_READ = (
    "write how an answer of this chat template is read in model.response_template (docs/environments.md), or take a "
    "model whose template is known"
)


def toolbox_of(recipe: Recipe) -> Toolbox | None:
    """The recipe's tools and environment, with their worker started; None where it has neither. Raises RecipeError."""
    if not recipe.has_tools:
        return None
    try:
        toolbox = Toolbox(
            [ToolSpec(**_values(one)) for one in recipe.tools],
            None if recipe.environment is None else EnvironmentSpec(**_values(recipe.environment)),
        )
    except ToolFault as error:
        raise RecipeError(f"{recipe.path}: {error}") from error
    atexit.register(toolbox.close)
    toolbox.start()
    return toolbox


def _values(section: ToolSection | EnvironmentSection) -> dict[str, Any]:
    return {name: section.__dict__[name] for name in type(section).model_fields}


def tool_arguments(toolbox: Toolbox | None, tokenizer: Any) -> dict[str, Any]:
    """`tools` and `environment_factory` of TRL's constructor. RecipeError where the model cannot be told of them, or
    its calls not be read."""
    if toolbox is None:
        return {}
    given: list[Callable[..., Any]] = list(toolbox.functions)
    if toolbox.environment_factory is not None:
        given += toolbox.shown_methods
    for one in given:
        try:
            get_json_schema(one)
        except (DocstringParsingException, TypeHintParsingException, ValueError) as error:
            raise RecipeError(f"tools: {one.__name__}: {error}") from error
    if not supports_tool_calling(tokenizer):
        raise RecipeError(
            "tools: the model's chat template renders no calls of tools, or none of their answers; take a model that "
            "was made for tools, or write a template in model.chat_template"
        )
    if tokenizer.response_template is None:
        try:
            add_response_schema(tokenizer)
        except ValueError as error:
            raise RecipeError(
                f"tools: no way is known to read calls out of the model's text; {_ANSWERS_READ}"
            ) from error
    warnings.filterwarnings("ignore", message="You are using 'environment_factory'")  # TRL is pinned
    return {"tools": toolbox.functions or None, "environment_factory": toolbox.environment_factory}
