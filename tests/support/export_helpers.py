"""A short run in this process, with its model as it was in memory when training ended."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from posttrain.cli import main
from posttrain.run.session import Session

RECIPE: dict[str, Any] = {
    "method": "sft",
    "model": {"scratch": {"hidden_size": 32, "layers": 2, "heads": 2, "max_positions": 64}},
    "data": {"name": "sort", "args": {"size": 64, "held_out": 8, "demonstrations": 2}},
    "train": {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "gradient_checkpointing": False,
        "use_cpu": True,
    },
    "output": {"save_steps": 2, "report_to": []},
}


def written_recipe(name: str, **sections: Any) -> str:
    """NAME.yaml in the current folder: RECIPE with `sections` in place of its own."""
    recipe = copy.deepcopy(RECIPE) | copy.deepcopy(sections)
    recipe["output"] = {**RECIPE["output"], "name": name}
    Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return f"{name}.yaml"


def trained(name: str, **sections: Any) -> Any:
    """The model in memory at the end of the run runs/NAME."""
    kept: list[Any] = []
    end = Session.end

    def keep(self: Any) -> int:
        kept.append(copy.deepcopy(self.trainer.accelerator.unwrap_model(self.trainer.model)).eval())
        return end(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "end", keep)
        assert main(["train", written_recipe(name, **sections)]) == 0
    return kept[0]


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits
