r"""Grading of mathematics: a table of (gold, answer, verdict), the extraction rule, and what must never happen.

A line of the table is `gold # answer # 1` or `# 0`; the answer is put into a box at the end of a sentence.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import pytest

from posttrain.rewards.grading_pool import Item, grade_many
from posttrain.rewards.math_grading import Grade, canonical_answer, extract_answer, grade, read_gold
from posttrain.rewards.maths.equal import equal_answers

TABLE = r"""
numbers
72 # 72 # 1
72 # 72.0 # 1
72 # 72. # 1
72 # +72 # 1
72 # 072 # 1
72 # -72 # 0
72 # 7 # 0
72 # 720 # 0
72 # 7 2 # 0
-5 # 5 # 0
-5 # −5 # 1
0 # -0 # 1
3.21 # 3.210 # 1
3.21 # 3.2100004 # 0
.0000672 # 6.72 \times 10^{-5} # 1
.0000672 # 6.72e-5 # 1
.0000672 # 0.0000673 # 0
2.88 \times 10^{-19} # 2.88e-19 # 1
2.88 \times 10^{-19} # 3.88e-19 # 0
1e-8 # 2e-8 # 0
12345678 # 12345679 # 0
1000000 # 1000000.5 # 0
1000 # 10^3 # 1
1 # 0.9999999 # 0
1 # 0.\overline{9} # 1
10 # 10! # 0
120 # 5! # 1
5 # \text{five} # 1
1009 # \ldots # 0
fractions and decimals
\frac{14}{3} # \frac{28}{6} # 1
\frac{14}{3} # 14/3 # 1
\frac{14}{3} # \dfrac{14}{3} # 1
\frac{14}{3} # 4\frac{2}{3} # 1
\frac{14}{3} # 4 2/3 # 1
\frac{14}{3} # 4.67 # 0
\frac{14}{3} # \frac{3}{14} # 0
\frac43 # 1.333333 # 1
\frac43 # 1.3333 # 0
\frac 59 # \frac{5}{9} # 1
\frac9{19} # 9/19 # 1
\frac13 # 0.\overline{3} # 1
\frac13 # 0.333... # 1
\frac13 # 0.334... # 0
\frac16 # 0.1\overline{6} # 1
-\frac{35}{9} # \frac{-35}{9} # 1
-\frac{35}{9} # \frac{35}{-9} # 1
-\frac{35}{9} # \frac{35}{9} # 0
\frac{1}{2} # ½ # 1
\frac{1}{2} # \tfrac12 # 1
\frac{3}{4} # 3:4 # 1
\frac{3}{4} # 4:3 # 0
1\frac{4}{5} # \frac{9}{5} # 1
1\frac{4}{5} # 1.8 # 1
1\frac{4}{5} # \frac{4}{5} # 0
137 \frac{1}{2} # 137.5 # 1
2\frac12 # 2 \cdot \frac12 # 0
-2\frac12 # -2.5 # 1
-2\frac12 # -1.5 # 0
percent
50\% # 0.5 # 1
50\% # 50 # 1
50\% # \frac12 # 1
50\% # 50 \text{ percent} # 1
50\% # 5\% # 0
50\% # 0.05 # 0
0.5 # 50\% # 1
0.5 # 0.5\% # 0
62.5\% # 62.5 # 1
62.5\% # \frac58 # 1
12 # 12\% # 1
8 \% # 0.08 # 1
33\frac{1}{3}\% # \frac13 # 1
150\% # 1.5 # 1
thousands
10,\!080 # 10080 # 1
10,\!080 # 10,080 # 1
10,\!080 # 10{,}080 # 1
10,\!080 # 10 080 # 1
10,\!080 # 10\,080 # 1
10,\!080 # 1080 # 0
58,500 # 58500 # 1
58,500 # 58.500 # 0
11,\! 111,\! 111,\! 100 # 11111111100 # 1
1,234,567 # 1.234.567 # 1
2 # 2,\!000 # 0
5000000 # 5 \text{ million} # 1
100,200 # 100200 # 1
100,200 # 100, 200 # 1
100, 200 # 300 # 0
1, 234 # 1234 # 0
roots and constants
3\sqrt{13} # \sqrt{117} # 1
3\sqrt{13} # \sqrt{13} \cdot 3 # 1
3\sqrt{13} # 13\sqrt{3} # 0
3\sqrt{13} # 10.8167 # 0
\sqrt{51} # 51^{1/2} # 1
\sqrt{51} # \sqrt[3]{51} # 0
11\sqrt2 # 11 \sqrt{2} # 1
5 \sqrt[3]{4} # \sqrt[3]{500} # 1
\frac{\sqrt{3}}{3} # \frac{1}{\sqrt{3}} # 1
\frac{\sqrt{3}}{3} # \sqrt{\frac{1}{3}} # 1
\sqrt{4} # \pm 2 # 0
\frac{3\sqrt{3}}{4} # \frac34\sqrt3 # 1
2\sqrt{5} # sqrt(20) # 1
288 \pi # 288π # 1
288 \pi # 288 # 0
\pi # 3.14 # 0
\pi # 3.14159265 # 1
1+2\sqrt{3} # 2\sqrt{3}+1 # 1
1+2\sqrt{3} # 1-2\sqrt{3} # 0
2^{1009} # 2 \cdot 4^{504} # 1
2^{1009} # 2^{1009}+1 # 0
2^{1009} # 2^{1008} # 0
e^{2} # \mathrm{e}^2 # 1
\ln 8 # 3 \ln 2 # 1
\log_2 8 # 3 # 1
\frac12 # \sin 30^\circ # 1
\frac{100!}{2^{50}} # \frac{100!}{4^{25}} # 1
9^{9^{9^{9}}} # 9^{9^{9^{8}}} # 0
complex numbers
6 - 5i # -5i + 6 # 1
6 - 5i # 6 + 5i # 0
3+4i # (2+i)^2 # 1
2i # 2\mathrm{i} # 1
2 # 2\mathrm{i} # 0
\sqrt{-4} # 2i # 1
angles and units
90^\circ # 90 # 1
90^\circ # 90 \text{ degrees} # 1
90^\circ # 90° # 1
90 # 90^{\circ} # 1
90^\circ # 80^\circ # 0
\frac{\pi}{6} # 30^\circ # 0
\frac{270}7\text{ degrees} # \frac{270}{7}^\circ # 1
5 \text{ cm} # 5 # 1
5 # 5 \text{ cm} # 1
5 # 5\,\mathrm{cm} # 1
5 # 5 cm # 1
5 # 5 \text{ apples} # 1
5 \text{ cm} # 5 \text{ m} # 0
5 \text{ cm} # 50 \text{ mm} # 1
5 \text{ cm} # 6 \text{ cm} # 0
864 \mbox{ inches}^2 # 864 \text{ square inches} # 1
864 \mbox{ inches}^2 # 864 \text{ in}^2 # 1
15\mbox{ cm}^2 # 15 \text{ cm}^3 # 0
5\text{ m/s} # 5 \frac{\text{m}}{\text{s}} # 1
5\text{ m/s} # 18 \text{ km/h} # 1
5\text{ m/s} # 5 \text{ km/h} # 0
\frac{1}{2}\text{ hour} # 30 \text{ minutes} # 1
45 \text{ minutes} # 45 # 1
\$36 # 36 # 1
\$36 # \$36.00 # 1
\$36 # 36 \text{ dollars} # 1
\$36 # \$35 # 0
\$32,\!348 # 32348 # 1
5.4 \text{ cents} # 5.4 # 1
5.4 \text{ cents} # \$0.054 # 1
5.4 \text{ cents} # \$5.40 # 0
1.6 \mathrm{~cm} # 1.6 \text{ cm} # 1
4.5e33 \mathrm{ergs} \mathrm{s}^{-1} # 4.5 \times 10^{33} # 1
5m # 5 # 0
7 # 7x # 0
names
x=5 # 5 # 1
5 # x=5 # 1
5 # x = 5 \text{ cm} # 1
x=5 # y=5 # 0
7 # m+n=7 # 1
7 # m+n=8 # 0
5 # 2+3=5 # 1
5 # \text{The answer is } 5 # 1
2k+2 # 2(k+1) # 1
2k+2 # 2n+2 # 0
f(x)=2x # 2x # 1
f(x)=2x # f(t)=2t # 1
f(x)=2x # y=2x # 1
f(x)=2x # f(x)=x # 0
f(n)=n, g(n)=1 # f(n)=n, \; g(n)=1 # 1
a=1, b=2 # b=2, a=1 # 1
a=1, b=2 # a=2, b=1 # 0
x=\frac12 \approx 0.5 # \frac12 # 1
m_{\max }=n^{2}-n-1 # n^2-n-1 # 1
expressions
p - q # -q + p # 1
p - q # q - p # 0
(a+5)(b+2) # (b+2)(a+5) # 1
(a+5)(b+2) # ab+2a+5b+10 # 1
(a+5)(b+2) # ab+2a+5b+11 # 0
x^5 - x^4 + x^3 - x^2 + x - 1 # (x-1)(x^4+x^2+1) # 1
x^3+3x-6 # x^3+3x+6 # 0
\cot x # \frac{\cos x}{\sin x} # 1
\frac{x+1}{2} # \frac12(x+1) # 1
\frac{x+1}{2} # x+1/2 # 0
\frac{11+9a}{20} # \frac{9a}{20}+\frac{11}{20} # 1
\sqrt{x^2} # x # 0
|x-1| # |1-x| # 1
\frac{n(n+1)}{2} # \binom{n+1}{2} # 1
\frac{n(n+1)}{2} # \frac{n(n-1)}{2} # 0
\lfloor\frac{2 n-1}{5}\rfloor # \left\lfloor\frac{2n-1}{5}\right\rfloor # 1
\lceil n / 2\rceil+1 # \lfloor n/2 \rfloor + 1 # 0
(-1)^n # (-1)^{n+2} # 1
x^2 # X^2 # 0
\theta # \alpha # 0
\int_0^1 2x \, dx # 1 # 1
\sum_{k=1}^{4} k # 10 # 1
\frac{d !}{2 k(d-k) !} # \frac{d!}{2k \cdot (d-k)!} # 1
equations
y = 2x + 3 # y = 3 + 2x # 1
y = 2x + 3 # 2x - y + 3 = 0 # 1
y = 2x + 3 # y = 2x - 3 # 0
y = 2x # \frac{y}{x} = 2 # 1
5x - 7y + 11z + 4 = 0 # -5x + 7y - 11z = 4 # 1
5x - 7y + 11z + 4 = 0 # 10x - 14y + 22z + 8 = 0 # 1
5x - 7y + 11z + 4 = 0 # 5x - 7y + 11z = 4 # 0
5x - 7y + 11z + 4 = 0 # 5x - 7y + 11z + 4 # 0
x^2+y^2=25 # x^2+y^2-25=0 # 1
(x-1)^2+(y+2)^2=9 # x^2-2x+y^2+4y-4=0 # 1
x^2+y^2=25 # x^2+y^2=5 # 0
tuples
(3, \frac{\pi}{2}) # \left( 3, \pi/2 \right) # 1
(-2,1) # (-2, 1) # 1
(-2,1) # (1,-2) # 0
(-2,1) # -2, 1 # 1
(-2,1) # \{-2,1\} # 0
(6,31,-1) # (6, 31, -1) # 1
(6,31,-1) # (6,31,1) # 0
(6,31,-1) # (6,31) # 0
(1,2) # x=1, y=2 # 1
(1,2) # (x,y)=(1,2) # 1
(1,2) # \begin{cases} x=1 \\ y=2 \end{cases} # 1
(1,2) # [1,2] # 0
(1,2),(3,4) # (3,4), (1,2) # 1
(1,2),(3,4) # (2,1),(4,3) # 0
(1,2),(3,4) # \{(1,2),(3,4)\} # 1
(1,7,103, 105), (3, 5, 101, 107) # (3,5,101,107),(1,7,103,105) # 1
\langle 1,2\rangle # (1,2) # 1
(10^{4}, 10^{3}) # (10000, 1000) # 1
sets and lists
1,-2 # -2, 1 # 1
1,-2 # -2 \text{ and } 1 # 1
1,-2 # x = -2 \text{ or } x = 1 # 1
1,-2 # \{1,-2\} # 1
1,-2 # 1 # 0
1 # 1,-2 # 0
3, 5, 7 # 7,5,3 # 1
3, 5, 7 # 3,5 # 0
3, 5, 7 # 3,5,7,9 # 0
3, 5, 7 # 357 # 0
16,3,1,1 # 1,1,3,16 # 1
16,3,1,1 # 16,3,1 # 0
\{1,2,3\} # \{3,2,1\} # 1
\{1,2,3\} # (1,2,3) # 0
\{1,2,3\} # \{1,2\} # 0
\{1\pm\sqrt{5},-2\} # \{-2, 1+\sqrt5, 1-\sqrt5\} # 1
1 \pm \sqrt{19} # 1+\sqrt{19}, 1-\sqrt{19} # 1
1 \pm \sqrt{19} # 1-\sqrt{19} # 0
\pm 2 # 2, -2 # 1
f(x)=x,f(x)=-x # f(x) = -x \text{ or } f(x) = x # 1
\frac12, \sqrt{x} # \sqrt{x}, 0.5 # 1
\emptyset # \text{no solution} # 1
\text{A,D} # \text{D and A} # 1
\text{A,D} # A # 0
intervals and inequalities
(2,\infty) # x > 2 # 1
(2,\infty) # 2 < x # 1
(2,\infty) # x \ge 2 # 0
(2,\infty) # [2,\infty) # 0
(2,\infty) # x < 2 # 0
(2,\infty) # \{x \mid x > 2\} # 1
(2,5) # x > 2 \text{ and } x < 5 # 1
(3,4] # 3 < x \le 4 # 1
(3,4] # 4 \ge x > 3 # 1
(3,4] # [3,4) # 0
x \in [-2,7] # [-2,7] # 1
x \in [-2,7] # -2 \le x \le 7 # 1
x \in [-2,7] # (-2,7) # 0
(-\infty, 2) \cup (3, \infty) # (3,\infty) \cup (-\infty,2) # 1
(-\infty, 2) \cup (3, \infty) # x<2 \text{ or } x>3 # 1
(-\infty, 2) \cup (3, \infty) # (-\infty, 2] \cup [3, \infty) # 0
(-\infty, 2) \cup (3, \infty) # (2,3) # 0
(0,1) \cup (1,2) # 0<x<2, x \neq 1 # 1
(-\infty, 0) \cup\{1\} # (-\infty,0) \cup \{1\} # 1
[0,1] \cup [1,2] # [0,2] # 1
[0,1) \cup (1,2] # [0,2] # 0
k \geqslant 2 # [2, \infty) # 1
k \geqslant 2 # n \ge 2 # 0
\mathbb{R} # (-\infty,\infty) # 1
\mathbb{R} # \text{all real numbers} # 1
\mathbb{R} \setminus \{3\} # x \ne 3 # 1
\left(\frac{3}{5},\frac{8}{3}\right] # (0.6, 8/3] # 1
(-\sqrt{3}, \sqrt{3}) # -\sqrt3 < x < \sqrt3 # 1
matrices
\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix} # \begin{bmatrix} -2 \\ -14 \\ -7 \end{bmatrix} # 1
\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix} # (-2,-14,-7) # 1
\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix} # \begin{pmatrix} -2 & -14 & -7 \end{pmatrix} # 0
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} # \left[\begin{array}{cc} -1 & 0 \\ 0 & -1 \end{array}\right] # 1
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} # \begin{pmatrix} 0 & -1 \\ -1 & 0 \end{pmatrix} # 0
\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix} # \begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix} # 1
bases
52_8 # 52_{8} # 1
52_8 # 52_{\text{eight}} # 1
52_8 # 52 # 1
52_8 # 52_9 # 0
52_8 # 25_8 # 0
52_8 # 42 # 0
42 # 52_8 # 1
42 # 42_8 # 0
152A_{11} # 152A_{11} # 1
words
\text{Evelyn} # Evelyn # 1
\text{Evelyn} # \text{evelyn} # 1
\text{Evelyn} # \text{Angela} # 0
\text{even} # even # 1
\text{even} # odd # 0
\text{ellipse} # \text{an ellipse} # 1
\text{Monday} # \text{Monday.} # 1
east # seat # 0
\text{Yes} # no # 0
\text{(C)} # C # 1
\text{(C)} # \textbf{(C)} # 1
\text{(C)} # \mathrm{(C)} # 1
\text{(C)} # (\text{C}) # 1
\text{(C)} # \textbf{(C)}\ 15 # 1
\text{(C)} # B # 0
15 # \textbf{(C)}\ 15 # 1
\text{3:30 PM} # 3:30 \text{ p.m.} # 1
conditions and remarks
\frac{\pi}{4}+k\pi # \frac{\pi}{4} + k\pi, k \in \mathbb{Z} # 1
2n # 2n \text{ for all } n \ge 1 # 1
2n # 3n \text{ for all } n \ge 1 # 0
"""


def table():
    section, cases = "", []
    for line in TABLE.strip().splitlines():
        if line.count(" # ") == 2:
            gold, answer, verdict = line.split(" # ")
            cases.append(pytest.param(gold, answer, verdict == "1", id=f"{section}: {gold} | {answer}"))
        else:
            section = line
    return cases


@pytest.mark.parametrize(("gold", "answer", "verdict"), table())
def test_table(gold, answer, verdict):
    result = grade(gold, rf"Adding up, we find $\boxed{{{answer}}}$.")
    assert result.answer is not None
    assert result.correct is verdict
    if not set("=<>:_%") & set(gold + answer) and verdict:
        assert (
            grade(answer, rf"\boxed{{{gold}}}").correct is True
        )  # without names, bases and units it is symmetric


def test_the_table_is_large_enough():
    assert len(table()) >= 150


# ---- extraction

LAST_BOX = [
    (r"First \boxed{3}, no: \boxed{4}", "4"),
    (r"\boxed{\boxed{7}}", "{7}"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
    (r"\boxed {5}", "5"),
    ("\\boxed{\n5\n}", "5"),
    (r"\boxed{\frac{1}{2}. Again. So \boxed{5}", "5"),
    (r"<think>\boxed{3}</think> so \boxed{4}", "4"),
    (r"no tag was opened</think>\boxed{4}", "4"),
    (r"[THINK]\boxed{3}[/THINK]\boxed{4}", "4"),
]
NO_BOX = [
    ("the answer is 5", "no box"),
    ("", "no box"),
    (r"\boxed{5", "unclosed box"),
    (r"\boxed{\frac{1}{2}", "unclosed box"),
    (r"\boxed{\boxed{5}", "unclosed box"),
    (r"\boxed{3} then \boxed{4", "unclosed box"),
    (r"\boxed{3} then \box", "unclosed box"),
    (r"\boxed{}", "empty box"),
    (r"<think>\boxed{5}", "unclosed reasoning"),
    (r"<think>\boxed{5}</think> so the answer is", "no box"),
    (r"<think>a</think>b<think>\boxed{5}", "unclosed reasoning"),
]


@pytest.mark.parametrize(("text", "answer"), LAST_BOX)
def test_the_last_closed_box_is_the_answer(text, answer):
    assert extract_answer(text).answer == answer


@pytest.mark.parametrize(("text", "reason"), NO_BOX)
def test_a_text_without_a_closed_box_has_no_answer(text, reason):
    assert extract_answer(text) == extract_answer(text, "boxed")
    assert (extract_answer(text).answer, extract_answer(text).reason) == (None, reason)
    assert grade("5", text).correct is False


def test_a_prompt_that_opens_the_reasoning():
    assert extract_answer(r"\boxed{5}", prompt_opens_reasoning=True).reason == "unclosed reasoning"
    assert extract_answer(r"so</think>\boxed{5}", prompt_opens_reasoning=True).answer == "5"


def test_hash_and_flexible_formats():
    assert extract_answer("so 5+5=10\n#### 1,080\n", "hash").answer == "1,080"
    assert extract_answer("so 5+5=10", "hash").reason == "no ####"
    assert grade("work\n#### 18", "She has 18.\n#### 18", "hash") == Grade(True, "18", "equal")
    assert grade("18", "She has 18.", "hash").correct is False
    assert grade("18", "so 9 x 2 is $18.00 in all.", "flexible").correct is True
    assert grade("18", r"\boxed{17} and 18", "flexible").correct is False
    assert grade("18", r"18 \boxed{", "flexible").correct is False
    assert grade("18", "<think>18", "flexible").correct is False
    with pytest.raises(ValueError, match="choose boxed, hash or flexible"):
        extract_answer("5", "box")  # type: ignore[arg-type]  # the point of the test


# ---- the gold answer


@pytest.mark.parametrize(
    "gold", [None, "", "  ", float("nan"), r"\frac{1}{", r"\boxed{5", "???", "work without ####\n####"]
)
def test_a_gold_answer_that_cannot_be_read_is_none(gold):
    assert grade(gold, r"\boxed{5}").correct is None
    assert grade(gold, "no answer").reason == "unreadable gold"


def test_gold_answers_come_in_many_wrappings():
    for gold in (
        5,
        5.0,
        "5",
        "$5$",
        r"thus \boxed{5}",
        r"thus $\boxed 5$",
        r"\fbox{5}",
        "2+3=<<2+3=5>>5\n#### 5",
    ):
        assert grade(gold, r"\boxed{5}").correct is True, gold


def test_a_measured_gold_may_have_a_tolerance():
    assert grade("4.2", r"\boxed{4.25}").correct is False
    assert grade("4.2", r"\boxed{4.25}", abs_tol=0.1).correct is True
    assert grade("4.2", r"\boxed{4.35}", abs_tol=0.1).correct is False
    assert grade("3.83e35", r"\boxed{3.8 \times 10^{35}}", rel_tol=0.05).correct is True


@pytest.mark.parametrize(
    ("file", "field"), [("math500/test.jsonl", "answer"), ("gsm8k/test.jsonl", "answer"), ("minerva_math/test.jsonl", "solution")]
)  # fmt: skip
def test_every_gold_of_the_shared_benchmarks_is_read_and_equals_itself(shared_data, file, field):
    for line in (shared_data / file).open():
        gold = json.loads(line)[field]
        answer = read_gold(gold)
        assert answer is not None, gold
        if "####" in gold or "boxed" in gold:
            answer = gold.rpartition("####")[2] if "####" in gold else extract_answer(gold).answer or "5"
        if extract_answer(rf"\boxed{{{answer}}}").answer is not None:
            assert grade(gold, rf"so \boxed{{{answer}}}").correct is True, gold


# ---- what must never happen

CORRECT_TEXTS = [
    ("5", r"We get $2+3=\boxed{5}$."),
    ("5", r"<think>Is it \boxed{5}? Yes.</think> It is \boxed{5}, no doubt."),
    ("12", r"\boxed{\boxed{12}}"),
    (r"\frac{1}{2}", r"Half: \[\boxed{\frac{1}{2}}\]"),
    (r"\{1,2\}", r"The set is \boxed{\left\{1, 2\right\}}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
]


@pytest.mark.parametrize(("gold", "text"), CORRECT_TEXTS)
def test_a_correct_text_cut_before_its_box_closes_is_never_right(gold, text):
    closes = text.rstrip("$.]\\, nodubt").rindex("}")  # the brace that ends the last box
    assert all(grade(gold, text[:end]).correct is False for end in range(closes + 1))
    assert all(grade(gold, text[:end]).correct is True for end in range(closes + 1, len(text) + 1))


def test_random_answers_cut_inside_their_box_are_never_right():
    rng = random.Random(0)
    for _ in range(60):
        number = str(rng.randint(1, 10**6))
        text = rf"so \boxed{{{number}}}"
        assert grade(number, text).correct is True
        for gold in {number[:length] for length in range(1, len(number) + 1)}:
            for end in range(len(text)):
                assert grade(gold, text[:end]).correct is False


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9^{9}}}}", "(((((" * 60, "{" * 400 + "}" * 400, r"\frac{1}{" * 50 + "2" + "}" * 50, "x" * 900,
        "1/0", "0^0", r"\sqrt[0]{5}", "10^{-10^{10^{10}}}", "99999999!", r"\binom{10^9}{5}", r"\log_1 5", "0^{-1}",
        r"\text{" + "a " * 400 + "}", "," * 300, "=" * 50, "1" * 900, "<" * 40, r"\pm" * 12 + "5", "|" * 31, "^", "_", "\\",
    ],
)  # fmt: skip
def test_strange_answers_are_wrong_quickly(answer):
    began = time.monotonic()
    assert grade("5", rf"\boxed{{{answer}}}").correct is False
    assert time.monotonic() - began < 5


# ---- canonical answers


def test_equal_answers_share_a_canonical_string():
    classes = [
        ["1/2", "0.5", r"\frac{1}{2}", "x = 1/2", r"\dfrac12"],
        ["1080", "1,080", r"1{,}080", r"1080 \text{ km}"],
        [r"\sqrt{8}", r"2\sqrt{2}", r"\sqrt8"],
        ["(1,2)", r"\left(1, 2\right)"],
        ["1, 2", r"\{2,1\}", r"x = 2 \text{ or } x = 1"],
        ["x > 2", r"(2, \infty) \cup (3,\infty)"],
        [r"2(k+1)", "2k+2"],
        [r"\text{Monday}", "monday", "Monday."],
    ]
    spellings = [{canonical_answer(answer) for answer in group} for group in classes]
    assert all(len(spelling) == 1 for spelling in spellings), spellings
    assert len(set.union(*spellings)) == len(classes)
    assert canonical_answer(None) is None
    assert canonical_answer(" ") is None


# ---- in processes


def test_grading_many_keeps_the_order_and_survives_a_hang(monkeypatch):
    items = [Item(str(n), rf"\boxed{{{n if n % 3 else n + 1}}}") for n in range(150)]
    progress = []
    grades = grade_many(items, workers=2, on_progress=lambda done, of: progress.append((done, of)))
    assert [each.correct for each in grades] == [bool(n % 3) for n in range(150)]
    assert progress[-1] == (150, 150)


def test_a_grading_over_its_deadline_is_no_verdict():
    slow = r"\sum_{k=1}^{10^7} \sin(k^2)"  # sympy would add ten million terms
    grades = grade_many(
        [Item("5", r"\boxed{5}"), Item(slow, r"\boxed{\sum_{k=1}^{10^7} \sin(k^3)}")], timeout_s=2.0
    )
    assert grades[0] == Grade(True, "5", "equal")
    assert grades[1].correct in (None, False)


def test_ordinary_gradings_never_import_sympy():
    code = (
        "import sys\nfrom posttrain.rewards.math_grading import grade\n"
        r"print(grade('\\frac{1}{2}', r'\boxed{0.5}').correct, grade('(1,2)', r'\boxed{(1, 2)}').correct)"
        "\nprint('sympy' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "False", "False"]


def test_speed_is_printed(capsys):
    """Distinct ordinary answers, so that no cache helps: half right, half wrong."""
    rng = random.Random(1)
    golds, texts = [], []
    for n in range(400):
        a, b = rng.randint(2, 999), rng.randint(2, 99)
        gold = [f"{a}{n}", rf"\frac{{{a}}}{{{b}}}", rf"{a}\sqrt{{{b}}}", f"({a},{b})", f"{a}x^2+{b}x-{n}"][
            n % 5
        ]
        golds.append(gold)
        texts.append(
            "Let us see. " * 100 + rf"So \boxed{{{gold if n % 2 else gold.replace(str(a), str(a + 1))}}}."
        )
    equal_answers.cache_clear()
    began = time.perf_counter()
    verdicts = [grade(gold, text).correct for gold, text in zip(golds, texts, strict=True)]
    rate = len(golds) / (time.perf_counter() - began)
    assert verdicts == [bool(n % 2) for n in range(400)]
    with capsys.disabled():
        print(f"\n{rate:.0f} gradings/s on one core")
