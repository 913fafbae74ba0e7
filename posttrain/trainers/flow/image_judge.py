"""Rewards of images: whole groups, in processes of their own, the same result on every rank.

As policy/judging.py does for text: the images of all ranks are brought together, each rank scores some of the groups,
and a failure on one rank is raised on all of them. CLIP models score a rank's own images, on its device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from posttrain.data.reward_columns import reward_columns
from posttrain.objectives.base import Groups
from posttrain.process.phases import PHASES
from posttrain.rewards.image_model_reward import ImageModelReward, scored_beside
from posttrain.rewards.resolve import RewardSpec, describe
from posttrain.rewards.runner import RewardError, RewardRunner, Scores
from posttrain.trainers.engines.scored_images import ScoredImages
from posttrain.trainers.models.clip_scorer import ClipScorer
from posttrain.trainers.policy.judging import as_tensor, of_all_ranks, require_judged, state_snapshot

log = logging.getLogger(__name__)


class ImageJudge:
    """sources  the rewards; None: there are none, and images are only kept
    weights  (K,)
    last     the images that were judged last
    """

    def __init__(
        self, accelerator: Accelerator, sources: ImageRewards | None, weights: Sequence[float]
    ) -> None:
        self.accelerator = accelerator
        self.runner = None if sources is None else sources.runner
        self.names: list[str] = [] if sources is None else sources.names
        self.scorers = {
            place: ClipScorer(spec, accelerator.device)
            for place, spec in ({} if sources is None else sources.models).items()
        }
        self.weights = torch.tensor(list(weights), dtype=torch.float32)
        self.last: ScoredImages | None = None
        self._told_of_unjudged = False

    def judge(
        self,
        rows: Sequence[Mapping[str, Any]],
        images: Sequence[Any],
        *,
        group_size: int,
        state: Any,
    ) -> ScoredImages:
        """This rank's images, with the rows they were made for, to those of all ranks with their rewards."""
        columns = reward_columns(rows[0], own=("prompt",)) if rows else {}
        modelled = self._score_by_models([str(row["prompt"]) for row in rows], images)
        local = [
            {
                "prompt": row["prompt"],
                "image": image,
                "modelled": scores,
                "columns": {name: row[key] for name, key in columns.items() if key != "image"},
            }
            for row, image, scores in zip(rows, images, modelled, strict=True)
        ]
        whole = gather_object(local)
        names = list(whole[0]["columns"]) if whole else []
        scores = Scores(values=[[] for _ in whole], answers=None, counts={})
        if self.runner is not None:
            with PHASES.within("scoring", len(whole)):
                scores = self._score_groups(whole, names, group_size, state)
        values = self._put_together(scores.values, [row["modelled"] for row in whole])
        rewards = as_tensor(values, self.accelerator.device).view(len(whole), len(self.names))
        require_judged(rewards, self.names, [])
        scored = ScoredImages(
            prompts=[row["prompt"] for row in whole],
            images=[row["image"] for row in whole],
            columns={name: [row["columns"][name] for row in whole] for name in names},
            rewards_per_function=rewards,
            counts=scores.counts,
            extra=scores.extra,
            logged=scores.metrics,
        )
        self.last = scored
        self._tell_of_unjudged(rewards)
        return scored

    def _score_by_models(self, prompts: Sequence[str], images: Sequence[Any]) -> list[list[float]]:
        """Of this rank's images, in the models' order. A failure is raised on every rank."""
        if not self.scorers:
            return [[] for _ in images]
        failure, columns = None, []
        try:
            with PHASES.within("scoring", len(images)):
                columns = [scorer.scores(images, prompts) for scorer in self.scorers.values()]
        except Exception as error:  # any failure of a model must reach the other ranks before it is raised
            failure = f"{type(error).__name__}: {error}"
        failures = [one for one in gather_object([failure]) if one is not None]
        if failures:
            raise RewardError(f"a model that scores images failed: {failures[0]}")
        return [list(row) for row in zip(*columns, strict=True)] if images else []

    def _put_together(
        self, values: Sequence[Sequence[Any]], modelled: Sequence[Sequence[Any]]
    ) -> list[list[Any]]:
        """Each row's rewards in the order they were named."""
        found = []
        for of_functions, of_models in zip(values, modelled, strict=True):
            functions, models = iter(of_functions), iter(of_models)
            found.append(
                [next(models if place in self.scorers else functions) for place in range(len(self.names))]
            )
        return found

    def _score_groups(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], group_size: int, state: Any
    ) -> Scores:
        """This rank scores every `num_processes`-th group; then all ranks put the scores together."""
        accelerator, runner = self.accelerator, self.runner
        if runner is None:
            raise RuntimeError("ImageJudge: no reward function to call")
        groups = [list(range(start, start + group_size)) for start in range(0, len(rows), group_size)]
        mine = groups[accelerator.process_index :: accelerator.num_processes]
        picked = [rows[i] for group in mine for i in group]
        failure, scores = None, Scores(values=[], answers=None, counts={})
        try:
            scores = runner.score(
                [row["image"] for row in picked],
                columns={name: [row["columns"][name] for row in picked] for name in columns},
                group_size=group_size,
                prompts=[row["prompt"] for row in picked],
                trainer_state=state_snapshot(state),
                of_images=True,
            )
        except Exception as error:  # any failure of a reward must reach the other ranks before it is raised
            failure = error
        return of_all_ranks(mine, scores, failure, len(rows))

    def totals(self, scored: ScoredImages) -> Tensor:
        """The weighted sums (B,), NaN where nothing judged."""
        per_function = scored.rewards_per_function
        total = (per_function * self.weights.to(per_function)).nansum(dim=1)
        total[per_function.isnan().all(dim=1)] = torch.nan
        return total

    def groups(self, scored: ScoredImages, group_size: int) -> Groups:
        """As an objective wants them: (P, G)."""
        per_function = scored.rewards_per_function
        return Groups(
            rewards=self.totals(scored).view(-1, group_size),
            rewards_per_function=per_function.view(-1, group_size, per_function.size(1)),
            weights=self.weights.to(per_function),
        )

    def metrics(self, scored: ScoredImages, group_size: int) -> dict[str, float]:
        """reward, reward_std (of groups, sample), rewards/NAME/mean and std, and what could not be judged."""
        if not self.names:
            return {}
        rewards = self.groups(scored, group_size).rewards.double()
        found = {"reward": float(rewards.nanmean())}
        if group_size > 1:
            centred = rewards - rewards.nanmean(1, keepdim=True)
            count = (~rewards.isnan()).sum(1).clamp(min=2)
            deviations = (centred.square().nansum(1) / (count - 1)).sqrt()
            found["reward_std"] = float(deviations.mean())
            found["frac_reward_zero_std"] = float((deviations == 0).double().mean())
        for k, name in enumerate(self.names):
            values = scored.rewards_per_function[:, k].double()
            values = values[~values.isnan()]
            if values.numel():
                found[f"rewards/{name}/mean"] = float(values.mean())
                found[f"rewards/{name}/std"] = float(values.std(correction=0))
        for name, reasons in scored.counts.items():
            found |= {f"reward_failures/{name}/{reason}": float(count) for reason, count in reasons.items()}
        for name, values in scored.logged.items():
            found[name] = sum(values) / max(1, len(values))
        return found

    def _tell_of_unjudged(self, rewards: Tensor) -> None:
        if not self.names or self._told_of_unjudged or not self.accelerator.is_main_process:
            return
        count = int(rewards.isnan().all(dim=1).sum())
        if count:
            self._told_of_unjudged = True
            log.warning(
                "no reward could judge %d of %d images, so nothing is learned from them", count, len(rewards)
            )


@dataclass(frozen=True)
class ImageRewards:
    """
    runner   scores the reward functions; None where there are none
    models   position of a reward -> the CLIP model that is asked for it
    names, weights  of all, in the order they were given
    """

    runner: RewardRunner | None
    models: dict[int, ImageModelReward]
    names: list[str]
    weights: list[float]


def image_rewards(rewards: Any, *, timeout_s: float, on_error: Any, workers: int | None) -> ImageRewards:
    """A trainer's `reward_funcs`. ValueError where one judges texts or reads tokens."""
    given = rewards if isinstance(rewards, list | tuple) else [rewards]
    specs = [RewardSpec.of(one) for one in given]
    models = {place: ImageModelReward.of(spec) for place, spec in enumerate(specs) if scored_beside(spec)}
    for place in models:
        describe(specs[place])  # its own check of its settings
    run = [spec for place, spec in enumerate(specs) if place not in models]
    runner = RewardRunner(run, timeout_s=timeout_s, on_error=on_error, workers=workers) if run else None
    for signature in [] if runner is None else runner.signatures:
        if signature.says_which and signature.completions_as != "images":
            raise ValueError(
                f"reward {signature.name!r} judges texts, and this trainer makes images; annotate its parameter as "
                "completions: list[Image.Image] where it reads them"
            )
    run_names = iter([] if runner is None else runner.names)
    names = [models[place].title if place in models else next(run_names) for place in range(len(specs))]
    return ImageRewards(runner, models, names, [spec.weight for spec in specs])
