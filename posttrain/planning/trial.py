"""`posttrain plan --try`: each reward is called once, on a row of the data and completions made up for it, in a worker
process of its own with the limits it has in the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.data.files import Row
from posttrain.planning.rewards import model_of, spec_of
from posttrain.recipe import Recipe
from posttrain.rewards.image_model_reward import scored_beside
from posttrain.rewards.messages import messages_of, text_of
from posttrain.rewards.runner import RewardError, RewardRunner, Scores
from posttrain.rewards.signature import PROVIDED, RewardSpecError

PLACEHOLDER = "This is a placeholder, not a completion of the model's."
_LONGEST = 60  # characters of a value or message that a line shows


@dataclass
class Trial:
    """A line for each reward; a reward that fails although its failures are not skipped is a reason not to start."""

    lines: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


def try_rewards(recipe: Recipe, rows: Sequence[Row]) -> Trial:
    """Runs the recipe's rewards, which is to run code of the user's."""
    trial = Trial()
    if not recipe.rewards:
        return trial
    if not rows:
        trial.lines.append("tried: nothing, for no row of the data is at hand")
        return trial
    row = rows[0]
    group_size = recipe.rollout.group_size if recipe.rollout is not None else 1
    shown: list[Any] = _plain_images() if recipe.objective.makes_images else samples(row)
    completions = [one for _, one in zip(range(group_size), _repeated(shown), strict=False)]
    for position, reward in enumerate(recipe.rewards):
        if reward.model is not None:
            trial.lines.append(
                f"tried {model_of(reward).title}: nothing, a model is loaded when training starts"
            )
            continue
        spec = replace(spec_of(reward), on_error="raise")
        if scored_beside(spec):
            trial.lines.append(f"tried {spec.title}: nothing, its model is loaded when training starts")
            continue
        try:
            with RewardRunner([spec], workers=1) as runner:
                scores = _score(runner, row, completions)
        except (RewardError, RewardSpecError, ValueError) as error:
            reason = " ".join(str(error).split())
            trial.lines.append(f"tried {spec.title}: failed ({_short(reason, 300)})")
            if reward.on_error == "raise" or isinstance(error, RewardSpecError):
                trial.refusals.append(f"rewards[{position}]: tried on the first row: {_short(reason, 600)}")
            continue
        trial.lines.append(f"tried {spec.title}: {_values_in_words(completions, scores)}")
    return trial


def samples(row: Row) -> list[str]:
    """Completions to try on a row: its own completion, else its answer in the spellings that built-in rewards read,
    and a text that is no answer."""
    if row.get("completion"):
        return [text_of(row["completion"]), PLACEHOLDER]
    answer = row.get("answer")
    if answer is None:
        return [PLACEHOLDER]
    return [str(answer), f"\\boxed{{{answer}}}", f"#### {answer}", PLACEHOLDER]


def _plain_images() -> list[Any]:
    """Three images to try: black, grey and white."""
    from PIL import Image

    return [Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in (0, 128, 255)]


def _repeated(texts: list[Any]) -> Iterator[Any]:
    while True:
        yield from texts


def _score(runner: RewardRunner, row: Row, completions: list[Any]) -> Scores:
    """One call on one group. Token ids are made up: the code points of the text."""
    prompt, count = row.get("prompt"), len(completions)
    of_images = not isinstance(completions[0], str)
    kept = {name: value for name, value in row.items() if name not in {"prompt", "completion", *PROVIDED}}
    columns = {name: [value] * count for name, value in kept.items()}
    return runner.score(
        completions,
        columns=columns,
        group_size=count,
        prompts=[prompt] * count,
        completion_ids=None if of_images else [[ord(letter) for letter in text] for text in completions],
        messages=[messages_of(text) for text in completions] if isinstance(prompt, list) else None,
        of_images=of_images,
        trainer_state={"global_step": 0, "epoch": 0.0, "max_steps": 1, "log_history": []},
    )


def _values_in_words(completions: list[Any], scores: Scores) -> str:
    """Each distinct completion and what it got."""
    seen: dict[str, Any] = {}
    for text, (value,) in zip(completions, scores.values, strict=True):
        seen.setdefault(_short(repr(text)) if isinstance(text, str) else _shade(text), value)
    return ", ".join(
        f"{'None' if value is None else f'{value:g}'} for {text}" for text, value in seen.items()
    )


def _shade(image: Any) -> str:
    return {0: "a black image", 128: "a grey one", 255: "a white one"}[image.getpixel((0, 0))[0]]


def _short(text: str, length: int = _LONGEST) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
