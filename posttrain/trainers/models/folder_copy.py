"""A saved model's files from one folder into another, tensor by tensor where their precision changes.

No model is made of them: a checkpoint that brings its own code is copied without running it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from posttrain.rollout.adapter_base import ModelFault

_NOT_OURS = frozenset({"trainer_state.json", "zero_to_fp32.py", "zero_to_torch.py", "README.md"})
"""The trainer's, DeepSpeed's and peft's, of the suffixes below."""
_MODEL = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"})
"""Suffixes of what makes a model: weights and their index, configs, tokenizer and chat template, code."""
_TEMPLATES = "additional_chat_templates"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_PRECISIONS = frozenset({"float32", "bfloat16", "float16"})


def copy_model(source: Path, out: Path, dtype: torch.dtype | None = None) -> None:
    """Copies what makes a model, or an adapter, into `out`; its floating-point weights in `dtype` (None: as saved).

    Raises ModelFault where a weights file cannot be read, is missing, or holds a number that is not finite in `dtype`.
    """
    out.mkdir(parents=True, exist_ok=True)
    _check_index(source)
    for file in sorted(source.iterdir()):
        if file.name in _NOT_OURS or file.name.startswith(".") or file.suffix not in _MODEL:
            continue
        if file.suffix == ".safetensors":
            _copy_weights(file, out / file.name, dtype)
        elif file.is_file():
            shutil.copyfile(file, out / file.name)
    copy_templates(source, out)
    if dtype is not None:
        _note_dtype(out / "config.json", str(dtype).removeprefix("torch."))


def copy_tokenizer(source: Path, out: Path) -> bool:
    """Copies a folder's tokenizer and chat template, where it has one."""
    if not any((source / name).is_file() for name in _TOKENIZER):
        return False
    skipped = {*_NOT_OURS, "config.json", "generation_config.json", "adapter_config.json"}
    for file in source.iterdir():
        text = file.suffix in _MODEL - {".safetensors", ".py"}
        if file.is_file() and text and file.name not in skipped and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    copy_templates(source, out)
    return True


def copy_templates(source: Path, out: Path) -> None:
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, out / _TEMPLATES, dirs_exist_ok=True)


def copy_code(source: Path, out: Path) -> list[str]:
    """Brings the files of code that config.json's `auto_map` names and the folder lacks; returns what stays missing.

    A name `owner/name--module.Class` is code of the hub, and stays there.
    """
    named = _json(out / "config.json").get("auto_map", {})
    places = [one for value in named.values() for one in (value if isinstance(value, list) else [value])]
    files = {f"{one.partition('.')[0]}.py" for one in places if one and "--" not in one}
    if all((out / name).is_file() for name in files):
        return []
    for file in source.glob("*.py") if source.is_dir() else ():  # modules import their neighbours
        if file.name not in _NOT_OURS and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
    return sorted(name for name in files if not (out / name).is_file())


def precision_of(folder: Path) -> str:
    """Of a folder's floating-point weights: "bfloat16", or several, joined."""
    found = set()
    for file in sorted(folder.glob("*.safetensors")):
        with _opened(file) as saved:
            for name in saved.keys():  # noqa: SIM118  # no mapping
                found.add(str(saved.get_slice(name).get_dtype()))
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
    return ", ".join(sorted(names[one] for one in found if one in names))


def _check_index(source: Path) -> None:
    for index in source.glob("*.safetensors.index.json"):
        for name in sorted(set(_json(index).get("weight_map", {}).values())):
            if not (source / name).is_file():
                raise ModelFault(f"{source}: a weights file is missing: {name}")


def _copy_weights(file: Path, out: Path, dtype: torch.dtype | None) -> None:
    kept = {}
    with _opened(file) as saved:
        metadata = saved.metadata()
        for name in saved.keys():  # noqa: SIM118  # no mapping
            tensor = saved.get_tensor(name)
            if not tensor.is_floating_point():
                kept[name] = tensor
                continue
            cast = tensor if dtype is None else tensor.to(dtype)
            if not bool(cast.isfinite().all()):
                raise ModelFault(f"{file}: {name} is not finite in {cast.dtype}; nothing was written")
            if dtype is not None:
                kept[name] = cast
    if dtype is None:
        shutil.copyfile(file, out)
    else:
        save_file(kept, str(out), metadata=metadata or {"format": "pt"})


def _opened(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt")
    except SafetensorError as error:
        raise ModelFault(f"{file} cannot be read ({error}); it was not copied or saved whole") from None


def _note_dtype(path: Path, dtype: str) -> None:
    """config.json says what its weights are in, at each level that says so."""
    if not path.is_file():
        return  # an adapter's folder

    def noted(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: dtype
            if key in ("dtype", "torch_dtype") and isinstance(item, str) and item in _PRECISIONS
            else noted(item)
            for key, item in value.items()
        }

    config = noted(_json(path)) | {"dtype": dtype}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
