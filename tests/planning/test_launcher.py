"""A launcher that starts fewer processes than it was asked for is found out before training."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_recipe import Load

from posttrain.cli import main
from posttrain.planning import launcher
from posttrain.planning.launcher import engine_asked, launch_fault, optimizer_fault, precision_fault, started
from posttrain.recipe.sections import ModelSection
from posttrain.recipe.train_options import TrainSection

ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "HOME": "/nonexistent"}
LAUNCH = ["python", "/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "posttrain"]


@pytest.mark.parametrize("flag", ["--num_processes 2", "--num-processes 2", "--num_processes=2"])
def test_accelerate_on_a_cpu_started_one_of_two(flag: str) -> None:
    command = ["accelerate", "launch", "--cpu", *flag.split(), "train"]
    fault = launch_fault(ACCELERATE, command)
    assert fault is not None
    assert "asked for 2 processes and started 1" in fault
    assert "torchrun" in fault


def test_what_was_asked_for_and_came_is_no_fault() -> None:
    assert launch_fault({}, []) is None
    assert launch_fault(ACCELERATE | {"WORLD_SIZE": "2"}, LAUNCH) is None
    assert launch_fault(ACCELERATE, ["accelerate", "launch", "--num_processes", "1"]) is None
    assert launch_fault(ACCELERATE, ["accelerate", "launch", "train"]) is None
    assert launch_fault({"WORLD_SIZE": "2"}, ["torchrun", "--nproc_per_node", "2"]) is None
    # The flag of some other parent, say a test runner, means nothing.
    assert launch_fault({}, LAUNCH) is None


def test_the_number_may_stand_in_a_config_file(tmp_path: Path) -> None:
    file = tmp_path / "ddp.yaml"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
    fault = launch_fault(ACCELERATE, ["accelerate", "launch", "--config_file", str(file)])
    assert fault is not None
    assert "asked for 4 processes and started 1" in fault
    default = tmp_path / "accelerate" / "default_config.yaml"
    default.parent.mkdir()
    default.write_text("num_processes: 3\n")
    home = ACCELERATE | {"HF_HOME": str(tmp_path)}
    assert "asked for 3" in str(launch_fault(home, ["accelerate", "launch"]))
    # accelerate itself leaves the default file aside with --cpu
    assert launch_fault(home, ["accelerate", "launch", "--cpu"]) is None


def test_without_a_command_line_the_master_address_tells() -> None:
    assert launch_fault(ACCELERATE | {"MASTER_ADDR": "127.0.0.1"}, []) is not None
    assert launch_fault(ACCELERATE, []) is None


def test_srun_tasks_that_do_not_know_of_each_other() -> None:
    assert "srun started 2 tasks" in str(launch_fault({"SLURM_STEP_NUM_TASKS": "2"}, ["srun"]))
    assert launch_fault({"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "4"}, ["torchrun"]) is None


def test_started_reads_every_launchers_variable() -> None:
    assert started({}) == 1
    assert started({"WORLD_SIZE": "4"}) == 4
    assert started({"OMPI_COMM_WORLD_SIZE": "3"}) == 3


def test_a_precision_only_the_launcher_asks_for(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, bf16 = load().train, load(train={"bf16": True}).train
    for asked, train, wrong in (
        ("no", plain, False),
        ("bf16", plain, True),
        ("bf16", bf16, False),
        ("fp16", bf16, True),
    ):
        assert (precision_fault(train, {"ACCELERATE_MIXED_PRECISION": asked}) is not None) is wrong
    assert precision_fault(plain, {}) is None
    load()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(launcher, "parent_command", lambda: ["accelerate", "launch"])
    assert main(["train", "r.yaml"]) == 2
    assert "r.yaml: train: the launcher asks for bf16 arithmetic" in capsys.readouterr().err


def test_train_refuses_before_anything_else(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load()
    monkeypatch.setattr(launcher, "parent_command", lambda: LAUNCH)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(["train", "r.yaml"]) == 2
    assert "asked for 2 processes" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "r.yaml"]) == 2
    assert capsys.readouterr().err == ""


def test_an_attention_kernel_that_is_not_installed_is_named_at_once(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"attn_implementation": "flash_attention_2", "path": "someone/model"}
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    fault = launcher.attention_fault(ModelSection.model_validate(model))
    assert fault is not None
    assert "needs the package flash-attn" in fault
    monkeypatch.setattr(launcher, "find_spec", lambda name: object())
    assert launcher.attention_fault(ModelSection.model_validate(model)) is None
    assert launcher.attention_fault(ModelSection.model_validate({"path": "someone/model"})) is None


@pytest.mark.parametrize(
    ("environment", "engine"),
    [
        ({}, "one process"),
        ({"WORLD_SIZE": "2"}, "ddp"),
        (
            {
                "WORLD_SIZE": "2",
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
            },
            "zero3",
        ),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}, "deepspeed"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
    ],
)
def test_the_engine_is_what_the_launcher_asks_for(environment: dict[str, str], engine: str) -> None:
    assert engine_asked(environment) == engine


def test_a_run_that_could_not_be_resumed_is_refused() -> None:
    fsdp2 = {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    assert "could not be resumed" in (optimizer_fault(TrainSection(max_steps=1, optim="sgd"), fsdp2) or "")
    assert optimizer_fault(TrainSection(max_steps=1, optim="adamw_torch"), fsdp2) is None
    assert optimizer_fault(TrainSection(max_steps=1, optim="sgd"), {"WORLD_SIZE": "2"}) is None
