"""Settings that are well typed and senseless: schedules, optimizers, steps beyond the run, adapters on nothing."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from small_recipe import POLICY, SFT, Load, Refused

from posttrain.cli import main
from posttrain.data.scratch_tokenizer import by_characters
from posttrain.planning.adapter import module_shapes
from posttrain.planning.batch import steps_of
from posttrain.planning.idle import beyond_the_run
from posttrain.planning.optimizer import CHECKPOINTING_OPTIONS, OPTIMIZER_OPTIONS, SCHEDULE_OPTIONS
from posttrain.recipe.sections import ModelSection
from posttrain.run.plan import make_plan


def refusals(load: Load, base: dict[str, Any] = POLICY, **changes: Any) -> list[str]:
    return make_plan(load(base, **changes)).refusals


@pytest.mark.parametrize(
    ("train", "complaint"),
    [
        ({"optim_args": "momentum=0.9"}, "'optim_args' does nothing with optim 'adamw_torch_fused'"),
        ({"optim": "sgd", "optim_args": "momentm=0.9"}, "optim 'sgd' has no 'momentm'; did you mean 'momentum'?"),
        ({"optim": "sgd", "optim_args": "momentum"}, "must be key=value pairs between commas"),
        ({"optim": "sgd", "optim_args": "momentum=inf"}, "momentum must be a finite number of 0 or more, not inf"),
        ({"optim": "sgd", "optim_args": "nesterov=maybe"}, "nesterov must be true or false, not 'maybe'"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_type 'linear' has no 'num_cycles'; it takes none"),
        (
            {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 1.5}},
            "num_cycles must be a whole number of 0 or more, not 1.5",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs lr_scheduler_kwargs: {min_lr or min_lr_rate: ...}"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.0, "min_lr_rate": 0.1}},
            "and one of them",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "needs lr_scheduler_kwargs: {num_decay_steps: ...}"),
        (
            {"lr_scheduler_type": "warmup_stable_decay",
             "lr_scheduler_kwargs": {"num_decay_steps": 1, "decay_type": "exp"}},
            "decay_type must be one of linear, cosine, 1-sqrt, not 'exp'",
        ),
        (
            {"lr_scheduler_type": "polynomial", "learning_rate": 1e-7},
            "falls to lr_end 1e-07, which is not below learning_rate 1e-07",
        ),
        ({"gradient_checkpointing_kwargs": {"use_reentrnt": False}}, "did you mean 'use_reentrant'?"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": 1}}, "use_reentrant must be true or false, not 1"),
        ({"warmup_steps": 4}, "'warmup_steps' 4 is more than the run's 3 steps"),
        ({"warmup_steps": 1.5}, "'warmup_steps' 1.5 is neither a share below 1 nor a whole number"),
    ],
)  # fmt: skip
def test_options_of_optimizer_and_schedule(load: Load, train: dict[str, Any], complaint: str) -> None:
    (refusal,) = refusals(load, train=train)
    assert refusal.startswith("train: ")
    assert complaint in refusal


@pytest.mark.parametrize(
    "train",
    [
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        {"optim": "rmsprop", "optim_args": "alpha=0.9,centered=yes"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 1}},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 0, "power": 2}},
        {"warmup_steps": 3},
        {"warmup_steps": 0.1},
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ],
)
def test_options_that_are_taken(load: Load, train: dict[str, Any]) -> None:
    assert refusals(load, train=train) == []


def test_the_tables_are_upstreams() -> None:
    from torch.optim import SGD, RMSprop
    from torch.utils.checkpoint import checkpoint
    from transformers import SchedulerType
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    ours = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    for name, options in SCHEDULE_OPTIONS.items():
        taken = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]).parameters
        assert options.keys() == taken.keys() - ours, name
    for optimizer, name in ((SGD, "sgd"), (RMSprop, "rmsprop")):
        assert OPTIMIZER_OPTIONS[name].keys() <= inspect.signature(optimizer).parameters.keys()
    through_kwargs = {"preserve_rng_state"}
    assert CHECKPOINTING_OPTIONS.keys() - through_kwargs <= inspect.signature(checkpoint).parameters.keys()


def test_what_stands_beyond_the_run(load: Load) -> None:
    (refusal,) = refusals(load, data={"eval": {"limit": 4}}, train={"eval_steps": 4})
    assert refusal.startswith("train: 'eval_steps' 4 is never reached, and the run has 3 steps")
    assert refusals(load, data={"eval": {"limit": 4}}, train={"eval_steps": 3}) == []
    (refusal,) = refusals(load, output={"record": [1, 3, 4]})
    assert refusal.startswith("output: 'record' names step 4, and the run has 3 steps")
    (refusal,) = refusals(load, output={"logging_steps": 4})
    assert refusal.startswith("output: 'logging_steps' 4 is never reached")
    follow = {"beta": 0.1, "sync_ref_model": True}
    (refusal,) = refusals(load, train={**follow, "ref_model_sync_steps": 4})
    assert refusal.startswith("train: 'ref_model_sync_steps' 4 is never reached")
    assert refusals(load, train={**follow, "ref_model_sync_steps": 3}) == []


def test_a_run_of_no_step_is_refused_for_its_rows_alone(load: Load) -> None:
    epochs = {"max_steps": None, "num_train_epochs": 1, "per_device_train_batch_size": 512}
    (refusal,) = refusals(load, train=epochs, output={"record": [1]})
    assert "one rollout takes 128 prompts" in refusal


def test_of_a_run_in_stages_train_speaks_of_one(load: Load) -> None:
    drift: dict[str, Any] = {
        "method": "drift",
        "model": {"path": "someone/model"},
        "data": {"path": "x.jsonl"},
        "train": {"max_steps": 3},
        "output": {"logging_steps": 4},
    }
    recipe = load(drift)
    assert list(beyond_the_run(recipe, 3)) == []
    assert len(list(beyond_the_run(load({**drift, "method": "dpo"}), 3))) == 1


def test_a_run_told_in_epochs_is_counted_too(load: Load) -> None:
    # 64 rows, 2 prompts per step: 32 steps an epoch
    epochs = {"max_steps": None, "num_train_epochs": 1}
    assert refusals(load, train=epochs, output={"record": [32]}) == []
    (refusal,) = refusals(load, train=epochs, output={"record": [33]})
    assert "names step 33, and the run has 32 steps" in refusal


def test_steps_of_a_run(load: Load) -> None:
    def steps(base: dict[str, Any], rows: int | None, processes: int = 1, **train: Any) -> int | None:
        return steps_of(load(base, train={"max_steps": None, **train}), processes, rows)

    # sft: 10 rows in steps of 4 rows are 3 steps an epoch, the last one smaller; half an epoch more is 1.5, so 2
    of_four: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert steps(SFT, 10, num_train_epochs=1, **of_four) == 3
    assert steps(SFT, 12, num_train_epochs=1, **of_four) == 3
    assert steps(SFT, 13, num_train_epochs=1, **of_four) == 4
    assert steps(SFT, 10, num_train_epochs=1.5, **of_four) == 5
    assert steps(SFT, 10, 2, num_train_epochs=1, **of_four) == 2
    assert steps(SFT, None, num_train_epochs=1) is None
    assert steps(SFT, None, max_steps=7) == 7
    # policy: rollouts of 8 responses, so 2 prompts; what does not fill one is never generated
    assert steps(POLICY, 9, num_train_epochs=1) == 4
    assert steps(POLICY, 9, num_train_epochs=2) == 9
    assert steps(POLICY, 9, num_train_epochs=1, num_iterations=3) == 13


@pytest.mark.parametrize(
    ("peft", "complaint"),
    [
        ({"target_modules": ["q_prj"]}, "target_modules: the model has no module 'q_prj'; did you mean 'q_proj'?"),
        ({"target_modules": ["c_attn"]}, "the model has no module 'c_attn'; it has down_proj, embed_tokens"),
        ({"target_modules": ["input_layernorm"]}, "'input_layernorm' is no linear map or embedding"),
        ({"modules_to_save": ["embed_token"]}, "modules_to_save: the model has no module 'embed_token'"),
        ({"r": 512}, "model.peft: r 512 is more than the "),
    ],
)  # fmt: skip
def test_adapters_on_nothing(load: Load, tiny_model: Any, peft: dict[str, Any], complaint: str) -> None:
    recipe = load(model={"scratch": None, "path": "m", "peft": peft})
    tiny_model.save_pretrained("m")
    (refusal,) = make_plan(recipe).refusals
    assert complaint in refusal


@pytest.mark.parametrize(
    "peft",
    [{}, {"target_modules": ["q_proj", "layers.0.mlp.up_proj"]}, {"modules_to_save": ["norm", "mlp"]}],
)
def test_adapters_on_something(load: Load, tiny_model: Any, peft: dict[str, Any]) -> None:
    recipe = load(model={"scratch": None, "path": "m", "peft": {"r": 1, **peft}})
    tiny_model.save_pretrained("m")
    assert make_plan(recipe).refusals == []


def test_a_rank_may_be_as_wide_as_the_map(load: Load, tiny_model: Any) -> None:
    tiny_model.save_pretrained("m")
    shapes = module_shapes(ModelSection(path="m"))
    assert shapes is not None
    narrowest = min(min(shape) for name, shape in shapes.items() if name.endswith("k_proj"))
    only_keys = {"target_modules": ["k_proj"]}
    for rank, count in ((narrowest, 0), (narrowest + 1, 1)):
        recipe = load(model={"scratch": None, "path": "m", "peft": {**only_keys, "r": rank}})
        assert len(make_plan(recipe).refusals) == count


def test_a_bias_is_not_a_modules_shape(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "config.json").write_text("{}")
    tensors = {
        "a.q.bias": np.zeros(3, "f4"),
        "a.q.weight": np.zeros((3, 4), "f4"),
        "a.z.bias": np.zeros(2, "f4"),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert module_shapes(ModelSection(path=str(tmp_path))) == {"a.q": (3, 4)}


def test_targets_must_be_named(refused: Refused) -> None:
    (problem,) = refused(model={"scratch": None, "path": "m", "peft": {"target_modules": []}})
    assert "model.peft: 'target_modules' must be one of all-linear or at least 1 value, not []" in problem
    (problem,) = refused(model={"scratch": None, "path": "m", "peft": {"target_modules": [""]}})
    assert "must be text that is not empty" in problem


@pytest.mark.parametrize("text", ["{", "[]", '{"vocab_size": "many"}', '{"hidden_size": 0}', "\xff"])
def test_a_config_that_is_none(load: Load, text: str) -> None:
    recipe = load(model={"scratch": None, "path": "m"})
    Path("m").mkdir()
    Path("m/config.json").write_bytes(text.encode("latin-1"))
    plan = make_plan(recipe)
    assert plan.memory is None
    readable = text.startswith('{"')
    assert bool(plan.refusals) is not readable
    assert all(refusal.startswith("model: m/config.json ") for refusal in plan.refusals)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"version": "99"', "\xff"])
def test_a_tokenizer_that_is_none(
    load: Load, capsys: pytest.CaptureFixture[str], file: str, text: str
) -> None:
    recipe = load(model={"scratch": None, "path": "m"})
    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    by_characters("abc").save("m/tokenizer.json")
    Path("m/tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    assert make_plan(recipe).refusals == []
    Path("m", file).write_bytes(text.encode("latin-1"))
    (refusal,) = make_plan(recipe).refusals
    assert refusal.startswith(f"model: m/{file} ")
    assert main(["data", "preview", "r.yaml"]) == 2
    assert capsys.readouterr().err == f"{refusal}\n"


def test_a_cut_checkpoint_is_counted_as_nothing(load: Load, tiny_model: Any) -> None:
    recipe = load(model={"scratch": None, "path": "m", "peft": {"target_modules": ["q_proj"]}})
    tiny_model.save_pretrained("m")
    for content in (b"", b"\x05\x00\x00", b"\xff" * 64):
        Path("m/model.safetensors").write_bytes(content)
        assert make_plan(recipe).refusals == []


def test_a_grid_of_a_thousand_steps_is_the_largest(refused: Refused, load: Load) -> None:
    base = {**POLICY, "method": "bapo", "objective": {}}
    (problem,) = refused(base, objective={"high": [1.2, 3.0, 1e-12]})
    assert "BAPO: high = (1.2, 3.0, 1e-12) has more than 1000 steps" in problem
    assert load(base, objective={"high": [1.2, 3.0, 0.002]})


def test_numbers_of_a_method_are_bounded(refused: Refused) -> None:
    (problem,) = refused(objective={"clip_high": 1e30})
    assert problem == "r.yaml: objective: 'clip_high' must be at most 1e+09 in size, not 1e+30"
    (problem,) = refused({**POLICY, "objective": {}}, method="copo", objective={"incorrect_at": -1e30})
    assert problem == "r.yaml: objective: 'incorrect_at' must be at most 1e+09 in size, not -1e+30"
    (problem,) = refused(sets=["objective.clip_high=.inf"])
    assert problem == "--set objective.clip_high=.inf: objective: 'clip_high' must be finite, not inf"


@pytest.mark.parametrize("key", ["size", "held_out", "demonstrations"])
def test_built_in_tasks_are_bounded(load: Load, key: str) -> None:
    (refusal,) = refusals(load, SFT, data={"args": {key: 10**12}})
    assert refusal.startswith(f"data: args: '{key}' must be at most ")


@pytest.mark.parametrize(("name", "key"), [("countdown", "largest_target"), ("sudoku", "most_empty")])
def test_so_are_the_others(load: Load, name: str, key: str) -> None:
    found = refusals(load, SFT, data={"name": name, "args": {"size": 8, key: 10**12}})
    assert found[0].startswith(f"data: args: '{key}' must be at most ")


def test_json_is_not_needed_to_say_what_a_value_is(refused: Refused) -> None:
    assert json.dumps(float("inf")) == "Infinity"  # what pydantic is handed, and reads
    for key in ("learning_rate", "max_grad_norm", "weight_decay"):
        (problem,) = refused(sets=[f"train.{key}=.inf"])
        assert f"'{key}' must be" in problem
