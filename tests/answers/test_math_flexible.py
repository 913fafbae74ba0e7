"""The flexible format: what a text states, is, or ends with; and that a text which breaks off answers nothing."""

from __future__ import annotations

import pytest
from flexible_cases import TEXTS

from posttrain.answers.grading import extract_answer, grade

DASHES = "−–—‐‑‒―﹣－"


@pytest.mark.parametrize("dash", DASHES)
@pytest.mark.parametrize(
    "text",
    ["Therefore x = {}7", "The answer is {}7.", "so it falls to {}7", "#### {}7", "{}7", r"\boxed{{{}7}}"],
)
def test_a_dash_of_any_code_point_is_a_sign(dash, text):
    assert grade("-7", text.format(dash), "flexible").correct is True
    assert grade("7", text.format(dash), "flexible").correct is False


def test_a_dash_between_things_is_no_sign():
    assert grade("15", "She read pages 10–15", "flexible").correct is True
    assert grade("6", "in all — 6 apples", "flexible").correct is True
    assert grade("4", "We get 11 - 7 = 4.", "flexible").correct is True
    assert grade("-4", "We get 7 - 11 = -4.", "flexible").correct is True
    assert grade("-4", "which is - 4", "flexible").correct is True


NUMBERS = [
    # gold, text, right
    ("3500000", "The energy is 3.5e6", 1),
    ("6", "The energy is 3.5e6", 0),
    ("2.5e4", "The energy is 2.5 × 10^4 J.", 1),
    ("4", "The energy is 2.5 × 10^4 J.", 0),
    ("1000", "so we get 10^3", 1),
    ("3", "so we get 10^3", 0),
    ("2", "hence we obtain x^2", 0),
    ("2/7", "the chance that it rains comes to 2/7.", 1),
    ("7", "the chance that it rains comes to 2/7", 0),
    ("31/9", "so the rope measures 3 4/9 meters", 1),
    ("9", "so the rope measures 3 4/9", 0),
    ("60%", "it grows by 60%.", 1),
    ("0.6", "it grows by 60 percent.", 1),
    (r"3\sqrt{2}", "so the side comes to 3√2", 1),
    ("2", "so the side comes to 3√2", 0),
    ("18", "so 9 x 2 makes $18.00 in all.", 1),
    ("24", "He pays $15 and then $9, in total $24", 1),
    ("2000", "It costs €2,000", 1),
    ("2000", "It costs ₹2,000.", 1),
    ("0", "It costs €2,000", 0),
    ("18", "一共有18个苹果。", 1),
    ("18", "合計は１８円です。", 1),
    ("18", "She has 18cm of rope", 1),
    ("6", "So (x, y) = (8, 6).", 0),
    ("(8,6)", "So (x, y) = (8, 6).", 1),
    ("[-4,1]", "Thus k lies in [-4, 1]", 1),
    ("1", "Thus k lies in [-4, 1]", 0),
    ("x>5", "Therefore x > 5.", 1),
    ("5", "Therefore x > 5.", 0),
    (r"x\ge5", "Therefore x ≥ 5.", 1),
    ("1", "The roots are -2 and 1.", 0),
    ("-2,1", "The roots are -2 and 1.", 1),
    ("2,3,5", "Those primes are 2, 3, and 5.", 1),
    ("5", "In 2019, 5 apples were sold", 1),
    ("(8,6)", "So the pair $(x, y)$ that solves it comes to $(8, 6)$.", 1),
    ("1,2,3", "These come to $1$ and $2$ and $3$.", 1),
    (r"28\%", "So it grows by $28$ percent.", 1),
    ("10455", "With $10,200 + $255 = $10,455 we end.", 1),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "text", "right"), NUMBERS)
def test_the_last_number_with_what_belongs_to_it(gold, text, right):
    assert grade(gold, text, "flexible").correct is bool(right)


@pytest.mark.parametrize(("gold", "text", "right"), TEXTS)
def test_texts_of_every_sort(gold, text, right):
    assert grade(gold, text, "flexible").correct is bool(right), extract_answer(text, "flexible")


STATEMENTS = [
    ("9", r"Answer \[ 9 \]", 1),
    ("9", "Answer $ 9 $", 1),
    ("9", "Answer: 9", 1),
    ("9", "**Answer:** 9", 1),
    ("9", r"\textbf{Answer:} 9", 1),
    ("9", "ANSWER: 9", 1),
    ("9", "The answer is: 9", 1),
    ("9", "the final answer is 9", 1),
    ("9", "### Final Answer\n\n9", 1),
    ("9", "**Final Answer**\n\nThe number of ways is 9.", 1),
    ("9", "✅ Final Answer: **9**", 1),
    ("9", "The answer is 9, since 3 times 3 makes 9.", 1),
    ("9", "The answer is 9. We used 3 steps and 2 lemmas.", 1),
    ("2", "The answer is 9. We used 3 steps and 2 lemmas.", 0),
    (r"\frac{1}{2}", r"Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct.", 1),
    ("2", r"Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct.", 0),
    ("3", "Final Answer: Tom set out 3 hours ago. I hope it is correct. <|im_start|>user", 1),
    ("34", "Final Answer: The largest $n$ is 34.", 1),
    ("14000023", "Final Answer: The final answer is 14,000,023. I hope it is correct.", 1),
    ("12,13", 'Final Answer: The final answer is "$12 $ and $13 $". I hope it is correct.', 1),
    ("-2,1", "The answers are -2 and 1.", 1),
    ("1", "The answer is $-2$ and $1$.", 0),
    ("C", "The answer is (C).", 1),
    ("C", "Answer: C) 15", 1),
    ("C", "The correct option is C.", 1),
    ("B", "The answer is C.", 0),
    (r"\text{Evelyn}", "The answer is Evelyn.", 1),
    ("5", "The answer is not 5.", 0),
    ("5", "I think the answer is 5. No wait, the answer is 6.", 0),
    ("6", "I think the answer is 5. No wait, the answer is 6.", 1),
    ("125", "The answer is $125$ miles.", 1),
    ("18", "答案是18元。", 1),
    ("18", "答案：18", 1),
    ("18", "Ответ: 18 яблок.", 1),
    ("18", "La respuesta es 18.", 1),
    ("n!", "The answer is $n!$.", 1),
    ("11111100", r"**Answer:** 11,\! 111,\! 100", 1),
    ("10", "The answer is 10<|im_end|>", 1),
    ("10", "The answer is 10</s>", 1),
    ("10", "#### 10<|eot_id|>", 1),
    ("10", "The answer is 10<｜end▁of▁sentence｜>", 1),
    ("10", "10<|im_end|>\n<|im_start|>user\nAnd 3+4?<|im_end|>\n7", 1),
    ("7", "10<|im_end|>\n<|im_start|>user\nAnd 3+4?<|im_end|>\n7", 0),
    ("8", r"first $\boxed{5}$. Final Answer: The final answer is $8$. I hope it is correct.", 1),
    ("5", r"first $\boxed{5}$. The answer sheet has 8 rows", 1),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "text", "right"), STATEMENTS)
def test_what_a_text_states(gold, text, right):
    assert grade(gold, text, "flexible").correct is bool(right)


GOLDS = [
    "5", "-5", r"\frac{1}{2}", "x > 5", "(1, 2)", "[0,1)", r"x \in [-2,7]", r"\{1,2\}", r"3\sqrt{2}", r"2\pi", "x^2+1",
    "y = 2x + 3", "11:21", "1, 2, 3", r"50\%", r"\text{Friday}", "A", "52_8", r"\pm 2", r"\emptyset", "1 + 2i", "n!",
    r"x = 2 \text{ or } x = 3", r"90^\circ", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"5 \text{ cm}", r"\log_2 3",
    r"(-\infty, 2) \cup (3, \infty)", r"\frac{x+1}{2}", "f(x) = 2x", r"\sqrt[3]{2}", "10^{5}", r"\lfloor x \rfloor",
]  # fmt: skip
FRAMES = [
    "@", "$@$", "$$@$$", r"\[@\]", r"\(@\)", "The answer is $@$.", "Thus $@$.", r"So, the answer is \(@\).",
    r"\boxed{@}", r"\boxed{$@$}", r"$\boxed{ @ }$.<|im_end|>", "**@**", "Answer: $@$", "The final answer is: $@$.",
    "Final Answer: The final answer is $@$. I hope it is correct.", "**Final Answer:**\n\n\\[\n@\n\\]",
    "It follows that\n\\[@.\\]", "Answer: @", "The answer is @.",
]  # fmt: skip


@pytest.mark.parametrize("gold", GOLDS)
def test_every_kind_of_answer_is_found_in_every_frame(gold):
    for frame in FRAMES:
        text = frame.replace("@", gold)
        assert grade(gold, text, "flexible").correct is True, (text, extract_answer(text, "flexible"))


BOXES = [
    ("1,-2", r"so \boxed{1} and \boxed{-2}.", 1),
    ("-2", r"so \boxed{1} and \boxed{-2}.", 0),
    ("1", r"so \boxed{1} and \boxed{-2}.", 0),
    ("1,2,3", r"\boxed{1},\boxed{2},\boxed{3}", 1),
    ("1,2", r"\boxed{1}\boxed{2}", 1),
    ("(2,1),(1,2)", "these are:\n\n\\[\n\\boxed{(1, 2)}, \\boxed{(2, 1)}\n\\]", 1),
    ("(3,4),(6,2)", r"$$\boxed{(3,4)} \text{ for part (a) and } \boxed{(6,2)}$$", 1),
    ("k=4,n=2", r"$$\boxed{k = 4} \quad \text{and} \quad \boxed{n = 2}$$", 1),
    ("2,3", r"$x=\boxed{2}$ and $y=\boxed{3}$", 1),
    ("3", r"$x=\boxed{2}$ and $y=\boxed{3}$", 0),
    ("234", r"\boxed{1}, \boxed{234}", 0),
    ("1234", r"\boxed{1}, \boxed{234}", 0),
    ("43", r"$$\boxed{20}$$ \boxed{43}", 1),
    ("1/2", r"$\boxed{\frac{2}{4}} = \boxed{\frac12}$", 1),
    ("5", r"The result is \boxed{4}. After checking, \boxed{5}.", 1),
    ("5", r"\boxed{5}, so again \boxed{5}", 1),
    ("4", r"First \boxed{3}, no: \boxed{4}", 1),
    ("84", "hence\\boxed{84}.,but see below.\n\n**Final Answer**\n\\boxed{84}", 1),
    ("1,-2", r"\boxed{-2,1}", 1),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "text", "right"), BOXES)
@pytest.mark.parametrize("answer_format", ["boxed", "flexible"])
def test_boxes_of_one_sentence_are_a_list(gold, text, right, answer_format):
    assert grade(gold, text, answer_format).correct is bool(right)


def test_a_reference_may_have_several_boxes():
    assert grade(r"\(\boxed{1}\) and \(\boxed{-2}\).", r"$\boxed{-2,1}$.").correct is True
    assert grade(r"\(\boxed{1}\) and \(\boxed{-2}\).", r"$\boxed{-2}$.").correct is False


BROKEN_OFF = [
    ("5", r"so \boxed{5"),
    ("5", "<think> it is 5"),
    ("1", r"The answer is $\frac{1"),
    ("2", r"Therefore x = \frac{1}{2"),
    ("12", "so we have 3 + 12 ="),
    ("12", r"Thus 12 \times"),
    ("12", "so 48 + 12 +"),
    ("5", "Final Answer: The final answer is $5 + "),
    ("5", r"The answer is \(5"),
    ("5", r"The answer is $x = 5"),
    ("1", r"so \bo"),
    ("3", "the value is (3,"),
    ("3", r"thus x \in [3,"),
    ("12", r"so \boxed{5} and \boxed{12"),
    ("4", "We have $x = 4$ and $y = "),
    ("10", "Total cost = 5 * 2 = 10 / "),
]


@pytest.mark.parametrize(("gold", "text"), BROKEN_OFF)
@pytest.mark.parametrize("answer_format", ["boxed", "hash", "flexible"])
def test_a_text_that_breaks_off_is_never_right(gold, text, answer_format):
    assert grade(gold, text, answer_format).correct is False


def test_no_frame_cut_anywhere_gives_a_part_of_the_answer():
    """A text cut before its answer is whole may have no answer or another one, never a part that passes for right."""
    for gold, part in (
        ("7/3", "7"),
        (r"\frac{7}{3}", "7"),
        ("(7, 3)", "7"),
        ("[7, 3)", "7"),
        ("x = 7y", "7"),
    ):
        for frame in ("So $@$.", r"So \(@\).", r"\boxed{@}", "The answer is $@$."):
            text = frame.replace("@", gold)
            for end in range(len(text)):
                assert grade(part, text[:end], "flexible", cut_off=True).correct is False, text[:end]
