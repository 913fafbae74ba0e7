"""Batch arithmetic of a run, exact and in words.

Letters: W processes, b responses per micro-batch, a micro-batches an optimizer step, s micro-batches of one rollout,
mu passes over it, G responses per prompt. One rollout is b * W * s responses of b * W * s / G prompts, trained on in
s * mu / a optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, lcm

from posttrain.recipe import Recipe
from posttrain.recipe.train_options import FlowTrain, PolicyTrain
from posttrain.rollout.logged import LoggedRule


@dataclass(frozen=True)
class RolloutSize:
    """One rollout of a method that generates; all counts are over all processes unless said otherwise."""

    processes: int  # W
    micro_batch: int  # b
    accumulation: int  # a
    window: int  # s
    passes: int  # mu
    group: int  # G

    @property
    def completions(self) -> int:
        return self.micro_batch * self.processes * self.window

    @property
    def prompts(self) -> int:
        return self.completions // self.group

    @property
    def completions_per_process(self) -> int:
        return self.micro_batch * self.window

    @property
    def optimizer_steps(self) -> int:
        return self.window * self.passes // self.accumulation

    @property
    def whole_groups_per_process(self) -> bool:
        return self.completions_per_process % self.group == 0

    def faults(self) -> Iterator[str]:
        """Why this cannot run, a sentence each."""
        if self.group < 2:
            yield "rollout: group_size 1 leaves nothing to compare a response with; use 2 or more"
        elif self.completions % self.group:
            step = lcm(self.group, self.processes)  # every process has as many
            below = self.completions // step * step
            yield (
                f"train: {self.micro_batch} responses x {plural(self.processes, 'process')} x "
                f"{plural(self.window, 'micro-batch')} = {self.completions} do not divide into groups of {self.group}; "
                f"make the product of per_device_train_batch_size, processes and steps_per_generation "
                f"{' or '.join(str(n) for n in (below, below + step) if n)}"
            )
        if self.window * self.passes % self.accumulation:
            yield (
                f"train: steps_per_generation x num_iterations = {self.window * self.passes} is not a multiple of "
                f"gradient_accumulation_steps ({self.accumulation}), so an optimizer step would mix two rollouts; "
                f"set steps_per_generation to {self.accumulation} or a multiple of it"
            )

    def in_words(self) -> list[str]:
        share = self.accumulation * self.micro_batch * self.processes
        lines = [
            f"{plural(self.prompts, 'prompt')} x {self.group} responses = {self.completions} completions per rollout",
            f"{plural(self.optimizer_steps, 'optimizer step')} per rollout"
            + (f", in {self.passes} passes over it" if self.passes > 1 else ""),
            f"each optimizer step = {plural(self.accumulation, 'micro-batch')} x {self.micro_batch} responses on "
            f"{plural(self.processes, 'process')} = {share} responses",
        ]
        if self.whole_groups_per_process:
            lines.append("whole groups per process: yes")
        else:
            lines.append(
                "whole groups per process: no, a group is spread over processes; rewards and advantages are "
                "computed from whole groups all the same"
            )
        if self.optimizer_steps == 1:
            lines.append(
                "each rollout is trained on once, on-policy: the ratio is 1, so clip bounds do nothing"
            )
        return lines


@dataclass(frozen=True)
class Texts:
    """Batches of a method that trains on given texts or pairs."""

    processes: int
    micro_batch: int
    accumulation: int

    @property
    def rows_per_step(self) -> int:
        return self.processes * self.micro_batch * self.accumulation

    def in_words(self) -> list[str]:
        return [
            f"each optimizer step = {plural(self.accumulation, 'micro-batch')} x {self.micro_batch} rows on "
            f"{plural(self.processes, 'process')} = {self.rows_per_step} rows"
        ]


def rollout_of(recipe: Recipe, processes: int) -> RolloutSize | None:
    """The rollout of a policy recipe; None for the families that train on given texts."""
    if not isinstance(recipe.train, PolicyTrain | FlowTrain) or recipe.rollout is None:
        return None
    return RolloutSize(
        processes,
        recipe.train.per_device_train_batch_size,
        recipe.train.gradient_accumulation_steps,
        recipe.train.window,
        recipe.train.num_iterations,
        recipe.rollout.group_size,
    )


def resample_lines(recipe: Recipe, rollout: RolloutSize | None) -> list[str]:
    """What dynamic sampling may add to a rollout."""
    rule = None if recipe.rollout is None else recipe.rollout.resample
    if rule is None or rollout is None:
        return []
    most = rollout.prompts * rule.max_rounds
    return [
        f"dynamic sampling: up to {rule.max_rounds} rounds, so at most {plural(most, 'prompt')} x {rollout.group} "
        f"responses = {most * rollout.group} completions per rollout; epochs count the prompts that are trained on"
    ]


def logged_lines(recipe: Recipe, rollout: RolloutSize | None) -> list[str]:
    """Which places of a group are not sampled."""
    if recipe.rollout is None or recipe.rollout.logged is None or rollout is None:
        return []
    logged = recipe.rollout.logged
    rule = LoggedRule(**logged.model_dump())
    return [
        f"logged answers: column '{rule.column}' takes up to {rule.places(rollout.group)} of {rollout.group} places of "
        f"a group, treatment {rule.treatment}; samples fill what it leaves"
    ]


def texts_of(recipe: Recipe, processes: int) -> Texts:
    return Texts(
        processes, recipe.train.per_device_train_batch_size, recipe.train.gradient_accumulation_steps
    )


def steps_of(recipe: Recipe, processes: int, rows: int | None) -> int | None:
    """Optimizer steps of the run; None where they follow from rows that are not counted yet."""
    steps, epochs = recipe.train.max_steps, recipe.train.num_train_epochs
    if steps is not None or rows is None or epochs is None:
        return steps
    # Texts: the last, smaller step of an epoch counts. Rollouts: an incomplete one is never generated.
    rollout = rollout_of(recipe, processes)
    if rollout is None:
        return ceil(epochs * ceil(rows / texts_of(recipe, processes).rows_per_step))
    return int(epochs * rows / _prompts_per_step(rollout))


def _prompts_per_step(rollout: RolloutSize) -> float:
    return rollout.prompts / max(rollout.optimizer_steps, 1)


def order_warnings(
    recipe: Recipe, processes: int, rollout: RolloutSize | None, steps: int | None, rows: int | None
) -> list[str]:
    """A curriculum that ends before its rows do. With dynamic sampling how far it comes is not known beforehand."""
    order = recipe.data.order
    if order is None or not steps or not rows:
        return []
    if rollout is None:
        unit, seen, whole = "pairs", float(steps * texts_of(recipe, processes).rows_per_step), rows
    elif recipe.rollout is None or recipe.rollout.resample is not None:
        return []
    else:
        unit, seen = "prompts", steps * _prompts_per_step(rollout)
        whole = rows // rollout.prompts * rollout.prompts  # prompts that fill no rollout are never taken
    if seen >= whole:
        return []
    band = ceil(seen / rows * order.bands)
    other = "lowest" if order.first == "highest" else "highest"
    return [
        f"data.order: the run takes {seen:.10g} of {rows} {unit}, so it ends in band {band} of "
        f"{order.bands} and never sees the {other}; raise train.max_steps, or lower data.limit"
    ]


def length_in_words(recipe: Recipe, processes: int, rows: int | None) -> str:
    """How long the run is, in optimizer steps, rollouts and epochs as far as they are known."""
    rollout, epochs = rollout_of(recipe, processes), recipe.train.num_train_epochs
    steps = steps_of(recipe, processes, rows)
    if steps is None:
        assert epochs is not None
        return f"{epochs:g} epoch{'' if epochs == 1 else 's'}; the number of steps follows from the data"
    if rollout is not None:
        unit, seen = "prompts", steps * _prompts_per_step(rollout)
    else:
        unit, seen = "rows", float(steps * texts_of(recipe, processes).rows_per_step)
        if recipe.train.max_steps is None and epochs is not None and rows is not None:
            seen = epochs * rows
    text = plural(steps, "optimizer step")
    if rollout is not None and rollout.optimizer_steps:
        text += f" = {plural(-(-steps // rollout.optimizer_steps), 'rollout')}"
    text += f" = {seen:.10g} {unit}"
    return text + (f" ({seen / rows:.2f} epochs of {rows} rows)" if rows else "")


def plural(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}es" if noun.endswith(("s", "ch")) else f"{count} {noun}s"
