"""Lets accelerate run DeepSpeed or FSDP2 on CPU processes, which it otherwise drops without a word: for tests only.

With `use_cpu=True` accelerate 1.15 leaves both out and the run is plain DDP; without it, it finds no backend on a
machine without an accelerator and every rank is a world of one. `enable` comes before the training arguments;
`use_cpu` is false; a test must look at what really ran (`engine_of`).
"""

from __future__ import annotations

import os
from typing import Any

FSDP2 = {
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {
        "version": 2,
        "fsdp_version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "state_dict_type": "FULL_STATE_DICT",
    },
}


def zero(stage: int) -> dict[str, Any]:
    """Training arguments for a DeepSpeed stage."""
    config = {
        "zero_optimization": {"stage": stage},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,  # plain SGD
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
    }
    return {"deepspeed": config}


def enable(kind: str) -> None:
    """kind: "deepspeed" or "fsdp"."""
    from accelerate.state import DistributedType, PartialState

    original = PartialState._prepare_backend
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if kind == "deepspeed":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    def prepare(self: Any, cpu: bool = False, sagemaker_dp: bool = False, backend: Any = None) -> Any:
        found, distributed = original(self, cpu, sagemaker_dp, backend)
        if not cpu and "LOCAL_RANK" in os.environ and distributed == DistributedType.NO:
            found = "gloo"
            if (
                kind == "fsdp"
            ):  # any MULTI_<accelerator> makes accelerate consider FSDP; the device stays the CPU
                distributed = DistributedType.MULTI_GPU
        return found, distributed

    PartialState._prepare_backend = prepare


def engine_of(trainer: Any) -> str:
    """What trained: "zero2", "FSDPLlamaForCausalLM", ..."""
    wrapped = trainer.model_wrapped
    stage = vars(type(wrapped)).get("zero_optimization_stage")
    return f"zero{stage(wrapped)}" if stage is not None else type(wrapped).__name__


def whole_weights(trainer: Any) -> list[Any]:
    """Every parameter in full, on every rank."""
    parameters = list(trainer.accelerator.unwrap_model(trainer.model).parameters())
    if engine_of(trainer) == "zero3":
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            return [p.detach().clone() for p in parameters]
    return [(p.full_tensor() if "full_tensor" in dir(p) else p).detach().clone() for p in parameters]
