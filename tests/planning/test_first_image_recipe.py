"""`posttrain init` for methods on images: digits, rows of one's own, a model of noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.cli import main
from posttrain.commands import init
from posttrain.recipe import load_recipe
from posttrain.recipe.methods import METHODS

IMAGES = [method.name for method in METHODS.values() if method.load_settings().makes_images]
SHADE = [[0] * 4] * 4


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init, "has_gpu", lambda: True)
    start = tmp_path / "runs" / "flow_sft_digits" / "model"
    start.mkdir(parents=True)
    (start / "config.json").write_text(json.dumps({"model_type": "posttrain_flow_mlp"}))
    rows = [
        {
            "caption": 1,
            "prompt": f"thing {i}",
            "file": SHADE,
            "preferred_image": SHADE,
            "rejected_image": SHADE,
        }
        for i in range(20)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def pipeline(name: str, scheduler: str) -> str:
    folder = Path(name)
    folder.mkdir()
    index: dict[str, Any] = {"_class_name": name, "scheduler": ["diffusers", scheduler]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return name


@pytest.mark.parametrize("method", IMAGES)
def test_the_digits_are_what_is_taken_without_data(method, here, capsys):
    pytest.importorskip("sklearn")
    assert main(["init", method]) == 0, capsys.readouterr().err
    recipe = load_recipe(f"{method}.yaml")
    assert (recipe.method, recipe.data.name) == (method, "digits")
    assert (recipe.model.path is None) == (method == "flow_sft")
    assert main(["plan", f"{method}.yaml"]) == 0, capsys.readouterr().err


@pytest.mark.flow
@pytest.mark.parametrize("method", IMAGES)
def test_rows_and_a_pipeline_of_ones_own(method, here, capsys):
    noise = METHODS[method].load_settings().trains_noise_models
    name, scheduler = (
        ("StableDiffusionPipeline", "PNDMScheduler")
        if noise
        else ("FluxPipeline", "FlowMatchEulerDiscreteScheduler")
    )
    assert main(["init", method, "--model", pipeline(name, scheduler), "--data", "rows.jsonl"]) == 0, (
        capsys.readouterr().err
    )
    written = yaml.safe_load(Path(f"{method}.yaml").read_text())
    assert written["model"]["peft"]["r"] == 32
    assert written["train"]["gradient_checkpointing"] is True
    columns = {
        "flow_sft": {"image": "file"},
        "seppo_diffusion": {"image": "file"},
        "diffusion_dpo": {"chosen_image": "preferred_image"},
    }
    assert written["data"].get("columns", {}) == columns.get(method, {})
    if noise:
        assert (written["objective"]["times"], written["objective"]["error"]) == ("ddpm", "epsilon")
    else:
        assert "times" not in written["objective"] or written["objective"]["times"] == "uniform"


def test_mistakes_are_one_line(here, capsys):
    Path("texts.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}) + "\n")
    for words, message in [
        (["diffusion_dpo", "--model", "own/pipeline", "--data", "texts.jsonl"], "no column 'chosen_image'"),
        (["flow_grpo", "--data", "texts.jsonl"], "--model: name the pipeline"),
        (["flow_grpo", "--model", "./nowhere"], "no folder ./nowhere"),
        (["flow_grpo", "--model", "own/pipeline", "--data", "nowhere.jsonl"], "no file"),
    ]:
        assert main(["init", *words]) == 2, words
        error = capsys.readouterr().err.strip()
        assert message in error, error
        assert "\n" not in error
