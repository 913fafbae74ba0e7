"""Gradings per second on one core: ordinary outputs, distinct ones, so that no cache helps.

    python -m eval.speed.math_grading [--gradings 2000] [--answer-format flexible]

Each text is a derivation of some 2000 characters with an answer at its end: whole numbers (as in GSM8K and AIME)
half of the time, else fractions, roots, intervals, tuples, polynomials, units and equations (as in MATH); half are
wrong.
"""

from __future__ import annotations

import argparse
import random
import time

from posttrain.answers.fallback import prepare
from posttrain.answers.grading import grade

STEP = "We compute $3x + {a} = {b}$, so that x becomes {c} and the next step follows. "
RICH = (
    r"\frac{%d}{%d}", r"%d\sqrt{%d}", "(%d,%d)", "%dx^2+%dx-1", r"[%d,\infty) \cup \{-%d\}", r"%d\pi+%d", "y=%dx+%d",
    r"%d.%d\text{ cm}", "%d,%d", r"\log_{%d} %d",
)  # fmt: skip
FRAMES = {
    "boxed": ("So the answer is $\\boxed{%s}$.",),
    "flexible": ("So the answer is $%s$.", "Therefore we get $%s$.", "\\boxed{%s}", "The final answer is %s"),
}


def samples(number: int, answer_format: str, seed: int = 0) -> list[tuple[str, str, bool]]:
    """(gold, text, right), all different."""
    rng = random.Random(seed)
    found = []
    for index in range(number):
        a, b = rng.randint(2, 9999), rng.randint(2, 99)
        pattern = RICH[index // 2 % len(RICH)]
        gold = pattern % (a, b) if index % 2 else str(a * 10_000 + index)
        right = rng.random() < 0.5
        said = gold if right else (pattern % (a + 1, b) if index % 2 else str(a * 10_000 + index + 1))
        steps = "".join(STEP.format(a=rng.randint(1, 99), b=rng.randint(1, 99), c=a) for _ in range(25))
        found.append((gold, steps + rng.choice(FRAMES[answer_format]) % said, right))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gradings", type=int, default=2000)
    parser.add_argument("--answer-format", choices=sorted(FRAMES), default="flexible")
    arguments = parser.parse_args()
    prepare()
    triples = samples(arguments.gradings, arguments.answer_format)
    began = time.process_time()
    verdicts = [grade(gold, text, arguments.answer_format).correct for gold, text, _ in triples]
    seconds = time.process_time() - began
    errors = sum(verdict is not right for verdict, (_, _, right) in zip(verdicts, triples, strict=True))
    print(
        f"{len(triples) / seconds:.0f} gradings per second of CPU ({arguments.answer_format}), {errors} wrong verdicts"
    )


if __name__ == "__main__":
    main()
