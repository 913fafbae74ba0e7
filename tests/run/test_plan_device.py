"""Which device a plan speaks of, and what it says of the machine it is made on."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from small_recipe import Load

from posttrain.planning import machine
from posttrain.planning.memory import GIB
from posttrain.run import plan as planner
from posttrain.run.plan import make_plan, print_plan


def printed(load: Load, **train: object) -> str:
    terminal = Console(file=StringIO(), width=300, highlight=False)
    print_plan(make_plan(load(train=train)), terminal)
    return terminal.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above


def test_a_plan_is_of_a_gpu_unless_the_recipe_says_cpu(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "gpu_is_here", lambda: False)
    text = printed(load)
    assert "Memory of one GPU: about " in text
    assert "no GPU is here: on this machine's CPU a process would take about " in text
    text = printed(load, use_cpu=True)
    assert "Memory of one process on a CPU: about " in text
    assert "no GPU is here" not in text
    monkeypatch.setattr(planner, "gpu_is_here", lambda: True)
    assert "no GPU is here" not in printed(load)


def test_what_the_cpu_would_take_is_the_estimate_with_use_cpu(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "gpu_is_here", lambda: False)
    without, told = make_plan(load()), make_plan(load(train={"use_cpu": True}))
    assert told.memory is not None
    assert without.memory_here == told.memory.peak
    assert make_plan(load(), device_gib=80).memory_here is None  # of another machine's device


def test_a_machine_too_small_is_warned_of(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(train={"use_cpu": True})
    plan = make_plan(recipe)
    assert plan.memory is not None
    peak = plan.memory.peak
    monkeypatch.setattr(planner, "memory_of_machine", lambda: peak / 0.89)
    assert not [warning for warning in make_plan(recipe).warnings if "this machine's" in warning]
    monkeypatch.setattr(planner, "memory_of_machine", lambda: peak / 0.91)
    (warning,) = [warning for warning in make_plan(recipe).warnings if "this machine's" in warning]
    assert warning.startswith(f"about {peak / GIB:.0f} GiB are more than this machine's")
    monkeypatch.setattr(planner, "memory_of_machine", lambda: 1.5 * peak)
    assert [w for w in make_plan(recipe, processes=2).warnings if "this machine's" in w]  # two of them
    monkeypatch.setattr(planner, "memory_of_machine", lambda: None)
    assert not [w for w in make_plan(recipe).warnings if "this machine's" in w]


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine.memory_of_machine()
    assert whole is not None
    total = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    assert 0 < whole <= 1.01 * int(total.split()[1]) * 1024
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpu_is_here() is False


def test_bfloat16_on_a_processor_without_it_is_warned_of(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for flags, told in (("fpu avx2", True), ("fpu avx512f amx_tile amx_bf16", False), ("", False)):
        (tmp_path / "cpuinfo").write_text(f"model name : a\nflags\t\t: {flags}\n")
        found = machine.multiplies_bfloat16(tmp_path / "cpuinfo")
        monkeypatch.setattr("posttrain.planning.checks.multiplies_bfloat16", lambda found=found: found)
        for train, here in (
            ({"use_cpu": True, "bf16": True}, told),
            ({"use_cpu": True}, False),
            ({"bf16": True}, False),
        ):
            warned = [
                w for w in make_plan(load(train=train)).warnings if "no matrix products in bfloat16" in w
            ]
            assert bool(warned) == here
    assert machine.multiplies_bfloat16(tmp_path / "none") is None
