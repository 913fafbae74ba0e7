"""What a resume may change: every key has an answer, every difference is said or refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from small_recipe import POLICY, SFT, Load

from posttrain.observe.summary import summarise
from posttrain.observe.writer import RecipeChange, RunWriter, read_recipe_changes
from posttrain.recipe import FAMILIES, Recipe, RecipeError
from posttrain.recipe.methods import METHODS
from posttrain.run.continuing import VERDICTS, compare, flat, recipe_at, verdict


def trained(folder: Path, recipe: Recipe) -> RunWriter:
    writer = RunWriter(folder)
    writer.write_recipe(recipe.resolved())
    return writer


def changes(
    load: Load, folder: Path, step: int = 4, processes: int = 1, base: Any = POLICY, **new: Any
) -> list[str]:
    return [str(change) for change in compare(load(base, **new), folder, step, processes).changes]


def test_every_key_of_train_has_an_answer_of_its_own() -> None:
    for family in FAMILIES.values():
        for key in family.train.model_fields:
            assert f"train.{key}" in VERDICTS, f"train.{key}: may a resume change it?"
    stale = [key for key in VERDICTS if key.startswith("train.")]
    known = {f"train.{key}" for family in FAMILIES.values() for key in family.train.model_fields}
    assert set(stale) <= known


def test_settings_that_are_fixed_are_settings() -> None:
    for method in METHODS.values():
        fixed = set(method.load_settings().fixed_on_resume)
        if method.family != "diffusion":  # whose base class names those of all of them
            assert fixed <= {field.name for field in fields(method.load_settings())}, method.name


def test_a_key_nobody_thought_of_is_refused() -> None:
    assert verdict("train.new_key", {}) is not None
    assert verdict("train.learning_rate", {}) is None


def test_nothing_changed_says_nothing(load: Load, tmp_path: Path) -> None:
    trained(tmp_path, load(POLICY))
    assert changes(load, tmp_path) == []


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({"train": {"learning_rate": 1e-5}}, "train.learning_rate: {lr} -> 1e-05"),
        ({"train": {"lr_scheduler_type": "constant"}}, "train.lr_scheduler_type: linear -> constant"),
        ({"train": {"weight_decay": 0.1}}, "train.weight_decay: 0.0 -> 0.1"),
        ({"output": {"logging_steps": 5}}, "output.logging_steps: 1 -> 5"),
        ({"rollout": {"top_p": 0.9}}, "rollout.top_p: 1.0 -> 0.9"),
    ],
)
def test_what_can_be_changed_is_said(new: dict[str, Any], said: str, load: Load, tmp_path: Path) -> None:
    before = load(POLICY)
    trained(tmp_path, before)
    assert changes(load, tmp_path, **new) == [said.format(lr=before.train.learning_rate)]


@pytest.mark.parametrize(
    ("new", "refused"),
    [
        ({"method": "cispo", "objective": None}, "method was dapo, not cispo"),
        ({"train": {"seed": 7}}, "train.seed was 0, not 7: the order of the rows"),
        ({"train": {"bf16": True}}, "train.bf16 was false, not true"),
        ({"rollout": {"group_size": 2}}, "rollout.group_size was 4, not 2"),
        ({"train": {"num_iterations": 3}}, "train.num_iterations was 1, not 3"),
        ({"data": {"limit": 40}}, "data.limit was unset, not 40: rows would be repeated or skipped"),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype was float32, not bfloat16"),
        ({"model": {"scratch": {"layers": 4}}}, "model.scratch.layers was 2, not 4"),
    ],
)
def test_what_cannot_go_on_is_refused(new: dict[str, Any], refused: str, load: Load, tmp_path: Path) -> None:
    trained(tmp_path, load(POLICY))
    with pytest.raises(RecipeError, match="--resume: .*") as raised:
        changes(load, tmp_path, **new)
    assert any(refused in line for line in raised.value.problems), raised.value


RESAMPLE = {"until": "pass_rate", "low": 0.1, "high": 0.9}


def test_a_rule_of_dynamic_sampling_may_change_and_whether_there_is_one_may_not(
    load: Load, tmp_path: Path
) -> None:
    """With it more prompts were drawn than without: its place in the data is another."""
    trained(tmp_path / "with", load(rollout={"resample": RESAMPLE}))
    trained(tmp_path / "without", load())
    other = {"until": "unequal", "max_rounds": 9, "on_short": "refill"}
    assert changes(load, tmp_path / "with", rollout={"resample": other}) == [
        "rollout.resample.until: pass_rate -> unequal",
        "rollout.resample.low: 0.1 -> 0.0",
        "rollout.resample.high: 0.9 -> 1.0",
        "rollout.resample.max_rounds: 4 -> 9",
        "rollout.resample.on_short: train -> refill",
    ]
    for folder, new in (("with", {}), ("without", {"resample": RESAMPLE})):
        with pytest.raises(RecipeError, match="place in the data is another"):
            changes(load, tmp_path / folder, rollout=new)


def test_other_micro_batches_of_the_same_rows_are_no_other_rows(load: Load, tmp_path: Path) -> None:
    trained(tmp_path, load(SFT, train={"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}))
    same = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert len(changes(load, tmp_path, base=SFT, train=same)) == 2
    with pytest.raises(RecipeError, match="rows would be repeated or skipped"):
        changes(load, tmp_path, base=SFT, train=same | {"gradient_accumulation_steps": 2})


def test_a_policy_run_keeps_its_micro_batches(load: Load, tmp_path: Path) -> None:
    trained(
        tmp_path, load(POLICY, train={"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2})
    )
    with pytest.raises(RecipeError, match="per_device_train_batch_size"):
        changes(load, tmp_path, train={"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1})


def test_the_temperature_changes_between_rollouts_only(load: Load, tmp_path: Path) -> None:
    trained(tmp_path, load(POLICY, train={"num_iterations": 4}))
    new: dict[str, Any] = {"train": {"num_iterations": 4}, "rollout": {"temperature": 0.7}}
    assert changes(load, tmp_path, step=8, **new) == ["rollout.temperature: 1.0 -> 0.7"]
    with pytest.raises(RecipeError, match="step 6 lies within a rollout.*multiple of 4 steps"):
        changes(load, tmp_path, step=6, **new)


def test_what_a_rollout_of_images_was_made_with_stays(load: Load, tmp_path: Path) -> None:
    images = {
        "method": "grpo_guard",
        "model": {"scratch": {}},
        "data": {"name": "digits", "args": {"prompts_only": True}},
        "rewards": [{"name": "image_statistic"}],
        "rollout": {"group_size": 4},
        "train": {"max_steps": 3, "per_device_train_batch_size": 8},
    }
    trained(tmp_path, load(images))
    assert changes(load, tmp_path, base=images, objective={"clip": 1e-5}) != []
    for key, value in (("denoising_steps", 5), ("noise_level", 0.5), ("cfg_scale", 2.0)):
        with pytest.raises(RecipeError, match=f"rollout.{key} was .* the checkpoint holds rollouts"):
            changes(load, tmp_path, base=images, rollout={key: value})


def test_the_history_tells_what_each_stretch_was_trained_with(load: Load, tmp_path: Path) -> None:
    """1e-6 to step 4, 1e-5 to step 8, 1e-4 from there; then back to step 6."""
    rates = [1e-6, 1e-5, 1e-4]
    writer = trained(tmp_path, load(POLICY, train={"learning_rate": rates[0]}))
    for step, rate in zip((4, 8), rates[1:], strict=True):
        recipe = load(POLICY, train={"learning_rate": rate})
        writer.write_recipe_changes(step, compare(recipe, tmp_path, step, 1).changes)
        writer.write_recipe(recipe.resolved())
    of = {step: recipe_at(tmp_path, step)["train.learning_rate"] for step in (2, 4, 6, 8, 10)}
    assert of == {2: 1e-6, 4: 1e-6, 6: 1e-5, 8: 1e-5, 10: 1e-4}
    again = compare(load(POLICY, train={"learning_rate": 1e-4}), tmp_path, 6, 1)
    assert again.in_words() == ["from step 7: train.learning_rate: 1e-05 -> 0.0001"]
    writer.write_recipe_changes(6, again.changes)
    assert [entry.after_step for entry in read_recipe_changes(tmp_path)] == [4, 6]
    writer.log(1, {"loss": 1.0})
    assert "From step 5: train.learning_rate: 1e-06 -> 1e-05." in summarise(tmp_path).notes


def test_a_change_that_is_taken_back_at_once_leaves_no_history(load: Load, tmp_path: Path) -> None:
    writer = trained(tmp_path, load(POLICY))
    writer.write_recipe_changes(4, [RecipeChange("train.weight_decay", 0.0, 0.1)])
    writer.write_recipe(load(POLICY, train={"weight_decay": 0.1}).resolved())
    assert changes(load, tmp_path, step=4) == []
    writer.write_recipe_changes(4, [])
    assert not read_recipe_changes(tmp_path)


def test_rewards_are_compared_by_their_labels(load: Load, tmp_path: Path) -> None:
    trained(tmp_path, load(POLICY))
    assert flat(load(POLICY).resolved())["rewards.exact_match.weight"] == 1.0
    heavier = [{"name": "repetition_penalty", "label": "same"}, {"name": "exact_match", "weight": 2.0}]
    said = changes(load, tmp_path, rewards=heavier)
    assert "rewards.exact_match.weight: 1.0 -> 2.0" in said
    assert "rewards.same.name: unset -> repetition_penalty" in said


def test_a_path_written_otherwise_is_the_same_path(load: Load, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')
    trained(tmp_path / "run", load(POLICY, data={"name": None, "args": {}, "path": "rows.jsonl"}))
    there = {"name": None, "args": {}, "path": str(rows)}
    assert changes(load, tmp_path / "run", data=there) == []
    (tmp_path / "other.jsonl").write_text(rows.read_text())
    with pytest.raises(RecipeError, match="data.path was rows.jsonl, not other.jsonl"):
        changes(load, tmp_path / "run", data=there | {"path": "other.jsonl"})


def test_stages_that_are_done_are_not_made_anew(load: Load, tmp_path: Path) -> None:
    base = {
        "method": "drift",
        "model": {"scratch": {}},
        "data": {"name": "sort"},
        "objective": {"iterations": 2},
        "rollout": {"temperature": 0.7},
        "train": {"num_train_epochs": 1},
    }
    trained(tmp_path, load(base))
    assert changes(load, tmp_path, base=base, train={"learning_rate": 3e-6})
    for new in (
        {"objective": {"iterations": 3}},
        {"rollout": {"top_p": 0.5}},
        {"train": {"num_train_epochs": 2}},
    ):
        with pytest.raises(RecipeError, match="was"):
            changes(load, tmp_path, base=base, **new)


@pytest.mark.parametrize("text", ["method: [", "- a list\n"])
def test_a_run_whose_recipe_cannot_be_read_is_said(load: Load, tmp_path: Path, text: str) -> None:
    trained(tmp_path, load())
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match="what the run was cannot be told"):
        compare(load(), tmp_path, 4, 1)
