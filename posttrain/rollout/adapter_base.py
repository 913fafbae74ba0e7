"""Where the base model of a saved adapter lies. No torch: `posttrain plan` asks too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"


class ModelFault(ValueError):
    """A model folder that cannot be used: what it lacks, by name."""


class BaseMissing(ModelFault):
    """An adapter whose base model is not named, or not where its config says."""


def holds_adapter(folder: str | Path) -> bool:
    """Whether the folder is a saved adapter (LoRA), which needs its base model."""
    return (Path(folder) / CONFIG).is_file()


def scores_texts(folder: str | Path) -> str | None:
    """The class of the folder's model where it is a sequence classifier, which scores texts and writes none; else None,
    also where the folder says nothing."""
    try:
        names = (
            json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("architectures") or []
        )
    except (OSError, ValueError, AttributeError):
        return None
    return next((str(name) for name in names if "SequenceClassification" in str(name)), None)


def adapter_config(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseMissing(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise BaseMissing(f"{path} holds no mapping")
    return config


def base_of(folder: str | Path) -> str:
    """Folder or hub name of the adapter's base. A relative folder is looked for from here, then from each folder above
    the adapter's, so that an adapter is found with its base from anywhere, and after both were moved together.

    Raises BaseMissing.
    """
    named = adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise BaseMissing(
            f"{folder} is an adapter whose {CONFIG} names no base model; write its folder or hub name there, as "
            "base_model_name_or_path"
        )
    home = Path(folder).resolve()
    for place in (Path(named).expanduser(), *(parent / named for parent in (home, *home.parents))):
        if place.is_dir() and place.resolve() != home:
            return str(place)
    if named.count("/") <= 1 and not named.startswith((".", "/", "~")):
        return named  # a name of the hub
    raise BaseMissing(
        f"{folder} is an adapter of the base model {named}, which is not there; bring it back, or write where it lies "
        f"into {Path(folder) / CONFIG} (base_model_name_or_path)"
    )
