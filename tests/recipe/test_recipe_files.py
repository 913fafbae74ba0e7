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
    # A recipe may begin where another one ends, and read files that are not in the repository.
    assert [refusal for refusal in refusals if "no folder" not in refusal and "no file" not in refusal] == []


def test_recipes_of_one_model_differ_only_by_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("qwen2.5-1.5b_gsm8k.yaml", "qwen2.5-7b_math.yaml"):
        grpo, dapo = (load_recipe(f"recipes/{method}/{name}") for method in ("grpo", "dapo"))
        assert grpo.model == dapo.model
        assert grpo.data == dapo.data
        assert grpo.rollout == dapo.rollout


def test_the_page_names_every_key() -> None:
    from pydantic import BaseModel

    from posttrain.recipe import sections, train_options

    page = (ROOT / "docs" / "recipes.md").read_text()
    written = set(re.findall(r"`([^`]+)`", page)) | set(re.findall(r"\b(?:r|args)\b", page))
    models = [
        model
        for module in (sections, train_options)
        for model in vars(module).values()
        if isinstance(model, type) and issubclass(model, BaseModel)
    ]
    missing = {key for model in models for key in model.model_fields} - written
    assert not missing
