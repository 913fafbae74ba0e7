"""A family of policies measured: reward and KL of each coefficient on held-out prompts, and the choices per prompt
(`posttrain eval balance`). The card is docs/prompt_balance.md.

Policy and reference sample in trainers made as `posttrain data difficulty` makes them; every prompt is asked with each
prefix, and its responses are scored by the policy with the prefix and by the reference without.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers.utils.logging
from torch import Tensor

from posttrain.observe.writer import RECIPE
from posttrain.ops.balance_choice import EDGES, Earned, bin_of, by_bins, by_halves, earned, single
from posttrain.ops.balance_model import BalanceModel, fit_balance
from posttrain.ops.kl import k3
from posttrain.planning.saved_model import model_of
from posttrain.process.phases import PHASES
from posttrain.recipe import Recipe, RecipeError, load_recipe
from posttrain.rollout.base import stable_seed
from posttrain.run.difficulty import measured_recipe
from posttrain.settings.beta_family import BetaFamily
from posttrain.trainers.forward.base import Rows, Wanted
from posttrain.trainers.policy.family_rollout import COLUMN
from posttrain.trainers.policy.pass_rates import PassRates

FEATURES = ("length", "reference_entropy", "pass_rate")
"""What a prompt can be described by: its tokens; the reference's mean entropy over its own samples, in nats per token;
their mean reward."""


@dataclass(frozen=True)
class FamilyAsked:
    """
    samples      responses a prompt and coefficient
    calibration  share of the prompts that choices are made on
    at_once      responses sampled at a time
    limit        prompts; None: all held-out ones
    """

    samples: int = 8
    calibration: float = 0.5
    at_once: int = 256
    limit: int | None = None
    features: tuple[str, ...] = FEATURES
    seed: int = 0


@dataclass(frozen=True)
class FamilyMeasured:
    """P prompts, V coefficients, K samples of each, on the CPU.

    samples   (P, V, K) rewards
    kl        (P, V) of policy to reference, nats per response, mean over the samples
    features  (P, 3) as FEATURES
    """

    family: BetaFamily
    samples: Tensor
    kl: Tensor
    features: Tensor


def run_recipe_of(run_dir: str | Path) -> Recipe:
    """The recipe of a run that has held-out rows; RecipeError where there is none."""
    path = Path(run_dir) / RECIPE
    if not path.is_file():
        raise RecipeError(
            f"{run_dir} is no run folder: no {RECIPE}; name the folder of a run with beta_family"
        )
    recipe = load_recipe(str(path))
    if recipe.data.eval is None:
        raise RecipeError(f"{path}: data: no eval, so there are no held-out prompts to measure on")
    return recipe


def family_of(recipe: Recipe) -> BetaFamily:
    """RecipeError where its run has none."""
    train: Any = recipe.train
    values = getattr(train, "beta_family", None)
    if values is None:
        raise RecipeError(f"{recipe.path}: train: no beta_family, so there is no coefficient to choose")
    return BetaFamily.of(values, train.beta_prefixes)


def measure_family(run_dir: str | Path, asked: FamilyAsked, *, alone: bool = False) -> FamilyMeasured:
    """Samples and scores. Raises RecipeError, DataError, and what a rollout raises.

    alone  the run has no family: its policy is measured as a family of one, asked without a prefix
    """
    recipe = run_recipe_of(run_dir)
    family = BetaFamily((float(recipe.train.beta),), ("",)) if alone else family_of(recipe)  # pyright: ignore[reportAttributeAccessIssue]
    held_out = replace(recipe, data=recipe.data.eval)
    base = measured_recipe(held_out, asked.samples)
    policy = replace(
        base, model=base.model.model_copy(update={"path": model_of(str(run_dir)), "scratch": None})
    )
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="posttrain-balance-") as folder:
        PHASES.say("the reference")
        reference = _trainer(base, asked, folder)
        rows = [dict(row) for row in reference.train_dataset][: asked.limit]
        features = _features(reference, rows, asked)
        PHASES.say("the family")
        trainer = _trainer(policy, asked, folder)
        trainer.family.family = family  # so that rewards read the prompts without the prefix
        samples, kl = [], []
        for value in family.values:
            one, distance = _of_value(trainer, reference, rows, family, value, asked)
            samples.append(one)
            kl.append(distance)
    return FamilyMeasured(family, torch.stack(samples, dim=1), torch.stack(kl, dim=1), features)


def _trainer(recipe: Recipe, asked: FamilyAsked, folder: str) -> Any:
    rollout: Any = recipe.rollout
    changes = {
        "eval_temperature": rollout.temperature,
        "num_generations_eval": asked.samples,
        "per_device_eval_batch_size": asked.samples,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return recipe.spec.load_trainer().from_recipe(recipe, output_dir=folder, **changes)


def _batches(rows: Sequence[Any], asked: FamilyAsked) -> list[Sequence[Any]]:
    size = max(1, asked.at_once // asked.samples)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _features(reference: Any, rows: Sequence[dict[str, Any]], asked: FamilyAsked) -> Tensor:
    """(P, 3), see FEATURES."""
    rates, found = PassRates(reference), []
    with PHASES.within("prompts", len(rows)):
        for at, batch in enumerate(_batches(rows, asked)):
            scored = rates.sampled(batch, seed=stable_seed(asked.seed, "reference", at))
            prompts = [row["prompt"] for row in batch for _ in range(asked.samples)]
            ids, given = _scored_rows(reference, prompts, scored.completion_ids)
            entropy = _score(reference, reference.model, given, Wanted(entropy=True)).entropy
            mask = given.completion_mask.to(entropy)
            sums = torch.stack([(entropy * mask).sum(1), mask.sum(1)], 1).view(len(batch), -1, 2).sum(1).cpu()
            lengths = torch.tensor([len(one) for one in ids[:: asked.samples]])
            each = [lengths, sums[:, 0] / sums[:, 1].clamp(min=1), rates.rewards(scored).nanmean(dim=1).cpu()]
            found.append(torch.stack([one.double() for one in each], dim=1))
    return torch.cat(found)


def _of_value(
    trainer: Any,
    reference: Any,
    rows: Sequence[dict[str, Any]],
    family: BetaFamily,
    value: float,
    asked: FamilyAsked,
) -> tuple[Tensor, Tensor]:
    """Rewards (P, K) and KL (P,) of the policy of one coefficient."""
    rates, rewards, distances = PassRates(trainer), [], []
    with PHASES.within(f"prompts at {family.name(value)}", len(rows)):
        for at, batch in enumerate(_batches(rows, asked)):
            told = [{**row, "prompt": family.prefixed(row["prompt"], value), COLUMN: value} for row in batch]
            scored = rates.sampled(told, seed=stable_seed(asked.seed, "family", family.name(value), at))
            rewards.append(rates.rewards(scored).cpu())
            every = range(asked.samples)
            _, mine = _scored_rows(trainer, [r["prompt"] for r in told for _ in every], scored.completion_ids)
            _, plain = _scored_rows(
                trainer, [r["prompt"] for r in batch for _ in every], scored.completion_ids
            )
            own = _score(trainer, trainer.model, mine).logprobs
            other = _score(trainer, reference.model, plain).logprobs
            apart = (k3(own, other) * mine.completion_mask.to(own)).sum(1)
            distances.append(apart.view(len(batch), -1).mean(1).cpu())
    return torch.cat(rewards).double(), torch.cat(distances).double()


def _scored_rows(
    trainer: Any, prompts: Sequence[Any], completions: Sequence[Sequence[int]]
) -> tuple[Any, Rows]:
    ids = trainer.rollouts.prompts_of([{"prompt": one} for one in prompts])
    filler, device = trainer._tokenizer.pad_token_id, trainer.accelerator.device
    return ids, Rows.of_lists(ids, completions, filler=filler, device=device)


def _score(trainer: Any, model: Any, rows: Rows, wanted: Wanted | None = None) -> Any:
    model.eval()
    with torch.no_grad():
        return trainer.scorer.score(model, rows, wanted or Wanted())


# Choices


@dataclass(frozen=True)
class FamilyResult:
    """What `posttrain eval balance` says of a family; `for_json` is its file.

    each      value -> what it earns on the prompts that choices are not made on
    choices   way of choosing -> what it earns there, with the gain over the single best
    counts    way of choosing -> of those prompts, how many get each value
    bins      the value that each bin of pass rates gets
    places    way of choosing -> the place of each of those prompts' value
    """

    family: BetaFamily
    model: BalanceModel
    each: dict[float, Earned]
    choices: dict[str, Earned]
    counts: dict[str, list[int]]
    bins: list[float]
    prompts: tuple[int, int]
    samples: int
    places: dict[str, Tensor]

    def for_json(self) -> dict[str, Any]:
        named = self.family.name
        return {
            **self.family.for_config(),
            "samples": self.samples,
            "prompts": {"calibration": self.prompts[0], "evaluation": self.prompts[1]},
            "each": {named(value): asdict(one) for value, one in self.each.items()},
            "choices": {name: asdict(one) for name, one in self.choices.items()},
            "counts": self.counts,
            "bins": {"edges": list(EDGES), "values": self.bins},
            "model": self.model.to_plain(),
        }


SINGLE, BINS, LEARNED, OWN = "single best", "pass-rate bins", "balance model", "own samples"


def choices_of(measured: FamilyMeasured, asked: FamilyAsked) -> FamilyResult:
    """Chooses on the first prompts, measures on the rest. Raises ValueError where one side has fewer than two."""
    family, total = measured.family, len(measured.samples)
    cut = round(asked.calibration * total)
    if cut < 2 or total - cut < 2:
        raise ValueError(
            f"{total} held-out prompts and --calibration {asked.calibration:g} leave {cut} to choose on and "
            f"{total - cut} to measure on; two of each are the fewest"
        )
    rewards = measured.samples.nanmean(dim=2)
    if not bool(rewards.isfinite().all()):
        raise ValueError("some prompts have no judged response under a coefficient; raise --samples")
    columns = [FEATURES.index(name) for name in asked.features]
    features, rates = measured.features[:, columns], measured.features[:, FEATURES.index("pass_rate")]
    best = single(rewards[:cut])
    bins = by_bins(rates[:cut], rewards[:cut])
    model = fit_balance(family.values, asked.features, features[:cut], rewards[:cut])
    later, kl = rewards[cut:], measured.kl[cut:]
    baseline = torch.full((len(later),), best)
    places = {
        SINGLE: baseline,
        BINS: torch.tensor(bins)[bin_of(rates[cut:])],
        LEARNED: model.places(features[cut:]),
    }
    choices = {name: earned(one, later, kl, baseline) for name, one in places.items()}
    if asked.samples > 1:
        places[OWN], half = by_halves(measured.samples[cut:].nan_to_num(nan=0.0))
        choices[OWN] = earned(places[OWN], half, kl, baseline)
    each = {value: earned(torch.full((len(later),), at), later, kl) for at, value in enumerate(family.values)}
    counts = {
        name: torch.bincount(one, minlength=len(family.values)).tolist() for name, one in places.items()
    }
    chosen = [family.values[at] for at in bins]
    return FamilyResult(
        family, model, each, choices, counts, chosen, (cut, total - cut), asked.samples, places
    )
