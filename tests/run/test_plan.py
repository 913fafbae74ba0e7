"""What `posttrain plan` says: exact arithmetic, and every refusal that can be foreseen."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from small_recipe import POLICY, SFT, Load

from posttrain.cli import main
from posttrain.data import load_rows
from posttrain.planning.batch import RolloutSize
from posttrain.planning.checks import loaded_faults
from posttrain.recipe import load_recipe
from posttrain.recipe.train_options import ELSEWHERE, OWNED
from posttrain.run.plan import Plan, make_plan, print_plan


def plan_of(load: Load, base: dict[str, Any] = POLICY, processes: int = 1, **changes: Any) -> Plan:
    return make_plan(load(base, **changes), processes=processes)


# ---------------------------------------------------------------------------------------------- arithmetic


def test_the_arithmetic_by_hand() -> None:
    # 8 responses x 2 processes x 8 micro-batches = 128 = 16 prompts x 8; 2 micro-batches per step: 4 steps
    rollout = RolloutSize(processes=2, micro_batch=8, accumulation=2, window=8, passes=1, group=8)
    assert rollout.completions == 128
    assert rollout.prompts == 16
    assert rollout.optimizer_steps == 4
    assert rollout.completions_per_process == 64
    assert rollout.whole_groups_per_process
    assert list(rollout.faults()) == []
    assert rollout.in_words()[:4] == [
        "16 prompts x 8 responses = 128 completions per rollout",
        "4 optimizer steps per rollout",
        "each optimizer step = 2 micro-batches x 8 responses on 2 processes = 32 responses",
        "whole groups per process: yes",
    ]


def test_a_group_across_processes_is_said() -> None:
    rollout = RolloutSize(processes=2, micro_batch=2, accumulation=1, window=1, passes=1, group=4)
    assert list(rollout.faults()) == []
    assert any(line.startswith("whole groups per process: no") for line in rollout.in_words())


def test_passes_and_on_policy_are_said() -> None:
    many = RolloutSize(processes=1, micro_batch=8, accumulation=1, window=1, passes=8, group=8)
    assert "8 optimizer steps per rollout, in 8 passes over it" in many.in_words()
    once = RolloutSize(processes=1, micro_batch=8, accumulation=1, window=1, passes=1, group=8)
    assert any("on-policy" in line for line in once.in_words())
    assert not any("on-policy" in line for line in many.in_words())


@pytest.mark.parametrize(
    ("changes", "processes", "complaint"),
    [
        (
            {"rollout": {"group_size": 5}},
            1,
            "train: 8 responses x 1 process x 1 micro-batch = 8 do not divide into groups of 5; make the product of "
            "per_device_train_batch_size, processes and steps_per_generation 5 or 10",
        ),
        ({"rollout": {"group_size": 5}}, 2, "processes and steps_per_generation 10 or 20"),
        ({"rollout": {"group_size": 16}}, 1, "groups of 16; make the product"),
        ({"rollout": {"group_size": 1}}, 1, "rollout: group_size 1 leaves nothing to compare"),
        (
            {"train": {"gradient_accumulation_steps": 4, "steps_per_generation": 2}},
            1,
            "train: steps_per_generation x num_iterations = 2 is not a multiple of gradient_accumulation_steps (4)",
        ),
        (
            {"train": {"gradient_accumulation_steps": 2, "steps_per_generation": 3}},
            1,
            "would mix two rollouts",
        ),
        (
            {"train": {"per_device_train_batch_size": 512}},
            1,
            "data: 64 usable rows, but one rollout takes 128 prompts and would never be filled",
        ),
        ({"train": {"per_device_train_batch_size": 64}}, 8, "one rollout takes 128 prompts"),
    ],
)
def test_impossible_batches(load: Load, changes: dict[str, Any], processes: int, complaint: str) -> None:
    refusals = plan_of(load, processes=processes, **changes).refusals
    assert len(refusals) == 1
    assert complaint in refusals[0]


def test_a_window_of_several_passes_may_make_up_for_accumulation(load: Load) -> None:
    train = {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "num_iterations": 2}
    assert plan_of(load, train=train).refusals == []


def test_sft_needs_a_row_for_each_place(load: Load) -> None:
    (refusal,) = plan_of(
        load, SFT, processes=16, data={"args": {"size": 100, "teacher_accuracy": 0.5}}
    ).refusals
    assert refusal.startswith(
        "data: 100 usable rows do not fill one micro-batch of 8 on each of 16 processes"
    )


def test_the_length_of_the_run(load: Load) -> None:
    plan = plan_of(load, train={"max_steps": 32})
    assert "the run: 32 optimizer steps = 32 rollouts = 64 prompts (1.00 epochs of 64 rows)" in plan.batch
    plan = plan_of(load, train={"max_steps": None, "num_train_epochs": 2, "steps_per_generation": 4})
    assert "the run: 64 optimizer steps = 16 rollouts = 128 prompts (2.00 epochs of 64 rows)" in plan.batch
    plan = plan_of(load, SFT, train={"max_steps": 4})
    assert "the run: 4 optimizer steps = 32 rows (0.50 epochs of 64 rows)" in plan.batch


def test_a_rollout_begun_is_a_rollout_and_an_epochs_rows_are_its_own(load: Load) -> None:
    # two steps a rollout of 4 prompts: the third step begins a second rollout
    plan = plan_of(load, train={"max_steps": 3, "steps_per_generation": 2})
    assert any(line.startswith("the run: 3 optimizer steps = 2 rollouts = 6 prompts") for line in plan.batch)
    # 64 rows in steps of 24: three steps, the last one smaller, and still 64 rows
    epoch = {"max_steps": None, "num_train_epochs": 1, "gradient_accumulation_steps": 3}
    assert (
        "the run: 3 optimizer steps = 64 rows (1.00 epochs of 64 rows)"
        in plan_of(load, SFT, train=epoch).batch
    )


# --------------------------------------------------------------------------------- options without effect


@pytest.mark.parametrize(
    ("base", "changes", "complaint"),
    [
        (
            POLICY,
            {"train": {"ref_model_sync_steps": 5}},
            "'ref_model_sync_steps' does nothing without sync_ref_model",
        ),
        (
            POLICY,
            {"train": {"sync_ref_model": True}},
            "train: 'sync_ref_model' does nothing without a KL penalty",
        ),
        (POLICY, {"train": {"use_bias_correction_kl": False}}, "does nothing without beta above 0"),
        (POLICY, {"train": {"lr_scheduler_type": "constant", "warmup_steps": 3}}, "constant_with_warmup"),
        (POLICY, {"train": {"optim": "sgd", "adam_beta2": 0.9}}, "'adam_beta2' does nothing without an Adam"),
        (
            POLICY,
            {"train": {"gradient_checkpointing": False, "gradient_checkpointing_kwargs": {}}},
            "gradient_checkpointing",
        ),
        (POLICY, {"train": {"eval_steps": 5}}, "'eval_steps' does nothing without data.eval"),
        (POLICY, {"rollout": {"eval_temperature": 0.6}}, "'eval_temperature' does nothing without data.eval"),
        (POLICY, {"train": {"chat_template_kwargs": {"a": 1}}}, "does nothing without data.chat"),
        (POLICY, {"rollout": {"importance_correction": "token_mask"}}, "does nothing without a vLLM engine"),
        (POLICY, {"rollout": {"staleness": 1}}, "needs an engine in a process of its own"),
        (
            POLICY,
            {"rollout": {"engine": "vllm_server", "vllm": {"sleep": True}}},
            "'sleep' does nothing with engine 'vllm_server'",
        ),
        (POLICY, {"rollout": {"vllm": {}}}, "rollout: 'vllm' does nothing without a vLLM engine"),
        (POLICY, {"rollout": {"engine": "vllm_server", "vllm": {"servers": []}}}, "'servers' is empty"),
        (
            POLICY,
            {"rollout": {"engine": "vllm_server", "vllm": {"sync_dir": "x"}}},
            "rollout.vllm: 'sync_dir' does nothing without sync: disk",
        ),
        (POLICY, {"rollout": {"engine": "vllm"}}, "engine 'vllm' loads a model folder"),
        (
            POLICY,
            {"rollout": {"engine": "vllm", "vllm": {"sleep": True}}, "train": {"use_cpu": True}},
            "rollout.vllm: 'sleep' does nothing on a CPU",
        ),
        (
            POLICY,
            {
                "rollout": {"engine": "vllm_server", "partial_budget": 2},
                "train": {"per_device_train_batch_size": 2},
            },
            "partial_budget needs whole groups on every process",
        ),
        (
            POLICY,
            {"train": {"cache_implementation": "static"}, "rollout": {"engine": "vllm"}},
            "rollout.engine: transformers",
        ),
        (POLICY, {"data": {"on_long": "truncate"}}, "data: 'on_long' does nothing without max_prompt_tokens"),
        (POLICY, {"data": {"system": "x"}}, "data: 'system' does nothing with prompts of plain text"),
        (POLICY, {"data": {"chosen": "answer"}}, "data: 'chosen' does nothing with method 'dapo'"),
        (POLICY, {"data": {"args": {"teacher_accuracy": 0.4}}}, "which only sft reads"),
        (SFT, {"data": {"columns": {"a": "answer"}}}, "data: 'columns' does nothing with method 'sft'"),
        (SFT, {"data": {"answer": {"after": "#"}}}, "data: 'answer' does nothing with method 'sft'"),
        (
            SFT,
            {"output": {"log_completions": False}},
            "'log_completions' does nothing without a method that generates",
        ),
        (SFT, {"output": {"record": [1]}}, "'record' does nothing without a method that learns from rewards"),
        (SFT, {"train": {"packing_strategy": "wrapped"}}, "'packing_strategy' does nothing without packing"),
        (SFT, {"train": {"assistant_only_loss": True}}, "does nothing without data.chat"),
    ],
)
def test_options_without_effect(
    load: Load, base: dict[str, Any], changes: dict[str, Any], complaint: str
) -> None:
    refusals = plan_of(load, base, **changes).refusals
    assert any(complaint in refusal for refusal in refusals), refusals


def test_no_process_gives_up_before_the_one_that_waits_for_a_server(load: Load) -> None:
    slow = {"engine": "vllm_server", "vllm": {"timeout_s": 1800}}
    assert plan_of(load, processes=1, rollout=slow).refusals == []
    (refusal,) = plan_of(load, processes=2, rollout=slow).refusals
    assert "1800 s of waiting for a server are not below train.ddp_timeout 1800" in refusal
    assert plan_of(load, processes=2, rollout=slow, train={"ddp_timeout": 3600}).refusals == []


def test_saying_a_default_is_no_fault(load: Load) -> None:
    assert plan_of(load, train={"ref_model_sync_steps": 512, "eval_on_start": False}).refusals == []
    ahead = {"engine": "vllm_server", "staleness": 1, "top_p": 1.0, "min_p": 0.0, "top_k": 0}
    assert plan_of(load, rollout=ahead).refusals == []


# ------------------------------------------------------------------------------------ data, rewards, model


def write_rows(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def from_file(**data: Any) -> dict[str, Any]:
    return {"data": {"name": None, "args": {}, "path": "rows.jsonl", **data}}


def test_files_and_columns(load: Load) -> None:
    assert plan_of(load, **from_file()).refusals == ["data: no file 'rows.jsonl' here or beside the recipe"]
    write_rows("rows.jsonl", [{"q": f"{i}", "a": "x"} for i in range(20)])
    (refusal,) = plan_of(load, **from_file()).refusals[:1]
    assert refusal == "data: rows.jsonl: no column 'prompt'; the columns are q, a"
    (refusal,) = plan_of(load, **from_file(prompt="q")).refusals
    assert refusal.startswith("rewards[0]: reward 'exact_match' needs 'answer'")
    assert plan_of(load, **from_file(prompt="q", columns={"answer": "a"})).refusals == []
    assert plan_of(load, **from_file(prompt="q", answer={"column": "a"})).refusals == []
    (refusal,) = plan_of(load, **from_file(prompt="q", answer={"column": "a", "after": "####"})).refusals
    assert refusal == "data: no row can be used: 0 of 20 rows; dropped 20 (no answer: 20)"


def test_a_held_out_file_is_checked_too(load: Load) -> None:
    write_rows("rows.jsonl", [{"prompt": f"p {i}", "answer": "x"} for i in range(20)])
    write_rows("held.jsonl", [{"prompt": "p 3", "answer": "x"}, {"prompt": "new", "answer": "x"}])
    plan = plan_of(load, **from_file(eval={"path": "none.jsonl"}))
    assert plan.refusals == ["data.eval: no file 'none.jsonl' here or beside the recipe"]
    plan = plan_of(load, **from_file(eval={"path": "held.jsonl"}))
    assert plan.refusals == []
    assert plan.warnings == ["1 of 2 held-out prompts share a run of 13 words with training prompts"]


def test_the_same_questions_are_asked_of_rows_once_they_are_loaded(load: Load) -> None:
    rows = load_rows(load().data).rows
    assert loaded_faults(load(), rows, 1) == []
    (fault,) = loaded_faults(load(train={"per_device_train_batch_size": 512}), rows, 1)
    assert "64 usable rows, but one rollout takes 128 prompts" in fault
    (fault,) = loaded_faults(load(rewards=[{"name": "length_penalty", "args": {"max_tokens": 9}}]), rows, 1)
    assert "needs 'buffer'" in fault
    (fault,) = loaded_faults(load(SFT, data={"args": {"size": 64}}), rows, 1)
    assert "no column 'completion'" in fault


def test_sft_and_preference_columns(load: Load) -> None:
    (refusal,) = plan_of(load, SFT, data={"args": {"size": 64}}).refusals
    assert refusal == "data: no column 'completion'; name the one that holds it in data.completion"


def test_rewards_by_name_path_and_argument(load: Load) -> None:
    (refusal,) = plan_of(load, rewards=[{"name": "exact_mach"}]).refusals
    assert "rewards[0]: there is no reward 'exact_mach'; did you mean 'exact_match'?" in refusal
    (refusal,) = plan_of(load, rewards=[{"name": "exact_match", "args": {"ignorecase": True}}]).refusals
    assert "has no setting 'ignorecase'; did you mean 'ignore_case'?" in refusal
    (refusal,) = plan_of(load, rewards=[{"name": "mine.py:score"}]).refusals
    assert "there is no file" in refusal
    Path("mine.py").write_text("import torch\ndef score(completions, *, difficulty, scale=1.0, **_): ...\n")
    (refusal,) = plan_of(load, rewards=[{"name": "mine.py:score"}]).refusals
    assert "needs 'difficulty'" in refusal
    assert (
        plan_of(
            load, rewards=[{"name": "mine.py:score"}], data={"columns": {"difficulty": "answer"}}
        ).refusals
        == []
    )
    (refusal,) = plan_of(load, rewards=[{"name": "exact_match", "weight": 0}]).refusals
    assert "every weight is 0" in refusal


def test_methods_that_compare_answers_need_a_reward_that_yields_them(load: Load) -> None:
    base = {**POLICY, "objective": {}, "method": "copo"}
    pattern = {"name": "format_regex", "args": {"pattern": "x"}}
    (refusal,) = plan_of(load, base, rewards=[pattern]).refusals
    assert refusal.startswith("rewards: method 'copo' compares final answers")
    assert plan_of(load, base, rewards=[{"name": "exact_match"}, pattern]).refusals == []


def test_models(load: Load) -> None:
    (refusal,) = plan_of(load, model={"scratch": None, "path": "runs/demo-sft"}).refusals
    assert refusal.startswith("model: no folder 'runs/demo-sft' here or beside the recipe")
    assert refusal.endswith("first train the recipe that makes it")
    Path("recipes/any/a-folder.yaml").mkdir(parents=True)
    Path("recipes/any/warm.yaml").write_text("method: sft\noutput: {save_steps: 5, name: demo-sft}\n")
    (refusal,) = plan_of(load, model={"scratch": None, "path": "runs/demo-sft"}).refusals
    assert refusal.endswith("first train recipes/any/warm.yaml")
    Path("empty").mkdir()
    (refusal,) = plan_of(load, model={"scratch": None, "path": "empty"}).refusals
    assert "holds no config.json" in refusal
    hub = {"scratch": None, "path": "someone/model"}
    plan = plan_of(load, model=hub)
    assert plan.refusals == []
    assert plan.memory is None
    assert "someone/model is not on this machine" in plan.memory_note
    (refusal,) = plan_of(load, model={**hub, "peft": {"target_modules": ["q_proj", "lm_head"]}}).refusals
    assert "lm_head cannot carry an adapter" in refusal
    (refusal,) = plan_of(load, model={**hub, "tokenizer": "./tok"}).refusals
    assert "no folder './tok'" in refusal
    (refusal,) = plan_of(load, model={**hub, "dtype": "float16"}, train={"fp16": True}).refusals
    assert "'fp16' scales the gradients of float32 weights" in refusal


def test_half_precision_weights_and_small_steps_are_warned_of(load: Load) -> None:
    model = {"scratch": None, "path": "someone/model", "dtype": "bfloat16"}
    (warning,) = plan_of(load, model=model, train={"learning_rate": 1e-6}).warnings
    assert "most updates are rounded away" in warning
    assert plan_of(load, model={**model, "peft": {}}, train={"learning_rate": 1e-6}).warnings == []
    assert plan_of(load, model={**model, "dtype": "float32"}, train={"learning_rate": 1e-6}).warnings == []


def test_a_run_folder_in_the_way_is_warned_of(load: Load) -> None:
    recipe = load()
    Path("runs/r").mkdir(parents=True)
    assert make_plan(recipe).warnings == []
    Path("runs/r/metrics.jsonl").write_text("")
    (warning,) = make_plan(recipe).warnings
    assert "runs/r already holds a run" in warning
    assert make_plan(recipe, resume=True).warnings == []


def test_a_model_in_the_run_folder_to_be_replaced_is_refused(load: Load) -> None:
    folder = Path("runs/r/model")
    recipe = load(model={"scratch": None, "path": str(folder)}, output={"overwrite": True})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (refusal,) = [refusal for refusal in make_plan(recipe).refusals if refusal.startswith("model:")]
    assert "is part of the run that output.overwrite would replace" in refusal
    beside = load(model={"scratch": None, "path": str(folder)}, output={"overwrite": True, "name": "another"})
    assert not [refusal for refusal in make_plan(beside).refusals if "overwrite" in refusal]


# --------------------------------------------------------------------------------------------- the command


def test_exit_codes_and_one_line_a_refusal(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load()
    assert main(["plan", "r.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "2 prompts x 4 responses = 8 completions per rollout" in out
    assert out.splitlines()[1] == "can start"
    assert "Resolved recipe" not in out
    assert err == ""
    assert main(["plan", "r.yaml", "--full"]) == 0
    out = capsys.readouterr().out
    resolved = yaml.safe_load(out[out.index("Resolved recipe\n") + len("Resolved recipe\n") :])
    assert resolved == load_recipe("r.yaml").resolved()
    assert main(["plan", "r.yaml", "--set", "rollout.group_size=3", "--set", "train.eval_steps=1"]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[1] == "cannot start, for 2 reasons:"
    assert len(err.splitlines()) == 2
    assert all(line.startswith("r.yaml: train: ") for line in err.splitlines())
    assert main(["plan", "r.yaml", "--set", "train.sed=1"]) == 2
    assert capsys.readouterr() == ("", "--set train.sed=1: train: unknown key 'sed'; did you mean 'seed'?\n")


def test_train_says_only_the_reasons_of_a_recipe_that_cannot_start(
    load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    load()
    assert main(["train", "r.yaml", "--set", "rollout.group_size=3"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "recipe", ["bapo/qwen2.5-7b_math", "bgpo/llada-8b_gsm8k", "smoke/dpo_calm", "smoke/bapo_sort", "demo/sft"]
)
def test_a_plan_fits_a_screen(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    plan = make_plan(load_recipe(f"recipes/{recipe}.yaml"))
    terminal = Console(file=StringIO(), width=80, highlight=False)
    print_plan(plan, terminal)
    lines = terminal.file.getvalue().splitlines()  # type: ignore[attr-defined]  # the StringIO above
    assert len(lines) <= 24
    assert any(line.startswith("Batch") for line in lines)


def test_a_warning_is_announced_beside_the_verdict(load: Load) -> None:
    recipe = load(
        model={"scratch": None, "path": "someone/[bold]model", "dtype": "bfloat16"},
        train={"learning_rate": 1e-6},
    )
    terminal = Console(file=StringIO(), width=300, highlight=False)
    print_plan(make_plan(recipe), terminal)
    lines = terminal.file.getvalue().splitlines()  # type: ignore[attr-defined]  # the StringIO above
    assert lines[1] == "can start, with 1 warning below"
    assert "someone/[bold]model is not on this machine" in "\n".join(lines)
    assert lines[-2] == "Warning"
    assert lines[-1].startswith("  bfloat16 weights with learning rate")


def test_what_needs_no_method_comes_before_torch_and_every_refusal_before_trl(load: Load) -> None:
    load(data={"eval": {"limit": 4}}, rewards=[{"name": "math_answer"}])
    Path("broken.yaml").write_text("method: bapo\nmodel: {path: [\n")
    Path("nameless.yaml").write_text("method: bappo\n")
    script = (
        "import sys; from posttrain.cli import main\n"
        "codes = main(['--help']), main(['methods']), main(['plan', 'broken.yaml']), main(['train', 'nameless.yaml'])\n"
        "assert codes == (0, 0, 2, 2), codes\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "codes = main(['plan', 'r.yaml']), main(['methods', 'bapo']), "
        "main(['train', 'r.yaml', '--set', 'rollout.group_size=3'])\n"
        "assert codes == (0, 0, 2), codes\n"
        "assert not heavy - {'torch'} & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "posttrain: no command 'trian'; did you mean 'train'?\n"
    assert main(["data"]) == 2
    assert "data overlap" in capsys.readouterr().err
    assert main([]) == 0
    assert "plan" in capsys.readouterr().out
    assert main(["methods", "bapoo"]) == 2
    assert "did you mean 'bapo'" in capsys.readouterr().err


def test_every_listed_command_exists() -> None:
    from importlib import import_module

    from posttrain.cli import COMMANDS

    for _, place in COMMANDS.values():
        module, function = place.split(":")
        names = vars(import_module(module))
        assert callable(names[function])
        assert callable(names["add_arguments"])


def test_pointers_name_places_that_exist() -> None:
    from posttrain.recipe.sections import ModelSection, OutputSection, RolloutSection

    sections = {"model": ModelSection, "rollout": RolloutSection, "output": OutputSection}
    for place in OWNED.values():
        section, key = place.split(".")
        assert key in sections[section].model_fields or key == "run_dir"
    assert all(advice for advice in ELSEWHERE.values())
