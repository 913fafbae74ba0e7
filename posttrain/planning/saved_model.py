"""Which model a command means: a model folder or hub name as it stands, or a run's folder, whose model lies within.

No torch.
"""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.settings.beta_family import BetaFamily

MODEL = "model"
SAVED = ("config.json", "adapter_config.json")
"""What every folder of a whole model, or of an adapter, holds."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
"""What `--dtype` may be; auto: as saved."""


def holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED)


def model_of(name: str) -> str:
    """The model that `name` means: of a run folder (runs/NAME) its model/. ValueError where the folder holds none."""
    folder = Path(name)
    if not folder.is_dir() or holds_model(folder):
        return name
    if holds_model(folder / MODEL):
        return str(folder / MODEL)
    checkpoints = [entry for entry in folder.glob("checkpoints/checkpoint-*") if holds_model(entry)]
    if checkpoints:
        last = max(checkpoints, key=lambda entry: int(entry.name.rpartition("-")[2]))
        raise ValueError(f"the run {name} has not saved its model yet; its last checkpoint is {last}")
    raise ValueError(
        f"{name} is no model: give a folder with config.json (an adapter's: adapter_config.json), a run's folder, or a "
        "hub name"
    )


def prefix_of(name: str, value: float | None) -> tuple[str, str]:
    """What a question begins with that asks a family's policy of one KL coefficient (train.beta_family), and a line for
    whoever asks without one: "", where the model has no family. Raises ValueError where `value` is none of it."""
    path = Path(name) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    family = BetaFamily.of_config(config)
    if family is None:
        if value is not None:
            raise ValueError(f"--beta-value {value:g}: {name} was not trained with beta_family")
        return "", ""
    if value is not None:
        return family.prefixes[family.place(value)], ""
    known = ", ".join(map(family.name, family.values))
    return (
        "",
        f"note: {name} was trained with a prefix for each of {known}, and is asked without one: --beta-value",
    )
