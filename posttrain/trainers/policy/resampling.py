"""Dynamic sampling: rounds of sampling and judging until a rollout's groups teach, before anything is scored.

The decisions are rollout/resample.py's, on the rewards of all ranks, so every rank makes the same rounds; the samples
are engines/rollouts.py's and the rewards judging.py's. Only groups that are trained on go through the forward passes of
the old policy and the reference.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from posttrain.objectives.base import Objective
from posttrain.objectives.logged_rows import sampled_rewards
from posttrain.process.phases import PHASES
from posttrain.rewards.runner import RewardError
from posttrain.rollout.partial import from_plain, to_plain
from posttrain.rollout.resample import (
    RESAMPLE,
    Choice,
    JudgedGroup,
    PromptOrder,
    ResampleRule,
    RolloutAccount,
    SampledGroup,
    account_of,
    choose,
    short_in_words,
    wanted,
    why_silent,
)
from posttrain.trainers.engines.prompt_rows import PromptRows
from posttrain.trainers.engines.rollout_plan import Round
from posttrain.trainers.engines.rollouts import Rollouts
from posttrain.trainers.engines.scored_rollout import Rollout
from posttrain.trainers.policy.epoch_sampler import EpochRepeatSampler
from posttrain.trainers.policy.judging import Judge, sampled
from posttrain.trainers.policy.step_in_hand import StepInHand


class ShortBatch(RewardError):
    """`on_short: stop`: too few groups of a rollout teach."""


class ResamplingHost(Protocol):
    """What dynamic sampling reads of its trainer, and where it leaves what was thrown away. Names are TRL's, but for
    the parts."""

    args: Any
    accelerator: Accelerator
    state: Any
    train_dataset: Any
    num_generations: int
    tools: Any
    environments: Any
    objective: Objective
    rollouts: Rollouts
    judge: Judge
    step: StepInHand
    _metrics: Any

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]: ...

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler: ...


@dataclass
class Drawn:
    """The groups a rollout has drawn so far, in the order sampled; lists hold one entry a group unless said.

    prompts     rows' numbers
    texts       rollouts of all ranks, one a round
    rounds      this rank's samples, one a round
    lengths     prompt and response tokens
    """

    prompts: list[int] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    sampled: list[SampledGroup] = field(default_factory=list)
    scored: list[Rollout] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


class Resampling:
    """Makes of each rollout one whose groups teach, as far as the rule allows. Registers itself with the rollouts.

    Raises ValueError where the trainer's rows or its way of generating do not allow it.
    """

    def __init__(self, host: ResamplingHost, rule: ResampleRule) -> None:
        self.host, self.rule = host, rule
        self._last: tuple[float, int] | None = None  # when the last rollout began, and its tokens that taught
        if (fault := _fault(host)) is not None:
            raise ValueError(f"rollout.resample: {fault}")
        accelerator, args = host.accelerator, host.args
        rows = host.train_dataset
        self._rows = PromptRows(
            rows,
            PromptOrder(host._get_train_sampler(rows).order, len(rows)),
            size=args.generation_batch_size // host.num_generations,
            group_size=host.num_generations,
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
        )
        host.rollouts.fill_from(self._rows, self.fill)

    def fill(self, number: int, first: Round) -> Round:
        """The samples to train on in round `number`, of which `first` was drawn. Leaves their rewards with the judge
        and the account with the log. Raises ShortBatch, on every rank."""
        begin, size, rule = time.perf_counter(), self._rows.size, self.rule
        drawn = Drawn()
        self._add(drawn, self._rows.of_round(number), first)
        while len(drawn.rounds) < rule.max_rounds:
            count = wanted(drawn.reasons, size, self._rows.unit)
            prompts = self._rows.more(count, drawn.prompts) if count else []
            if not prompts:
                break
            with PHASES.within("sampling over", count):
                more = self.host.rollouts.more(number, len(drawn.rounds), prompts)
            self._add(drawn, prompts, more)
        choice = choose(drawn.reasons, size, rule.on_short)
        if rule.on_short == "stop" and choice.open:
            raise ShortBatch(short_in_words(drawn.reasons, size, len(drawn.rounds), rule))
        self.host.judge.ready = selected(drawn.scored, self._places(choice))
        self._tell(drawn, choice, account_of(drawn.sampled, choice, len(drawn.rounds)), begin)
        return self._round(drawn, choice)

    # One round

    def _add(self, drawn: Drawn, prompts: Sequence[int], round: Round) -> None:
        """Judges a round of these prompts and adds its groups."""
        host, size, begin = self.host, self.host.num_generations, time.perf_counter()
        host.rollouts.round = round
        asked = [row["prompt"] for row in round.rows]
        with _unlogged(host):  # the batch that is trained on is logged, when TRL makes its tensors
            prompt_ids, ids, _, completions, *_ = host._generate(asked)
        scored = host.judge.score(round.rows, asked, completions, ids, group_size=size)
        host.judge.tell_of_unjudged(scored)
        # of what was sampled; a logged answer costs no sampling
        given = scored.given or [False] * len(scored.completion_ids)
        of_prompts = gather_object([len(one) for one in prompt_ids])
        of_prompts = [0 if logged else count for count, logged in zip(of_prompts, given, strict=True)]
        tokens = [0 if logged else len(ids) for ids, logged in zip(scored.completion_ids, given, strict=True)]
        seconds = (round.seconds + time.perf_counter() - begin) / max(sum(tokens), 1)
        reasons = [why_silent(group, self.rule) for group in self._groups(scored)]
        for place, reason in enumerate(reasons):
            rows = slice(place * size, (place + 1) * size)
            count = sum(tokens[rows])
            drawn.sampled.append(SampledGroup(reason, count, count * seconds))
            drawn.lengths.append(count + sum(of_prompts[rows]))
        drawn.prompts += prompts
        drawn.reasons += reasons
        drawn.scored.append(scored)
        drawn.rounds.append(round)

    def _groups(self, scored: Rollout) -> Iterator[JudgedGroup]:
        groups = self.host.judge.groups(self.host.num_generations, scored)
        totals, functions = groups.rewards.tolist(), groups.rewards_per_function.transpose(1, 2).tolist()
        rates = sampled_rewards(groups).tolist()
        for total, each, rate in zip(totals, functions, rates, strict=True):
            values, per_function = _plain(total), [_plain(one) for one in each]
            reads_each = self.host.objective.reads_each_reward
            yield JudgedGroup(values, per_function if reads_each else [values], per_function[0], _plain(rate))

    # The batch

    def _round(self, drawn: Drawn, choice: Choice) -> Round:
        """This rank's share of the batch: responses go to the rank that trains on them."""
        host = self.host
        rank, ranks = host.accelerator.process_index, host.accelerator.num_processes
        wanted_here, first = set(self._places(choice)), 0
        held: dict[int, Any] = {}
        for one in drawn.rounds:
            share = len(one.completions)
            for place, completion in enumerate(one.completions, start=first + rank * share):
                if place in wanted_here:
                    held[place] = completion if ranks == 1 else to_plain(completion)
            first += share * ranks
        if ranks > 1:
            held = {place: from_plain(one) for part in gather_object([held]) for place, one in part.items()}
        rows = self._rows.rows([drawn.prompts[number] for number in choice.batch])
        mine = self._places(choice)[rank * len(rows) : (rank + 1) * len(rows)]
        seconds = sum(one.seconds for one in drawn.rounds)
        return Round(rows, host.rollouts.prompts_of(rows), [held[place] for place in mine], seconds)

    def _places(self, choice: Choice) -> list[int]:
        """Of the batch's responses, among all that were sampled."""
        size = self.host.num_generations
        return [number * size + i for number in choice.batch for i in range(size)]

    # The account

    def _tell(self, drawn: Drawn, choice: Choice, account: RolloutAccount, begin: float) -> None:
        host, metrics = self.host, self.host._metrics["train"]
        # TRL counts the tokens of the batch; those sampled beside it were seen too
        of_batch = sum(drawn.lengths[number] for number in choice.batch)
        host.state.num_input_tokens_seen += sum(drawn.lengths) - of_batch
        found = {**account.metrics(), RESAMPLE + "passes": self._rows.order.passes, **self._means(drawn)}
        if self._last is not None and begin > self._last[0]:
            found[RESAMPLE + "taught_tokens_per_second"] = self._last[1] / (begin - self._last[0])
        self._last = (begin, account.taught_tokens)
        for name, value in found.items():
            metrics[name].append(value)
        if host.accelerator.is_main_process:
            host.step.thrown_tokens += account.thrown_tokens

    def _means(self, drawn: Drawn) -> dict[str, float]:
        """Reward and accuracy over everything that was sampled: those of the batch alone say what was picked."""
        groups = [self.host.judge.groups(self.host.num_generations, one) for one in drawn.scored]
        rewards = _plain([value for one in groups for value in sampled_rewards(one).flatten().tolist()])
        first = _plain(
            [value for one in drawn.scored for value in sampled(one, one.rewards_per_function[:, 0]).tolist()]
        )
        found = {}
        for name, values, shown in (
            ("reward", rewards, True),
            ("accuracy", first, set(first) <= {0.0, 1.0, None}),
        ):
            judged = [value for value in values if value is not None]
            if judged and shown:
                found[f"{RESAMPLE}sampled_{name}"] = sum(judged) / len(judged)
        return found


def selected(scored: Sequence[Rollout], places: Sequence[int]) -> Rollout:
    """The responses at these places of all rollouts behind one another, as one rollout. Its counts and logged numbers
    are those of everything that was judged."""
    counts: dict[str, dict[str, int]] = {}
    logged: dict[str, list[float]] = {}
    for one in scored:
        for name, reasons in one.counts.items():
            total = counts.setdefault(name, {})
            for reason, count in reasons.items():
                total[reason] = total.get(reason, 0) + count
        for name, values in one.logged.items():
            logged.setdefault(name, []).extend(values)

    def picked(columns: Iterable[Sequence[Any]]) -> list[Any]:
        joined = [value for column in columns for value in column]
        return [joined[place] for place in places]

    def filled(one: Rollout, column: Sequence[Any] | None) -> Sequence[Any]:
        return [None] * len(one.completions) if column is None else column

    rewards = torch.cat([one.rewards_per_function for one in scored])
    has_answers = any(one.answers is not None for one in scored)
    return Rollout(
        prompts=picked(one.prompts for one in scored),
        completions=picked(one.completions for one in scored),
        completion_ids=picked(one.completion_ids for one in scored),
        columns={name: picked(one.columns[name] for one in scored) for name in scored[0].columns},
        rewards_per_function=rewards[torch.tensor(places, device=rewards.device)],
        answers=picked(filled(one, one.answers) for one in scored) if has_answers else None,
        counts=counts,
        extra={
            name: picked(filled(one, one.extra.get(name)) for one in scored)
            for name in dict.fromkeys(name for one in scored for name in one.extra)
        },
        logged=logged,
        given=picked(filled(one, one.given) for one in scored) if scored[0].given is not None else None,
    )


@contextmanager
def _unlogged(host: ResamplingHost) -> Iterator[None]:
    """TRL logs each generation; while active, into nothing."""
    metrics, seen = host._metrics, host.state.num_input_tokens_seen
    host._metrics = {mode: defaultdict(list) for mode in metrics}
    try:
        yield
    finally:
        host._metrics, host.state.num_input_tokens_seen = metrics, seen


def _plain(values: Sequence[float]) -> list[float | None]:
    """NaN, which stands for an unjudged response in a tensor, as None."""
    return [None if value != value else value for value in values]


def _fault(host: ResamplingHost) -> str | None:
    if (reason := host.objective.learns_from_equal) is not None:
        return f"{type(host.objective).__name__} learns from groups with equal rewards too: {reason}; leave it out"
    if host.tools or host.environments is not None:
        return "tools and environments take turns of their own while a response is written; leave one or the other out"
    if not isinstance(host.train_dataset, Sized):
        return "rows of a stream have no number to go back to after a resume; give a data set of known length"
    if host.args.remove_unused_columns:
        return "rows are read by their number, with all their columns; set remove_unused_columns to False"
    return None
