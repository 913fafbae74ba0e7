"""Every private name of TRL that this project leans on, in one place, checked when it is imported.

TRL is pinned to a minor version and tests/trainers/policy/test_trl_parity.py proves the numbers; this check gives the
better message when the ground moves: it names what is gone.
"""

from __future__ import annotations

import inspect

import trl
from trl import DPOTrainer, KTOTrainer
from trl.kernels import ChunkedLogProbFunction
from trl.kernels import chunked_logprob as fused_head
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import (
    add_fused_lm_head,
    disable_dropout_in_model,
    maybe_gather_lm_head_ctx,
    use_adapter,
)

from posttrain.trainers.seam.late_vllm import vllm_when_used

with vllm_when_used():
    from trl import GRPOTrainer
    from trl.generation.vllm_generation import VLLMGeneration

__all__ = [
    "ChunkedLogProbFunction",
    "GRPOTrainer",
    "VLLMGeneration",
    "add_fused_lm_head",
    "check_trl",
    "disable_dropout_in_model",
    "disable_gradient_checkpointing",
    "fused_head",
    "maybe_gather_lm_head_ctx",
    "use_adapter",
]

_GRPO_METHODS = (
    "_calculate_rewards",
    "_compute_loss",
    "_generate",
    "_generate_and_score_completions",
    "_generate_single_turn",
    "_get_per_token_logps_and_entropies",
    "_inner_training_loop",
    "_log_completion_extra",
    "_log_metric",
    "_prepare_inputs",
    "_save_checkpoint",
    "_tokenize_prompts",
    "_tool_call_loop",
    "get_high_entropy_mask",
    "training_step",
)
_GRPO_ATTRIBUTES = (
    "self._step",
    "self._buffered_inputs",
    "self._metrics",
    "self._logs",
    "self.environments",
    "self.environment_factories",
    "self._batch_environments",
    "self._multi_environment",
    "self.reward_func_names",
    "self.reward_processing_classes",
    "self._entropy_bonus_enabled",
    "self.aux_loss_enabled",
    "self.use_adaptive_entropy",
    "self.num_generations_eval",
)

_FUSED_HEAD = ("_forward_kernel", "_forward_tile", "_use_triton")

_DPO_METHODS = (
    "_compute_loss",
    "_prepare_dataset",
    "_set_signature_columns_if_needed",
    "compute_ref_log_probs",
)
_DPO_ATTRIBUTES = (
    "self._metrics",
    "self._tokenizer",
    "self._total_train_tokens",
    "self._tp_size",
    "self.aux_loss_enabled",
    "self.precompute_ref_logps",
    "self.ref_model",
)
_KTO_METHODS = (*_DPO_METHODS, "_get_train_sampler")


def check_trl() -> None:
    """Raises ImportError naming what this TRL lacks."""
    missing = [f"GRPOTrainer.{name}" for name in _GRPO_METHODS if not hasattr(GRPOTrainer, name)]
    source = inspect.getsource(GRPOTrainer)
    missing += [f"GRPOTrainer: {name}" for name in _GRPO_ATTRIBUTES if name not in source]
    missing += [
        f"trl.kernels.chunked_logprob.{name}" for name in _FUSED_HEAD if not hasattr(fused_head, name)
    ]
    for trainer, methods in ((DPOTrainer, _DPO_METHODS), (KTOTrainer, _KTO_METHODS)):
        missing += [f"{trainer.__name__}.{name}" for name in methods if not hasattr(trainer, name)]
        source = inspect.getsource(trainer)
        missing += [f"{trainer.__name__}: {name}" for name in _DPO_ATTRIBUTES if name not in source]
    if missing:
        raise ImportError(
            f"trl {trl.__version__} has moved {', '.join(missing)}, which posttrain overrides or reads. "
            "Install the version pinned in pyproject.toml."
        )


check_trl()
