"""A calculator as an environment, and the reward for what is said after it has been used."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.calculator import value


class Calculator:
    """Knows the row's problem, and how often it was asked."""

    def __init__(self, calls: int = 2) -> None:
        self.most_calls = calls

    def reset(self, prompt: list[dict], **row: object) -> None:
        """A new response begins; there is nothing to add to its prompt."""
        self.problem = prompt[-1]["content"]
        self.asked: list[str] = []

    def calc(self, e: str) -> str:
        """Works out an expression of two numbers.

        Args:
            e: the expression, such as 17*46
        """
        self.asked.append(e)
        if len(self.asked) > self.most_calls:
            raise ValueError("the calculator is tired")
        return str(value(e))


def right(completions: list[list[dict]], *, answer: Sequence[str]) -> list[float]:
    """1.0 where the last thing said is the answer."""
    return [
        float(messages[-1]["content"] == gold) for messages, gold in zip(completions, answer, strict=True)
    ]
