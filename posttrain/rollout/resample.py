"""Dynamic sampling: which groups of a rollout teach, which groups make the batch, what was thrown away.

DAPO, Yu et al. 2025, https://arxiv.org/abs/2503.14476, section 3.2 (eq. 11): a prompt whose responses all earn the same
has advantage zero, so it is sampled over and replaced by another until the batch is full.
Departures: fresh prompts are drawn only for the slots that are open, not a whole batch of them at a time; the number of
rounds is bounded, and what a batch that stays short becomes is a setting.

Decisions alone, on plain numbers, the same on every rank that has the same rewards. Who samples and judges is
trainers/policy/resampling.py. No torch: `posttrain plan` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Until = Literal["unequal", "pass_rate"]
OnShort = Literal["train", "refill", "stop"]
Values = Sequence[float | None]
"""One number a response of a group; None: not judged."""

SILENT: dict[str, str] = {
    "unjudged": "fewer than two of its responses could be judged",
    "all_right": "every response was right",
    "all_wrong": "every response was wrong",
    "equal": "every response earned the same, neither right nor wrong",
    "outside": "its mean reward lies outside rollout.resample's low and high",
}
"""Why a group is thrown away, in the order in which it is asked."""
SURPLUS = "surplus"
THROWN: dict[str, str] = {
    **SILENT,
    SURPLUS: "it teaches, but ranks draw in equal parts and one group fewer was wanted",
}
RESAMPLE = "resample/"
"""Prefix of the metrics; per reason: resample/REASON/groups, /tokens, /seconds."""


@dataclass(frozen=True)
class ResampleRule:
    """The recipe's `rollout.resample`.

    until       "unequal": a group teaches when its rewards differ; "pass_rate": and when its mean reward lies strictly
                within (low, high)
    max_rounds  rounds of sampling a rollout may take, the first one included
    on_short    what becomes of the slots that are open after them: "train": their groups stay in the batch; "refill":
                groups that teach stand in them once more; "stop": the run ends
    """

    until: Until = "unequal"
    low: float = 0.0
    high: float = 1.0
    max_rounds: int = 4
    on_short: OnShort = "train"


@dataclass(frozen=True)
class JudgedGroup:
    """The rewards of one group.

    totals  weighted sums of the reward functions
    each    what must differ for the group to teach: the totals, or each function's values for a method that normalises
            them one by one
    first   of the first reward function, which says what is right (1) and wrong (0)
    sampled the totals, None for answers that the policy did not sample; None: it sampled all
    """

    totals: Values
    each: Sequence[Values]
    first: Values
    sampled: Values | None = None


def why_silent(group: JudgedGroup, rule: ResampleRule) -> str | None:
    """The name in `SILENT` of why the group teaches nothing; None where it teaches.

    An unjudged response takes no part, as in every method's advantages: a group with fewer than two judged responses
    has nothing to compare.
    """
    judged = _judged(group.totals)
    if len(judged) < 2:
        return "unjudged"
    if all(_equal(values) for values in group.each):
        first = set(_judged(group.first))
        return "all_right" if first == {1.0} else "all_wrong" if first == {0.0} else "equal"
    if rule.until == "pass_rate":
        samples = judged if group.sampled is None else _judged(group.sampled)
        if not samples or not rule.low < sum(samples) / len(samples) < rule.high:
            return "outside"
    return None


def _judged(values: Values) -> list[float]:
    return [value for value in values if value is not None]


def _equal(values: Values) -> bool:
    judged = _judged(values)
    return not judged or max(judged) <= min(judged)


@dataclass(frozen=True)
class Choice:
    """Which of the sampled groups make the batch, by their number in the order sampled.

    batch     one a slot
    open      slots whose group teaches nothing
    repeated  slots in which a group stands a second time
    """

    batch: list[int]
    open: list[int]
    repeated: list[int]


def choose(reasons: Sequence[str | None], size: int, on_short: OnShort) -> Choice:
    """The batch of `size` groups. `reasons` has every group sampled for this rollout, in order, the first `size` of
    them the batch as it was drawn: a group that teaches keeps its slot; open slots are taken by the later groups that
    teach, first come first; what is left is `on_short`'s. "refill" repeats the batch's groups that teach in their
    order, again from the start where there are more slots than groups; where none teaches there is nothing to repeat,
    and the slots stay open."""
    batch = list(range(size))
    open_slots = [slot for slot in batch if reasons[slot] is not None]
    fresh = [number for number in range(size, len(reasons)) if reasons[number] is None]
    for slot, number in zip(open_slots, fresh, strict=False):
        batch[slot] = number
    short = open_slots[len(fresh) :]
    teaching = [number for number in batch if reasons[number] is None]
    if on_short != "refill" or not teaching:
        return Choice(batch, short, [])
    for turn, slot in enumerate(short):
        batch[slot] = teaching[turn % len(teaching)]
    return Choice(batch, [], short)


def wanted(reasons: Sequence[str | None], size: int, unit: int) -> int:
    """Fresh groups to draw for the open slots: a multiple of `unit`, so that every rank draws as many responses."""
    missing = max(size - sum(reason is None for reason in reasons), 0)
    return -(-missing // unit) * unit


@dataclass
class Thrown:
    """Groups, response tokens and seconds of sampling and judging that are not trained on, for one reason."""

    groups: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class SampledGroup:
    """What the account reads of a group. `seconds` is its share of its round's, by tokens."""

    reason: str | None
    tokens: int
    seconds: float


@dataclass
class RolloutAccount:
    """What one rollout sampled and what became of it."""

    rounds: int
    groups: int
    tokens: int
    taught_groups: int
    taught_tokens: int
    open_slots: int
    repeated: int
    thrown: dict[str, Thrown] = field(default_factory=dict)

    @property
    def thrown_tokens(self) -> int:
        return sum(one.tokens for one in self.thrown.values())

    def metrics(self) -> dict[str, float]:
        found = {
            "rounds": self.rounds,
            "groups": self.groups,
            "tokens": self.tokens,
            "taught_groups": self.taught_groups,
            "taught_tokens": self.taught_tokens,
            "open_slots": self.open_slots,
            "repeated": self.repeated,
        }
        for reason in THROWN:
            one = self.thrown.get(reason, Thrown())
            found |= {
                f"{reason}/groups": one.groups,
                f"{reason}/tokens": one.tokens,
                f"{reason}/seconds": one.seconds,
            }
        return {RESAMPLE + name: float(value) for name, value in found.items()}


def account_of(sampled: Sequence[SampledGroup], choice: Choice, rounds: int) -> RolloutAccount:
    """Every sampled group is in the batch or thrown away; a repeated one counts once among those that taught."""
    kept = set(choice.batch)
    thrown: dict[str, Thrown] = {}
    for number, one in enumerate(sampled):
        if number not in kept:
            entry = thrown.setdefault(one.reason or SURPLUS, Thrown())
            entry.groups += 1
            entry.tokens += one.tokens
            entry.seconds += one.seconds
    taught = [sampled[number].tokens for number in kept if sampled[number].reason is None]
    return RolloutAccount(
        rounds=rounds,
        groups=len(sampled),
        tokens=sum(one.tokens for one in sampled),
        taught_groups=len(taught),
        taught_tokens=sum(taught),
        open_slots=len(choice.open),
        repeated=len(choice.repeated),
        thrown=thrown,
    )


def short_in_words(reasons: Sequence[str | None], size: int, rounds: int, rule: ResampleRule) -> str:
    """What `on_short: stop` says."""
    silent = {reason: reasons.count(reason) for reason in SILENT if reason in reasons}
    why = ", ".join(f"{count} because {SILENT[reason]}" for reason, count in silent.items())
    spent = (
        f"{rounds} rounds"
        if rounds >= rule.max_rounds
        else f"{rounds} rounds, then no fresh prompt was left; they"
    )
    return (
        f"rollout.resample: {spent} gave {reasons.count(None)} groups that teach, and a rollout needs {size}; "
        f"{sum(silent.values())} of {len(reasons)} groups teach nothing: {why}. Raise max_rounds or "
        "rollout.group_size, take prompts that the model solves sometimes, or set on_short to train or refill"
    )


class PromptOrder:
    """The data's prompts in the order of the epochs, one after another: an epoch that ends goes over into the next.

    order     pass number -> the rows' numbers in the order of that pass
    position  prompts drawn since the start of the run; all a resume needs
    """

    def __init__(self, order: Callable[[int], Sequence[int]], rows: int) -> None:
        self._order, self._rows = order, rows
        self._held: tuple[int, Sequence[int]] | None = None
        self.position = 0

    def take(self, count: int, avoid: Iterable[int] = ()) -> list[int]:
        """The next `count` rows that are not in `avoid`, none twice; fewer where the data has no others. Rows to avoid
        that come up are passed over."""
        passed: Container[int] = set(avoid)
        found: dict[int, None] = {}
        at, unseen = (
            self.position,
            self._rows,
        )  # after one fruitless look at each row only the same ones follow
        while len(found) < count and unseen:
            row = self._at(at)
            at, unseen = at + 1, unseen - 1
            if row not in passed and row not in found:
                found[row] = None
                self.position, unseen = at, self._rows
        return list(found)

    @property
    def passes(self) -> float:
        """Passes over the data so far."""
        return self.position / self._rows

    def _at(self, position: int) -> int:
        number, place = divmod(position, self._rows)
        if self._held is None or self._held[0] != number:
            self._held = (number, self._order(number))
        return self._held[1][place]
