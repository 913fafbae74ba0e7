"""Rewards of a rollout: whole groups, in processes of their own, the same result on every rank.

TRL hands a reward function only the slice of its rank, so a group that straddles ranks is judged in pieces. Here
the responses of all ranks are brought together, each rank scores some of the *groups*, and every rank learns all
scores. A failure on one rank is raised on all of them, so that none waits for ever. Reward models judge single
responses, each rank its own; modules that were handed over and an environment's own reward are left to TRL
(reward_sources.py says which).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from posttrain.data.reward_columns import reward_columns
from posttrain.objectives.base import Groups
from posttrain.process.phases import PHASES
from posttrain.rewards.messages import text_of
from posttrain.rewards.runner import RewardError, RewardRunner, Scores
from posttrain.trainers.engines.scored_rollout import Rollout
from posttrain.trainers.engines.turns import Turns
from posttrain.trainers.models.drift_scorer import DriftScorer, require_whole_policy
from posttrain.trainers.models.reward_scorer import RewardScorer, TextScorer
from posttrain.trainers.models.served_scorer import ServedScorer
from posttrain.trainers.policy.reward_sources import RewardSources, judged_by_trl, no_reward
from posttrain.trainers.seam.config import PolicyConfig

log = logging.getLogger(__name__)
LOGGED_COLUMN = "logged"
"""Of TRL's own table of completions: which are answers of the data."""
_LOGS_KEPT = 100  # entries of trainer_state.log_history that a reward in another process is given


class JudgeHost(Protocol):
    """What judging reads of its trainer, and where it leaves what rewards log. The names are TRL's."""

    accelerator: Accelerator
    model: Any
    state: Any
    environments: Any
    turns: Turns
    rollouts: Any
    family: Any
    reward_funcs: list[Any]
    reward_func_names: list[str]
    reward_weights: Tensor
    _metrics: Any
    _logs: Any

    def _log_completion_extra(self, column: str, values: list[Any]) -> None: ...

    def _log_metric(self, name: str, value: float) -> None: ...


AskTRL = Callable[[list[int], list[Any], list[Any], list[Any], list[Any]], Tensor]
"""Which of the trainer's rewards, and TRL's arguments of a rollout, to scores (B, positions) over all ranks."""


class Judge:
    """Rewards of whole groups.

    runner   scores the reward functions in processes of their own; None where there are none
    models   position of a reward -> the reward model that is asked for it, each rank for its own responses
    drifts   the same of drift_penalty, which reads the policy
    ask_trl  judges the others: modules that were handed over, and what needs an environment
    rollout  the rollout that was judged last
    ready    a rollout that was scored before TRL asks; it is what TRL is told, once
    """

    def __init__(
        self,
        host: JudgeHost,
        runner: RewardRunner | None,
        ask_trl: AskTRL,
    ) -> None:
        self.host = host
        self.runner = runner
        self.models: dict[int, TextScorer] = {}
        self.drifts: dict[int, DriftScorer] = {}
        self.ask_trl = ask_trl
        self.rollout: Rollout | None = None
        self.ready: Rollout | None = None
        self._told_of_unjudged = False

    def load(self, sources: RewardSources, tokenizer: Any) -> None:
        """Loads reward models and references, and says how texts reach each; `tokenizer` is the policy's. Raises
        ModelFault, and RewardError where drift_penalty cannot read the policy."""
        device = self.host.accelerator.device
        for place, spec in sources.models.items():
            self.models[place] = RewardScorer(spec, device) if spec.server is None else ServedScorer(spec)
            self.host.accelerator.print(self.models[place].tells(tokenizer))
        for place, drift in sources.drifts.items():
            require_whole_policy(drift.title, self.host.accelerator)
            self.drifts[place] = DriftScorer(drift, tokenizer, device)
            self.host.accelerator.print(self.drifts[place].tells())

    def judge(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[Any],
        *,
        group_size: int,
        mode: str,
    ) -> Tensor:
        """(B, K) over all ranks, NaN where a response could not be judged; leaves `rollout`.

        mode  "train" or "eval": whose metrics the counts go to
        """
        scored, self.ready = self.ready, None
        if scored is None:
            scored = self.score(inputs, prompts, completions, completion_ids, group_size=group_size)
        self._take(scored, len(completions), mode)
        return scored.rewards_per_function

    def score(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[Any],
        *,
        group_size: int,
    ) -> Rollout:
        """The responses of all ranks with their rewards; logs nothing and leaves `rollout` as it is."""
        host = self.host
        columns = reward_columns(inputs[0], own=("prompt", "completion", "completion_ids"))
        prompts = host.family.plain_prompts(inputs, prompts)
        written = self.host.turns.written(completion_ids)
        given = self.host.rollouts.given(len(completions))
        local = [
            {
                "prompt": prompt,
                "completion": text_of(completion),
                "messages": None if isinstance(completion, str) else completion,
                "ids": list(ids),
                "written": count,
                "given": False if given is None else given[at],
                "columns": {name: row[key] for name, key in columns.items()},
            }
            for at, (row, prompt, completion, ids, count) in enumerate(
                zip(inputs, prompts, completions, completion_ids, written, strict=True)
            )
        ]
        rows = gather_object(local)
        scores = Scores(values=[], answers=None, counts={})
        rewards = torch.full((len(rows), len(host.reward_funcs)), torch.nan, device=host.accelerator.device)
        by_trl = judged_by_trl(host.reward_funcs)
        here = {*by_trl, *self.models, *self.drifts}
        by_runner = [k for k in range(len(host.reward_funcs)) if k not in here]
        if by_runner:
            with PHASES.within("scoring", len(rows)):
                scores = self._score_groups(rows, list(columns), group_size)
            rewards[:, by_runner] = as_tensor(scores.values, rewards.device)
        if by_trl:
            with PHASES.within("scoring with reward models", len(local)):
                judged = self.ask_trl(by_trl, inputs, prompts, completions, completion_ids)
            rewards[:, by_trl] = judged
        logged = {
            **scores.metrics,
            **self._score_here(rewards, prompts, completions, local),
        }
        require_judged(
            rewards, host.reward_func_names, [*self._models_among(by_trl), *self.models, *self.drifts]
        )
        return Rollout(
            prompts=[row["prompt"] for row in rows],
            completions=[row["completion"] for row in rows],
            completion_ids=[row["ids"] for row in rows],
            columns={key: [row["columns"][key] for row in rows] for key in columns},
            rewards_per_function=rewards,
            answers=scores.answers,
            counts=scores.counts,
            extra=scores.extra,
            logged=logged,
            written=[row["written"] for row in rows] if host.turns.taken else None,
            given=None if given is None else [row["given"] for row in rows],
            messages=[row["messages"] for row in rows] if host.turns.taken else None,
        )

    def _score_here(
        self, rewards: Tensor, prompts: list[Any], completions: list[Any], local: list[dict[str, Any]]
    ) -> dict[str, list[float]]:
        """Fills the columns of reward models and of drift_penalty, each rank for its own responses; what they log."""
        logged, all_rows = {}, max(1, len(rewards))
        for k, model in self.models.items():
            asked = partial(model.score, prompts, completions)
            lost = lambda one=model: (one.cut,)  # noqa: E731  # bound to this one
            rewards[:, k], sums = self._of_own_responses(model.title, len(local), asked, lost)
            logged[f"reward_models/{model.title}/cut_share"] = [sums[0] / all_rows]
        for k, drift in self.drifts.items():
            asked = partial(self._by_drift, drift, prompts, local)
            apart = lambda one=drift: (one.kl, one.js)  # noqa: E731
            rewards[:, k], sums = self._of_own_responses(drift.title, len(local), asked, apart)
            for name, total in zip(("kl", "js"), sums, strict=True):
                logged[f"drift/{drift.title}/{name}"] = [total / all_rows]
        return logged

    def _take(self, scored: Rollout, count: int, mode: str) -> None:
        """Makes it the last rollout and logs it; `count` of its responses are this rank's."""
        self.rollout = scored
        extra = scored.extra if scored.given is None else {**scored.extra, LOGGED_COLUMN: scored.given}
        self._pass_on_logs(extra, scored.logged, count)
        self.tell_of_unjudged(scored)
        metrics, rewards = self.host._metrics[mode], scored.rewards_per_function
        for name, reasons in scored.counts.items():
            for reason, count in reasons.items():
                metrics[f"reward_failures/{name}/{reason}"].append(float(count))
        first = sampled(scored, rewards[:, 0])
        first = first[~first.isnan()]
        judged = self.host.reward_funcs[:1] != [no_reward]
        if judged and first.numel() and bool(((first == 0) | (first == 1)).all()):
            metrics["accuracy"].append(first.mean().item())

    def _models_among(self, positions: list[int]) -> list[int]:
        return [k for k in positions if isinstance(self.host.reward_funcs[k], nn.Module)]

    def _by_drift(self, drift: DriftScorer, prompts: list[Any], local: list[dict[str, Any]]) -> list[float]:
        if self.host.turns.taken:
            raise RewardError(
                f"reward {drift.title!r} reads answers of one turn, and this run's have tools' answers in them"
            )
        policy = self.host.accelerator.unwrap_model(self.host.model)
        goals = [row["columns"].get("goal") for row in local]
        return drift.score(policy, prompts, [row["ids"] for row in local], goals)

    def _of_own_responses(
        self,
        title: str,
        count: int,
        scores_of: Callable[[], list[float]],
        sums_of: Callable[[], Sequence[float]],
    ) -> tuple[Tensor, list[float]]:
        """Scores (B,) over all ranks, of which `count` are this one's, and what `sums_of` then says, added up over
        them. A failure on one rank is raised on all."""
        failure: Exception | None = None
        scores: list[float] = []
        try:
            with PHASES.within(f"scoring with {title}", count):
                scores = scores_of()
        except Exception as error:  # it must reach the other ranks before it is raised
            failure = error
        told = None if failure is None else f"{type(failure).__name__}: {failure}"
        parts = gather_object([(scores, tuple(sums_of()), told)])
        if failure is not None:
            raise failure
        for rank, (_, _, message) in enumerate(parts):
            if message is not None:
                raise RewardError(f"reward model {title!r}, on rank {rank}: {message}")
        found = torch.tensor(
            [one for part, _, _ in parts for one in part], device=self.host.accelerator.device
        )
        return found, [float(sum(each)) for each in zip(*(sums for _, sums, _ in parts), strict=True)]

    def _pass_on_logs(
        self, extra: Mapping[str, list[Any]], logged: Mapping[str, list[float]], count: int
    ) -> None:
        """Hands what rewards logged to TRL, which gathers it over ranks: each rank gives its own responses."""
        start = self.host.accelerator.process_index * count
        for column, values in extra.items():
            self.host._log_completion_extra(column, values[start : start + count])
        for name, values in logged.items():  # the same on all ranks, so their mean is this one's
            for value in values:
                self.host._log_metric(name, value)

    def tell_of_unjudged(self, rollout: Rollout) -> None:
        """Responses that no reward judged teach nothing: said when it first happens, and whenever it is all of them."""
        unjudged = rollout.rewards_per_function.isnan().all(dim=1)
        count, total = int(unjudged.sum()), len(unjudged)
        if (
            count == 0
            or (self._told_of_unjudged and count < total)
            or not self.host.accelerator.is_main_process
        ):
            return
        self._told_of_unjudged = True
        row = int(unjudged.nonzero()[0])
        log.warning(
            "no reward could judge %d of %d responses, so nothing is learned from them. The first: prompt %s, "
            "response %s%s",
            count, total, _shortened(rollout.prompts[row]), _shortened(rollout.completions[row]),
            "" if count == total else "; further ones are only counted, as reward_failures/...",
        )  # fmt: skip

    def _score_groups(
        self, rows: Sequence[dict[str, Any]], columns: Sequence[str], group_size: int
    ) -> Scores:
        """This rank scores every `num_processes`-th group; then all ranks put the scores together."""
        if self.runner is None:
            raise RuntimeError("Judge: no reward function to call")
        accelerator = self.host.accelerator
        groups = [list(range(start, start + group_size)) for start in range(0, len(rows), group_size)]
        mine = groups[accelerator.process_index :: accelerator.num_processes]
        picked = [rows[i] for group in mine for i in group]
        messages = [row["messages"] for row in picked]
        failure, scores = None, Scores(values=[], answers=None, counts={})
        try:
            scores = self.runner.score(
                [row["completion"] for row in picked],
                columns={key: [row["columns"][key] for row in picked] for key in columns},
                group_size=group_size,
                prompts=[row["prompt"] for row in picked],
                completion_ids=[row["ids"] for row in picked],
                completion_tokens=[row["written"] for row in picked],
                messages=None if any(one is None for one in messages) else messages,
                trainer_state=state_snapshot(self.host.state),
                has_environments=self.host.environments is not None,
            )
        except Exception as error:  # any failure of a reward must reach the other ranks before it is raised
            failure = error
        return of_all_ranks(mine, scores, failure, len(rows))

    def last(self) -> Rollout:
        """The rollout that was judged last; RuntimeError before the first."""
        if self.rollout is None:
            raise RuntimeError("Judge: no rollout has been scored yet")
        return self.rollout

    def groups(self, group_size: int, of: Rollout | None = None) -> Groups:
        """The last rollout, or another one, as the objective wants it: (P, G) rewards over all ranks."""
        last = self.last() if of is None else of
        per_function = last.rewards_per_function
        weights = self.host.reward_weights.to(per_function)
        total = (per_function * weights).nansum(dim=1)
        total[per_function.isnan().all(dim=1)] = torch.nan
        answers = last.answers
        return Groups(
            rewards=total.view(-1, group_size),
            rewards_per_function=per_function.view(-1, group_size, per_function.size(1)),
            weights=weights,
            lengths=torch.tensor([len(ids) for ids in last.completion_ids], device=total.device).view(
                -1, group_size
            ),
            written=None
            if last.written is None
            else torch.tensor(last.written, device=total.device).view(-1, group_size),
            logged=None
            if last.given is None
            else torch.tensor(last.given, device=total.device).view(-1, group_size),
            answers=None
            if answers is None
            else [answers[i : i + group_size] for i in range(0, len(answers), group_size)],
        )

    def record_advantages(self, advantages: Tensor) -> None:
        """Puts the objective's advantages where TRL's were logged, and beside the rollout."""
        values = advantages.tolist()
        if self.rollout is not None:
            self.rollout.advantages = values
        logged = self.host._logs["advantages"]
        for _ in range(min(len(values), len(logged))):
            logged.pop()
        logged.extend(values)


def sampled(rollout: Rollout, values: Tensor) -> Tensor:
    """Those of the responses' values (B, ...) that are of samples, without logged answers."""
    if rollout.given is None:
        return values
    return values[~torch.tensor(rollout.given, device=values.device)]


def reward_arguments(sources: RewardSources, args: PolicyConfig) -> list[Any]:
    """What TRL's constructor gets: reward models as they are, functions as named stand-ins it never calls. The
    weights that rewards say themselves go to `args`; ValueError where these have others."""
    if sources.weights is not None:
        if args.reward_weights is None:
            args.reward_weights = sources.weights
        elif list(args.reward_weights) != sources.weights:
            raise ValueError(
                f"reward_weights are {args.reward_weights}, and the rewards themselves say {sources.weights}; "
                "give the weights in one place"
            )
    return sources.functions


def require_judged(rewards: Tensor, names: Sequence[str], models: Sequence[int]) -> None:
    """RewardError, with name, row and value, where a reward (B, K) is not finite, or a reward model gives NaN: NaN
    says that a function did not judge, and a model always judges. What weights make of it, finite.py looks at."""
    bad = rewards.isinf()
    for k in models:
        bad[:, k] |= rewards[:, k].isnan()
    if bool(bad.any()):
        row, k = bad.nonzero()[0].tolist()
        value = rewards[row, k].item()
        raise RewardError(f"reward {names[k]!r} gave {value:g} for response {row}, which is not finite")


def state_snapshot(state: Any) -> dict[str, Any]:
    """The trainer's state as plain values that another process can read; of its logs the latest."""
    plain = (bool, int, float, str, type(None))
    values = {name: value for name, value in vars(state).items() if isinstance(value, plain)}
    return {**values, "log_history": [dict(entry) for entry in state.log_history[-_LOGS_KEPT:]]}


def _shortened(value: Any, length: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def as_tensor(values: Sequence[Sequence[float | None]], device: torch.device) -> Tensor:
    """Scores (B, K), None as NaN."""
    rows = [[torch.nan if value is None else float(value) for value in row] for row in values]
    return torch.tensor(rows, dtype=torch.float32, device=device)


def of_all_ranks(mine: list[list[int]], scores: Scores, failure: Exception | None, size: int) -> Scores:
    """Every rank's scores put together; `failure` is why this rank has none. RewardError names a rank that failed
    elsewhere, so that none waits for scores that will not come."""
    failures = gather_object([None if failure is None else str(failure) or type(failure).__name__])
    if failure is not None:
        raise failure
    elsewhere = [(rank, message) for rank, message in enumerate(failures) if message is not None]
    if elsewhere:
        rank, message = elsewhere[0]
        raise RewardError(f"on rank {rank}: {message}")
    return in_order(gather_object([(mine, scores)]), size)


def in_order(parts: Sequence[tuple[list[list[int]], Scores]], size: int) -> Scores:
    """Puts the ranks' scores back into the global order of the responses."""
    values: list[list[float | None]] = [[] for _ in range(size)]
    answers: list[str | None] = [None] * size
    has_answers = any(scores.answers is not None for _, scores in parts)
    counts: dict[str, dict[str, int]] = {}
    extra: dict[str, list[Any]] = {}
    metrics: dict[str, list[float]] = {}
    for groups, scores in parts:
        indices = [i for group in groups for i in group]
        for position, index in enumerate(indices):
            values[index] = list(scores.values[position])
            if scores.answers is not None:
                answers[index] = scores.answers[position]
            for name, column in scores.extra.items():
                extra.setdefault(name, [None] * size)[index] = column[position]
        for name, reasons in scores.counts.items():
            total = counts.setdefault(name, {})
            for reason, count in reasons.items():
                total[reason] = total.get(reason, 0) + count
        for name, logged in scores.metrics.items():
            metrics.setdefault(name, []).extend(logged)
    return Scores(values, answers if has_answers else None, counts, extra=extra, metrics=metrics)
