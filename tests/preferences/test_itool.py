"""iTool's mathematics: the page's vectors, each known trap, trees by hand with a scripted policy."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.answers.tool_calls import word_overlap
from posttrain.preferences.base import PairBatch
from posttrain.preferences.call_search import (
    AskContinuations,
    AskJudgement,
    Continuation,
    Node,
    SearchLimits,
    back_up,
    expand,
    fast_reward,
    fragments,
    in_lockstep,
    judgement_value,
    puct,
    search,
    select,
)
from posttrain.preferences.deficiency import hardest, perplexity
from posttrain.preferences.itool import ITool
from posttrain.preferences.simpo import SimPO
from posttrain.preferences.step_pairs import PairFilter, step_pairs

END = 0


def text(tokens) -> str:
    """One token a character; the end token is none."""
    return "".join(chr(token) for token in tokens if token != END)


def tokens(words: str) -> tuple[int, ...]:
    return tuple(map(ord, words))


def written(words: str, *, ended: bool = True, logp: float = -0.5) -> Continuation:
    ids = tokens(words) + ((END,) if ended else ())
    return Continuation(ids, (logp,) * len(ids), ended)


class Scripted:
    """A reader whose score is that of the letters written down for it."""

    def __init__(self, scores: dict[str, float] | None = None) -> None:
        self.scores = scores or {}

    def text(self, ids) -> str:
        return text(ids)

    def score(self, before: str, fragment: str, ended: bool) -> float:
        return self.scores.get(before + fragment, 0.0)


LIMITS = SearchLimits(rounds=1, children=2, depth=3, step_limit=1, exploration=1.0, rollout_steps=1)


# loss


def test_the_pages_losses():
    lengths = torch.tensor([4, 2])
    f64 = {"dtype": torch.float64}
    batch = PairBatch(
        chosen_logps=torch.tensor([-1.0, -0.8], **f64) * lengths,
        rejected_logps=torch.tensor([-1.8, -1.0], **f64) * 3,
        ref_chosen_logps=torch.zeros(2, **f64),
        ref_rejected_logps=torch.zeros(2, **f64),
        chosen_lengths=lengths,
        rejected_lengths=torch.tensor([3, 3]),  # unequal lengths are what the means are for
        beta=2.5,
    )
    losses = ITool(margin=0.5).pair_loss(batch)
    expected = torch.tensor([0.201413277983, 0.693147180560], **f64)
    torch.testing.assert_close(losses, expected, atol=1e-11, rtol=0)
    assert losses.mean().item() == pytest.approx(0.447280229271, abs=1e-11)
    assert torch.equal(losses, SimPO(margin=0.5).pair_loss(batch))
    assert ITool().rewards(batch)[0].tolist() == pytest.approx([-2.5, -2.0])
    assert ITool().metrics(batch)["chosen_fragment_tokens"].tolist() == [4, 2]


# which rows


def test_perplexity_is_of_the_gold_tokens_alone():
    assert perplexity([math.log(0.5), math.log(0.125)]) == pytest.approx(4.0)
    assert perplexity([0.0]) == 1.0
    assert perplexity([-1e4]) == math.inf
    with pytest.raises(ValueError, match="without a token"):
        perplexity([])


def test_the_hardest_of_each_kind():
    wrong = [1.0, 9.0, 3.0, 2.0, 50.0, 60.0, math.nan]
    makes_call = [True, True, True, True, False, False, True]
    # 30 % of five is two (rounded up), of two is one; NaN is not lost among the easy ones
    assert hardest(wrong, makes_call, 0.3) == [1, 5, 6]
    assert hardest(wrong, makes_call, 1.0) == list(range(7))
    assert hardest([1.0] * 10, [True] * 10, 0.3) == [0, 1, 2]  # 0.3 * 10 is no 4
    with pytest.raises(ValueError, match="above 0"):
        hardest(wrong, makes_call, 0.0)


# selection and values


def test_the_pages_tree_values():
    children = [(0.6, 2, 0.5), (0.2, 0, 0.3), (-0.1, 1, 0.9)]
    found = [puct(value, visits, prior, 4, 1.0) for value, visits, prior in children]
    assert found == pytest.approx([0.539888996723, 0.553223006755, 0.699299150042], abs=1e-11)


def test_no_visits_are_no_nan():
    assert puct(0.3, 0, 0.9, 0, 1.0) == 0.3
    root = Node()
    root.children = [Node((1,), value=-0.2, parent=root), Node((2,), value=0.4, parent=root)]
    assert select(root, 1.0).tokens == (2,)


def test_judgements_and_fast_rewards_by_hand():
    assert judgement_value([0.5, 0.2, 0.2, 0.1]) == pytest.approx(0.125 + 0.005 - 0.05 - 0.05)
    assert [judgement_value([float(i == j) for j in range(4)]) for i in range(4)] == [
        0.25,
        0.025,
        -0.25,
        -0.5,
    ]
    assert fast_reward(True, 1.0) == pytest.approx(0.6)
    assert fast_reward(False, 0.0) == pytest.approx(-0.6)


def test_values_are_summed_up_to_the_root_and_compared_per_visit():
    root = Node()
    child = Node((1,), value=0.2, parent=root)
    root.children = [child]
    for value in (0.1, -0.4):
        back_up(child, value)
    assert (child.value, child.visits) == (pytest.approx(-0.1), 2)
    assert child.mean_value == pytest.approx(-0.1 / 3)
    assert (root.value, root.visits) == (pytest.approx(-0.3), 2)


# fragments


@pytest.mark.parametrize(
    ("words", "step_limit", "pieces"),
    [
        ("[f(a=1, b=2.5)]", 1, ["[f(", "a=", "1,", " b=", "2.5)]"]),  # a point within a number ends nothing
        ("[f(a=1, b=2.5)]", 2, ["[f(a=", "1, b=", "2.5)]"]),
        ("Yes. No", 1, ["Yes.", " No"]),
        ("plain", 2, ["plain"]),
    ],
)
def test_pieces_by_hand(words, step_limit, pieces):
    one = written(words)
    found = fragments(one, text, step_limit)
    assert [text(piece.tokens) for piece in found] == pieces
    assert tuple(t for piece in found for t in piece.tokens) == one.tokens  # not a token more or less
    assert [piece.ended for piece in found] == [False] * (len(found) - 1) + [True]
    assert found[0].prior == pytest.approx(math.exp(-0.5))


def test_a_cut_call_loses_the_piece_that_was_cut():
    cut = written("[f(a=1, b=2", ended=False)
    assert [text(piece.tokens) for piece in fragments(cut, text, 1)] == ["[f(", "a=", "1,", " b="]
    kept = fragments(cut, text, 1, keep_cut=True)
    assert text(kept[-1].tokens) == "2"
    assert not kept[-1].ended
    assert fragments(written("abc", ended=False), text, 1) == []


def test_a_mark_within_a_token_ends_the_piece_with_that_token():
    vocabulary = {1: "[f(a", 2: "=1", 3: ", b", 4: "=2)]"}
    one = Continuation((1, 2, 3, 4), (-1.0,) * 4, ended=True)
    found = fragments(one, lambda ids: "".join(vocabulary[i] for i in ids), 1)
    assert [piece.tokens for piece in found] == [(1,), (2,), (3,), (4,)]


# the tree


def test_chains_share_their_beginning_and_stop_at_the_deepest_level():
    root = Node()
    expand(root, [written("[f(a=1, b=2)]"), written("[f(a=2)]")], Scripted({"[f(": 0.3}), LIMITS)
    (first,) = root.children
    assert (text(first.tokens), first.value) == ("[f(", 0.3)
    (second,) = first.children
    assert text(second.tokens) == "a="
    assert [text(child.tokens) for child in second.children] == ["1,", "2)]"]
    assert [child.ended for child in second.children] == [False, True]
    assert not second.children[0].children  # level 3 is the last
    assert text(second.children[1].prefix) == "[f(a=2)]"


def serve(policy, log=None):
    """Answers wishes one search at a time: `policy(prefix text, seed)` writes, "right" in the text is judged A."""

    def write(wishes):
        if log is not None:
            log.append([wish for _, wish in wishes])
        return [[policy(text(wish.prefix), seed) for seed in wish.seeds] for _, wish in wishes]

    def judge(wishes):
        found = ["good" in text(wish.prefix) for _, wish in wishes]
        return [[1.0, 0.0, 0.0, 0.0] if good else [0.0, 0.0, 0.0, 1.0] for good in found]

    return write, judge


def by_seed(prefix: str, seed: int) -> Continuation:
    return written("[f(a=good)]"[len(prefix) :] if seed % 2 else "[f(a=bad)]"[len(prefix) :])


def test_a_search_by_hand():
    write, judge = serve(by_seed)
    (root,) = in_lockstep([search(Scripted(), LIMITS, seed=10)], write, judge)
    # seed 10 writes bad, 11 good; both begin "[f(", which is rolled out by seed 12 by one piece, unfinished: D
    assert (root.visits, root.value) == (1, -0.5)
    (first,) = root.children
    assert (first.visits, first.value) == (1, -0.5)
    assert [(child.visits, child.value) for child in first.children[0].children] == [(0, 0.0), (0, 0.0)]


def test_a_searched_step_becomes_a_pair_behind_one_beginning():
    limits = SearchLimits(rounds=8, children=2, depth=3, step_limit=1, exploration=1.0, rollout_steps=2)
    scores = {"[f(a=good)]": 0.4, "[f(a=bad)]": -0.3}
    write, judge = serve(by_seed)
    (root,) = in_lockstep([search(Scripted(scores), limits, seed=0)], write, judge)
    pairs, refused = step_pairs(root, text, word_overlap, PairFilter())
    (pair,) = pairs
    assert text(pair.prefix) == "[f(a="
    assert (text(pair.chosen), text(pair.rejected)) == ("good)]", "bad)]")
    assert pair.chosen[-1] == pair.rejected[-1] == END  # the policy ended there itself
    assert pair.gap > 0.4
    assert not refused


def test_searches_side_by_side_are_those_alone_and_seeds_decide():
    limits = SearchLimits(rounds=4, children=3, depth=3, step_limit=1, exploration=1.0, rollout_steps=1)

    def shape(node):
        return (node.tokens, node.visits, round(node.value, 9), [shape(child) for child in node.children])

    def noisy(prefix: str, seed: int) -> Continuation:
        return written(f"[f(a={seed % 5}, b={seed % 3})]"[len(prefix) :])

    alone = [in_lockstep([search(Scripted(), limits, seed)], *serve(noisy))[0] for seed in (3, 40, 3)]
    log: list[list[AskContinuations]] = []
    together = in_lockstep([search(Scripted(), limits, seed) for seed in (3, 40)], *serve(noisy, log))
    assert [shape(tree) for tree in together] == [shape(tree) for tree in alone[:2]]
    assert shape(alone[0]) == shape(alone[2]) != shape(alone[1])
    assert max(len(wishes) for wishes in log) == 2  # served in one call
    seeds = [seed for wishes in log for wish in wishes if wish.seeds[0] < 40 for seed in wish.seeds]
    assert len(seeds) == len(set(seeds))  # no two continuations of a row draw the same numbers
    assert max(seeds) < 3 + limits.rounds * (limits.children + 1)


def test_a_finished_answer_is_judged_once():
    asked = []
    write, judge = serve(lambda prefix, seed: written("good"[len(prefix) :]))

    def counted(wishes):
        asked.extend(wish for _, wish in wishes)
        return judge(wishes)

    limits = SearchLimits(rounds=4, children=2, depth=3, step_limit=1, exploration=1.0, rollout_steps=1)
    (root,) = in_lockstep([search(Scripted(), limits, 0)], write, counted)
    assert asked == [AskJudgement(tokens("good") + (END,))]
    assert (root.visits, root.children[0].visits) == (4, 4)
    assert root.value == pytest.approx(1.0)


# pairs


def tree(*children: tuple[str, float, int]) -> Node:
    root = Node()
    root.children = [
        Node(tokens(w), value=value, visits=visits, parent=root) for w, value, visits in children
    ]
    return root


@pytest.mark.parametrize(
    ("children", "reason"),
    [
        ([("a=", 0.10, 0), ("b=", 0.05, 0)], "too near"),
        ([("a=", -0.4, 0), ("b=", -0.6, 0)], "too low"),
        ([("a=1", 0.5, 0), ("1=a", 0.0, 0)], "too alike"),
        ([("a=1", 0.5, 0), ("b=2", 0.0, 0), ("c=3", 0.2, 0)], None),
    ],
)
def test_what_makes_a_pair(children, reason):
    pairs, refused = step_pairs(tree(*children), text, word_overlap, PairFilter())
    if reason is None:
        assert [(text(p.chosen), text(p.rejected)) for p in pairs] == [("a=1", "b=2")]
        assert not refused
    else:
        assert not pairs
        assert [reason in words for words in refused] == [True]


def test_the_threshold_does_not_grow_with_visits():
    # means 0.05 and 0.04 apart by 0.01; as sums, 0.5 and 0.04
    root = tree(("a=", 0.5, 9), ("b=", 0.04, 0))
    assert not step_pairs(root, text, word_overlap, PairFilter())[0]
    assert len(step_pairs(root, text, word_overlap, PairFilter(sums=True))[0]) == 1


def test_one_child_makes_no_step():
    assert step_pairs(tree(("a=", 0.5, 0)), text, word_overlap, PairFilter()) == ([], {})
