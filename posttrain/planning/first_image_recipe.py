"""The text of a recipe to start from, for methods on images: a pipeline and rows of one's own, or the digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.data import DataError
from posttrain.data.column_names import PROMPTS, first_column
from posttrain.data.files import iter_rows
from posttrain.planning.first_recipe import batch_of, headed, objective_lines, recipe_line, recipe_section
from posttrain.planning.image_shapes import published_noise_model
from posttrain.planning.row_needs import needed_columns
from posttrain.recipe.methods import Method
from posttrain.rollout.flow.flow_folder import is_noise_model

IMAGE_GROUP = 8
START = "runs/flow_sft_digits/model"
"""The digits' own model, which recipes/smoke/flow_sft_digits.yaml trains."""
_DIGITS = {
    "flow_grpo": {"prompts_only": True},
    "grpo_guard": {"prompts_only": True},
    "diffusion_dpo": {"pairs": True},
    "seppo_diffusion": {"bold": True},
}
_SMALL = {"flow_grpo": {"clip": 1e-2}, "grpo_guard": {"clip": 2e-3}, "diffusion_dpo": {"beta": 200.0},
          "seppo_diffusion": {"beta": 200.0}}  # fmt: skip
"""What small latents need otherwise: ratios and errors are means over their elements."""
_OTHER_NAMES = {
    "image": ("img", "file", "file_name", "path"),
    "chosen_image": ("chosen", "preferred_image", "image_chosen"),
    "rejected_image": ("rejected", "dispreferred_image", "image_rejected"),
}
NOTES = {
    "model.path": "a pipeline of diffusers (folder or hub name), or runs/NAME/model",
    "model.dtype": "of all its weights",
    "model.image_size": "pixels a side",
    "model.peft": "an adapter alone is trained; remove it to train all weights",
    "model.scratch": "a small model of classes with random weights; a prompt is one of them",
    "data.path": "rows with a prompt and, for methods on given images, files or pixels",
    "data.name": "handwritten digits that scikit-learn ships",
    "data.args": "which of them",
    "data.columns": "column of the method: column of the file",
    "data.eval": "held-out rows",
    "rollout.group_size": "G, images per prompt",
    "rollout.denoising_steps": "T, of the images that are trained on",
    "rollout.cfg_scale": "guidance, also while training; 1: none",
    "rollout.sampler_rows": "images made at a time",
    "train.max_steps": "how long: optimizer steps",
    "train.learning_rate": "",
    "train.lr_scheduler_type": "",
    "train.per_device_train_batch_size": "images or pairs at a time on a device",
    "train.steps_per_generation": "times the line above: images of one rollout",
    "train.gradient_accumulation_steps": "times the batch size: one optimizer step",
    "train.gradient_checkpointing": "layers are computed again in the backward: slower, in less memory",
    "train.bf16": "arithmetic in bfloat16; the weights stay float32",
    "train.use_cpu": "no GPU was found here; on one: false",
    "train.seed": "",
    "output.name": "the run folder is runs/NAME",
    "output.save_steps": "a checkpoint to resume from",
}


@dataclass(frozen=True)
class ImageRows:
    """The `data` section, and what was found of the rows; rows None: not counted."""

    section: dict[str, Any]
    rows: int | None
    notes: Mapping[str, str] = field(default_factory=dict)


def find_image_data(method: Method, given: str | None) -> ImageRows:
    """For a file or a folder of files, or the digits. DataError says what the rows lack."""
    if given is None or given == "digits":
        section: dict[str, Any] = {"name": "digits"}
        if method.name in _DIGITS:
            section["args"] = _DIGITS[method.name]
        rewarded = method.family == "images"
        return ImageRows({**section, "eval": {"split": "test"}}, 10 if rewarded else 1000)
    rows = list(islice(iter_rows(given), 1000))
    if not rows:
        raise DataError(f"{given!r} has no rows")
    columns, section, renamed = rows[0], {"path": given}, {}
    prompt = first_column(columns, PROMPTS)
    if prompt is None:
        raise DataError(f"{given!r}: no column of prompts; the columns are {', '.join(map(str, columns))}")
    section |= {} if prompt == "prompt" else {"prompt": prompt}
    for name in needed_columns(method):
        found = first_column(columns, (name, *_OTHER_NAMES.get(name, ())))
        if found is None:
            raise DataError(
                f"{given!r}: no column '{name}', which method '{method.name}' reads; the columns are "
                f"{', '.join(map(str, columns))}. Rename one, or write a recipe with data.columns: {{{name}: COLUMN}}"
            )
        renamed |= {} if found == name else {name: found}
    section |= {"columns": renamed} if renamed else {}
    return ImageRows(section, len(rows))


def first_image_recipe(method: Method, model: str | None, data: ImageRows, out: Path, *, gpu: bool) -> str:
    """The recipe's text. `model` None: the digits' own, or for flow_sft random weights."""
    small = model is None or Path(model, "config.json").is_file()
    noise = model is not None and (is_noise_model(model) or published_noise_model(model))
    lines = [*headed(method, out), *_model(method, model, small=small, gpu=gpu)]
    lines += recipe_section("data", data.section, NOTES)
    if method.family == "images":
        lines += _rewards(data)
    instead: dict[str, Any] = dict(_SMALL.get(method.name, {})) if small else {}
    if noise and method.load_settings().trains_noise_models:
        instead |= {"times": "ddpm", "error": "epsilon"}
    lines += objective_lines(method, instead)
    if method.family == "images":
        guided = model is not None and "stable-diffusion-3" in model
        lines += recipe_section(
            "rollout",
            {
                "group_size": IMAGE_GROUP,
                "denoising_steps": 10,
                "cfg_scale": 4.5 if guided else 1.0,
                "sampler_rows": 64 if small else IMAGE_GROUP,
            },
            NOTES,
        )
    lines += recipe_section("train", _train(method, data, small=small, gpu=gpu), NOTES)
    lines += recipe_section("output", {"name": out.stem, "save_steps": 100}, NOTES)
    return "\n".join(lines) + "\n"


def _model(method: Method, model: str | None, *, small: bool, gpu: bool) -> list[str]:
    if model is None and method.name == "flow_sft":
        return recipe_section("model", {"scratch": {"image_size": 8, "hidden_size": 192, "layers": 3}}, NOTES)
    values: dict[str, Any] = {"path": model or START}
    if not small:
        values |= {"dtype": "bfloat16" if gpu else "float32", "image_size": 512}
        values["peft"] = {"r": 32, "alpha": 64, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
    return recipe_section("model", values, NOTES)


def _rewards(data: ImageRows) -> list[str]:
    return [
        recipe_line("rewards:", "built in, or a function of yours on PIL images: file.py:function"),
        "  - {name: image_statistic, args: {of: brightness, target: 0.5}}",
        recipe_line(
            "# - {name: pickscore, args: {folder: yuvalkirstain/PickScore_v1}}",
            "a model that was trained on choices",
            2,
        ),
    ]


def _train(method: Method, data: ImageRows, *, small: bool, gpu: bool) -> dict[str, Any]:
    rewarded = method.family == "images"
    steps = method.load_settings()().total_steps
    micro, accumulated = batch_of("policy" if rewarded else "preference", data.rows)
    values: dict[str, Any] = {
        "max_steps": steps or (100 if rewarded else 1000),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
    }
    if rewarded:
        values["steps_per_generation"] = (
            2 * accumulated if (data.rows or 0) >= 2 * accumulated else accumulated
        )
    rate = {"flow_sft": 1e-3, "flow_grpo": 3e-4, "grpo_guard": 1e-4}.get(method.name, 1e-4)
    values |= {"learning_rate": rate, "lr_scheduler_type": "constant"}
    if not small:
        values["gradient_checkpointing"] = True
    if not gpu:
        values["use_cpu"] = True
    return values | {"seed": 0}
