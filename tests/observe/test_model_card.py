"""The model card: every part from the run folder's files, and nothing of the machine or of a secret in it."""

from __future__ import annotations

import json

import pytest
import yaml

from posttrain.observe.model_card import card, public_name, without_paths, write_card
from posttrain.observe.writer import RecipeChange, RunWriter
from posttrain.recipe.methods import METHODS
from posttrain.recipe.papers import paper_of

RECIPE = {
    "method": "bapo",
    "model": {"path": "/home/anna/models/runs/warm/model", "tokenizer": "/home/anna/tok", "dtype": "float32"},
    "data": {
        "path": "/home/anna/data/sums.jsonl",
        "system": "/no_think",
        "template": "{question}\n/think /a/b",
    },
    "rewards": [{"name": "/home/anna/my_reward.py:right", "args": {"api_key": "sk-1", "limit": 80}}],
    "objective": {"target": 0.4},
    "train": {"learning_rate": 1e-6},
    "output": {"dir": "/home/anna/runs", "name": "mine"},
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "mine"
    writer = RunWriter(folder)
    writer.write_recipe(RECIPE)
    writer.write_environment(seed=0, world_size=2)
    environment = json.loads((folder / "environment.json").read_text())
    environment["command"] = "posttrain train /home/anna/r.yaml --set data.path=/home/anna/x.jsonl"
    (folder / "environment.json").write_text(json.dumps(environment))
    writer.start(total=40)
    writer.log(40, {"loss": 0.1})
    writer.write_evaluation("before", {"accuracy": 0.25, "reward": 0.3, "runtime": 9.0})
    writer.write_evaluation("after", {"accuracy": 0.5, "reward": 0.6, "runtime": 9.0})
    return folder


def test_a_card_says_method_base_data_figures_and_recipe_and_leaks_nothing(run):
    text = write_card(run, run, held_out=256).read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {"library_name": "transformers", "tags": ["posttrain", "bapo"]}
    assert "https://arxiv.org/abs/2510.18927" in body
    assert "Trained from `warm` with `bapo`" in body
    assert "on `sums.jsonl`, rewarded by `my_reward.py:right`, for 40 optimizer steps" in body
    assert "## Held out (256 rows)" in body
    assert "| accuracy | 0.25 | 0.5 |" in body
    assert "runtime" not in body
    assert "command: `posttrain train r.yaml --set data.path=x.jsonl`" in body
    assert "2 processes" in body
    assert "posttrain 0" in body
    assert "anna" not in text
    assert "sk-1" not in text
    shown = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert shown["train"] == RECIPE["train"]
    assert shown["data"] == {
        "path": "sums.jsonl",
        "system": "/no_think",
        "template": "{question}\n/think /a/b",
    }
    assert shown["rewards"][0]["args"] == {"api_key": "(left out)", "limit": 80}


def test_a_hub_model_and_dataset_are_linked_and_an_adapter_is_named(run):
    recipe = RECIPE | {"model": {"path": "Qwen/Qwen2.5-0.5B"}, "data": {"name": "openai/gsm8k"}}
    RunWriter(run).write_recipe(recipe)
    (run / "adapter_config.json").write_text("{}")
    text = write_card(run, run).read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["base_model"], head["datasets"]) == ("Qwen/Qwen2.5-0.5B", ["openai/gsm8k"])
    assert head["library_name"] == "peft"
    assert "A LoRA adapter for `Qwen/Qwen2.5-0.5B`" in text


def test_benchmarks_of_the_run_stand_there_first_and_last(run):
    for step, value in ((0, 0.1), (20, 0.2), (40, 0.3)):
        folder = run / "benchmarks" / f"step-{step:06d}" / "gsm8k"
        folder.mkdir(parents=True)
        entry = {"value": value, "interval": [value - 0.05, value + 0.05], "problems": 1319}
        (folder / "metrics.json").write_text(
            json.dumps({"benchmark": "gsm8k", "metrics": {"accuracy": entry}})
        )
    text = card(run)
    assert "| gsm8k | 0 | accuracy 10.0 % [5.0, 15.0] | 1,319 |" in text
    assert "| gsm8k | 40 | accuracy 30.0 % [25.0, 35.0] | 1,319 |" in text
    assert "20.0 %" not in text


def test_what_a_resume_changed_is_said(run):
    RunWriter(run).write_recipe_changes(
        20, [RecipeChange("data.path", "/home/anna/a.jsonl", "/home/anna/b.jsonl")]
    )
    text = card(run)
    assert "* from step 21: data.path" in text
    assert "b.jsonl" in text
    assert "anna" not in text


def test_a_secret_is_said_nowhere(run):
    RunWriter(run).write_recipe_changes(
        20, [RecipeChange(f"rewards.right.args.{name}", "sk-2", "sk-3") for name in ("api_key", "token")]
    )
    environment = json.loads((run / "environment.json").read_text())
    environment["command"] = (
        "posttrain train r.yaml --set rewards.0.args.api_key=sk-4 --set "
        "rewards=[{name: x, args: {API_TOKEN: 'sk-5', limit: 8}}] --set rollout.vllm.api_key_env=THEIRS "
        "--set rollout.max_new_tokens=64 --set model.tokenizer=org/tok --set output.name=mine"
    )
    (run / "environment.json").write_text(json.dumps(environment))
    text = card(run)
    assert "sk-" not in text
    assert "api_key=(left out) --set" in text
    assert "limit: 8}}] --set rollout.vllm.api_key_env=THEIRS --set rollout.max_new_tokens=64" in text
    assert "model.tokenizer=org/tok" in text


def test_an_empty_folder_still_gives_a_card(tmp_path):
    assert "# " in card(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("gpt2", "gpt2"),
        ("runs/demo-sft/model", "demo-sft"),
        ("/data/Llama-3-8B/", "Llama-3-8B"),
        ("~/models/x", "x"),
        ("../x/checkpoints/checkpoint-40", "x"),
        ("/x", "x"),
    ],
)
def test_names_of_models_as_strangers_may_read_them(path, name):
    assert public_name(path) == name


def test_only_whole_paths_are_cut():
    kept = ["/no_think", "a /b/c", "http://host/v1", "runs/x", "", "/think\n/a/b"]
    assert without_paths(kept) == kept
    assert without_paths({"model": {"mask": {"token": "[MASK]"}}}) == {"model": {"mask": {"token": "[MASK]"}}}


def test_every_method_but_plain_fine_tuning_names_its_paper():
    assert {name for name, method in METHODS.items() if paper_of(method) is None} == {"sft"}
    assert paper_of(METHODS["rpo"]) == "https://arxiv.org/abs/2405.16436"
    assert paper_of(METHODS["reinforce"]) == "https://doi.org/10.1007/BF00992696"
