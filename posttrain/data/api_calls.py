"""`data: {name: api_calls}`: requests to six small tools, each answered by one call with every argument given.

    prompt "3 days of weather in Oslo>"   answer '[weather(city="Oslo", days=3)]'

A made-up API for the lab: the request decides name and arguments, so a call is right or wrong by its structure. Column
`difficulty` counts the arguments, for a warm-up from easy to hard. Rows follow from the seed; the train and test splits
share no prompt.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic.dataclasses import dataclass

from posttrain.settings import STRICT

CITIES = ("Oslo", "Bonn", "Lima", "Rome", "Cairo", "Delhi", "Paris", "Quito")
NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn")
COINS = ("EUR", "USD", "JPY", "GBP")
Drawn = tuple[str, str, dict[str, Any]]


def _weather(rng: random.Random) -> Drawn:
    city, days = rng.choice(CITIES), rng.randint(2, 9)
    return f"{days} days of weather in {city}", "weather", {"city": city, "days": days}


def _clock(rng: random.Random) -> Drawn:
    city = rng.choice(CITIES)
    minute = rng.randint(0, 59)
    return f"time in {city} at minute {minute}", "clock", {"city": city, "minute": minute}


def _convert(rng: random.Random) -> Drawn:
    source, target = rng.sample(COINS, 2)
    amount = rng.randint(2, 99)
    return (
        f"{amount} {source} in {target}",
        "convert",
        {"amount": amount, "source": source, "target": target},
    )


def _remind(rng: random.Random) -> Drawn:
    name, hour = rng.choice(NAMES), rng.randint(0, 23)
    return f"remind {name} at {hour}", "remind", {"name": name, "hour": hour}


def _book(rng: random.Random) -> Drawn:
    start, end = rng.sample(CITIES, 2)
    seats = rng.randint(1, 6)
    window = rng.random() < 0.5
    where = " by the window" if window else ""
    return (
        f"{seats} seats from {start} to {end}{where}",
        "book",
        {"start": start, "end": end, "seats": seats, "window": window},
    )


def _light(rng: random.Random) -> Drawn:
    level = rng.randint(1, 99)
    return f"light at {level}", "light", {"level": level}


TOOLS: dict[str, Callable[[random.Random], Drawn]] = {
    "weather": _weather,
    "clock": _clock,
    "convert": _convert,
    "remind": _remind,
    "book": _book,
    "light": _light,
}
"""name -> what draws a request, its tool and the arguments."""


def spelled(name: str, arguments: dict[str, Any]) -> str:
    """A call as text: `[light(level=7)]`."""
    inner = ", ".join(
        f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}" for key, value in arguments.items()
    )
    return f"[{name}({inner})]"


@dataclass(frozen=True, config=STRICT)
class ApiCalls:
    size: Annotated[int, Ge(1), Le(2_000)] = 1024
    """requests of the train split"""
    held_out: Annotated[int, Ge(1), Le(400)] = 256
    """requests of the test split"""
    seed: Annotated[int, Ge(0)] = 0
    teacher_accuracy: Annotated[float, Ge(0), Le(1)] = 1.0
    """share of right completions"""
    demonstrations: Annotated[int, Ge(1), Le(100)] = 1
    """completions per request, each drawn anew"""
    easy_first: bool = False
    """thirds by number of arguments, the later two mixed half and half with earlier rows, to be read in order"""

    def rows(self, split: str, *, completions: bool) -> Iterator[dict[str, Any]]:
        """prompt, answer and difficulty of each request of "train" or "test"; with `completions`, the teacher's too."""
        teacher = random.Random(f"api_calls/teacher/{self.seed}/{split}")
        for request, name, arguments in self.requests(split):
            row = {
                "prompt": f"{request}>",
                "answer": spelled(name, arguments),
                "difficulty": len(arguments),
            }
            if not completions:
                yield row
                continue
            for _ in range(self.demonstrations):
                right = teacher.random() < self.teacher_accuracy
                yield row | {"completion": row["answer"] if right else mistake(name, arguments, teacher)}

    def requests(self, split: str) -> list[Drawn]:
        """The test split is drawn first, so that it stays the same whatever the size of the train split."""
        rng = random.Random(f"api_calls/requests/{self.seed}")
        wanted = self.held_out + (self.size if split == "train" else 0)
        drawn: dict[str, Drawn] = {}
        while len(drawn) < wanted:
            one = TOOLS[rng.choice(list(TOOLS))](rng)
            drawn[one[0]] = one
        requests = list(drawn.values())
        requests = requests[self.held_out :] if split == "train" else requests[: self.held_out]
        return _easy_first(requests, rng) if self.easy_first else requests


def _easy_first(requests: list[Drawn], rng: random.Random) -> list[Drawn]:
    """By number of arguments in thirds, each shuffled; behind each row of a later third one from an earlier third is
    read again, as a model that only meets new ones forgets the old."""
    ordered = sorted(requests, key=lambda one: len(one[2]))
    ends = [len(ordered) * third // 3 for third in range(4)]
    found: list[Drawn] = []
    for start, end in itertools.pairwise(ends):
        for one in rng.sample(ordered[start:end], end - start):
            found += [one, rng.choice(ordered[:start])] if start else [one]
    return found


def mistake(name: str, arguments: dict[str, Any], rng: random.Random) -> str:
    """A wrong call, never the right one: an argument of another value, lost, or of the wrong type, or another tool."""
    changed = dict(arguments)
    key = rng.choice(list(changed))
    kind = rng.random()
    if kind < 0.6:
        changed[key] = _other(changed[key], rng)
    elif kind < 0.8 and len(changed) > 1:
        del changed[key]
    elif kind < 0.9 and not isinstance(changed[key], str):
        changed[key] = str(changed[key])
    else:
        name = rng.choice([other for other in TOOLS if other != name])
    return spelled(name, changed)


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([n for n in range(1, 100) if n != value])
    pool = next(names for names in (CITIES, NAMES, COINS) if value in names)
    return rng.choice([other for other in pool if other != value])
