"""iTool's loop: find the rows the policy is worst at, search their calls, train on the steps, again.

    iteration k: perplexity of every gold call under pi_{k-1} -> the hardest rows -> a tree each, written and judged by
    pi_{k-1} -> pairs of fragments behind one partial call -> SimPO -> pi_k

    OUTPUT/stages/000/perplexity-*.jsonl, search-*.jsonl   a line a row, appended batch by batch

Rows are worked on in batches of the same rows whatever the number of ranks and whatever a kill has left undone, so that
numbers do not depend on either. The method's page is posttrain/preferences/itool.py.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from trl import DPOConfig

from posttrain.answers.tool_calls import word_overlap
from posttrain.preferences.call_search import (
    AskContinuations,
    AskJudgement,
    Continuation,
    SearchLimits,
    in_lockstep,
    search,
)
from posttrain.preferences.deficiency import hardest
from posttrain.preferences.itool import ITool
from posttrain.preferences.step_pairs import PairFilter, step_pairs
from posttrain.process.phases import PHASES
from posttrain.recipe import Recipe
from posttrain.rollout.base import Sampling, stable_seed
from posttrain.trainers.engines.answers import prompt_ids
from posttrain.trainers.engines.from_recipe import staged_options
from posttrain.trainers.models.ingredients import ingredients
from posttrain.trainers.preference.pair_rows import PairCounts
from posttrain.trainers.preference.trainer import PreferenceConfig
from posttrain.trainers.seam.config import flat_config, settings_from
from posttrain.trainers.seam.recipe_arguments import training_arguments
from posttrain.trainers.seam.taken_over import own_arguments
from posttrain.trainers.staged.call_reader import CallPolicy, GoldReader, judgement_prompt, letter_ids
from posttrain.trainers.staged.disk import drop_partial_line
from posttrain.trainers.staged.staged import Pair, Stage, StagedTrainer

ITOOL_SAMPLING = Sampling(temperature=1.5, max_new_tokens=50, repetition_penalty=0.75)
"""How the released code writes continuations."""

ITOOL_BATCH = 16
"""Rows searched side by side."""

IToolConfig = flat_config("IToolConfig", PreferenceConfig, ITool, __name__)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchedRow:
    """A row as it is searched: its prompt, that in tokens, its gold answer, that in tokens."""

    prompt: Any
    ids: list[int]
    gold: str
    gold_ids: list[int]


class IToolTrainer(StagedTrainer):
    """iTool, see posttrain/preferences/itool.py.

    `IToolTrainer(model, rows, args=IToolConfig(output_dir=..., iterations=1, beta=2.5), processing_class=tokenizer)`.
    `args` speaks of one iteration: its epochs or steps, its learning rate.

    rows  mappings with prompt (text or messages) and answer, the gold call as text
    """

    def __init__(
        self,
        model: Any,
        rows: Iterable[Any],
        args: Any,
        processing_class: Any,
        *,
        sampling: Sampling = ITOOL_SAMPLING,
        generation_batch_size: int = ITOOL_BATCH,
        **more: Any,
    ) -> None:
        args = own_arguments(type(self), args, IToolConfig, DPOConfig, "itool")
        method = settings_from(args, ITool)
        if more.get("generator") is not None:
            raise ValueError(
                "iTool: the policy judges what it writes, in this process; leave the generator out"
            )
        letter_ids(processing_class)  # said before anything is saved
        super().__init__(
            model,
            args,
            method,
            processing_class,
            sampling=sampling,
            generation_batch_size=generation_batch_size,
            **more,
        )
        self.settings: ITool = method
        self.given = [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows]
        if not self.given:
            raise ValueError("iTool: no row to train on")

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> IToolTrainer:
        """The run a recipe describes; `changes` win over its training arguments."""
        parts = ingredients(recipe)
        args = training_arguments(recipe, IToolConfig, **{**recipe.objective.values(), **changes})
        trainer = cls(
            parts.model,
            parts.train_rows,
            args,
            parts.tokenizer,
            peft_config=parts.peft_config,
            **staged_options(recipe, parts.tokenizer, args),
        )
        trainer.row_counts = parts.train_counts
        return trainer

    def rows(self) -> Iterable[Any]:
        return self.given

    def stage_names(self) -> list[str]:
        return [f"iteration {k}" for k in range(1, self.settings.iterations + 1)]

    def planned_steps(self) -> int:
        """At one pair a searched row, where epochs say how long a stage is: how many there are is seen as they come."""
        per_step = (
            self.args.per_device_train_batch_size
            * self.args.gradient_accumulation_steps
            * self.ranks.num_processes
        )
        pairs = min(math.ceil(len(self.given) * self.settings.hardest_share), self.settings.max_pairs)
        one = math.ceil(math.ceil(pairs / per_step) * self.args.num_train_epochs)
        return self.settings.iterations * (self.args.max_steps if self.args.max_steps > 0 else one)

    # One stage

    def make_pairs(self, stage: Stage) -> tuple[list[Pair], PairCounts]:
        counts = PairCounts()
        rows = self._searchable()
        lost = Counter({"row leaves a call no room within max_length": len(self.given) - len(rows)})
        with self._policy(stage) as policy:
            wrong = self._perplexities(stage, rows, policy)
            chosen = hardest(wrong, [")" in row.gold for row in rows], self.settings.hardest_share)
            lost["row is none of the hardest"] += len(rows) - len(chosen)
            found = self._searched(stage, [rows[i] for i in chosen], policy)
        pairs: list[Pair] = []
        for row, lines in zip((rows[i] for i in chosen), found, strict=True):
            lost.update(lines["refused"])
            if not lines["pairs"] and not lines["refused"]:
                lost["row whose search has no step with two children"] += 1
            pairs += [self._pair(row, one) for one in lines["pairs"]]
        most = self.settings.max_pairs
        lost["pair beyond max_pairs"] += max(len(pairs) - most, 0)
        counts.rows_in = len(pairs) + sum(lost.values()) - lost["pair beyond max_pairs"]
        for reason, number in lost.items():
            counts.drop(reason, number)
        return pairs[:most], counts

    def _searchable(self) -> list[SearchedRow]:
        """Rows whose prompt leaves room for the gold call and for what is written."""
        tokenizer, limit = self.processing_class, self.args.max_length or 10**9
        found: list[SearchedRow] = []
        for row in self.given:
            ids = prompt_ids(tokenizer, row["prompt"])
            gold_ids: Any = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
            if gold_ids and len(ids) + max(len(gold_ids), self.sampling.max_new_tokens) <= limit:
                found.append(SearchedRow(row["prompt"], ids, row["answer"], gold_ids))
        return found

    @contextmanager
    def _policy(self, stage: Stage) -> Any:
        """A function that loads the stage's policy when it is first asked; freed at the end."""
        held: list[CallPolicy] = []

        def policy() -> CallPolicy:
            if not held:
                device = torch.device("cpu") if self.args.use_cpu else self.ranks.device
                folder = self.pool.path(stage.number)
                with PHASES.within("loading the policy that searches"):
                    held.append(CallPolicy(folder, self.processing_class, base=self.base, device=device))
            return held[0]

        try:
            yield policy
        finally:
            held.clear()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _perplexities(
        self, stage: Stage, rows: Sequence[SearchedRow], policy: Callable[[], CallPolicy]
    ) -> list[float]:
        def measure(numbers: Sequence[int]) -> list[Any]:
            some = [rows[i] for i in numbers]
            return policy().perplexities([row.ids for row in some], [row.gold_ids for row in some])

        return self._worked(stage, "perplexity", len(rows), measure)

    def _searched(
        self, stage: Stage, rows: Sequence[SearchedRow], policy: Callable[[], CallPolicy]
    ) -> list[dict[str, Any]]:
        """Of each row its pairs and why other steps gave none."""
        base = stable_seed("ITool", self.args.seed, stage.number)
        settings = self.settings
        per_row = settings.searches * (settings.children + 1)
        limits = SearchLimits(
            rounds=settings.searches,
            children=settings.children,
            depth=settings.depth,
            step_limit=settings.step_limit,
            exploration=settings.exploration,
            rollout_steps=settings.rollout_steps,
            keep_cut=settings.compat == "reference",
        )

        def grow(numbers: Sequence[int]) -> list[Any]:
            readers = [GoldReader(self.processing_class, rows[i].gold, settings.compat) for i in numbers]
            searches = [
                search(reader, limits, base + i * per_row) for i, reader in zip(numbers, readers, strict=True)
            ]
            some = [rows[i] for i in numbers]
            asks = _Asks(policy(), some, readers, self._stopping)
            trees = in_lockstep(searches, asks.write, asks.judge)
            return [self._found(tree, reader) for tree, reader in zip(trees, readers, strict=True)]

        return self._worked(stage, "search", len(rows), grow)

    def _found(self, tree: Any, reader: GoldReader) -> dict[str, Any]:
        settings = self.settings
        rule = PairFilter(
            settings.min_gap, settings.max_overlap, settings.min_value, sums=settings.compat == "reference"
        )
        pairs, refused = step_pairs(tree, reader.text, word_overlap, rule)
        return {"pairs": [asdict(pair) for pair in pairs], "refused": dict(refused)}

    def _pair(self, row: SearchedRow, found: dict[str, Any]) -> Pair:
        """The pair in tokens, as they were written, and in words for whoever reads the file. No end token is added: the
        answer goes on behind a fragment, unless the policy ended it there itself."""
        prefix, chosen, rejected = (list(found[name]) for name in ("prefix", "chosen", "rejected"))
        prompt = row.ids + prefix
        shown = [self.processing_class.decode(ids) for ids in (prompt, chosen, rejected)]
        names = "prompt", "chosen", "rejected"
        return {**dict(zip(names, shown, strict=True)), "prompt_ids": prompt} | {
            "chosen_ids": chosen,
            "rejected_ids": rejected,
        }

    # Work on disk

    def _worked(
        self, stage: Stage, name: str, total: int, work: Callable[[Sequence[int]], list[Any]]
    ) -> list[Any]:
        """`work` of all rows in batches shared out over ranks; those on disk from before a kill are taken over."""
        file = stage.folder / f"{name}-{self.ranks.process_index}.jsonl"
        drop_partial_line(file)
        found = read_worked(stage.folder, name)
        self.ranks.wait_for_everyone()  # all have read the same before one of them writes
        size = self.generation_batch_size
        mine = range(0, total, size)[self.ranks.process_index :: self.ranks.num_processes]
        with (
            file.open("a", encoding="utf-8") as out,
            PHASES.within(f"{stage.name}: {name}", sum(min(size, total - start) for start in mine)) as phase,
        ):
            done = 0
            for start in mine:
                rows = range(start, min(start + size, total))
                if not all(row in found for row in rows):
                    values = work(rows)
                    out.writelines(
                        json.dumps({"row": row, "value": value}) + "\n"
                        for row, value in zip(rows, values, strict=True)
                    )
                    out.flush()
                    os.fsync(out.fileno())
                done += len(rows)
                phase.at(done)
        self.ranks.wait_for_everyone()
        found = read_worked(stage.folder, name)
        return [found[row] for row in range(total)]


class _Asks:
    """Serves a batch of searches with one policy."""

    def __init__(
        self,
        policy: CallPolicy,
        rows: Sequence[SearchedRow],
        readers: Sequence[GoldReader],
        sampling: Sampling,
    ) -> None:
        self.policy, self.rows, self.readers, self.sampling = policy, rows, readers, sampling

    def write(self, wishes: list[tuple[int, AskContinuations]]) -> list[list[Continuation]]:
        prompts = [self.rows[n].ids + list(wish.prefix) for n, wish in wishes for _ in wish.seeds]
        sampling = [replace(self.sampling, seed=seed) for _, wish in wishes for seed in wish.seeds]
        drawn = iter(self.policy.write(prompts, sampling))
        return [[next(drawn) for _ in wish.seeds] for _, wish in wishes]

    def judge(self, wishes: list[tuple[int, AskJudgement]]) -> list[list[float]]:
        tokenizer = self.policy.tokenizer
        return self.policy.judgements(
            [
                judgement_prompt(tokenizer, self.rows[n].prompt, self.readers[n].text(wish.prefix))
                for n, wish in wishes
            ]
        )


def read_worked(folder: Path, name: str) -> dict[int, Any]:
    """Row -> value over all ranks' files; a line that a kill cut short is left out."""
    found: dict[int, Any] = {}
    for file in sorted(folder.glob(f"{name}-*.jsonl")):
        for line in file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines():
            one = json.loads(line)
            found[one["row"]] = one["value"]
    return found
