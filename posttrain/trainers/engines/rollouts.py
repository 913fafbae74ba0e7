"""Rollouts of a policy trainer: generate now or ahead, mark what was sampled with which weights.

Which round is generated when is rollout/lookahead.py's; what becomes of completions that are cut and continued,
rollout/partial.py's; how weights are sent and proved, weight_sync.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from posttrain.process.phases import PHASES
from posttrain.rollout.base import (
    Completion,
    Engine,
    EngineRefused,
    Sampling,
    WeightsLost,
    stable_seed,
)
from posttrain.rollout.checksum import dtype_name
from posttrain.rollout.engine_options import PROOF_LIMITS, RESAMPLE_NOT_PARTIAL, check_ahead
from posttrain.rollout.logged import LoggedRule
from posttrain.rollout.lookahead import Ahead, Peekable, Schedule
from posttrain.rollout.partial import Pool, from_plain, join, to_plain
from posttrain.trainers.engines.logged_answers import LoggedAnswers, logged_problems
from posttrain.trainers.engines.prompt_rows import PromptRows
from posttrain.trainers.engines.rollout_host import RolloutHost
from posttrain.trainers.engines.rollout_plan import RolloutPlan, Round, Rows
from posttrain.trainers.engines.sampling_marks import correct, joined, over_ranks, version_column
from posttrain.trainers.engines.weight_sync import WeightSync, together
from posttrain.trainers.forward.base import Rows as ScoredRows

Fill = Callable[[int, Round], Round]
"""A round's number and its samples as they were drawn -> those to train on."""


class Rollouts:
    """Which engine generates for a trainer, when, and with which weights. Without one TRL generates: see `engine`."""

    def __init__(self, host: RolloutHost) -> None:
        self.host = host
        self.engine: Engine | None = None
        self.plan = RolloutPlan()
        self.round: Round | None = None  # the one in hand, while TRL scores it
        self._row_source: Peekable | None = None
        self._prompt_rows: PromptRows | None = None
        self._fill: Fill | None = None
        self.logged: LoggedAnswers | None = None
        self._pool: Pool | None = None
        self._sampled: list[Completion] = []
        self._schedule = Schedule(0)
        self._ahead: Ahead[Round] = Ahead()
        self._sync: WeightSync | None = None

    def use_engine(self, engine: Engine, plan: RolloutPlan | None = None) -> None:
        """From now on `engine` generates. Raises ValueError when it cannot do what the plan asks."""
        plan = plan if plan is not None else RolloutPlan()
        problems = check_ahead(
            engine.name,
            staleness=plan.staleness,
            partial_budget=plan.partial_budget,
            max_new_tokens=self.host.max_completion_length,
            truncating=self._sampling(training=True).truncating,
            correction=plan.importance_correction,
        )
        per_rank = self.host.args.per_device_train_batch_size * (self.host.args.steps_per_generation or 1)
        if plan.partial_budget is not None and per_rank % self.host.num_generations:
            problems.append(
                f"partial_budget needs whole groups on every process: {per_rank} completions per process are no "
                f"multiple of {self.host.num_generations} generations"
            )
        if (plan.staleness or plan.partial_budget) and self.host.tools:
            problems.append("staleness and partial_budget do not go with tools: a turn waits for its tool")
        if plan.resample is not None and plan.partial_budget is not None:
            problems.append(RESAMPLE_NOT_PARTIAL)
        if plan.logged is not None:
            problems += logged_problems(self.host, plan)
        if problems:
            raise ValueError("rollout: " + "; ".join(problems))
        self.engine, self.plan = engine, plan
        self.logged = None if plan.logged is None else self._logged(plan.logged)
        self._schedule = Schedule(plan.staleness)
        self._ahead = Ahead()
        self._prompt_rows = self._fill = None
        if plan.partial_budget is not None:
            seed = stable_seed(self.host.args.seed, "partial", self.host.accelerator.process_index)
            self._pool = Pool(self._sampling(training=True), plan.partial_budget, seed)
        self._sync = WeightSync(
            engine,
            self.host.model,
            self.host.accelerator,
            limit=plan.proof_limit or max(PROOF_LIMITS[engine.dtype], PROOF_LIMITS[self.compute_dtype]),
            score=self._score_tokens,
            log=self._log_rollout,
        )

    def _logged(self, rule: LoggedRule) -> LoggedAnswers:
        found = LoggedAnswers(self.host, rule)
        rows: Any = self.host.train_dataset
        if hasattr(rows, "__len__"):  # a stream is read as it comes
            with PHASES.within("reading the logged answers"):
                self.host.accelerator.print(found.survey(rows, self.prompts_of))
        return found

    def fill_from(self, prompt_rows: PromptRows, fill: Fill) -> None:
        """From now on rounds take their prompts from `prompt_rows`, and what `fill` makes of one is trained on; it may
        ask for `more` samples."""
        self._prompt_rows, self._fill = prompt_rows, fill

    @property
    def compute_dtype(self) -> str:
        """What the training forward computes in."""
        mixed = {"bf16": "bfloat16", "fp16": "float16"}
        precision = self.host.accelerator.mixed_precision
        return (
            mixed[precision] if precision in mixed else dtype_name(next(self.host.model.parameters()).dtype)
        )

    @property
    def _uses_sampled_logprobs(self) -> bool:
        """Whether the sampling log-probs are the old log-probs. Not when they are another distribution's, nor when
        the engine is the trainer's own model with its weights of now: then the ratio starts at exactly 1."""
        if self.engine is None or self.plan.importance_correction is not None:
            return False
        own_weights_of_now = self.engine.shares_weights and self._pool is None
        return not own_weights_of_now and not self._sampling(training=True).truncating

    # A rollout, from its rows to its marks

    def readable_ahead(self, epoch_iterator: Any) -> Any:
        """The trainer's rows, such that those of later rounds can be seen before their turn where that is needed."""
        ahead = self._prompt_rows is None and (self.plan.staleness or self._pool is not None)
        if self.engine is None or not ahead:
            return epoch_iterator
        if self._row_source is None or self._row_source.source is not epoch_iterator:
            self._row_source = Peekable(epoch_iterator)
        return self._row_source

    @contextmanager
    def round_for(self, inputs: Rows) -> Iterator[Rows]:
        """While active, this round's samples are in hand; gives their rows, which may be others than `inputs` (see
        partial.py). An evaluation is sampled with the weights as they are now."""
        if self.engine is None:
            yield inputs
        elif not self.host.model.training:
            self._ahead.wait()
            self._send_weights(inputs)
            yield inputs
        else:
            try:
                self.round = self._bring_round(inputs)
                yield self.round.rows
            finally:
                self.round = None

    def single_turn(self, prompt_ids: list[list[int]], images: Any) -> tuple[Any, Any]:
        """(token ids, sampling log-probs) for each prompt, from the round in hand or sampled now."""
        host = self.host
        if self.engine is None:
            raise RuntimeError("Rollouts: no engine; call use_engine first")
        if images is not None:
            raise EngineRefused(
                f"rollout.engine {self.engine.name} takes text only and these rows have images; TRL's own generation "
                "reads them: build the trainer without an engine"
            )
        if self.round is not None and self.round.prompts == prompt_ids:
            completions = self.round.completions
        else:  # evaluation, an environment's own prompts, or a further turn after a tool's answer
            sampling = host.turns.sampling(self._sampling(host.model.training), prompt_ids)
            completions = together(lambda: self._generate_now(prompt_ids, sampling))
        host.check_sampled(one.logprobs for one in completions)
        self._sampled = completions
        return [one.token_ids for one in completions], [one.logprobs for one in completions]

    def join_turns(self, completion_ids: Sequence[list[int]], logprobs: Sequence[list[float]]) -> None:
        """The responses as all their turns and their tools have made them; without an engine nobody asks."""
        self._sampled = joined(self.host.state.global_step, completion_ids, logprobs) if self.engine else []

    def given(self, count: int) -> list[bool] | None:
        """Which of this rank's `count` responses in hand are logged answers; None where none of any rank can be."""
        if self.logged is None or self.round is None:
            return None
        return [one.logged for one in self._sampled] if len(self._sampled) == count else [False] * count

    @property
    def replaces_old_logprobs(self) -> bool:
        """Whether the rollout in hand needs no forward for its old log-probs: the sampler's take their place.

        With an adapter the reference is scored by the same model, so there TRL's two questions cannot be told apart.
        """
        if self.round is None or not self._uses_sampled_logprobs:
            return False
        return self.host.beta == 0.0 or self.host.ref_model is not None

    def sampled_logprobs(self, length: int) -> Tensor:
        """The sampler's log-probs of the completions sampled last, padded to `length`. (B, T)."""
        rows = [torch.tensor(one.logprobs, device=self.host.accelerator.device) for one in self._sampled]
        sampled = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return torch.nn.functional.pad(sampled, (0, length - sampled.size(1)))

    # Rounds

    @property
    def _round_length(self) -> int:
        """Micro-steps a round is trained on."""
        return (self.host.args.steps_per_generation or 1) * self.host.num_iterations

    def _bring_round(self, inputs: Rows) -> Round:
        """This round's samples; then the weights are sent and later rounds started, as the schedule says."""
        number = self.host._step // self._round_length
        if self.host.environment_factories is not None:  # sampled once it has had its say in the prompts
            self._send_weights(inputs)
            return Round(inputs, [], [])
        rows = self._rows_for(number)
        inputs = inputs if rows is None else rows
        begin = time.perf_counter()
        with PHASES.within("waiting for samples"):
            result = self._take_ahead(number, inputs)
        if result is None:
            result = self._make_round_now(number, inputs)
        self._log_rollout("wait_s", time.perf_counter() - begin)
        if self._prompt_rows is None or self._fill is None:
            return self._go_on(number, inputs, result)
        with self._prompt_rows.drawing(number):
            return self._go_on(number, inputs, self._fill(number, result))

    def _go_on(self, number: int, inputs: Rows, result: Round) -> Round:
        if self._schedule.starts_at(number):
            self._send_weights(inputs)
            for offset, later in enumerate(self._schedule.starts_at(number), start=1):
                rows, after = self._next_rows(offset), self._next_rows(offset + 1)
                rows = rows if self._prompt_rows is None else self._rows_for(later)
                if rows is not None and later not in self._ahead:
                    self._ahead.start(later, lambda n=later, r=rows, a=after: self._make_round(n, r, a))
        return result

    def _rows_for(self, number: int) -> Rows | None:
        """A round's rows in the order that extra prompts have moved on; None where the loader's rows are its own."""
        drawn = self._prompt_rows
        return None if drawn is None else drawn.rows(drawn.of_round(number))

    def more(self, number: int, turn: int, prompts: Sequence[int]) -> Round:
        """Samples of further prompts for round `number`, in its `turn`-th call from 1 on. By the weights as they are
        now, also where the round itself was generated ahead: a resumed run has no older ones."""
        if self._prompt_rows is None:
            raise RuntimeError("Rollouts: no prompts to draw; call fill_from first")
        return self._make_round_now(number, self._prompt_rows.rows(prompts), turn)

    def _take_ahead(self, number: int, inputs: Rows) -> Round | None:
        """The round as it was generated ahead; None when it was not, or is of no use."""
        if number not in self._ahead:
            return None
        try:
            result = together(lambda: self._ahead.take(number))
        except WeightsLost:  # a server was restarted under it; it is made again with the weights of now
            return None
        if self._pool is None:
            if result.prompts != self.prompts_of(inputs):  # resumed with other data
                return None
            result.rows = inputs
        self._check_age(number, result)
        return result

    def _make_round_now(self, number: int, inputs: Rows, turn: int = 0) -> Round:
        self._ahead.wait()
        self._send_weights(inputs)
        after = self._next_rows(1)
        try:
            return together(lambda: self._make_round(number, inputs, after, turn))
        except WeightsLost:
            if self.engine is not None:
                self.engine.version = None
            self._send_weights(inputs)
            return together(lambda: self._make_round(number, inputs, after, turn))

    def _check_age(self, number: int, result: Round) -> None:
        """The bound on staleness is a promise, so a breach is a bug and stops the run."""
        if self._pool is not None:
            return  # a long completion is as old as its length makes it
        steps = self._round_length // self.host.args.gradient_accumulation_steps
        oldest = min((version for one in result.completions for version, _ in one.segments), default=None)
        if oldest is not None and oldest < self._schedule.oldest(number) * steps:
            raise RuntimeError(
                f"rollout: round {number} holds samples of weight version {oldest}, older than staleness "
                f"{self.plan.staleness} allows"
            )

    def _next_rows(self, offset: int) -> Rows | None:
        """The rows of the round `offset` rounds from now, None past the end of the epoch."""
        if self._row_source is None:
            return None
        unread = self._round_length - self.host.args.gradient_accumulation_steps
        return self._row_source.peek(unread + (offset - 1) * self._round_length)

    def prompts_of(self, rows: Rows) -> list[list[int]]:
        if self.host.environment_factories is not None:  # whose tools each prompt shows
            several = self.host._multi_environment
            self.host._batch_environments = [row.get("environment") if several else None for row in rows]
        return self.host._tokenize_prompts([row["prompt"] for row in rows])[0]

    def _make_round(self, number: int, rows: Rows, after: Rows | None, turn: int = 0) -> Round:
        """Samples a round. Reads nothing that training changes, so it may run beside it."""
        if self._pool is not None:
            return self._make_partial_round(self._pool, number, rows, after)
        begin, prompts = time.perf_counter(), self.prompts_of(rows)
        seed = stable_seed(self.host.args.seed, "round", number, *(("more", turn) if turn else ()))
        seed += self.host.accelerator.process_index * len(prompts)
        sampling = replace(self._sampling(training=True), seed=seed)
        if self.logged is None:
            completions = self._generate_now(prompts, sampling)
        else:
            completions = self.logged.among(rows, prompts, sampling, self._generate_now)
        return Round(rows, prompts, completions, time.perf_counter() - begin)

    def _make_partial_round(self, pool: Pool, number: int, rows: Rows, after: Rows | None) -> Round:
        for drawn, batch in ((number, rows), (number + 1, after)):
            if batch is not None and drawn > pool.drawn_rounds:
                pool.draw(self.prompts_of(batch), batch, self.host.num_generations)
                pool.drawn_rounds = drawn
        groups = pool.run(len(rows) // self.host.num_generations, self._generate_now)
        return Round(
            [row for group in groups for row in group.rows],
            [group.prompt for group in groups for _ in group.rows],
            [join(parts) for group in groups for parts in group.parts],
        )

    def _generate_now(
        self, prompts: list[list[int]], sampling: Sampling | Sequence[Sampling]
    ) -> list[Completion]:
        if self.engine is None:
            raise RuntimeError("Rollouts: no engine; call use_engine first")
        return self.engine.generate(prompts, sampling)

    def _sampling(self, training: bool) -> Sampling:
        """TRL's sampling arguments under the engines' names."""
        held_out = self.host.args.eval_temperature
        return Sampling(
            temperature=self.host.temperature if training or held_out is None else held_out,
            top_p=self.host.top_p,
            top_k=self.host.top_k or 0,
            min_p=self.host.min_p or 0.0,
            repetition_penalty=self.host.repetition_penalty,
            max_new_tokens=self.host.max_completion_length,
            stop_token_ids=tuple(self.host.eos_token_ids),
        )

    # Weights

    def _send_weights(self, rows: Rows) -> None:
        """Gives the engine the weights as they are now, unless it has them."""
        sync = self._sync
        if self.engine is None or sync is None or self.engine.version == self.host.state.global_step:
            return
        begin = time.perf_counter()
        probe = self.prompts_of([rows[0], rows[-1]])
        with nullcontext() if self.engine.shares_weights else PHASES.within("syncing weights"):
            sync.update(self.host.state.global_step, probe, self._sampling(training=True))
        if not self.engine.shares_weights:
            self._log_rollout("sync_s", time.perf_counter() - begin)

    def _score_tokens(self, prompts: list[list[int]], completions: list[list[int]]) -> Tensor:
        """The trainer's log-probs of the completions' tokens, as it would score them for the loss. (B, T)."""
        rows = ScoredRows.of_lists(
            prompts,
            completions,
            filler=self.host._tokenizer.pad_token_id,
            device=self.host.accelerator.device,
        )
        training = self.host.model.training
        self.host.model.eval()
        try:
            with torch.no_grad():
                return self.host.scorer.score(self.host.model, rows).logprobs
        finally:
            self.host.model.train(training)

    def mark(self, output: dict[str, Any]) -> None:
        """Old log-probs or importance weights from the sampling log-probs, and each token's weight version."""
        if self.engine is None:
            return
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        if self.logged is not None:
            mask = mask * ~self.logged.mark(output, self._sampled)
        output["weight_version"] = version_column(self.host, self._sampled, output["completion_ids"])
        lag = (self.host.state.global_step - output["weight_version"])[mask.bool()].float()
        lags = over_ranks(self.host.accelerator, lag)
        if lags:
            self._log_rollout("staleness", lags["mean"])
            self._log_rollout("staleness_max", lags["max"])
        if self._uses_sampled_logprobs:
            output["old_per_token_logps"] = output["sampling_per_token_logps"]
        elif self.plan.importance_correction is not None:
            correct(self.host, output, mask, self.plan, self.plan.importance_correction)

    def _log_rollout(self, name: str, value: float) -> None:
        """Of the run, also where an evaluation caused it: a sync is no held-out result."""
        self.host._metrics["train"][f"rollout/{name}"].append(value)

    # Resume

    def state(self) -> dict[str, Any]:
        """What was generated ahead or is half written, in plain values; part of `rollout_state`."""
        if self.engine is None:
            return {}
        rounds = [
            {
                "number": number,
                "rows": list(one.rows) if self._pool is not None else [],
                "prompts": one.prompts,
                "completions": [to_plain(completion) for completion in one.completions],
            }
            for number, one in self._ahead.finished().items()
        ]
        pool = None if self._pool is None else self._pool.state_dict()
        drawn = {} if self._prompt_rows is None else {"prompts": self._prompt_rows.state_dict()}
        return {"rounds": rounds, "pool": pool, **drawn}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self.engine is None or not state:
            return
        if (self._prompt_rows is None) != ("prompts" not in state):
            had = "without" if "prompts" not in state else "with"
            raise ValueError(
                f"the checkpoint was written {had} rollout.resample, and holds no other order of the prompts; resume "
                f"{had} it"
            )
        if self._prompt_rows is not None:
            self._prompt_rows.load_state_dict(state["prompts"])
        self._ahead.discard()
        for one in state["rounds"]:
            completions = [from_plain(plain) for plain in one["completions"]]
            self._ahead.put(one["number"], Round(one["rows"], one["prompts"], completions))
        if self._pool is not None and state["pool"] is not None:
            self._pool.load_state_dict(state["pool"])
