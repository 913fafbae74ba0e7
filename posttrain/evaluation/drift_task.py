"""What `posttrain eval drift` converses about: goal, requests, reminder, placebo, from one strict YAML. No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from posttrain.evaluation import store
from posttrain.recipe.strict_yaml import parse

FOLDER = Path(__file__).parent / "drift_tasks"
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class TurnSampling(BaseModel):
    """How the tested model answers; temperature 0 is greedy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: int = Field(gt=0)
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)


class DriftTask(BaseModel):
    """One task, as its YAML says. `{topic}` in a text is the conversation's own.

    goal         what is to be kept over the whole conversation, in the first message or as system message (`goal_in`)
    requests     the user's messages, one a turn; after the last one on with number `repeat_from`
    reminder     added to the user's message at the turns with a reminder
    placebo      without bearing on the goal, about as long: what the reference's noise floor is measured with
    user_brief   what a model is told that plays the user
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    title: str
    goal_in: Literal["user", "system"] = "user"
    goal: str = Field(min_length=1)
    reminder: str = Field(min_length=1)
    placebo: str = Field(min_length=1)
    topics: tuple[str, ...] = Field(min_length=1)
    repeat_from: int | None = Field(None, ge=1)
    requests: tuple[str, ...] = Field(min_length=1)
    user_brief: str | None = None
    sampling: TurnSampling

    @model_validator(mode="after")
    def _whole(self) -> DriftTask:
        if self.repeat_from is not None and self.repeat_from > len(self.requests):
            raise ValueError(f"repeat_from: {self.repeat_from} is beyond the {len(self.requests)} requests")
        texts = [self.goal, self.reminder, self.placebo, self.user_brief or "", *self.requests]
        unknown = sorted({name for text in texts for name in _PLACEHOLDER.findall(text)} - {"topic"})
        if unknown:
            raise ValueError(f"{{{unknown[0]}}} is no placeholder; {{topic}} is the only one")
        return self

    def request(self, turn: int, conversation: int) -> str:
        """The scripted message of a turn, counted from 1, without goal and reminder."""
        return self.about(conversation, self.requests[self._place(turn)])

    def about(self, conversation: int, text: str) -> str:
        return text.replace("{topic}", self.topics[conversation % len(self.topics)])

    def fault(self, turns: int) -> str | None:
        """Why there can be no scripted conversation of so many turns, where there can be none."""
        if turns > len(self.requests) and self.repeat_from is None:
            return (
                f"task {self.name} has {len(self.requests)} requests, --turns {turns} wants more: add some, set "
                "repeat_from, or let a model play the user (--user MODEL)"
            )
        return None

    def fingerprint(self) -> str:
        """Hash of all that is said; sampling is not part of it."""
        return store.digest(self.model_dump(mode="json", exclude={"sampling", "title"}))

    def _place(self, turn: int) -> int:
        if turn <= len(self.requests) or self.repeat_from is None:
            return turn - 1
        cycle = len(self.requests) - self.repeat_from + 1
        return self.repeat_from - 1 + (turn - 1 - len(self.requests)) % cycle


def drift_tasks() -> list[str]:
    """Built-in tasks."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_drift_task(name_or_path: str) -> DriftTask:
    """A built-in task by name, or one of your own by the path of its YAML. ValueError where it is none."""
    own = name_or_path.endswith((".yaml", ".yml"))
    path = Path(name_or_path) if own else FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ValueError(
            f"no drift task {name_or_path!r}; built in: {', '.join(drift_tasks())}; your own by the path of its YAML"
        )
    try:
        return DriftTask.model_validate(parse(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(
            f"{path}: {where}{': ' if where else ''}{reason}{_did_you_mean(first['loc'], first['type'])}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _did_you_mean(place: Sequence[str | int], kind: str) -> str:
    if kind != "extra_forbidden":
        return ""
    known = list((TurnSampling if place[0] == "sampling" else DriftTask).model_fields)
    near = difflib.get_close_matches(str(place[-1]), known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
