"""A tree search over fragments of a call, judged by the policy itself. iTool, https://arxiv.org/abs/2501.09766

A node is a fragment, a path from the root the beginning of an answer. In each round:

    select     down to a leaf by `puct`
    expand     n continuations, cut into fragments, each a chain of nodes down to the deepest level
    roll out   a few fragments further, then the policy's judgement of what stands there
    back up    the judgement is added to every node on the path

The search knows no model: it yields what it wants written or judged and is sent the answers, so that many searches can
be served in one batch (`in_lockstep`). Tokens are only ever joined, never decoded and read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Tokens = tuple[int, ...]

SEPARATORS = (". ", ", ", "=", "(")
"""A fragment ends with the first character of one of these."""
GRADES = (1.0, 0.1, -1.0, -2.0)
"""What the judgements A, B, C and D are worth, each a quarter of it."""


@dataclass(frozen=True)
class AskContinuations:
    """A wish: one continuation of `prefix` (the answer so far) for each seed."""

    prefix: Tokens
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class AskJudgement:
    """A wish: the probabilities of A, B, C and D for the answer so far."""

    prefix: Tokens


@dataclass(frozen=True)
class Continuation:
    """What the policy wrote: tokens, the log-prob of each, and whether it ended by itself."""

    tokens: Tokens
    logps: tuple[float, ...]
    ended: bool


Wish = AskContinuations | AskJudgement
Reply = Sequence[Continuation] | Sequence[float]


class Reader(Protocol):
    """What the search asks of a row: text of tokens, and how good a fragment is behind what stands before it."""

    def text(self, tokens: Tokens) -> str: ...

    def score(self, before: str, fragment: str, ended: bool) -> float: ...


@dataclass
class Node:
    """A fragment. `value`: its first score and all judgements backed up to it, summed; `prior`: exp of its mean
    log-prob; `ended`: the answer ends with it."""

    tokens: Tokens = ()
    prior: float = 1.0
    value: float = 0.0
    visits: int = 0
    ended: bool = False
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    judged: float | None = None

    @property
    def prefix(self) -> Tokens:
        """Of the answer, this fragment included."""
        return () if self.parent is None else self.parent.prefix + self.tokens

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    @property
    def mean_value(self) -> float:
        """The value per score in it: the first one and one a visit."""
        return self.value / (self.visits + 1)


@dataclass(frozen=True)
class Fragment:
    tokens: Tokens
    prior: float
    ended: bool


@dataclass(frozen=True)
class SearchLimits:
    """rounds, children and rollout_steps count; depth is levels below the root; step_limit joins so many pieces to a
    fragment; keep_cut keeps a last piece that only the limit of tokens ended."""

    rounds: int
    children: int
    depth: int
    step_limit: int
    exploration: float
    rollout_steps: int
    keep_cut: bool = False


def puct(value: float, visits: int, prior: float, parent_visits: int, exploration: float) -> float:
    """value/(visits+1) + c p sqrt(ln N / (visits+1)). N = 0 counts as 1: its logarithm would be no number."""
    spread = math.log(max(parent_visits, 1)) / (visits + 1)
    return value / (visits + 1) + exploration * prior * math.sqrt(spread)


def judgement_value(probabilities: Sequence[float]) -> float:
    """A/4 + 0.1 B/4 - C/4 - 2 D/4."""
    return sum(grade * share for grade, share in zip(GRADES, probabilities, strict=True)) / 4


def fast_reward(agrees: bool, similarity: float) -> float:
    """+0.1 or -0.1 for ending where the gold call ends, and its similarity in [0, 1] less a half."""
    return (0.1 if agrees else -0.1) + similarity - 0.5


def select(root: Node, exploration: float) -> Node:
    """Down to a leaf, always the child of highest `puct`, the first of equals."""
    node = root
    while node.children:
        visits = node.visits
        node = max(node.children, key=lambda c: puct(c.value, c.visits, c.prior, visits, exploration))
    return node


def back_up(node: Node | None, value: float) -> None:
    """Adds the value to the node and all above it."""
    while node is not None:
        node.value += value
        node.visits += 1
        node = node.parent


def fragments(
    written: Continuation, text: Callable[[Tokens], str], step_limit: int, *, keep_cut: bool = False
) -> list[Fragment]:
    """The continuation in pieces, `step_limit` of them to a fragment; joined they are its tokens again, but for a last
    piece that only the limit of tokens ended, which is left out unless `keep_cut`."""
    cuts = _cuts([text(written.tokens[: i + 1]) for i in range(len(written.tokens))])
    length = len(written.tokens)
    if (written.ended or keep_cut) and cuts[-1:] != [length]:
        cuts.append(length)
    ends = cuts[step_limit - 1 :: step_limit]
    if cuts and ends[-1:] != cuts[-1:]:
        ends.append(cuts[-1])
    found: list[Fragment] = []
    start = 0
    for end in ends:
        logps = written.logps[start:end]
        prior = math.exp(math.fsum(logps) / len(logps))
        found.append(Fragment(written.tokens[start:end], prior, written.ended and end == length))
        start = end
    return found


def _cuts(prefixes: Sequence[str]) -> list[int]:
    """After how many tokens a piece ends: those with which the mark of a separator stands. prefixes[i] is the text of
    the first i + 1 tokens."""
    if not prefixes:
        return []
    whole = prefixes[-1]
    marks = {place + 1 for mark in SEPARATORS for place in _places(whole, mark)}
    cuts: list[int] = []
    before = 0
    for i, prefix in enumerate(prefixes):
        if any(before < mark <= len(prefix) for mark in marks):
            cuts.append(i + 1)
        before = len(prefix)
    return cuts


def _places(text: str, mark: str) -> Iterator[int]:
    at = text.find(mark)
    while at >= 0:
        yield at
        at = text.find(mark, at + 1)


def expand(node: Node, written: Sequence[Continuation], reader: Reader, limits: SearchLimits) -> None:
    """Hangs each continuation below the node, a chain of fragments down to the deepest level; fragments that are there
    already are gone through, not hung twice."""
    for one in written:
        at = node
        before = reader.text(node.prefix)
        for piece in fragments(one, reader.text, limits.step_limit, keep_cut=limits.keep_cut):
            if at.depth >= limits.depth:
                break
            child = next((c for c in at.children if c.tokens == piece.tokens), None)
            if child is None:
                child = Node(piece.tokens, piece.prior, ended=piece.ended, parent=at)
                after = reader.text(child.prefix)
                child.value = reader.score(before, after[len(before) :], piece.ended)
                at.children.append(child)
            at, before = child, reader.text(child.prefix)
            if child.ended:
                break


def search(reader: Reader, limits: SearchLimits, seed: int) -> Generator[Wish, Reply, Node]:
    """The tree of one row. Every continuation draws from a seed of its own, counted on from `seed`."""
    root, drawn = Node(), 0
    for _ in range(limits.rounds):
        node = select(root, limits.exploration)
        if not node.ended and node.depth < limits.depth:
            seeds = tuple(range(seed + drawn, seed + drawn + limits.children))
            drawn += limits.children
            expand(node, _written((yield AskContinuations(node.prefix, seeds))), reader, limits)
            if node.children:
                visits = node.visits
                node = max(
                    node.children,
                    key=lambda c: puct(c.value, c.visits, c.prior, visits, limits.exploration),
                )
        prefix = node.prefix
        if not node.ended and limits.rollout_steps:
            (further,) = _written((yield AskContinuations(prefix, (seed + drawn,))))
            drawn += 1
            steps = fragments(further, reader.text, limits.step_limit, keep_cut=True)
            prefix += tuple(token for step in steps[: limits.rollout_steps] for token in step.tokens)
        if node.judged is None or not node.ended:
            node.judged = judgement_value(_probabilities((yield AskJudgement(prefix))))
        back_up(node, node.judged)
    return root


def _written(reply: Reply) -> list[Continuation]:
    return [one for one in reply if isinstance(one, Continuation)]


def _probabilities(reply: Reply) -> list[float]:
    return [one for one in reply if not isinstance(one, Continuation)]


Served = Callable[[list[tuple[int, AskContinuations]]], list[list[Continuation]]]
Judged = Callable[[list[tuple[int, AskJudgement]]], list[list[float]]]


def in_lockstep(searches: Sequence[Generator[Wish, Reply, Node]], write: Served, judge: Judged) -> list[Node]:
    """Runs all searches, what they want at a time in one call; each wish comes with its search's number."""
    trees: dict[int, Node] = {}
    wishes: dict[int, Wish] = {}

    def go_on(number: int, reply: Reply | None) -> None:
        try:
            one = searches[number]
            wishes[number] = next(one) if reply is None else one.send(reply)
        except StopIteration as done:
            trees[number] = done.value

    for number in range(len(searches)):
        go_on(number, None)
    while wishes:
        writes = [(n, wish) for n, wish in wishes.items() if isinstance(wish, AskContinuations)]
        judges = [(n, wish) for n, wish in wishes.items() if isinstance(wish, AskJudgement)]
        wishes = {}
        replies: dict[int, Reply] = {}
        if writes:
            replies.update(zip((n for n, _ in writes), write(writes), strict=True))
        if judges:
            replies.update(zip((n for n, _ in judges), judge(judges), strict=True))
        for number in sorted(replies):
            go_on(number, replies[number])
    return [trees[number] for number in range(len(searches))]
