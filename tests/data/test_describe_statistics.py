"""The statistics of a data set's description, each by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest

from posttrain.data.describe.answer_entropy import answer_entropy, entropy
from posttrain.data.describe.answer_kinds import answer_kind, answer_mark
from posttrain.data.describe.coverage import (
    Step,
    coverage_of,
    state_action_coverage,
    steps_of,
    trajectory_quality,
)
from posttrain.data.describe.described_rows import DescribedRow
from posttrain.data.describe.duplicates import grouped, normalised, repeats
from posttrain.data.describe.languages import language_of
from posttrain.data.describe.pair_facts import contradicting_golds, pair_facts, rating_facts
from posttrain.data.describe.shingles import COMMON_FROM, common_grams, grams, jaccard, near_groups
from posttrain.data.describe.spread import percentile, share_of, spread
from posttrain.data.describe.text_faults import (
    CHAT_TOKENS,
    SPEAKERS,
    ends_in_mid_sentence,
    fault_finders,
    holds_prompt,
)


def row(
    prompt: str, gold: str | None = None, scores: Mapping[str, float] | None = None, **answers: str
) -> DescribedRow:
    return DescribedRow(1, prompt, answers, gold, scores or {})


# ---------------------------------------------------------------------------------------------------------- spread


def test_percentiles_are_nearest_ranks() -> None:
    found = spread([10, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert found is not None
    assert (found.smallest, found.median, found.p90, found.p99, found.largest) == (1, 5, 9, 10, 10)
    assert found.mean == 5.5
    assert percentile([1, 2, 3], 0.5) == 2
    assert percentile([7], 0.99) == 7
    assert spread([]) is None


def test_a_histogram_holds_every_value_once() -> None:
    few = spread([1, 1, 2, 4])
    assert few is not None
    assert few.edges == (0.5, 1.5, 2.5, 3.5, 4.5)
    assert few.counts == (2, 1, 0, 1)
    for values in ([0, 1, 5, 5000], [3.5, 3.5], [-40, 0, 40], list(range(1000))):
        found = spread(values)
        assert found is not None
        assert sum(found.counts) == len(values)
        assert list(found.edges) == sorted(found.edges)


def test_wilsons_interval() -> None:
    # 8 of 10: (0.8 + z2/20) / (1 + z2/10) -+ ..., with z = 1.96: .4902 to .9433 (Brown, Cai and DasGupta's formula)
    found = share_of(8, 10)
    assert found.share == 0.8
    assert (found.low, found.high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert share_of(0, 10).low == 0.0
    assert share_of(0, 0).share == 0.0


# ------------------------------------------------------------------------------------------------------ duplicates


def test_normalised_texts_keep_what_tells_problems_apart() -> None:
    assert normalised("  What IS\n\n2+2? ") == "what is 2+2?"
    assert normalised("ｆｕｌｌ ﬁt") == "full fit"
    assert normalised("2+2") != normalised("2-2")


def test_jaccard_of_five_grams_by_hand() -> None:
    # abcde bcdef cdefg defgh against abcde bcdef cdefg defgx: three shared of five
    assert len(grams("abcdefgh")) == 4
    assert jaccard(grams("abcdefgh"), grams("abcdefgx")) == pytest.approx(3 / 5)
    assert len(grams("abc")) == 1  # a short text is one gram
    assert len(grams("")) == 0


def test_near_duplicates_are_found_and_nothing_else() -> None:
    rng = random.Random(0)
    words = [f"w{i}" for i in range(2000)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(300)]
    changed = [text.rsplit(" ", 2)[0] + " other end" for text in texts[:40]]  # Jaccard about 0.9
    groups = near_groups([*texts, *changed])
    assert groups[300:] == list(range(40))
    assert groups[:300] == list(range(300))


def test_a_template_around_every_prompt_does_not_make_them_near_duplicates() -> None:
    rng = random.Random(1)
    template = (
        "Solve the following problem step by step and put the final answer in a box at the end. Problem: {}"
    )
    problems = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=30)) for _ in range(COMMON_FROM)]
    texts = [template.format(problem) for problem in problems]
    assert jaccard(grams(texts[0]), grams(texts[1])) > 0.5
    assert near_groups(texts) == list(range(COMMON_FROM))
    assert common_grams(texts[: COMMON_FROM - 1]) is None


def test_repeats_by_hand() -> None:
    long = "the quick brown fox jumps over the lazy dog " * 3
    found = repeats(grouped(["a", "b", "a", "", long, long + "!", "a"], near=True))
    assert found is not None
    assert (found.texts, found.distinct, found.repeated, found.most, found.example) == (6, 4, 2, 3, "a")
    assert (found.near, found.compared, found.groups) == (1, 4, (2,))
    assert grouped(["x", "", "x", "y"], near=False).of(["y", "", "x"]) == [1, -1, 0]
    assert repeats(grouped(["", ""], near=True)) is None


# -------------------------------------------------------------------------------------------- languages, faults, kinds


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of France?", "English"),
        ("Wie viele Äpfel hat das Kind und was kostet es?", "German"),
        ("Quel est le prix de la voiture pour une personne ?", "French"),
        ("¿Cuál es la capital de España y por qué?", "Spanish"),
        ("Qual é a capital do Brasil e por que não?", "Portuguese"),
        ("Какая столица России и почему это важно?", "Russian"),
        ("Яка столиця України і чому?", "Ukrainian"),
        ("中国的首都是什么?", "Chinese"),
        ("日本の首都はどこですか", "Japanese"),
        ("한국의 수도는 어디입니까", "Korean"),
        ("ما هي عاصمة مصر؟", "Arabic"),
        ("x + y = 3", "no words"),
        ("def f(x):\n    return x", "code"),
        ("lorem foo bar baz qux", "Latin letters, undecided"),
        ("", "no words"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Yes.<|im_end|>", CHAT_TOKENS),
        ("[INST] do it [/INST]", CHAT_TOKENS),
        ("so be it</s>", CHAT_TOKENS),
        ("<start_of_turn>model", CHAT_TOKENS),
        ("Yes.\nHuman: and then?", SPEAKERS),
        ("### Response: yes", SPEAKERS),
        ("a <b> of |x| and </s> in the middle", None),
        ("std::cout << User::name", None),
        ("The Assistant: a novel", None),
    ],
)
def test_marks_that_have_no_place_in_a_text(text: str, fault: str | None) -> None:
    found = [name for name, search in fault_finders().items() if search(text)]
    assert found == ([] if fault is None else [fault])


def test_a_tokenizers_own_marks_count() -> None:
    assert fault_finders()[CHAT_TOKENS]("ends<eot>") is None
    assert fault_finders(["<eot>"])[CHAT_TOKENS]("ends<eot>")


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("The derivative of the function is found by the chain rule, which says that the", True),
        ("We first add both sides of the equation and then we divide what is left by two,", True),
        ("Here is the code that you have asked for in your question:\n```python\nprint(1)", True),
        (r"After all of these steps the answer to the whole problem is \boxed{\frac{1}{2}", True),
        ("one of them is much larger than what anybody in the whole room had expected before lunch", True),
        ("One of them is much larger than what anybody in the whole room had expected before.", False),
        (r"After all of these steps the answer to the whole problem is \boxed{\frac{1}{2}}", False),
        ("Natalia sold 48 clips in April and 24 in May, so altogether she sold 72 clips\n#### 72", False),
        ("Here is the code that you have asked for in your question:\n```python\nprint(1)\n```", False),
        ("Shopping list for the whole of the next week of holidays:\n- milk\n- bread", False),
        ("and then", False),
    ],
)
def test_ends_in_mid_sentence(text: str, cut: bool) -> None:
    assert ends_in_mid_sentence(text) is cut


def test_a_prompt_in_its_answer() -> None:
    asked = "What is the capital of France?"
    assert holds_prompt(asked, f"{asked.upper()}\n Paris.")
    assert holds_prompt(asked, f"You ask: {asked} It is Paris.")
    assert not holds_prompt(asked, "It is Paris.")
    assert not holds_prompt("Why?", "Why? Because.")  # too short to say


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("3", "number"),
        (r"\frac{1}{2}", "number"),
        ("50%", "number"),
        ("He has 2 + 1 = 3 apples.\n#### 3", "number"),
        (r"Thus $x = 3$, so \boxed{2\sqrt{3}}.", "expression"),
        (r"\pi", "expression"),
        ("x+1", "expression"),
        ("(B)", "choice"),
        ("[1,2]", "list"),
        ("x>2", "interval"),
        ("x^2+y^2=1", "equation"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "matrix"),
        ("1:2", "ratio"),
        ("Paris", "words"),
        ("This is a sentence that says a lot of things.", "text"),
        ("def f():\n    return 1", "code"),
        ("N/A", "none"),
        (" ", "none"),
    ],
)
def test_kinds_of_answers(text: str, kind: str) -> None:
    assert answer_kind(text) == kind


def test_marks_of_answers() -> None:
    assert [answer_mark(text) for text in ("a #### 3", r"\boxed{3}", "3")] == ["####", "\\boxed", "nothing"]


# -------------------------------------------------------------------------------------------------- pairs and scores


def test_pairs_by_hand() -> None:
    rows = [
        row("p", chosen="long answer", rejected="short", scores={"chosen": 2.0, "rejected": 1.0}),
        row(
            "P ", chosen="Short", rejected="long answer", scores={"chosen": 1.0, "rejected": 3.0}
        ),  # the other way
        row("q", chosen="same", rejected="Same", scores={"chosen": 1.0, "rejected": 1.0}),
        row("r", chosen="abc", rejected="x"),
        row("r", chosen="y", rejected="abc"),  # abc is both chosen and rejected
        row("s", chosen="", rejected="x"),  # no pair
    ]
    found = pair_facts(rows)
    assert found is not None
    assert (found.pairs, found.equal, found.same_length) == (5, 1, 1)
    assert (found.longer_chosen.hits, found.longer_chosen.trials) == (2, 4)
    assert (found.contradicting, found.both_ways) == (2, 2)
    assert (found.scored, found.score_ties, found.score_reversed) == (3, 1, 1)
    assert found.difference is not None
    assert found.difference.mean == pytest.approx((6 - 6 + 0 + 2 - 2) / 5)
    assert pair_facts([row("p", completion="a")]) is None


def test_scores_by_hand() -> None:
    rows = [
        row("p", completion="a", scores={"completion": 1.0}),
        row("p", completion="A", scores={"completion": 0.0}),  # the same answer, another score
        row("q", completion="b", scores={"completion": 1.0}),
        row("q", completion="c", scores={"completion": 1.0}),  # nothing tells the two apart
        row("r", completion="d", scores={"completion": 0.5}),
    ]
    found = rating_facts(rows)
    assert found is not None
    assert found.scores.mean == pytest.approx(0.7)
    assert (found.distinct, found.contradicting, found.one_score, found.several) == (3, 2, 1, 2)
    assert found.values == {"1": 3, "0": 1, "0.5": 1}


def test_several_golds_of_one_prompt() -> None:
    rows = [
        row("p", gold="1"),
        row("p", gold=" 1"),
        row("q", gold="1"),
        row("Q", gold="2"),
        row("q", gold=None),
    ]
    assert contradicting_golds(rows) == 1


# ---------------------------------------------------------------------------------------------------- TQ, SACo, entropy


def test_trajectory_quality_is_the_papers_formula() -> None:
    assert trajectory_quality(0.5, 0.0, 1.0) == 0.5
    assert trajectory_quality(3.0, 1.0, 9.0) == 0.25
    assert trajectory_quality(0.0, 0.0, 2.0) == 0.0
    assert trajectory_quality(4.0, 0.0, 2.0) == 2.0  # better than the reference
    with pytest.raises(ValueError, match="not above the minimum"):
        trajectory_quality(1.0, 1.0, 1.0)


def test_state_action_coverage_counts_pairs_once() -> None:
    reference = [("s", "a"), ("s", "b"), ("t", "a"), ("t", "a")]
    assert state_action_coverage([("s", "a"), ("s", "a"), ("u", "c")], reference) == pytest.approx(2 / 3)
    assert state_action_coverage(reference, reference) == 1.0
    with pytest.raises(ValueError, match="no prompt"):
        state_action_coverage([], [])


def test_coverage_against_a_reference_by_hand() -> None:
    # reference: prompt s scored 0 and 1, prompt t scored .5 and 1: minimum .25, best 1
    reference = [Step("s", "a", 0.0), Step("s", "b", 1.0), Step("t", "a", 0.5), Step("t", "b", 1.0)]
    data = [Step("s", "b", 1.0), Step("s", "b", 1.0), Step("u", "a", 0.25)]
    found = coverage_of(data, reference, "reference")
    assert (found.minimum, found.best, found.mean_return) == (0.25, 1.0, 0.75)
    assert found.quality == pytest.approx((0.75 - 0.25) / 0.75)
    assert found.coverage == pytest.approx(2 / 4)
    assert (found.prompts_shared, found.pairs_shared) == (0.5, 0.25)
    assert (found.rows, found.reference_rows) == (3, 4)


def test_one_answer_per_prompt_needs_a_minimum_from_elsewhere() -> None:
    reference, data = [Step("s", "a", 1.0), Step("t", "b", 0.5)], [Step("s", "a", 0.5)]
    found = coverage_of(data, reference, "reference")
    assert found.quality is None
    assert "--minimum" in found.why
    assert coverage_of(data, reference, "reference", minimum=0.25).quality == pytest.approx(0.5)
    assert "no score" in coverage_of([Step("s", "a", None)], reference, "reference").why


def test_steps_are_every_answer_of_a_row() -> None:
    rows = [
        row("P", chosen="A", rejected="b", scores={"chosen": 2.0, "rejected": 1.0}),
        row("q", gold="3", scores={"completion": 1.0}),
        row("", completion="x"),
    ]
    assert steps_of(rows) == [Step("p", "a", 2.0), Step("p", "b", 1.0), Step("q", "3", 1.0)]


def test_entropy_of_answers_by_hand() -> None:
    assert entropy("aabb") == pytest.approx(math.log(2))
    assert entropy("aaab") == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert entropy("aaaa") == 0.0
    rows = [row("s", completion=answer) for answer in ("x", "X ", "y", "z")] + [row("t", completion="x")] * 2
    found = answer_entropy([*rows, row("u", completion="alone")], [0, 0, 0, 0, 1, 1, 2])
    assert found is not None
    # state s: shares 1/2, 1/4, 1/4 of four answers; state t: none of two; u has one answer
    first = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert found.nats == pytest.approx(4 / 6 * first)
    assert found.relative == pytest.approx(4 * first / (4 * math.log(4) + 2 * math.log(2)))
    assert (found.groups, found.answers) == (2, 6)
    assert answer_entropy(rows[:1], [0]) is None
