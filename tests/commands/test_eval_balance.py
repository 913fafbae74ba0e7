"""`posttrain eval balance` on a tiny run: its files, its numbers where they are known, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from posttrain.cli import main
from posttrain.ops.balance_model import BalanceModel
from posttrain.planning.saved_model import prefix_of
from posttrain.recipe import RecipeError, load_recipe
from posttrain.run.family_curves import OWN, FamilyAsked, FamilyMeasured, choices_of, measure_family
from posttrain.run.train import run as run_recipe
from posttrain.settings.beta_family import BetaFamily

REWARD = '''
def first_digit(completions, *, prompts, **_):
    """A number of the prompt, that a prefix would change, and of the response."""
    return [float(p[0] < "5") / 2 + (len(c) % 2) / 2 for p, c in zip(prompts, completions)]
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has not moved: its learning rate is next to nothing."""
    folder = tmp_path_factory.mktemp("balance")
    (folder / "judge.py").write_text(REWARD)
    recipe: dict[str, Any] = {
        "method": "grpo",
        "model": {"scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "alphabet": "0123456789>ab"}},
        "data": {"name": "sort", "args": {"size": 16, "held_out": 12}, "eval": {"limit": 12}},
        "rewards": [{"name": f"{folder / 'judge.py'}:first_digit"}],
        "rollout": {"group_size": 4, "max_new_tokens": 5},
        "train": {"max_steps": 1, "per_device_train_batch_size": 16, "use_cpu": True, "learning_rate": 1e-20,
                  "beta_family": [0.0, 0.5], "beta_prefixes": ["a", "b"], "gradient_checkpointing": False},
        "output": {"name": "run", "dir": str(folder), "save_steps": 1, "logging_steps": 1},
    }  # fmt: skip
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    run_recipe(load_recipe(str(folder / "r.yaml")))
    return folder


def test_it_measures_chooses_and_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "balance", str(folder / "run"), "--samples", "4", "--batch-size", "16"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((folder / "run" / "balance.json").read_text())
    assert found["prompts"] == {"calibration": 6, "evaluation": 6}
    assert list(found["each"]) == ["0", "0.5"]
    assert all(one["kl"] > 0 for one in found["each"].values())  # the prefix alone makes a difference
    assert 0 < found["each"]["0"]["reward"] < 1
    assert sum(found["counts"]["balance model"]) == 6
    assert BalanceModel.from_plain(found["model"]).features == ("length", "reference_entropy", "pass_rate")
    for words in ("Each coefficient", "single best", OWN, "beta_by: learned"):
        assert words in shown
    assert "<svg" in (folder / "run" / "balance.html").read_text()
    again = json.loads((folder / "run" / "balance.json").read_text())
    main(["eval", "balance", str(folder / "run"), "--samples", "4", "--batch-size", "16"])
    assert again == found


def test_a_policy_that_has_not_moved_is_at_its_reference(folder: Path) -> None:
    """Without a prefix, policy and reference are one: KL 0, and rewards of the same prompts; a prompt's length is its
    digits and the mark behind them."""
    measured = measure_family(folder / "run", FamilyAsked(samples=3, limit=5), alone=True)
    assert measured.samples.shape == (5, 1, 3)
    assert float(measured.kl.abs().max()) < 1e-6
    rows = [digits for digits in load_rows_of(folder)]
    assert measured.features[:, 0].tolist() == [len(prompt) for prompt in rows[:5]]
    assert bool((measured.features[:, 1] > 0).all())
    small = torch.tensor([float(prompt[0] < "5") / 2 for prompt in rows[:5]]).double()
    for rewards in (measured.samples.squeeze(1).min(1).values, measured.features[:, 2]):
        assert bool(((rewards - small >= -1e-9) & (rewards - small <= 0.5 + 1e-9)).all())


def load_rows_of(folder: Path) -> list[str]:
    from posttrain.data import load_rows

    held_out = load_recipe(str(folder / "run" / "recipe.yaml")).data.eval
    assert held_out is not None
    return list(load_rows(held_out).rows["prompt"])


def test_choices_are_made_on_one_half_and_counted_on_the_other() -> None:
    """Short prompts earn at the second coefficient, long ones at the first; one length lies to the choosers' half."""
    family = BetaFamily.of([0.0, 0.1])
    length = torch.tensor([4.0, 9.0] * 8)
    best = (length < 6).long()
    samples = torch.zeros(16, 2, 4)
    samples[torch.arange(16), best] = 1.0
    features = torch.stack([length, torch.ones(16), (length < 6).float()], dim=1).double()
    measured = FamilyMeasured(
        family, samples.double(), torch.tensor([[2.0, 1.0]]).expand(16, 2).double(), features
    )
    found = choices_of(measured, FamilyAsked(samples=4))
    assert {name: one.reward for name, one in found.choices.items()} == {
        "single best": 0.5, "pass-rate bins": 1.0, "balance model": 1.0, OWN: 1.0,
    }  # fmt: skip
    assert found.choices["balance model"].kl == pytest.approx(1.5)
    assert found.choices["balance model"].gain == pytest.approx(0.5)
    assert found.counts["balance model"] == [4, 4]
    assert found.bins == [0.0, found.bins[1], 0.1]
    with pytest.raises(ValueError, match="two of each are the fewest"):
        choices_of(measured, FamilyAsked(samples=4, calibration=0.99))


def test_the_model_is_asked_with_a_coefficient_it_knows(folder: Path) -> None:
    model = str(folder / "run" / "model")
    assert prefix_of(model, 0.5) == ("b", "")
    prefix, note = prefix_of(model, None)
    assert prefix == ""
    assert "asked without one" in note
    with pytest.raises(ValueError, match="it has 0, 0.5"):
        prefix_of(model, 0.3)
    assert prefix_of("some/hub-name", None) == ("", "")
    with pytest.raises(ValueError, match="was not trained with beta_family"):
        prefix_of("some/hub-name", 0.1)


def test_what_cannot_be_measured_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "balance", str(folder)]) == 2
    assert "no recipe.yaml" in capsys.readouterr().err
    assert main(["eval", "balance", str(folder / "run"), "--calibration", "1"]) == 2
    assert "a share between 0 and 1" in capsys.readouterr().err
    recipe = yaml.safe_load((folder / "run" / "recipe.yaml").read_text())
    other = folder / "plain"
    other.mkdir()
    recipe["train"] |= {"beta_family": None, "beta_prefixes": None}
    (other / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match="no beta_family"):
        measure_family(other, FamilyAsked())
