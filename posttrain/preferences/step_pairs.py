"""Pairs of one step from a searched tree: two fragments behind the same beginning. iTool,
https://arxiv.org/abs/2501.09766"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from posttrain.preferences.call_search import Node, Tokens

Text = Callable[[Tokens], str]


@dataclass(frozen=True)
class StepPair:
    """`prefix` is what stands of the answer before the two fragments, the same tokens for both."""

    prefix: Tokens
    chosen: Tokens
    rejected: Tokens
    gap: float


@dataclass(frozen=True)
class PairFilter:
    """min_gap between the two values, max_overlap of their words, min_value of the better one; sums compares values as
    they were added up, which grow with visits, instead of per visit."""

    min_gap: float = 0.1
    max_overlap: float = 0.95
    min_value: float = -0.3
    sums: bool = False


def step_pairs(
    root: Node, text: Text, overlap: Callable[[str, str], float], rule: PairFilter
) -> tuple[list[StepPair], Counter[str]]:
    """At each node with two children or more, the best and the worst, where the rule lets them through; and why not of
    the others."""
    pairs: list[StepPair] = []
    refused: Counter[str] = Counter()
    for node in _nodes(root):
        if len(node.children) < 2:
            continue
        values = [child.value if rule.sums else child.mean_value for child in node.children]
        best, worst = values.index(max(values)), values.index(min(values))
        chosen, rejected = node.children[best], node.children[worst]
        gap = values[best] - values[worst]
        if gap < rule.min_gap:
            refused["values of the step too near"] += 1
        elif values[best] < rule.min_value:
            refused["best value of the step too low"] += 1
        elif overlap(_shown(node, chosen, text), _shown(node, rejected, text)) > rule.max_overlap:
            refused["fragments of the step too alike"] += 1
        else:
            pairs.append(StepPair(node.prefix, chosen.tokens, rejected.tokens, gap))
    return pairs, refused


def _shown(parent: Node, child: Node, text: Text) -> str:
    return text(child.prefix)[len(text(parent.prefix)) :]


def _nodes(root: Node) -> Iterator[Node]:
    """Depth first, children in their order."""
    yield root
    for child in root.children:
        yield from _nodes(child)
