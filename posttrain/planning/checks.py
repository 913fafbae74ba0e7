"""Refusals that need a look beyond the recipe's own text: files, columns, rewards, the model's folder, precision."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.data import DataError, Overlap, Survey, overlap, survey
from posttrain.data.files import Row
from posttrain.data.known import TASKS
from posttrain.data.mapping import Messages, out_columns
from posttrain.data.row_layout import Needs
from posttrain.planning.batch import plural, rollout_of, texts_of
from posttrain.planning.machine import multiplies_bfloat16
from posttrain.planning.rewards import reward_faults
from posttrain.planning.rollout_engine import logged_column_faults
from posttrain.planning.row_lengths import RowLengths, beyond
from posttrain.planning.row_needs import needed_columns
from posttrain.planning.shapes import is_folder_name
from posttrain.planning.tokenizer import PlanTokenizer
from posttrain.recipe import Recipe
from posttrain.recipe.data_sections import DataSection
from posttrain.recipe.train_options import SFTTrain, TextTrain
from posttrain.rollout.adapter_base import BaseMissing, base_of, holds_adapter

if TYPE_CHECKING:
    from datasets import Dataset

FROM_LOGS = {"user_preference": ". `posttrain data feedback LOG` makes such rows from a log of conversations"}
"""Columns that a command makes, and how."""

HALF_PRECISION_STEP = 2.0**-8
"""bfloat16 keeps 8 bits: a weight does not move by less than about this share of itself."""


def model_faults(recipe: Recipe) -> Iterator[str]:
    model = recipe.model
    if model.path is not None and is_folder_name(model.path, recipe.output.dir):
        folder = Path(model.path)
        if not folder.is_dir():
            yield f"model: no folder '{folder}' here or beside the recipe; first train {maker_of(folder, recipe)}"
        elif not (folder / "config.json").is_file() and not holds_adapter(folder):
            yield f"model: folder '{folder}' holds no config.json, so it is not a saved model"
        elif recipe.output.overwrite and Path(recipe.output.run_dir).resolve() in folder.resolve().parents:
            yield (
                f"model: folder '{folder}' is part of the run that output.overwrite would replace; "
                "give this run another output.name"
            )
        elif model.revision is not None:
            yield "model: 'revision' does nothing with a local folder; remove it"
        if holds_adapter(folder):
            try:
                base_of(folder)
            except BaseMissing as error:
                yield f"model: {error}"
    tokenizer = model.tokenizer
    if (
        tokenizer is not None
        and is_folder_name(tokenizer, recipe.output.dir)
        and not Path(tokenizer).is_dir()
    ):
        yield f"model: no folder '{tokenizer}' for the tokenizer here or beside the recipe"
    if model.peft is not None and "lm_head" in [*model.peft.modules_to_save, *model.peft.target_modules]:
        yield "model.peft: lm_head cannot carry an adapter: log-probs come from TRL's fused head; leave it out"
    if model.dtype == "float16" and recipe.train.fp16:
        yield "train: 'fp16' scales the gradients of float32 weights; with model.dtype float16 set float32 or bf16"


def maker_of(folder: Path, recipe: Recipe) -> str:
    """The recipe that writes `folder` (runs/NAME/model or below), where one lies beside this one or in recipes/."""
    beside = Path(recipe.path).parent.glob("*.yaml")
    for path in sorted({*beside, *Path("recipes").glob("*/*.yaml")}):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # a folder of that name, or one that we may not read
            continue
        named = re.search(r"^output:.*\bname:\s*([\w.\-]+)", text, flags=re.MULTILINE)
        if named is not None and named[1] in folder.parts:
            return str(path)
    return "the recipe that makes it"


def precision_warnings(recipe: Recipe) -> Iterator[str]:
    model, train = recipe.model, recipe.train
    if model.dtype == "bfloat16" and model.peft is None and train.learning_rate < HALF_PRECISION_STEP**2:
        yield (
            f"bfloat16 weights with learning rate {train.learning_rate:g}: most updates are rounded away; "
            "model.dtype: float32 with train.bf16: true keeps them"
        )
    if model.dtype == "bfloat16" and train.bf16:
        yield "train.bf16 adds nothing to bfloat16 weights but casts; leave one of the two"
    if train.use_cpu and (train.bf16 or model.dtype == "bfloat16") and multiplies_bfloat16() is False:
        yield (
            "this processor has no matrix products in bfloat16 (AMX or AVX-512): they run several times slower than in "
            f"float32; leave {'train.bf16' if train.bf16 else 'model.dtype: bfloat16'} out"
        )


def determinism_warnings(recipe: Recipe) -> Iterator[str]:
    """What `full_determinism` costs and what it does not reach; the variables that CUDA needs are set by the run."""
    if not recipe.train.full_determinism:
        return
    if recipe.rollout is not None and recipe.rollout.engine.startswith("vllm"):
        yield (
            f"train.full_determinism: rollout.engine {recipe.rollout.engine} may sample other tokens in another run, "
            "since how its requests share a batch moves their last bits; rollout.engine: transformers does not"
        )
    if not recipe.train.use_cpu:
        yield (
            "train.full_determinism: on a GPU the run sets CUDA_LAUNCH_BLOCKING=1 and CUBLAS_WORKSPACE_CONFIG=:16:8 "
            "and waits for each kernel, which is slower; an operation without a deterministic kernel ends the run"
        )


def data_survey(
    section: DataSection, place: str, needs: Needs, tokenizer: PlanTokenizer | None = None
) -> tuple[Survey | None, list[str]]:
    """What the section's rows look like, or why they cannot be used; the tokenizer, where it is here, says with."""
    try:
        found = survey(section, needs, tokenizer)
    except DataError as error:
        return None, [f"{place}: {error}"]
    if found.counts is not None and found.counts.used == 0:
        return None, [f"{place}: no row can be used: {found.counts.in_words()}"]
    return found, []


def row_faults(recipe: Recipe, first: Row) -> Iterator[str]:
    """What a mapped row lacks for the method, or makes pointless in the recipe."""
    for name in needed_columns(recipe.spec):
        if name in first:
            continue
        if name in DataSection.model_fields:
            yield f"data: no column '{name}'; name the one that holds it in data.{name}"
        else:
            yield (
                f"data: no column '{name}', which method '{recipe.method}' reads; "
                f"the rows have {', '.join(sorted(first))}{FROM_LOGS.get(name, '')}{_of_digits(recipe, name)}"
            )
    if recipe.data.system is not None and not isinstance(first["prompt"], list):
        yield "data: 'system' does nothing with prompts of plain text; set chat: true, or remove it"


def _of_digits(recipe: Recipe, column: str) -> str:
    """How the built-in digits get a column that they lack as the recipe stands."""
    if recipe.data.name != "digits":
        return ""
    if column == "image":
        return "; digits have it without args: {pairs: true} and {prompts_only: true}"
    return "; digits have it with args: {pairs: true}" if column in ("chosen_image", "rejected_image") else ""


def echo_warnings(found: Survey) -> Iterator[str]:
    """Answers that hold their prompt, all of them: a data set of whole texts beside their beginnings."""
    counts = found.counts
    if counts is not None and counts.used > 1 and counts.echoes == counts.used:
        yield (
            "data: every answer begins with its whole prompt, which so stands twice in what is trained on; "
            "name a column that holds the answer alone"
        )


def count_faults(recipe: Recipe, used: int, processes: int) -> Iterator[str]:
    """Too few rows: TRL would train no step at all and call the run complete."""
    rollout, texts = rollout_of(recipe, processes), texts_of(recipe, processes)
    if rollout is not None and used < rollout.prompts:
        yield (
            f"data: {plural(used, 'usable row')}, but one rollout takes {rollout.prompts} prompts and would never be "
            "filled; use more data, or a smaller train.per_device_train_batch_size or steps_per_generation"
        )
    if rollout is None and used < processes * texts.micro_batch:
        yield (
            f"data: {plural(used, 'usable row')} do not fill one micro-batch of {texts.micro_batch} on each of "
            f"{plural(processes, 'process')}; use more data or a smaller batch"
        )


def loaded_faults(recipe: Recipe, rows: Dataset, processes: int) -> list[str]:
    """The same questions once the rows are here: a hub dataset cannot be asked before."""
    columns = set(rows.column_names)  # their own names, as rewards ask for them
    return [
        *row_faults(recipe, rows[0]),
        *count_faults(recipe, len(rows), processes),
        *reward_faults(recipe, columns),
        *logged_column_faults(recipe, columns),
    ]


def held_out_overlap(train: Survey, held_out: Survey, section: DataSection) -> Overlap | None:
    """Held-out prompts that share words with training prompts; None where rows are not at hand or made disjoint."""
    if section.name in TASKS or train.counts is None or held_out.counts is None:
        return None
    return overlap(
        (words_of(row["prompt"]) for row in train.rows), [words_of(row["prompt"]) for row in held_out.rows]
    )


def words_of(prompt: str | Messages) -> str:
    return (
        prompt
        if isinstance(prompt, str)
        else " ".join(str(m["content"]) for m in prompt if m["role"] == "user")
    )


def visible_columns(recipe: Recipe, found: Survey | None) -> set[str] | None:
    """What rewards may ask for; None where the dataset is not at hand."""
    if found is None or found.columns is None:
        return None
    return out_columns(recipe.data, found.columns)


def length_faults(data: DataSection, lengths: RowLengths) -> Iterator[str]:
    """Prompts beyond max_prompt_tokens when the recipe calls that an error, or when none would be left."""
    if data.max_prompt_tokens is None or not lengths.exact:
        return
    over = beyond(lengths.prompts, data.max_prompt_tokens)
    if over and (data.on_long == "error" or (over == lengths.rows and data.on_long == "drop")):
        yield f"data: {over} of {lengths.rows} prompts are longer than max_prompt_tokens; raise it, or cut them"


def length_lines(recipe: Recipe, lengths: RowLengths) -> Iterator[str]:
    """The longest prompt, the longest row, and what becomes of what is longer than the recipe allows."""
    data = recipe.data
    of = "" if lengths.exact else f" of {len(lengths.prompts)} rows looked at"
    text = f"longest prompt{of}: {plural(lengths.longest, 'token')}"
    if data.max_prompt_tokens is not None:
        over = beyond(lengths.prompts, data.max_prompt_tokens)
        fate = {"drop": "dropped", "truncate": "cut", "error": "refused"}[data.on_long]
        text += f"; {over} longer than {data.max_prompt_tokens} will be {fate}"
    yield text
    if lengths.whole is not None and isinstance(recipe.train, TextTrain):
        limit, text = recipe.train.max_length, f"longest row, prompt and answer{of}: "
        text += plural(max(lengths.whole), "token")
        over = 0 if limit is None or _splits(recipe.train) else beyond(lengths.whole, limit)
        yield text + (f"; {over} longer than train.max_length {limit} will be cut there" if over else "")


def _splits(train: TextTrain) -> bool:
    """Whether a row that is too long goes on in the next packed one."""
    return isinstance(train, SFTTrain) and train.packing and train.packing_strategy != "bfd"


def run_folder_warnings(recipe: Recipe) -> Iterator[str]:
    folder = Path(recipe.output.run_dir)
    if folder.is_dir() and any(folder.iterdir()) and not recipe.output.overwrite:
        yield (
            f"{folder} already holds a run: train will want --resume, output.overwrite: true, or another output.name"
        )
