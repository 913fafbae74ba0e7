"""Which model a command means: a model folder or hub name as it stands, or a run's folder, whose model lies within.

No torch.
"""

from __future__ import annotations

from pathlib import Path

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
