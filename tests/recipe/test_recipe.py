"""Recipes are read strictly: each fault one line with file, section, key and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_recipe import POLICY, SFT, Load, Refused

from posttrain.recipe import FAMILIES, RecipeError, load_recipe
from posttrain.recipe.errors import one_slip_apart, suggest
from posttrain.recipe.methods import METHODS, NOT_HERE, not_here


def test_sections_are_typed_and_defaults_filled(load: Load) -> None:
    recipe = load(train={"learning_rate": 1})
    assert recipe.method == "dapo"
    assert recipe.spec.family == "policy"
    assert recipe.train.learning_rate == 1.0
    assert isinstance(recipe.train.learning_rate, float)
    assert recipe.rollout is not None
    assert recipe.rollout.group_size == 4
    assert recipe.rollout.top_p == 1.0
    assert recipe.rewards[0].name == "exact_match"
    assert recipe.output.run_dir == "runs/r"
    assert recipe.objective.values()["clip_high"] == 0.28


def test_settings_is_the_methods_own_class(load: Load) -> None:
    from posttrain.objectives.dapo import DAPO

    assert load().objective == DAPO(clip_high=0.28)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        # unknown keys
        (
            {"train": {"learnign_rate": 1}},
            "train: unknown key 'learnign_rate'; did you mean 'learning_rate'?",
        ),
        (
            {"objective": {"clip_hi": 0.3}},
            "objective: DAPO has no setting 'clip_hi'; did you mean 'clip_high'?",
        ),
        ({"data": {"answer": {"colum": "x"}}}, "data.answer: unknown key 'colum'; did you mean 'column'?"),
        ({"model": {"scratch": {"layer": 1}}}, "model.scratch: unknown key 'layer'; did you mean 'layers'?"),
        (
            {"rewards": [{"name": "x", "weigth": 1}]},
            "rewards[0]: unknown key 'weigth'; did you mean 'weight'?",
        ),
        ({"outputs": {}}, "outputs: unknown section; did you mean 'output'?"),
        # misplaced keys
        ({"learning_rate": 1}, "learning_rate: unknown section; it belongs in section train"),
        ({"train": {"group_size": 8}}, "train: 'group_size' belongs in section rollout"),
        ({"rollout": {"max_steps": 8}}, "rollout: 'max_steps' belongs in section train"),
        ({"objective": {"beta": 0.1}}, "objective: 'beta' belongs in section train"),
        (
            {"train": {"num_generations": 8}},
            "train: 'num_generations' is not set here; write rollout.group_size",
        ),
        ({"train": {"temperature": 1.0}}, "train: 'temperature' is not set here; write rollout.temperature"),
        (
            {"train": {"warmup_ratio": 0.1}},
            "train: 'warmup_ratio' is not set here; write warmup_steps with a value below 1",
        ),
        (
            {"train": {"packing": True}},
            "train: 'packing' has no effect here, it belongs to sft methods; remove it",
        ),
        # wrong types
        ({"train": {"learning_rate": "fast"}}, "train: 'learning_rate' must be a number, not 'fast'"),
        ({"train": {"learning_rate": True}}, "train: 'learning_rate' must be a number, not true"),
        ({"train": {"max_steps": 1.5}}, "train: 'max_steps' must be a whole number, not 1.5"),
        ({"train": {"bf16": "yes"}}, "train: 'bf16' must be true or false, not 'yes'"),
        ({"rollout": []}, "rollout: must be a mapping (key: value), not []"),
        ({"rewards": {"name": "x"}}, "rewards: must be a list: - {name: math_answer, weight: 1.0}"),
        ({"output": {"report_to": "wandb"}}, "output: 'report_to' must be a list, not 'wandb'"),
        ({"output": {"record": [1, "a"]}}, "output: 'record[1]' must be a whole number, not 'a'"),
        (
            {"model": {"scratch": {"layers": None}}},
            "model.scratch: 'layers' must be a whole number, not null",
        ),
        # out of range
        ({"rollout": {"temperature": 0}}, "rollout: 'temperature' must be at least 0.01, not 0"),
        ({"rollout": {"top_p": 1.5}}, "rollout: 'top_p' must be at most 1, not 1.5"),
        ({"objective": {"clip_low": 1.0}}, "objective: 'clip_low' must be less than 1, not 1.0"),
        (
            {"train": {"per_device_train_batch_size": 0}},
            "train: 'per_device_train_batch_size' must be at least 1, not 0",
        ),
        (
            {"rewards": [{"name": "x", "on_error": "zero"}]},
            "rewards[0]: 'on_error' must be one of raise, skip, not 'zero'",
        ),
        (
            {"model": {"dtype": "bfloat"}},
            "model: 'dtype' must be one of auto, float32, bfloat16, float16, not 'bfloat'; did you mean 'bfloat16'?",
        ),
        # missing
        ({"rewards": None}, "rewards: the section is missing"),
        ({"data": None}, "data: the section is missing"),
        ({"train": None}, "train: the section is missing"),
        (
            {"rewards": [{"weight": 1}]},
            "rewards[0]: give exactly one of 'name' (a function) and 'model' (a reward model)",
        ),
        # keys that contradict each other
        (
            {"train": {"num_train_epochs": 1}},
            "train: say how long: exactly one of 'max_steps' and 'num_train_epochs'; null takes one away",
        ),
        ({"model": {"path": "x"}}, "model: give exactly one of 'path' (a folder or hub name) and 'scratch'"),
        (
            {"data": {"path": "x"}},
            "data: give exactly one of 'path' (a file) and 'name' (a built-in task or hub name)",
        ),
        (
            {"train": {"bf16": True, "fp16": True}},
            "train: 'bf16' and 'fp16' exclude each other; keep bf16 where the GPU has it",
        ),
        ({"model": {"peft": {}}}, "model: 'peft' has no effect on a model from scratch; remove it"),
        (
            {"data": {"name": None, "path": "x", "split": "test"}},
            "data: 'split' has no effect on a file; remove it",
        ),
        (
            {"data": {"answer": {"boxed": True, "after": "#"}}},
            "data.answer: 'boxed' and 'after'/'before' exclude each other; keep one",
        ),
        (
            {"data": {"prompt": "q", "template": "{z}"}},
            "data: 'template' never uses the prompt column: put {q} in it, or drop 'prompt'",
        ),
        (
            {"data": {"eval": {"eval": {"name": "sort"}}}},
            "data: 'eval' inside 'eval' has no effect; remove it",
        ),
        (
            {"rewards": [{"name": "x"}, {"name": "x"}]},
            "rewards: 'x' stands twice; give each a 'label' of its own",
        ),
        ({"model": {"scratch": {"hidden_size": 30}}}, None),
        (
            {"model": {"scratch": {"alphabet": "aa"}}},
            "model.scratch: alphabet must hold each character once, and at least one",
        ),
        # the method
        ({"method": None}, None),
        ({"method": "dappo"}, "method: unknown method 'dappo'; did you mean 'dapo'?"),
        ({"method": "Dr. GRPO"}, "method: unknown method 'Dr. GRPO'; did you mean 'dr_grpo'?"),
        (
            {"method": "remax"},
            "method: 'remax' is not a method here: reinforce has a group's mean as its baseline instead of a greedy "
            "response",
        ),
    ],
)
def test_each_fault_is_one_line(refused: Refused, changes: dict[str, Any], line: str | None) -> None:
    problems = refused(**changes)
    assert len(problems) == 1, problems
    assert problems[0].startswith("r.yaml: ")
    assert "\n" not in problems[0]
    if line is not None:
        assert problems[0] == f"r.yaml: {line}"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"rewards": [{"name": "exact_match"}]},
            "rewards: has no effect with method 'sft'; remove the section",
        ),
        ({"rollout": {"group_size": 4}}, "rollout: has no effect with method 'sft'; remove the section"),
    ],
)
def test_what_has_no_effect_with_sft(refused: Refused, changes: dict[str, Any], line: str) -> None:
    assert refused(SFT, **changes) == [f"r.yaml: {line}"]


@pytest.mark.parametrize("key", ["num_iterations", "beta"])
def test_an_option_of_other_families_names_them(refused: Refused, key: str) -> None:
    (problem,) = refused(SFT, train={"max_steps": 1, key: 1})
    assert problem.startswith(f"r.yaml: train: '{key}' has no effect here, it belongs to policy ")
    assert problem.endswith("methods; remove it")


def test_several_faults_are_several_lines(refused: Refused) -> None:
    problems = refused(train={"lr": 1, "seed": -1}, rollout={"top_k": -1}, objective={"x": 1})
    assert len(problems) == 4
    assert {problem.split(": ")[1] for problem in problems} == {"train", "rollout", "objective"}


def test_cross_field_checks_of_the_method_run_without_torch(refused: Refused) -> None:
    (problem,) = refused({**POLICY, "objective": {}}, method="bapo", objective={"low": [0.9, 0.6, 0.02]})
    assert problem.startswith("r.yaml: objective: BAPO: low = (0.9, 0.6, 0.02) must")


def test_a_tuple_of_wrong_length(refused: Refused) -> None:
    problems = refused({**POLICY, "objective": {}}, method="bapo", objective={"low": [0.6, 0.9]})
    assert problems == ["r.yaml: objective: 'low' holds too few values"]


def test_eval_inherits_how_rows_are_read_but_not_how_many(load: Load) -> None:
    recipe = load(
        data={
            "name": None,
            "path": "a.jsonl",
            "args": {},
            "prompt": "q",
            "limit": 9,
            "eval": {"path": "b.jsonl"},
        }
        | {"answer": {"column": "a", "after": "####"}},
    )
    held_out = recipe.data.eval
    assert held_out is not None
    assert (held_out.path, held_out.prompt, held_out.limit) == ("b.jsonl", "q", None)
    assert held_out.answer == recipe.data.answer


def test_eval_of_a_named_dataset_is_its_test_split(load: Load) -> None:
    held_out = load(data={"eval": {"limit": 5}}).data.eval
    assert held_out is not None
    assert (held_out.name, held_out.split, held_out.args) == ("sort", "test", {"size": 64, "held_out": 16})


def test_an_inherited_fault_is_said_once(refused: Refused) -> None:
    assert len(refused(data={"promt": "q", "eval": {"limit": 1}})) == 1
    assert len(refused(data={"eval": {"promt": "q"}})) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "bapo", "objective": {"low": [0.8, 0.9, 0.02]}},
        {"data": {"eval": {"limit": 3, "max_prompt_tokens": None}, "max_prompt_tokens": 7}},
        {"rollout": {"importance_clip_max": None}},
        {"output": {"name": "x", "record": [1]}},
    ],
)
def test_the_resolved_recipe_loads_as_itself(load: Load, changes: dict[str, Any]) -> None:
    recipe = load({**POLICY, "objective": {}}, **changes)
    Path("again.yaml").write_text(yaml.safe_dump(recipe.resolved(), sort_keys=False))
    again = load_recipe("again.yaml")
    assert again.resolved() == recipe.resolved()
    assert again.objective == recipe.objective
    assert again.train == recipe.train
    assert again.data == recipe.data


def test_null_is_kept_where_it_says_something(load: Load) -> None:
    resolved = load(rollout={"importance_clip_max": None}).resolved()
    assert resolved["rollout"]["importance_clip_max"] is None
    assert "tf32" not in resolved["train"]


def test_a_recipe_knows_the_command_that_runs_it_again(load: Load) -> None:
    assert load().train_command == "posttrain train r.yaml"
    again = load(sets=["output.name=mine", "rollout={group_size: 8}"])
    assert (
        again.train_command == "posttrain train r.yaml --set output.name=mine --set 'rollout={group_size: 8}'"
    )
    assert "overrides" not in again.resolved()


def test_overrides(load: Load) -> None:
    recipe = load(
        sets=[
            "train.learning_rate=1e-5",
            "rewards.0.weight=2",
            "output.name=new",
            "rollout={group_size: 2}",
            "method=grpo",
        ]
    )
    assert recipe.train.learning_rate == 1e-5
    assert recipe.rewards[0].weight == 2.0
    assert recipe.output.run_dir == "runs/new"
    assert recipe.rollout is not None
    assert (recipe.rollout.group_size, recipe.rollout.max_new_tokens) == (2, 512)
    assert recipe.method == "grpo"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.learning_rate", "--set train.learning_rate: write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("train.=3", "write it as section.key=value"),
        ("train..seed=3", "write it as section.key=value"),
        ("rewards.².weight=1", "rewards has no item ²"),
        ("rewards.99999999999999999999.weight=1", "has no item 9999"),
        ("rewards.3.weight=1", "rewards has no item 3"),
        ("method.x=1", "method is a value, not a section"),
        ("train.seed=[1", "the value cannot be read: a ',' or the closing ']' is missing"),
        ("train.seed=!!int 3", "the value cannot be read: a recipe has no YAML tags"),
        ("train.sed=1", "train: unknown key 'sed'; did you mean 'seed'?"),
        ("train.seed=abc", "train: 'seed' must be a whole number, not 'abc'"),
    ],
)
def test_wrong_overrides(refused: Refused, override: str, complaint: str) -> None:
    (problem,) = refused(sets=[override])
    assert problem.startswith(f"--set {override}: ")
    assert complaint in problem


def test_each_fault_goes_to_the_override_that_brings_it(refused: Refused) -> None:
    sets = ["train.seed=3", "train.sed=1", "rollout.top_p=2", "train.data_seed=-1"]
    assert sorted(refused(sets=sets, output={"nam": "x"})) == [
        "--set rollout.top_p=2: rollout: 'top_p' must be at most 1, not 2",
        "--set train.data_seed=-1: train: 'data_seed' must be at least 0, not -1",
        "--set train.sed=1: train: unknown key 'sed'; did you mean 'seed'?",
        "r.yaml: output: unknown key 'nam'; did you mean 'name'?",
    ]


def test_a_fault_that_two_keys_make_together_is_the_overrides(refused: Refused) -> None:
    (problem,) = refused(sets=["output.dir=x", "train.num_train_epochs=1"])
    assert problem.startswith("--set train.num_train_epochs=1: train: say how long")


def test_an_override_that_mends_the_method_is_not_blamed_for_the_file(refused: Refused) -> None:
    (problem,) = refused(sets=["method=dapo"], method="dappo", train={"sed": 1})
    assert problem.startswith("r.yaml: train: unknown key 'sed'")


def test_paths_are_found_here_first_then_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = {
        **POLICY,
        "data": {"path": "rows.jsonl"},
        "rewards": [{"name": "my.py:score"}],
        "model": {"path": "m"},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "rows.jsonl").write_text("")
    (folder / "my.py").write_text("")
    loaded = load_recipe("recipes/r.yaml")
    assert loaded.data.path == "recipes/rows.jsonl"
    assert loaded.rewards[0].name == "recipes/my.py:score"
    assert loaded.model.path == "m"
    (tmp_path / "rows.jsonl").write_text("")
    assert load_recipe("recipes/r.yaml").data.path == "rows.jsonl"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\na: 2", "'a' stands twice"),
        ("- 1", "is not a recipe: expected sections method, model"),
        ("", "is not a recipe"),
        ("method: [dapo]", "unknown method"),
        ("method:", "method: is missing; write one of sft, grpo"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\xef\xbb\xbfmethod: dapo", "model: the section is missing"),  # a byte-order mark is read
        ("method: dapo".encode("utf-16"), "is UTF-16; save the file as UTF-8"),
        ("a: 1\nmethod: é".encode("latin-1"), "line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_encodings(tmp_path: Path, data: bytes, complaint: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(data)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert caught.value.problems[0].startswith(f"{file}: ")
    assert complaint in caught.value.problems[0]


def test_names_of_methods_elsewhere_and_what_is_here_instead() -> None:
    assert not NOT_HERE.keys() & METHODS.keys()
    for name in ("VAPO", "VAPOTrainer", "reinforce++", "iterative-dpo", "SAIL", "BCO"):
        assert not_here(name).startswith(f"'{name}' is not a method here: ")
    assert not_here("grqo") == ""


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("seppo", "'seppo'"),
        ("sppo", "'sapo' or 'seppo'"),
        ("gropo", "'grpo'"),
        ("dop", "'dpo'"),
        ("bpo", "'bapo' or 'bgpo' or 'bnpo'"),
        ("xyz", None),
        ("reinforced", "'reinforce'"),
    ],
)
def test_only_plausible_slips_are_suggested(word: str, near: str | None) -> None:
    assert suggest(word, METHODS) == ("" if near is None else f"; did you mean {near}?")


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [("ab", "ab", True), ("ab", "ba", True), ("ab", "abc", True), ("abc", "axc", True), ("abcd", "acbd", True),
     ("abc", "xbca", False), ("abcd", "dcba", False), ("abcd", "badc", False), ("a", "abc", False),
     ("abc", "bcd", False)],
)  # fmt: skip
def test_one_slip(one: str, other: str, near: bool) -> None:
    assert one_slip_apart(one, other) is one_slip_apart(other, one) is near


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_every_method_has_a_family_with_sections() -> None:
    assert {method.family for method in METHODS.values()} <= set(FAMILIES)
