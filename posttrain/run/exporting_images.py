"""Weights of a run on images as diffusers reads them: a whole pipeline, or an adapter for `load_lora_weights`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.rollout.adapter_base import base_of, holds_adapter
from posttrain.rollout.flow.flow_folder import SAVED, kind_of_folder, load_flow
from posttrain.run.saved_weights import ExportFault
from posttrain.trainers.models.folder_copy import copy_model, precision_of
from posttrain.trainers.models.ingredients import torch_dtype

_PEFT = "base_model.model."


def write_images_model(source: Path, out: Path, *, merge: bool, dtype: str) -> str:
    """Writes `out` and says how it is read. `source` is a saved model of images, or an adapter. Raises ExportFault.

    A pipeline's network is written with the rest of its pipeline; an adapter, unless it is merged, as diffusers' own
    file of LoRA weights. The small model of classes is copied as it is.
    """
    adapter = holds_adapter(source)
    if merge and not adapter:
        raise ExportFault(f"--merge: {source} is no adapter; leave it out")
    if not _of_a_pipeline(source):
        if merge:
            raise ExportFault(
                "--merge: the small model of classes is no pipeline; `model.path` takes its adapter as it is"
            )
        copy_model(source, out, None if dtype == "auto" else torch_dtype(dtype))
        return "a model of classes, which `model.path` takes"
    if adapter and not merge:
        return _write_lora(source, out)
    wanted = precision_of(source) if dtype == "auto" and not adapter else dtype
    single = wanted in ("float32", "bfloat16", "float16")
    _, frame = load_flow(str(source), dtype=torch_dtype(wanted) if single else None)
    pipeline: Any = vars(frame)["pipeline"]
    pipeline.save_pretrained(str(out))
    optional = type(pipeline)._optional_components
    absent = [name for name, part in pipeline.components.items() if part is None and name not in optional]
    told = f"(..., {', '.join(f'{name}=None' for name in absent)})" if absent else ""
    return f"diffusers.{type(pipeline).__name__}.from_pretrained{told} reads it"


def _of_a_pipeline(source: Path) -> bool:
    """Whether what is trained is a network of a pipeline, by the folder or by the base of its adapters."""
    if (source / SAVED).is_file():
        return True
    if not holds_adapter(source):
        return False
    base = base_of(source)
    return not Path(base).exists() or kind_of_folder(base) != "small"


def _write_lora(source: Path, out: Path) -> str:
    import diffusers
    from peft import LoraConfig
    from safetensors.torch import load_file

    config: Any = LoraConfig.from_pretrained(str(source))
    weights = load_file(str(source / "adapter_model.safetensors"))
    part = next(iter(weights)).removeprefix(_PEFT).partition(".")[0]
    layers = {name.removeprefix(f"{_PEFT}{part}."): value for name, value in weights.items()}
    base = json.loads((source / SAVED).read_text(encoding="utf-8"))["pipeline"]
    index: Any = diffusers.DiffusionPipeline.load_config(base)
    kind: Any = getattr(diffusers, index["_class_name"])
    named = {f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": config.to_dict()}
    kind.save_lora_weights(str(out), **named)
    return f"{index['_class_name']}.from_pretrained({base!r}).load_lora_weights reads it"
