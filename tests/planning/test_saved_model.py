"""A run folder given where a model is wanted."""

from __future__ import annotations

import pytest

from posttrain.planning.saved_model import model_of


@pytest.mark.parametrize("kind", ["config.json", "adapter_config.json"])
def test_a_run_means_its_model_and_a_model_itself(kind, tmp_path):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / kind).write_text("{}")
    assert model_of(str(tmp_path / "run")) == str(model)
    assert model_of(str(model)) == str(model)
    assert model_of("org/name") == "org/name"


def test_a_run_without_a_model_names_its_last_checkpoint(tmp_path):
    for step in (9, 10):
        folder = tmp_path / "run" / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="its last checkpoint is .*checkpoint-10"):
        model_of(str(tmp_path / "run"))
    with pytest.raises(ValueError, match="is no model"):
        model_of(str(tmp_path))
