"""Launch configurations load, and what a launcher quietly drops is an error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from places import ROOT

from posttrain.trainers.seam.launch_check import check_engine

EXPECTED = {
    "one_gpu": (DistributedType.NO, {}),
    "ddp": (DistributedType.MULTI_GPU, {}),
    "zero2": (DistributedType.DEEPSPEED, {"zero_stage": 2}),
    "zero3": (DistributedType.DEEPSPEED, {"zero_stage": 3, "zero3_save_16bit_model": True}),
    "fsdp2": (DistributedType.FSDP, {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"}),
}


def test_every_config_is_known():
    assert {p.stem for p in (ROOT / "launch" / "accelerate").glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_config_says_what_its_name_says(name):
    config = load_config_from_file(str(ROOT / "launch" / "accelerate" / f"{name}.yaml"))
    kind, options = EXPECTED[name]
    assert config.distributed_type == kind
    found = {**(config.deepspeed_config or {}), **(config.fsdp_config or {})}
    assert {key: found[key] for key in options} == options
    assert config.mixed_precision == "bf16"


def accelerator(kind: DistributedType, processes: int = 1) -> SimpleNamespace:
    return SimpleNamespace(distributed_type=kind, num_processes=processes)


@pytest.mark.parametrize(
    ("variable", "wanted"),
    [
        ("ACCELERATE_USE_DEEPSPEED", DistributedType.DEEPSPEED),
        ("ACCELERATE_USE_FSDP", DistributedType.FSDP),
    ],
)
def test_a_dropped_engine_is_an_error(variable, wanted, monkeypatch):
    monkeypatch.setenv(variable, "true")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match=f"{wanted.value} was asked for, but accelerate runs MULTI_CPU"):
        check_engine(accelerator(DistributedType.MULTI_CPU))
    check_engine(accelerator(wanted))


def test_ranks_that_are_alone_are_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="2 processes were started, but this one runs alone"):
        check_engine(accelerator(DistributedType.NO))
    check_engine(accelerator(DistributedType.MULTI_CPU, processes=2))
