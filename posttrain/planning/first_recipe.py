"""The text of a recipe to start from: every key that matters, with what it does beside it.

Values are the method's own defaults where it has any (they are the paper's), else those that papers of its family use;
batch sizes divide and are no larger than the rows allow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.planning.first_data import FirstData
from posttrain.planning.shapes import local_file
from posttrain.recipe.methods import Method
from posttrain.recipe.papers import paper_of
from posttrain.rollout.adapter_base import base_of, holds_adapter
from posttrain.settings import Settings, Start
from posttrain.settings.base import REQUIRED, Setting, list_settings

GROUP = 8
COLUMN = 44
"""Where comments begin."""
WITHOUT_FILES = {"autoregressive": "Qwen/Qwen2.5-0.5B-Instruct", "masked": "GSAI-ML/LLaDA-8B-Instruct"}
"""Models for a recipe when none is named."""
_SPEAKS = re.compile(r"instruct|chat|[-_]it\b", re.IGNORECASE)

LEARNING_RATE = {"sft": 2e-5, "policy": 1e-6, "diffusion": 1e-6, "preference": 5e-7}
OF_METHOD: dict[str, dict[str, Any]] = {
    "bapo": {"learning_rate": 2e-6},
    "bgpo": {"learning_rate": 5e-7},
    "salsa": {"beta": 0.05},
    "online_dpo": {"learning_rate": 5e-7, "beta": 0.1},
    "simpo": {"beta": 2.0},
    "itool": {"learning_rate": 1e-6, "beta": 2.5},
    "kto": {"learning_rate": 5e-6},
    "mdlm_sft": {"learning_rate": 1e-5},
}
"""Options of `train` with which a method's paper departs from its family."""

NOTES = {
    "model.path": "folder, runs/NAME/model, or hub name",
    "model.dtype": "of the weights; train.bf16 is the arithmetic's",
    "model.trust_remote_code": "the checkpoint brings code of its own, which is run",
    "model.mask": "what the checkpoint does not say about itself",
    "data.path": ".jsonl, .json, .parquet, .csv, also .gz; or a folder of them",
    "data.name": "a built-in task, a known dataset, or a hub name",
    "data.prompt": "column of the prompt",
    "data.template": "a prompt made of columns; {x?} may be empty; {{ }} are braces",
    "data.chat": "a text prompt becomes a user's message",
    "data.completion": "column to learn from",
    "data.chosen": "column of the better answer",
    "data.rejected": "column of the worse answer",
    "data.label": "column of the mark: true or false, 1 or 0",
    "data.answer": "where the gold answer stands in a row",
    "data.args": "of the generated task",
    "data.eval": "held-out rows; what it does not say is as above",
    "rollout.engine": "vllm or vllm_server are faster on a GPU",
    "rollout.group_size": "G, answers per prompt",
    "rollout.max_new_tokens": "longest answer",
    "rollout.temperature": "of sampling",
    "rollout.diffusion_steps": "forward passes that fill the canvas",
    "rollout.block_length": "the canvas is filled block by block",
    "train.num_train_epochs": "or max_steps: how long",
    "train.max_steps": "rounds x steps_per_round",
    "train.learning_rate": "LoRA takes about ten times as much",
    "train.lr_scheduler_type": "",
    "train.warmup_steps": "below 1: a share of all steps",
    "train.per_device_train_batch_size": "at a time on a device: as many as fit",
    "train.gradient_accumulation_steps": "times the line above: one optimizer step",
    "train.beta": "strength of the reference",
    "train.max_length": "tokens of prompt and answer together",
    "train.bf16": "arithmetic in bfloat16; the weights stay float32",
    "train.use_cpu": "no GPU was found here; on one: false, and bf16: true",
    "train.eval_steps": "held-out measurement; also before and after",
    "train.seed": "",
    "output.name": "the run folder is runs/NAME",
    "output.save_steps": "a checkpoint to resume from; a Ctrl-C saves one too",
}


@dataclass(frozen=True)
class ModelFacts:
    """What the model's files, or its name, say about it."""

    path: str
    speaks: bool
    positions: int | None
    own_code: bool = False


def look_at_model(path: str) -> ModelFacts:
    """Chat template, positions and own code of a folder or a cached hub model; else a guess by the name."""
    base = base_of(path) if holds_adapter(path) else path
    config = _json(local_file(base, "config.json", None))
    tokenizer = _json(local_file(path, "tokenizer_config.json", None))
    template = "chat_template" in tokenizer or local_file(path, "chat_template.jinja", None) is not None
    known = bool(config)
    positions = config.get("max_position_embeddings") or (config.get("text_config") or {}).get(
        "max_position_embeddings"
    )
    return ModelFacts(
        path,
        template if known else bool(_SPEAKS.search(path)),
        positions if isinstance(positions, int) else None,
        "auto_map" in config,
    )


def default_model(method: Method) -> str:
    return WITHOUT_FILES["masked" if method.load_settings().masked_diffusion else "autoregressive"]


def first_recipe(method: Method, model: ModelFacts, data: FirstData, out: Path, *, gpu: bool) -> str:
    """The recipe's text. `out` is where it will lie: its name is the run's."""
    lines = [*headed(method, out), *_model(method, model), *_data(data)]
    if data.rewards:
        lines += _rewards(data)
    lines += _objective(method, model, data)
    lines += _rollout(method, model, data)
    lines += _section("train", _train(method, model, data, gpu))
    lines += _section("output", {"name": out.stem, "save_steps": 100})
    lines.append(_line("# hub: {repo: user/name, private: true}", "push the saved model at the end", 2))
    return "\n".join(lines) + "\n"


def headed(method: Method, out: Path) -> list[str]:
    """The first lines: how to run and check it, what the method is."""
    paper = paper_of(method)
    return [
        f"# run:    posttrain train {out}",
        f"# check:  posttrain plan {out} --full",
        "#",
        f"# {method.name}: {method.summary}.{f' {paper}' if paper else ''}",
        f"# Its settings: posttrain methods {method.name}. All keys: docs/recipes.md.",
        f"method: {method.name}",
    ]


# ------------------------------------------------------------------------------------------------- sections


def _model(method: Method, model: ModelFacts) -> list[str]:
    values: dict[str, Any] = {"path": model.path, "dtype": "float32"}
    masked = method.load_settings().masked_diffusion
    if masked and model.path == WITHOUT_FILES["masked"]:
        values |= {
            "trust_remote_code": True,
            "mask": {"token": "<|mdm_mask|>", "end_tokens": ["<|eot_id|>"]},
        }
    lines = _section("model", values)
    if not masked:
        lines.append(_line("# peft: {r: 16, alpha: 32}", "LoRA: trains an adapter instead of all weights", 2))
    return lines


def _data(data: FirstData) -> list[str]:
    lines = _section(
        "data", data.section, {key: note for key, note in data.notes.items() if key != "rewards"}
    )
    if not data.held_out:
        lines.append(_line("# eval: {path: held_out.jsonl}", "rows that are measured, not learned from", 2))
    return lines


def _rewards(data: FirstData) -> list[str]:
    lines = [_line("rewards:", "built in, or a function of yours: file.py:function")]
    lines += _wrapped(data.notes["rewards"]) if "rewards" in data.notes else []
    return lines + [f"  - {_flow(reward)}" for reward in data.rewards]


def _objective(method: Method, model: ModelFacts, data: FirstData) -> list[str]:
    start = _start(method, model, data)
    lines = objective_lines(method, {name: one.value for name, one in start.items()})
    for one in start.values() if lines else ():
        lines += _wrapped(one.note) if one.note else []
    return lines


def objective_lines(method: Method, instead: Mapping[str, Any]) -> list[str]:
    """A line for each of the method's settings, with its default or what stands `instead`."""
    settings = list_settings(method.load_settings())
    if not settings:
        return []
    lines = [_line("objective:", "the method's own settings; the values are its defaults")]
    return lines + [_setting(setting, instead) for setting in settings]


def _start(method: Method, model: ModelFacts, data: FirstData) -> Mapping[str, Start]:
    penalised = any(reward["name"] == "length_penalty" for reward in data.rewards)
    return method.load_settings().start(model=str(model.path), rewards=(-1.0, 0.0) if penalised else None)


def _first_settings(method: Method, model: ModelFacts, data: FirstData) -> Settings:
    values = {name: one.value for name, one in _start(method, model, data).items()}
    return method.load_settings()(**values)


def _setting(setting: Setting, instead: Mapping[str, Any]) -> str:
    value = instead.get(setting.name, setting.default)
    idle = value is None or value is REQUIRED
    plain = list(value) if isinstance(value, tuple) else None if idle else value
    return _line(f"{'# ' if idle else ''}{setting.name}: {_flow(plain)}", setting.meaning, 2)


def _rollout(method: Method, model: ModelFacts, data: FirstData) -> list[str]:
    room = model.positions // 2 if model.positions else 512
    if method.family == "policy":
        values: dict[str, Any] = {
            "engine": "transformers",
            "group_size": GROUP,
            "max_new_tokens": min(512, room),
            "temperature": 1.0,
        }
    elif method.family == "diffusion":
        canvas = max(8, min(256, room) // 8 * 8)
        values = {"group_size": GROUP, "max_new_tokens": canvas}
        if canvas % 64 == 0:
            values |= {"diffusion_steps": canvas // 2, "block_length": canvas // 8}
    elif _first_settings(method, model, data).draws_answers:
        values = {"engine": "transformers", "max_new_tokens": min(256, room), "temperature": 1.0}
    else:
        return []
    return _section("rollout", values)


def _train(method: Method, model: ModelFacts, data: FirstData, gpu: bool) -> dict[str, Any]:
    rewarded = method.family in ("policy", "diffusion")
    values: dict[str, Any] = {}
    steps = _first_settings(method, model, data).total_steps
    if steps is not None:
        values["max_steps"] = steps
    else:
        values["num_train_epochs"] = 1
    micro, accumulated = batch_of(method.family, data.rows)
    values |= {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": LEARNING_RATE[method.family],
    }
    if rewarded:
        values["lr_scheduler_type"] = "constant"
    else:
        values |= {"lr_scheduler_type": "cosine", "warmup_steps": 0.1}
        values["max_length"] = min(1024, model.positions or 1024)
    if method.family == "preference":
        values["beta"] = 0.1
    values |= OF_METHOD.get(method.name, {})
    values |= {"bf16": True} if gpu else {"use_cpu": True}
    often = _eval_steps(data.rows, accumulated if rewarded else micro * accumulated)
    if data.held_out and often:
        values["eval_steps"] = often
    return values | {"seed": 0}


def _eval_steps(rows: int | None, rows_a_step: int) -> int:
    """About four measurements an epoch, at most one every 50 steps; 0 where the run is over before the first."""
    if rows is None:
        return 50
    steps = rows // rows_a_step
    return min(50, steps // 4) or (1 if steps > 1 else 0)


def batch_of(family: str, rows: int | None) -> tuple[int, int]:
    """(rows or answers at a time, accumulation) of one optimizer step: powers of two that the rows can fill.

    Learning from rewards, a micro-batch is one prompt's group, and a step has as many prompts as are accumulated.
    """
    usable = 10**9 if rows is None else rows
    if family in ("policy", "diffusion"):
        return GROUP, _power_of_two(min(8, usable))
    micro = _power_of_two(min(8, usable))
    return micro, _power_of_two(max(1, min(4, usable // micro)))


def _power_of_two(limit: int) -> int:
    return 1 << (max(1, limit).bit_length() - 1)


# ----------------------------------------------------------------------------------------------------- text


def _section(name: str, values: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> list[str]:
    lines = [f"{name}:"]
    for key, value in values.items():
        note = (notes or {}).get(key) or NOTES.get(f"{name}.{key}", "")
        lines.append(_line(f"{key}: {_flow(value)}", note, 2))
    return lines


def recipe_section(name: str, values: Mapping[str, Any], notes: Mapping[str, str]) -> list[str]:
    """A section, each key with the note of SECTION.KEY beside it."""
    return _section(name, values, {key: notes.get(f"{name}.{key}", "") for key in values})


def recipe_line(text: str, note: str, indent: int = 0) -> str:
    return _line(text, note, indent)


def _line(text: str, note: str, indent: int = 0) -> str:
    start = " " * indent + text
    return f"{start:{COLUMN}}  # {note}" if note else start


def _wrapped(text: str) -> list[str]:
    lines, words = [""], text.split()
    for word in words:
        if len(lines[-1]) + len(word) > 100:
            lines.append("")
        lines[-1] += f" {word}"
    return [f"  #{line}" for line in lines]


def _flow(value: Any) -> str:
    """One line of YAML."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value, ensure_ascii=False)  # double quotes, in which a line break is \n
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
