"""The calculator as tasks of the package verifiers: problems, a tool, and rewards of their own."""

from __future__ import annotations

from collections.abc import Iterator

import verifiers.v1 as vf

from posttrain.data.calculator import Calculations, value


class CalculatorConfig(vf.TasksetConfig):
    seed: int = 0
    problems: int = 4608


class Problem(vf.TaskData):
    answer: str


class Asked(vf.State):
    """What the tool was asked in a response; the task's metrics read it."""

    asked: list[str] = []


class Calculator(vf.Toolset[vf.ToolsetConfig, Asked]):
    TOOL_PREFIX = None

    @vf.tool
    def calc(self, e: str) -> str:
        """Works out an expression of two numbers.

        Args:
            e: the expression, such as 17*46
        """
        self.state.asked.append(e)
        return str(value(e))


class Calculation(vf.Task[Problem, Asked, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[vf.Toolset]:
        return [Calculator(vf.ToolsetConfig())]

    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        """Whether the last thing said is the answer."""
        return float(trace.last_reply == self.data.answer)

    @vf.metric
    async def calls(self, trace: vf.Trace) -> float:
        return float(len(trace.state.asked))


class CalculatorTasks(vf.Taskset[Calculation, CalculatorConfig]):
    def load(self) -> Iterator[Calculation]:
        found = Calculations(size=self.config.problems - 512, held_out=512, seed=self.config.seed)
        for problem in (*found.problems("test"), *found.problems("train")):
            yield Calculation(Problem(prompt=problem, answer=str(value(problem))), self.config.task)
