"""How a GRPO trainer uses an engine: generate now or ahead, mark what was sampled with which weights, stop cleanly.

`EngineGeneration` stands before `trl.GRPOTrainer` and replaces `_generate_single_turn`; without an engine TRL's own
generation runs untouched. Which round is generated when is rollout/lookahead.py's; what becomes of completions that
are cut and continued, rollout/partial.py's; how weights are sent and proved, weight_sync.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from posttrain.process.phases import PHASES
from posttrain.rewards.runner import RewardError
from posttrain.rollout.base import (
    Completion,
    Engine,
    EngineError,
    EngineRefused,
    Sampling,
    WeightsLost,
    stable_seed,
)
from posttrain.rollout.checksum import dtype_name
from posttrain.rollout.importance import importance_ratio
from posttrain.rollout.lookahead import Ahead, Peekable, Schedule
from posttrain.rollout.options import PROOF_LIMITS, check_ahead
from posttrain.rollout.partial import Pool, from_plain, join, to_plain
from posttrain.trainers.engines.rollout_plan import RolloutPlan, Round, Rows
from posttrain.trainers.engines.weight_sync import WeightSync, marked_versions, together
from posttrain.trainers.forward.base import Rows as ScoredRows
from posttrain.trainers.forward.base import Scorer, Wanted

if TYPE_CHECKING:
    from trl import GRPOTrainer

    from posttrain.trainers.seam.config import PolicyConfig

    class _Host(GRPOTrainer):
        """What the mixin stands before, with the types its attributes have once it is built."""

        args: PolicyConfig
        model: Any
        ref_model: Any
        num_generations: int
        max_completion_length: int
        _tokenizer: Any
        scorer: Scorer
        check_sampled: Callable[[Iterable[Iterable[float]]], None]  # FiniteSteps
else:
    _Host = object


class EngineGeneration(_Host):
    """Mixin before `trl.GRPOTrainer`. Call `use_engine(engine, plan)` once the trainer is built."""

    engine: Engine | None = None
    rollout_plan = RolloutPlan()
    _round: Round | None = None
    _row_source: Peekable | None = None
    _pool: Pool | None = None
    _sampled: list[Completion]

    def use_engine(self, engine: Engine, plan: RolloutPlan | None = None) -> None:
        """From now on `engine` generates. Raises ValueError when it cannot do what the plan asks."""
        plan = plan if plan is not None else RolloutPlan()
        problems = check_ahead(
            engine.name,
            staleness=plan.staleness,
            partial_budget=plan.partial_budget,
            max_new_tokens=self.max_completion_length,
            truncating=self._sampling(training=True).truncating,
            correction=plan.importance_correction,
        )
        per_rank = self.args.per_device_train_batch_size * (self.args.steps_per_generation or 1)
        if plan.partial_budget is not None and per_rank % self.num_generations:
            problems.append(
                f"partial_budget needs whole groups on every process: {per_rank} completions a process are no "
                f"multiple of {self.num_generations} generations"
            )
        if (plan.staleness or plan.partial_budget) and self.tools:
            problems.append("staleness and partial_budget do not go with tools: a turn waits for its tool")
        if problems:
            raise ValueError("rollout: " + "; ".join(problems))
        self.engine, self.rollout_plan = engine, plan
        self._schedule = Schedule(plan.staleness)
        self._ahead: Ahead[Round] = Ahead()
        if plan.partial_budget is not None:
            seed = stable_seed(self.args.seed, "partial", self.accelerator.process_index)
            self._pool = Pool(self._sampling(training=True), plan.partial_budget, seed)
        self._sync = WeightSync(
            engine,
            self.model,
            self.accelerator,
            limit=plan.proof_limit or max(PROOF_LIMITS[engine.dtype], PROOF_LIMITS[self.compute_dtype]),
            score=self._score_tokens,
            log=self._log_rollout,
        )

    @property
    def compute_dtype(self) -> str:
        """What the training forward computes in."""
        mixed = {"bf16": "bfloat16", "fp16": "float16"}
        precision = self.accelerator.mixed_precision
        return mixed[precision] if precision in mixed else dtype_name(next(self.model.parameters()).dtype)

    @property
    def _uses_sampled_logprobs(self) -> bool:
        """Whether the sampling log-probs are the old log-probs. Not when they are another distribution's, nor when
        the engine is the trainer's own model with its weights of now: then the ratio starts at exactly 1."""
        if self.engine is None or self.rollout_plan.importance_correction is not None:
            return False
        own_weights_of_now = self.engine.shares_weights and self._pool is None
        return not own_weights_of_now and not self._sampling(training=True).truncating

    # What TRL and transformers call

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Lets the rows of later rounds be seen before their turn."""
        if self.engine is not None and (self.rollout_plan.staleness or self._pool is not None):
            if self._row_source is None or self._row_source.source is not epoch_iterator:
                self._row_source = Peekable(epoch_iterator)
            epoch_iterator = self._row_source
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _generate_and_score_completions(self, inputs: Rows) -> dict[str, Any]:
        """Brings this round's samples, which may be of other rows than `inputs` (see partial.py), and marks the
        batch with what they were sampled with."""
        if self.engine is None:
            return super()._generate_and_score_completions(inputs)
        if not self.model.training:
            self._ahead.wait()  # an evaluation is of the weights as they are now
            self._send_weights(inputs)
            return super()._generate_and_score_completions(inputs)
        self._round = self._bring_round(inputs)
        try:
            output = super()._generate_and_score_completions(self._round.rows)
        finally:
            self._round = None
        return self._with_sampling_logprobs(output)

    def _generate_single_turn(
        self,
        prompt_ids: Any,
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[Any, Any]:
        """Replaces TRL's choice between vLLM and transformers: (token ids, sampling log-probs) of each prompt."""
        if self.engine is None:
            with PHASES.within("generating", len(prompt_ids)):
                return super()._generate_single_turn(
                    prompt_ids, images, multimodal_fields, num_generations, has_tool_images
                )
        if images is not None:
            raise EngineRefused(
                f"rollout.engine {self.engine.name} takes text only and these rows have images; TRL's own generation "
                "reads them: build the trainer without an engine"
            )
        if self._round is not None and self._round.prompts == prompt_ids:
            completions = self._round.completions
        else:  # evaluation, or a further turn after a tool's answer
            first = stable_seed(self.args.seed, "turn", self.state.global_step, len(prompt_ids[0]))
            seed = first + self.accelerator.process_index * len(prompt_ids)
            sampling = replace(self._sampling(self.model.training), seed=seed)
            completions = together(lambda: self._generate_now(prompt_ids, sampling))
        self.check_sampled(one.logprobs for one in completions)
        self._sampled = completions
        return [one.token_ids for one in completions], [one.logprobs for one in completions]

    @property
    def replaces_old_logprobs(self) -> bool:
        """Whether the rollout in hand needs no forward for its old log-probs: the sampler's take their place.

        With an adapter the reference is scored by the same model, so there TRL's two questions cannot be told apart.
        """
        if self._round is None or not self._uses_sampled_logprobs:
            return False
        return self.beta == 0.0 or self.ref_model is not None

    def sampled_logprobs(self, length: int) -> Tensor:
        """The sampler's log-probs of the completions sampled last, padded to `length`. (B, T)."""
        rows = [torch.tensor(one.logprobs, device=self.accelerator.device) for one in self._sampled]
        sampled = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return torch.nn.functional.pad(sampled, (0, length - sampled.size(1)))

    def train(self, *arguments: Any, **named: Any) -> Any:
        """As TRL's; when the engine is lost or a reward fails, the run stops at a saved checkpoint."""
        try:
            return super().train(*arguments, **named)
        except (EngineError, RewardError) as error:
            raise type(error)(f"{error}\n{self._save_before_stopping()}") from error

    def _save_before_stopping(self) -> str:
        """Saves the state after the last whole step. A rollout begins a step and draws from no generator, so there
        is nothing of the interrupted step in it."""
        step = self.state.global_step
        if step == 0:
            return "No step was complete yet, so there is nothing to resume: mend it and start again."
        folder = Path(self.args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if not folder.is_dir():
            self._save_checkpoint(self.model, trial=None)
        return f"The run is saved as of step {step} in {folder}; --resume continues it from there."

    # Rounds

    @property
    def _round_length(self) -> int:
        """Micro-steps a round is trained on."""
        return (self.args.steps_per_generation or 1) * self.num_iterations

    def _bring_round(self, inputs: Rows) -> Round:
        """This round's samples; then the weights are sent and later rounds started, as the schedule says."""
        number = self._step // self._round_length
        begin = time.perf_counter()
        with PHASES.within("waiting for samples"):
            result = self._take_ahead(number, inputs)
        if result is None:
            result = self._make_round_now(number, inputs)
        self._log_rollout("wait_s", time.perf_counter() - begin)
        if self._schedule.starts_at(number):
            self._send_weights(inputs)
            for offset, later in enumerate(self._schedule.starts_at(number), start=1):
                rows, after = self._next_rows(offset), self._next_rows(offset + 1)
                if rows is not None and later not in self._ahead:
                    self._ahead.start(later, lambda n=later, r=rows, a=after: self._make_round(n, r, a))
        return result

    def _take_ahead(self, number: int, inputs: Rows) -> Round | None:
        """The round as it was generated ahead; None when it was not, or is of no use."""
        if number not in self._ahead:
            return None
        try:
            result = together(lambda: self._ahead.take(number))
        except WeightsLost:  # a server was restarted under it; it is made again with the weights of now
            return None
        if self._pool is None:
            if result.prompts != self._prompts_of(inputs):  # resumed with other data
                return None
            result.rows = inputs
        self._check_age(number, result)
        return result

    def _make_round_now(self, number: int, inputs: Rows) -> Round:
        self._ahead.wait()
        self._send_weights(inputs)
        after = self._next_rows(1)
        try:
            return together(lambda: self._make_round(number, inputs, after))
        except WeightsLost:
            if self.engine is not None:
                self.engine.version = None
            self._send_weights(inputs)
            return together(lambda: self._make_round(number, inputs, after))

    def _check_age(self, number: int, result: Round) -> None:
        """The bound on staleness is a promise, so a breach is a bug and stops the run."""
        if self._pool is not None:
            return  # a long completion is as old as its length makes it
        steps = self._round_length // self.args.gradient_accumulation_steps
        oldest = min(version for one in result.completions for version, _ in one.segments)
        if oldest < self._schedule.oldest(number) * steps:
            raise RuntimeError(
                f"rollout: round {number} holds samples of weight version {oldest}, older than staleness "
                f"{self.rollout_plan.staleness} allows"
            )

    def _next_rows(self, offset: int) -> Rows | None:
        """The rows of the round `offset` rounds from now, None past the end of the epoch."""
        if self._row_source is None:
            return None
        unread = self._round_length - self.args.gradient_accumulation_steps
        return self._row_source.peek(unread + (offset - 1) * self._round_length)

    def _prompts_of(self, rows: Rows) -> list[list[int]]:
        return self._tokenize_prompts([row["prompt"] for row in rows])[0]

    def _make_round(self, number: int, rows: Rows, after: Rows | None) -> Round:
        """Samples a round. Reads nothing that training changes, so it may run beside it."""
        if self._pool is not None:
            return self._make_partial_round(self._pool, number, rows, after)
        prompts = self._prompts_of(rows)
        seed = stable_seed(self.args.seed, "round", number) + self.accelerator.process_index * len(prompts)
        sampling = replace(self._sampling(training=True), seed=seed)
        return Round(rows, prompts, self._generate_now(prompts, sampling))

    def _make_partial_round(self, pool: Pool, number: int, rows: Rows, after: Rows | None) -> Round:
        for drawn, batch in ((number, rows), (number + 1, after)):
            if batch is not None and drawn > pool.drawn_rounds:
                pool.draw(self._prompts_of(batch), batch, self.num_generations)
                pool.drawn_rounds = drawn
        groups = pool.run(len(rows) // self.num_generations, self._generate_now)
        return Round(
            [row for group in groups for row in group.rows],
            [group.prompt for group in groups for _ in group.rows],
            [join(parts) for group in groups for parts in group.parts],
        )

    def _generate_now(
        self, prompts: list[list[int]], sampling: Sampling | Sequence[Sampling]
    ) -> list[Completion]:
        if self.engine is None:
            raise RuntimeError("EngineGeneration: no engine; call use_engine first")
        return self.engine.generate(prompts, sampling)

    def _sampling(self, training: bool) -> Sampling:
        """TRL's sampling arguments under the engines' names."""
        held_out = self.args.eval_temperature
        return Sampling(
            temperature=self.temperature if training or held_out is None else held_out,
            top_p=self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_completion_length,
            stop_token_ids=tuple(self.eos_token_ids),
        )

    # Weights

    def _send_weights(self, rows: Rows) -> None:
        """Gives the engine the weights as they are now, unless it has them."""
        if self.engine is None or self.engine.version == self.state.global_step:
            return
        begin = time.perf_counter()
        probe = self._prompts_of([rows[0], rows[-1]])
        with nullcontext() if self.engine.shares_weights else PHASES.within("syncing weights"):
            self._sync.update(self.state.global_step, probe, self._sampling(training=True))
        if not self.engine.shares_weights:
            self._log_rollout("sync_s", time.perf_counter() - begin)

    def _score_tokens(self, prompts: list[list[int]], completions: list[list[int]]) -> Tensor:
        """The trainer's log-probs of the completions' tokens, as it would score them for the loss. (B, T)."""
        rows = ScoredRows.of_lists(
            prompts, completions, filler=self._tokenizer.pad_token_id, device=self.accelerator.device
        )
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                return self.scorer.score(self.model, rows).logprobs
        finally:
            self.model.train(training)

    def _with_sampling_logprobs(self, output: dict[str, Any]) -> dict[str, Any]:
        """Old log-probs or importance weights from the sampling log-probs, and each token's weight version."""
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        output["weight_version"] = self._version_column(output["completion_ids"])
        lag = (self.state.global_step - output["weight_version"])[mask.bool()].float()
        if lag.numel():
            self._log_rollout("staleness", self._gathered(lag.mean()).mean().item())
            self._log_rollout("staleness_max", self._gathered(lag.max()).max().item())
        if self._uses_sampled_logprobs:
            output["old_per_token_logps"] = output["sampling_per_token_logps"]
        elif self.rollout_plan.importance_correction is not None:
            self._correct(output, mask, self.rollout_plan.importance_correction)
        return output

    def _version_column(self, completion_ids: Tensor) -> Tensor:
        """(B, T), -1 where there is no token. Tokens that a tool wrote count as of now."""
        versions = torch.full_like(completion_ids, -1)
        for row, marked in enumerate(marked_versions(self._sampled)):
            if self.tools:
                versions[row] = self.state.global_step
            else:
                versions[row, : len(marked)] = torch.tensor(marked, device=versions.device)
        return versions

    def _correct(self, output: dict[str, Any], mask: Tensor, mode: str) -> None:
        """The ratio starts from the trainer's own log-probs; their distance to the sampling ones becomes a weight."""
        old = output.get("old_per_token_logps")
        if old is None:
            wanted = Wanted(rows_at_once=self.args.per_device_train_batch_size)
            with torch.no_grad():
                old = self.scorer.score(self.model, ScoredRows.of_buffer(output), wanted).logprobs
            output["old_per_token_logps"] = old
        sampling = output["sampling_per_token_logps"]
        plan = self.rollout_plan
        ratio = importance_ratio(
            old, sampling, mask, mode, plan.importance_clip_max, plan.importance_clip_min
        )
        output["importance_sampling_ratio"] = ratio
        difference = (old - sampling).abs()[mask.bool()]
        shown = ratio[mask.bool()] if ratio.size(1) > 1 else ratio.flatten()
        for name, values in (("sampling_logp_difference", difference), ("importance_sampling_ratio", shown)):
            if values.numel():
                for kind, value in (("mean", values.mean()), ("max", values.max()), ("min", values.min())):
                    gathered = self._gathered(value)
                    reduced = {"mean": gathered.mean, "max": gathered.max, "min": gathered.min}[kind]()
                    self._metrics["train"][f"sampling/{name}/{kind}"].append(reduced.item())

    def _gathered(self, value: Tensor) -> Tensor:
        """One value a rank."""
        return torch.atleast_1d(torch.as_tensor(self.accelerator.gather(value)))

    def _log_rollout(self, name: str, value: float) -> None:
        """Of the run, also where an evaluation caused it: a sync is no held-out result."""
        self._metrics["train"][f"rollout/{name}"].append(value)

    # Resume

    def engine_state(self) -> dict[str, Any]:
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
        return {"rounds": rounds, "pool": None if self._pool is None else self._pool.state_dict()}

    def load_engine_state(self, state: Mapping[str, Any]) -> None:
        if self.engine is None or not state:
            return
        self._ahead.discard()
        for one in state["rounds"]:
            completions = [from_plain(plain) for plain in one["completions"]]
            self._ahead.put(one["number"], Round(one["rows"], one["prompts"], completions))
        if self._pool is not None and state["pool"] is not None:
            self._pool.load_state_dict(state["pool"])
