"""The names in `train` are TRL's: each exists on the family's config, with its default or a stated reason."""

from __future__ import annotations

import dataclasses

import pytest
import trl
from small_recipe import POLICY, SFT, Load
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from posttrain.planning.memory import STATE_BYTES
from posttrain.recipe import FAMILIES
from posttrain.recipe.train_options import (
    DEPARTURES,
    ELSEWHERE,
    IMAGE_DEPARTURES,
    OURS,
    OWNED,
    FlowSFTTrain,
    FlowTrain,
    TrainSection,
)
from posttrain.trainers.seam.config import PolicyConfig

CONFIGS = {"sft": trl.SFTConfig, "preference": trl.DPOConfig}
PAIRS = [(family.train, CONFIGS.get(name, trl.GRPOConfig)) for name, family in FAMILIES.items()]


@pytest.mark.parametrize(("options", "config"), PAIRS)
def test_every_name_and_default_is_trls(options: type[TrainSection], config: type) -> None:
    upstream = {field.name: field.default for field in dataclasses.fields(config)}
    ours = set(options.model_fields) & set(OURS)
    unknown = set(options.model_fields) - set(upstream) - ours
    assert not unknown
    assert not set(OURS) & set(upstream)
    stated = {*DEPARTURES, *(IMAGE_DEPARTURES if options in (FlowTrain, FlowSFTTrain) else ())}
    different = {
        name
        for name, field in options.model_fields.items()
        if name not in {*stated, *ours} and field.default != upstream[name]
    }
    assert not different


def test_owned_and_moved_names_are_trls_and_not_options_here() -> None:
    names = {
        f.name
        for config in (trl.GRPOConfig, trl.SFTConfig, trl.DPOConfig)
        for f in dataclasses.fields(config)
    }
    assert set(OWNED) <= names
    for family in FAMILIES.values():
        assert not (set(OWNED) | set(ELSEWHERE)) & set(family.train.model_fields)


def test_choices_exist_upstream() -> None:
    options = TrainSection.model_fields
    optimizers = set(options["optim"].annotation.__args__)  # type: ignore[union-attr]  # a Literal
    assert optimizers <= {name.value for name in OptimizerNames}
    assert optimizers == set(STATE_BYTES)
    schedules = set(options["lr_scheduler_type"].annotation.__args__)  # type: ignore[union-attr]  # a Literal
    assert schedules <= {name.value for name in SchedulerType}


def test_a_recipe_fills_trls_config(load: Load) -> None:
    recipe = load(POLICY, rollout={"top_k": 20, "min_p": 0.1})
    names = {field.name for field in dataclasses.fields(trl.GRPOConfig)}
    arguments = recipe.trl_arguments(names)
    assert set(arguments) <= names
    assert set(OURS) <= {field.name for field in dataclasses.fields(PolicyConfig)}
    args = trl.GRPOConfig(**arguments)
    assert args.num_generations == 4
    assert args.max_completion_length == 9
    assert (args.top_k, args.min_p, args.temperature) == (20, 0.1, 1.0)
    assert args.learning_rate == 1e-4
    assert args.max_steps == 3
    assert args.output_dir == "runs/r"
    assert args.report_to == ["tensorboard"]
    assert args.bf16 is False


def test_a_null_that_says_something_reaches_trl(load: Load) -> None:
    assert load(SFT, train={"max_length": None}).trl_arguments({"max_length"})["max_length"] is None


def test_a_run_by_epochs_keeps_trls_word_for_no_step_limit(load: Load) -> None:
    arguments = load(POLICY, train={"max_steps": None, "num_train_epochs": 2}).trl_arguments({"max_steps"})
    assert "max_steps" not in arguments
    assert arguments["num_train_epochs"] == 2.0
