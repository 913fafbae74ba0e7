"""A checkpoint is loaded whole or not at all: what it lacks is named, instead of warned of."""

# pyright: reportAttributeAccessIssue=false
# A mixin: what it reads is the trainer's.

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from accelerate.utils import is_peft_model
from safetensors import SafetensorError
from torch import nn

from posttrain.rollout.adapter_base import ModelFault
from posttrain.rollout.model_folder import check_adapter_file


class WholeCheckpoint:
    """Mixin before a `transformers.Trainer`."""

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        """As upstream's. Raises ModelFault where a weight is missing, of another shape or not readable."""
        policy = self.accelerator.unwrap_model(self.model)
        try:
            if is_peft_model(policy) and not self.is_fsdp_enabled:
                check_adapter_file(policy, checkpoint, policy.active_adapters[0])
            super()._load_from_checkpoint(checkpoint, model)
        except (SafetensorError, FileNotFoundError) as error:
            raise ModelFault(f"{checkpoint}: a weights file is missing or cut short: {error}") from None
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            first = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
            raise ModelFault(f"{checkpoint} is of another model: {first}") from None
        except ModelFault as error:
            raise ModelFault(f"{checkpoint}: {str(error).removeprefix(f'{checkpoint}: ')}") from None

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = lacking(self.accelerator.unwrap_model(self.model), load_result.missing_keys)
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ModelFault(f"the checkpoint lacks {', '.join(missing[:3])}{more}; resume from another")


def lacking(model: nn.Module, missing: Iterable[str]) -> list[str]:
    """Of the names a load found nothing for, those no other name's tensor stands for (tied embeddings)."""
    named = dict(model.named_parameters(remove_duplicate=False))
    absent = {name for name in missing if name in named}
    loaded = {id(tensor) for name, tensor in named.items() if name not in absent}
    return sorted(name for name in absent if id(named[name]) not in loaded)
