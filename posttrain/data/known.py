"""Names that need no further words in a recipe: built-in tasks, and public datasets with their columns."""

from __future__ import annotations

from typing import Any

TASKS: dict[str, str] = {
    "api_calls": "posttrain.data.api_calls:ApiCalls",
    "calculator": "posttrain.data.calculator:Calculations",
    "countdown": "posttrain.data.countdown:Countdown",
    "digits": "posttrain.data.digits:Digits",
    "episodes": "posttrain.data.episodes:Episodes",
    "instructions": "posttrain.data.instructions:Instructions",
    "reasoning_gym": "posttrain.data.reasoning_gym:GymTask",
    "sort": "posttrain.data.sort:Sort",
    "sudoku": "posttrain.data.sudoku:Sudoku",
    "verifiers": "posttrain.data.verifiers_tasks:VerifiersTasks",
}
"""name -> settings class of a generated task. Its fields are `data.args`; `rows(split, completions=)` yields
{"prompt", "answer"} and, where asked for, "completion"."""

DATASETS: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "name": "openai/gsm8k",
        "config": "main",
        "prompt": "question",
        "answer": {"column": "answer", "after": "####"},
    },
    "math": {
        "name": "DigitalLearningGmbH/MATH-lighteval",
        "prompt": "problem",
        "answer": {"column": "solution", "boxed": True},
    },
}
"""name -> what `data` says when a recipe says nothing else."""
