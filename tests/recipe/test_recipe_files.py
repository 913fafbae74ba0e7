"""Every recipe of the repository is valid, complete, and starts with its command, needs and expectation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.planning.idle import idle_options
from posttrain.planning.rewards import reward_faults
from posttrain.recipe import load_recipe
from posttrain.run.plan import make_plan

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPES = sorted(path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.yaml"))
PROCESSES = {"zero3.yaml": 8, "zero2.yaml": 8, "ddp.yaml": 8, "fsdp2.yaml": 8}


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 26


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_header_and_checks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert re.search(r"# run: +\S", text)
    assert str(path) in text
    assert re.search(r"# needs: +\S", text)
    assert re.search(r"# expect: +\S", text)
    recipe = load_recipe(path)
    assert list(idle_options(recipe)) == []
    assert reward_faults(recipe, None) == []
    config = re.search(r"launch/accelerate/(\w+\.yaml)", text)
    if config is not None:
        assert (ROOT / "launch" / "accelerate" / config.group(1)).is_file()
    processes = PROCESSES.get(config.group(1), 1) if config is not None else 1
    refusals = make_plan(recipe, processes=processes).refusals
    # A recipe may begin where another one ends, read files that are not in the repository, and need a sandbox or an
    # extra that this machine may not have.
    elsewhere = (
        "no folder",
        "no file",
        "no sandbox on this machine",
        "diffusers, which is not installed",
        "needs the package reasoning-gym",
        "needs the package verifiers",
        "no OpenEnv server answers",
    )
    assert [refusal for refusal in refusals if not any(words in refusal for words in elsewhere)] == []


SMALL_GPU = [path for path in RECIPES if path.stem.endswith("24gb")]


@pytest.mark.parametrize("path", SMALL_GPU, ids=str)
def test_recipes_for_a_small_gpu_fit_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = make_plan(load_recipe(path), device_gib=24.0)
    assert not [warning for warning in plan.warnings if "GiB" in warning]
    # SALSA starts from a folder that another recipe makes
    assert (plan.memory is not None) == (path.parent.name != "salsa")
    if plan.memory is not None:
        assert plan.memory.peak < 0.9 * 24 * 2**30


def test_every_policy_and_preference_method_has_a_recipe_for_a_small_gpu() -> None:
    named = {path.parent.name for path in SMALL_GPU}
    assert named >= {
        "grpo",
        "dapo",
        "bapo",
        "bnpo",
        "copo",
        "capo",
        "rloo",
        "salsa",
        "opd",
        "online_dpo",
        "rpo",
        "kto",
        "drift",
        "seppo",
    }


def test_recipes_of_one_model_differ_only_by_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("qwen2.5-1.5b_gsm8k.yaml", "qwen2.5-7b_math.yaml"):
        grpo, dapo = (load_recipe(f"recipes/{method}/{name}") for method in ("grpo", "dapo"))
        assert grpo.model == dapo.model
        assert grpo.data == dapo.data
        assert grpo.rollout == dapo.rollout


def test_the_page_names_every_key() -> None:
    from pydantic import BaseModel

    from posttrain.recipe import image_sections, sections, train_options

    page = (ROOT / "docs" / "recipes.md").read_text()
    written = set(re.findall(r"`([^`]+)`", page)) | set(re.findall(r"\b(?:r|args)\b", page))
    models = [
        model
        for module in (sections, image_sections, train_options)
        for model in vars(module).values()
        if isinstance(model, type) and issubclass(model, BaseModel)
    ]
    missing = {key for model in models for key in model.model_fields} - written
    assert not missing
