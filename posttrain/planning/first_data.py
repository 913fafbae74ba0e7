"""A `data` section, and rewards, for a file that nobody has described yet: found in its columns and first rows.

What is found is tried on the rows themselves (data.survey) before it is offered; a guess that reads no row is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.data import DataError, survey
from posttrain.data.column_names import ALPACA, ANSWERS, COMPLETIONS, LABELS, PAIRS, PROMPTS, first_column
from posttrain.data.conversations import Dropped
from posttrain.data.files import Row, iter_rows, kind_of
from posttrain.data.known import DATASETS, TASKS
from posttrain.data.labels import label_of
from posttrain.data.row_layout import CONVERSATIONS, TEXTS, Needs
from posttrain.planning.row_needs import needed_columns, needs_of_method
from posttrain.recipe.data_sections import DataSection
from posttrain.recipe.methods import Method

LOOKED_AT = 200
_TRAIN = re.compile(r"(?<![a-z])train(?:ing)?(?![a-z])")
HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")
_MATHS = re.compile(r"\\[a-zA-Z]|\$|[\^=]|^[-+(\[{]*[\d.,]")
"""A number, a list of them, or LaTeX: what math_answer compares by value."""
SHORT = 80
REWARD_OF_TASK = {
    "api_calls": "tool_call_match",
    "sort": "exact_match",
    "countdown": "countdown",
    "sudoku": "sudoku",
}
PAIRS_ON_THE_HUB = "trl-lib/ultrafeedback_binarized"
MARKED_ON_THE_HUB = "trl-lib/kto-mix-14k"


@dataclass(frozen=True)
class FirstData:
    """The section as a recipe writes it, and what was found on the way.

    rewards  items of the `rewards` section, for methods that learn from them
    rows     usable rows; None: not known before the download
    notes    key of the section -> why it says so
    """

    section: dict[str, Any]
    rewards: list[dict[str, Any]] = field(default_factory=list)
    rows: int | None = None
    held_out: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)


def find_data(method: Method, given: str | None, *, chat: bool) -> FirstData:
    """The section for a file, folder or name, or for nothing given. DataError says what the rows lack.

    chat  whether the model has a chat template: prompts of text then become a user's message
    """
    if given is not None and _means_files(given):
        return _of_file(method, given, chat)
    return _of_name(method, given, chat)


def _means_files(given: str) -> bool:
    """A file, folder or pattern of files rather than a name, which may hold a dot too (org/set-v1.5)."""
    shaped = given.startswith((".", "/", "~")) or given.count("/") > 1 or bool(set("*?[") & set(given))
    return (
        shaped
        or Path(given).exists()
        or kind_of(Path(given)) in (".jsonl", ".json", ".parquet", ".csv", ".txt")
    )


# ---------------------------------------------------------------------------------------------------- names


def _of_name(method: Method, given: str | None, chat: bool) -> FirstData:
    """A built-in task, a dataset whose columns are known, or a hub name, whose rows are not at hand."""
    rewarded = method.family in ("policy", "diffusion")
    if "user_preference" in needs_of_method(method).columns and given is None:
        raise DataError(
            f"method '{method.name}' learns from logged complaints; give them with --data FILE, made by "
            "posttrain data feedback LOG"
        )
    marked = method.load_settings().marked_answers
    on_the_hub = MARKED_ON_THE_HUB if marked else PAIRS_ON_THE_HUB
    by_answer = method.load_settings().makes_pairs
    name = given or (
        "api_calls" if by_answer else "gsm8k" if rewarded or method.family == "sft" else on_the_hub
    )
    lacks = "no answers marked good or bad" if marked else "no pairs of answers"
    section: dict[str, Any] = {"name": name}
    if name in TASKS:
        if method.family == "preference" and not by_answer:
            raise DataError(f"task '{name}' has {lacks}; method '{method.name}' needs them")
        section["args"] = {"size": 1000, "held_out": 128}
        rewards = [{"name": REWARD_OF_TASK[name]}] if rewarded else []
        held_out = rewarded
        return FirstData(section | ({"eval": {"limit": 128}} if held_out else {}), rewards, 1000, held_out)
    if name in DATASETS:
        if method.family == "preference":
            raise DataError(f"'{name}' has {lacks}; method '{method.name}' needs them")
        known = DATASETS[name]
        if rewarded:
            column = known["prompt"]
            section["template"] = (
                f"{{{column}}}\nReason step by step and put your final answer in \\boxed{{{{}}}}."
            )
        else:
            section["completion"] = known["answer"]["column"]
    if chat:
        section["chat"] = True
    if rewarded:
        section["eval"] = {"limit": 128}
    return FirstData(section, [{"name": "math_answer"}] if rewarded else [], None, rewarded)


# ---------------------------------------------------------------------------------------------------- files


def _of_file(method: Method, given: str, chat: bool) -> FirstData:
    rows = list(islice(iter_rows(given), LOOKED_AT))
    if not rows:
        raise DataError(f"{given!r} has no rows")
    needs = needs_of_method(method)
    section: dict[str, Any] = {"path": given}
    notes: dict[str, str] = {}
    _find_prompt(rows[0], section)
    _find_texts(method, needs, rows, section)
    rewards: list[dict[str, Any]] = []
    if method.family in ("policy", "diffusion"):
        rewards = _find_rewards(rows, section, notes)
    tried, refused = _tried(section, needs, chat)
    if refused is not None:
        notes["chat"] = f"left out, although the model has a chat template: {refused}"
    beside = _held_out(given)
    if beside is not None and not method.load_settings().in_stages:
        tried["eval"] = {"path": beside, "limit": 128}
        notes["eval"] = "found beside the training file"
    counted = survey(DataSection(**tried), needs).counts
    return FirstData(tried, rewards, counted.used if counted is not None else None, "eval" in tried, notes)


def _find_prompt(columns: Row, section: dict[str, Any]) -> None:
    if "prompt" in columns or any(column in columns for column in CONVERSATIONS):
        return  # found by their names
    found = first_column(columns, PROMPTS)
    if found == "instruction" and "input" in columns:  # Alpaca: empty where the instruction says all
        section["template"] = ALPACA
    elif found is not None:
        section["prompt"] = found


def _find_texts(method: Method, needs: Needs, rows: Sequence[Row], section: dict[str, Any]) -> None:
    columns = rows[0]
    taken = section.get("prompt", "prompt")
    if needs.labels and _are_pairs(rows, section):
        return
    for name in needs.texts or ():
        if name in columns or (name == "completion" and any(column in columns for column in CONVERSATIONS)):
            continue
        options = COMPLETIONS if name == "completion" else [pair[name == "rejected"] for pair in PAIRS]
        found = first_column(columns, options, taken)
        if found is not None:
            section[name] = found
        else:
            raise DataError(
                f"{section['path']!r}: no column for '{name}', which method '{method.name}' learns from; the columns "
                f"are {', '.join(map(str, columns))}. Rename one, or write a recipe with data.{name}: COLUMN"
            )
    lacking = [
        name for name in needed_columns(method) if name not in (*TEXTS, *section) and name not in columns
    ]
    if needs.labels and lacking:
        raise DataError(
            f"{section['path']!r}: no column called label, or alike, with true where an answer was good, and no pairs "
            f"of answers either; the columns are {', '.join(map(str, columns))}. Rename one, or write a recipe with "
            "data.label: COLUMN"
        )
    if lacking:
        raise DataError(
            f"{section['path']!r}: no column '{lacking[0]}', which method '{method.name}' reads; posttrain data "
            "feedback LOG makes such rows from a log of conversations"
        )


def _are_pairs(rows: Sequence[Row], section: dict[str, Any]) -> bool:
    """Where rows want a mark: notes its column where it has another name; else whether they are pairs."""
    columns = rows[0]
    marks = [name for name in columns if _holds_marks([row.get(name) for row in rows])]
    label = first_column(marks, LABELS)
    if label is not None:
        section |= {} if label == "label" else {"label": label}
        return False
    for names in PAIRS:
        chosen, rejected = (first_column(columns, (name,)) for name in names)
        if chosen is not None and rejected is not None:
            section |= (
                {} if names == PAIRS[0] == (chosen, rejected) else {"chosen": chosen, "rejected": rejected}
            )
            return True
    return False


def _holds_marks(values: Sequence[Any]) -> bool:
    """Whether a column holds marks, of both kinds unless it is a column of booleans."""
    found = set()
    for value in values:
        try:
            found.add(label_of(value))
        except Dropped:
            continue
        except DataError:
            return False
    return len(found) == 2 or bool(found) and all(isinstance(value, bool) for value in values)


def _find_rewards(
    rows: Sequence[Row], section: dict[str, Any], notes: dict[str, str]
) -> list[dict[str, Any]]:
    """What tells a right answer here. Without a gold answer: a built-in that needs none, until there is one."""
    columns = rows[0]
    taken = section.get("prompt", "prompt")
    if "numbers" in columns and "target" in columns:
        return [{"name": "countdown"}]
    if "puzzle" in columns:
        return [{"name": "sudoku"}]
    # a mark of good or bad (label: true) is no gold answer
    marks = [name for name in columns if all(isinstance(row.get(name), bool) for row in rows)]
    found = first_column({name: None for name in columns if name not in marks}, ANSWERS, taken)
    if found is None:
        notes["rewards"] = (
            "no column looks like a gold answer: this one only asks for short answers; put a function of your own in "
            'its place: "my_reward.py:my_reward"'
        )
        return [{"name": "length_penalty", "args": {"max_tokens": 256, "buffer": 64}}]
    texts = [_as_text(row[found]) for row in rows if row.get(found) is not None]
    if _share(texts, lambda text: "####" in text) > 0.9:
        section["answer"] = {"column": found, "after": "####"}
    elif _share(texts, lambda text: "\\boxed" in text) > 0.9:
        section["answer"] = {"column": found, "boxed": True}
    elif found != "answer":
        section["answer"] = {"column": found}
    mathematical = "answer" in section and ({"after", "boxed"} & section["answer"].keys())
    if (
        mathematical
        or _share(texts, lambda text: len(text) <= SHORT and bool(_MATHS.search(text.strip()))) > 0.8
    ):
        return [{"name": "math_answer"}]
    if _share(texts, lambda text: len(text) <= SHORT) > 0.8:
        notes["rewards"] = "the whole answer has to equal the gold one; math_answer reads a boxed one"
    else:
        notes["rewards"] = (
            f"the golds in '{found}' are long texts, which no answer equals: put a function of your own here"
        )
    return [{"name": "exact_match"}]


def _tried(section: dict[str, Any], needs: Needs, chat: bool) -> tuple[dict[str, Any], DataError | None]:
    """With `chat` where the model speaks it and the rows allow it; the first form of which rows can be used, and why a
    form with `chat` was not."""
    forms = [section | {"chat": True}, section] if chat else [section, section | {"chat": True}]
    reason: DataError | None = None
    for form in forms:
        try:
            found = survey(DataSection(**form), needs)
        except DataError as error:
            reason = reason or error
            continue
        if found.counts is None or found.counts.used:
            messages = bool(found.rows) and isinstance(found.rows[0]["prompt"], list)
            plain = form.get("chat") and messages and _already_messages(section, needs)
            return (section if plain else form), (reason if chat else None)
        reason = reason or DataError(f"no row can be used: {found.counts.in_words()}")
    assert reason is not None
    raise reason


def _already_messages(section: dict[str, Any], needs: Needs) -> bool:
    """Whether the prompts are conversations without being told so."""
    try:
        found = survey(DataSection(**section), needs)
    except DataError:
        return False
    return bool(found.rows) and isinstance(found.rows[0]["prompt"], list)


def _held_out(given: str) -> str | None:
    """The test or validation file beside a training file, of the same kind."""
    path = Path(given)
    if not path.is_file() or not _TRAIN.search(path.name.lower()):
        return None
    for word in HELD_OUT:
        beside = path.with_name(_TRAIN.sub(word, path.name, count=1))
        if beside != path and beside.is_file() and kind_of(beside) == kind_of(path):
            return str(beside)
    return None


def _as_text(gold: Any) -> str:
    """A gold as the data room reads it: a list of one is its item."""
    return str(gold[0] if isinstance(gold, list) and len(gold) == 1 else gold)


def _share(texts: Sequence[str], holds: Any) -> float:
    return sum(map(holds, texts)) / len(texts) if texts else 0.0
