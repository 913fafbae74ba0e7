"""Every key of every section and method against values nobody means: refused in a line that names it, or planned."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_recipe import POLICY, SFT, merged

from posttrain.recipe import FAMILIES, Recipe, RecipeError
from posttrain.recipe.data_sections import AnswerSection, DataSection
from posttrain.recipe.image_sections import FlowModelSection, FlowRolloutSection, FlowScratchSection
from posttrain.recipe.loader import Loader
from posttrain.recipe.methods import METHODS
from posttrain.recipe.sections import (
    DiffusionRolloutSection,
    EvaluationSection,
    MaskSection,
    ModelSection,
    OutputSection,
    PeftSection,
    RewardSection,
    RolloutSection,
    ScratchSection,
    VLLMSection,
)
from posttrain.run.plan import make_plan
from posttrain.settings.base import list_settings

INF = float("inf")
HOSTILE: list[Any] = [INF, 1e308, -1, 0, 10**18, "", [], [[]], {"": 0}, True, None]
NUMBERS: list[Any] = [INF, 1e308, 10**18]
"""That no key takes, whatever it is: a number beyond sense is refused wherever a number stands."""
DPO: dict[str, Any] = {
    "method": "dpo",
    "model": {"scratch": {}},
    "data": {"path": "pairs.jsonl"},
    "train": {"max_steps": 3},
}
BGPO: dict[str, Any] = {
    **{key: value for key, value in POLICY.items() if key != "objective"},
    "method": "bgpo",
    "train": {"max_steps": 3, "per_device_train_batch_size": 8},
}
IMAGES: dict[str, Any] = {
    "method": "flow_grpo",
    "model": {"scratch": {"classes": ["p"]}},
    "data": {"path": "pairs.jsonl"},
    "rewards": [{"name": "image_statistic"}],
    "rollout": {"group_size": 4},
    "train": {"max_steps": 3, "per_device_train_batch_size": 8},
}
IMAGE_SFT: dict[str, Any] = {
    "method": "flow_sft",
    "model": {"scratch": {"classes": ["p"]}},
    "data": {"path": "images.jsonl"},
    "train": {"max_steps": 3, "per_device_train_batch_size": 8},
}
BASES = {
    "sft": SFT,
    "policy": POLICY,
    "preference": DPO,
    "diffusion": BGPO,
    "images": IMAGES,
    "image_sft": IMAGE_SFT,
}
FREE = {("data", "args"), ("rewards", "args"), ("train", "chat_template_kwargs")}
"""Keys whose value is the user's own, handed on as it is."""


def places(family: str) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """(where a key stands, what else must be written there for it to count)."""
    base = BASES[family]
    models: dict[tuple[str | int, ...], tuple[type, dict[str, Any]]] = {
        ("train",): (FAMILIES[METHODS[base["method"]].family].train, {}),
    }
    if family == "policy":
        hub = {"path": "someone/model"}
        models |= {
            ("model",): (ModelSection, hub),
            ("model", "scratch"): (ScratchSection, {}),
            ("model", "peft"): (PeftSection, {}),
            ("model", "mask"): (MaskSection, {}),
            ("data",): (DataSection, {}),
            ("data", "answer"): (AnswerSection, {}),
            ("data", "eval"): (DataSection, {}),
            ("rewards", 0): (RewardSection, {"name": "exact_match"}),
            ("rollout",): (RolloutSection, {}),
            ("rollout", "vllm"): (VLLMSection, {}),
            ("output",): (OutputSection, {}),
            ("evaluation",): (EvaluationSection, {"every": 1, "benchmarks": ["gsm8k"]}),
        }
    if family == "diffusion":
        models = {("rollout",): (DiffusionRolloutSection, {})}
    if family == "images":
        models |= {
            ("rollout",): (FlowRolloutSection, {}),
            ("model",): (FlowModelSection, {"path": "someone/model"}),
            ("model", "scratch"): (FlowScratchSection, {}),
        }
    for place, (model, beside) in models.items():
        for key in model.model_fields:  # type: ignore[attr-defined]  # all are pydantic models
            yield (*place, key), beside


def written(
    base: dict[str, Any], place: tuple[str | int, ...], value: Any, beside: dict[str, Any]
) -> dict[str, Any]:
    recipe = copy.deepcopy(base)
    if place[0] == "model" and place[1:2] != ("scratch",):
        recipe["model"] = {"path": "someone/model"}
    target: Any = recipe
    for part in place[:-1]:
        if isinstance(target, dict) and part not in target:
            target[part] = {}
        target = target[part]
    for key, other in beside.items():
        target.setdefault(key, other)
    target[place[-1]] = value
    return recipe


def planned(raw: dict[str, Any], *, plan: bool = True) -> list[str]:
    """The lines with which a recipe is refused, on loading or by its plan. YAML's own limits are tested elsewhere."""
    raw = copy.deepcopy(raw)

    class Given(Loader):
        def read(self) -> dict[str, Any]:
            return raw

    try:
        recipe: Recipe = Given("r.yaml", FAMILIES).load([])
    except RecipeError as error:
        return list(error.problems)
    return [f"r.yaml: {refusal}" for refusal in make_plan(recipe).refusals] if plan else []


def check(raw: dict[str, Any], place: tuple[str | int, ...], value: Any, *, plan: bool = True) -> None:
    lines = planned(raw, plan=plan)
    assert all(line.startswith("r.yaml: ") and len(line.splitlines()) == 1 for line in lines), lines
    key = str(place[-1])
    free = (str(place[0]), key) in FREE
    if value in NUMBERS and not isinstance(value, bool) and not free:
        assert any(key in line for line in lines), (place, value, lines)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images.jsonl").write_text('{"prompt": "p", "image": [[0]]}\n' * 16)
    Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 16)


SECTIONS = [(family, place, beside) for family in BASES for place, beside in places(family)]


@pytest.mark.parametrize(
    ("family", "place", "beside"), SECTIONS, ids=[f"{f}:{'.'.join(map(str, p))}" for f, p, _ in SECTIONS]
)
def test_sections(family: str, place: tuple[str | int, ...], beside: dict[str, Any]) -> None:
    for value in HOSTILE:
        check(written(BASES[family], place, value, beside), place, value)


@pytest.mark.parametrize("method", METHODS)
def test_objectives(method: str) -> None:
    base = merged(BASES[METHODS[method].family], {"method": method, "objective": None})
    for setting in list_settings(METHODS[method].load_settings()):
        place = ("objective", setting.name)
        for value in HOSTILE:
            check(written(base, place, value, {}), place, value, plan=value in (0, True))
        for size in (1, 2, 3):  # tuples
            for value in (INF, -1, 10**18, ""):
                planned(written(base, place, [value] * size, {}), plan=False)


@pytest.mark.parametrize(
    "section", ["model", "data", "rewards", "objective", "rollout", "train", "output", "evaluation"]
)
def test_whole_sections(section: str) -> None:
    for family, base in BASES.items():
        for value in [*HOSTILE, {"x": {"y": [0]}}, [None], [{}], ["x"]]:
            lines = planned({**base, section: value})
            assert all(len(line.splitlines()) == 1 for line in lines), (family, value, lines)


@pytest.mark.parametrize("value", [*HOSTILE, ["grpo"], {"grpo": 1}])
def test_methods(value: Any) -> None:
    (line,) = planned({**POLICY, "method": value})
    assert "method" in line
