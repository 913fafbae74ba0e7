"""What methods that sample between trainings take from a recipe: how to sample, and with which engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from posttrain.recipe import Recipe, RecipeError
from posttrain.recipe.sections import RolloutSection, VLLMSection
from posttrain.rollout.base import Engine, Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainers.engines.answers import (
    Answer,
    EngineGenerator,
    EngineOf,
    pad_id,
)
from posttrain.trainers.models.ingredients import model_and_tokenizer
from posttrain.trainers.models.policy_folder import holds_adapter, load_dense
from posttrain.trainers.models.whole_weights import whole_weights_everywhere

_LOOKAHEAD = ("staleness", "partial_budget", "importance_correction")


def sampling_of(recipe: Recipe) -> Sampling:
    """The recipe's `rollout` section as a `Sampling`; refuses what a loop that samples once a stage has no use for."""
    rollout = _rollout(recipe)
    idle = [name for name in (*_LOOKAHEAD, "group_size", "eval_temperature") if name in rollout.changed()]
    if idle:
        raise RecipeError(
            f"{recipe.path}: rollout: '{idle[0]}' does nothing with method '{recipe.method}'; remove it"
        )
    return Sampling(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p or 0.0,
        repetition_penalty=rollout.repetition_penalty,
        max_new_tokens=rollout.max_new_tokens,
    )


def generator_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, base: Path) -> EngineGenerator | None:
    """The engine the recipe chose; None leaves transformers, the default, to the loop.

    base  where an adapter run keeps its base model
    """
    rollout = _rollout(recipe)
    if rollout.engine == "transformers":
        return None
    if rollout.engine != "vllm":
        raise RecipeError(
            f"{recipe.path}: rollout: engine '{rollout.engine}' is for training with rewards; method '{recipe.method}' "
            "samples before or between trainings, in this process; use transformers or vllm"
        )
    dtype = "bfloat16" if recipe.train.bf16 else recipe.model.dtype
    settings = rollout.vllm or VLLMSection()
    return EngineGenerator(
        tokenizer, vllm_engine_of(settings, dtype="bfloat16" if dtype == "auto" else dtype, base=base)
    )


def answers_of_start(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, args: Any) -> Answer:
    """Sampled from the model that the recipe starts from, before it is trained; the engine is closed afterwards."""
    generator = generator_of(recipe, tokenizer, Path(str(args.output_dir)) / "base")
    if generator is None:
        device = torch.device("cpu") if args.use_cpu else PartialState().device

        def engine_of(_: Path) -> Engine:
            with whole_weights_everywhere():
                model = model_and_tokenizer(recipe.model)[0]
            return TransformersEngine.of(model.eval().to(device), pad_token_id=pad_id(tokenizer))  # type: ignore[arg-type]  # as torch

        generator = EngineGenerator(tokenizer, engine_of)
    start = Path(recipe.model.path or "scratch")

    def answer(prompts: list[list[int]], sampling: list[Sampling]) -> list[str]:
        try:
            return generator(start, prompts, sampling)
        finally:
            generator.close()

    return answer


def vllm_engine_of(settings: VLLMSection, *, dtype: str, base: Path) -> EngineOf:
    """vLLM in this process, made anew for each policy; an adapter is merged into a folder beside the base first."""

    def engine_of(folder: Path) -> Engine:
        from posttrain.rollout.vllm.colocated import VLLMColocated

        with PartialState().main_process_first():
            dense = dense_folder(folder, base)
        return VLLMColocated(
            str(dense),
            dtype=settings.dtype or dtype,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_model_length=settings.max_model_length,
            max_num_seqs=settings.max_num_seqs,
            enforce_eager=settings.enforce_eager,
            distributed=PartialState().num_processes > 1,
        )

    return engine_of


def dense_folder(folder: Path, base: Path) -> Path:
    """`folder`, or a copy of its policy with the adapter merged; only the latest copy is kept."""
    if not holds_adapter(folder):
        return folder
    merged = base.with_name(".merged") / folder.name
    if not merged.exists():
        shutil.rmtree(merged.parent, ignore_errors=True)
        load_dense(folder, base=base).save_pretrained(merged)
        for file in [
            *folder.glob("token*"),
            *folder.glob("*.jinja"),
            *folder.glob("vocab*"),
            *folder.glob("special*"),
        ]:
            shutil.copy2(file, merged / file.name)
    return merged


def _rollout(recipe: Recipe) -> RolloutSection:
    if recipe.rollout is None:
        raise RecipeError(f"{recipe.path}: method '{recipe.method}' samples, so it needs a rollout section")
    return recipe.rollout


def staged_options(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, args: Any) -> dict[str, Any]:
    """Keyword arguments every staged trainer takes from a recipe."""
    options: dict[str, Any] = {
        "sampling": sampling_of(recipe),
        "generator": generator_of(recipe, tokenizer, Path(str(args.output_dir)) / "base"),
    }
    # vLLM makes its own batches, the better the more it has to choose from
    if options["generator"] is not None:
        options["generation_batch_size"] = 1024
    return options
