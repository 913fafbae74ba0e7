"""`posttrain` on CPU processes that shard, which accelerate lets nobody have without a GPU; keeps what was trained.

accelerate launch --config_file FILE ... tests/support/sharded_command.py zero3 KEPT train RECIPE

KEPT gets the whole weights as they are in memory at the end, before anything is saved.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers.training_args
from accelerate.state import PartialState

sys.path.insert(0, str(Path(__file__).parent))
from sharded_run import KIND, shard_on_cpus

from posttrain.cli import main
from posttrain.run.session import Session
from posttrain.trainers.models.weights import policy_weights


def keep_weights(out: Path) -> None:
    """As a session ends, the weights in memory go to `out`."""
    end = Session.end

    def kept(self: Any) -> int:
        accelerator = self.trainer.accelerator
        weights = {
            name: tensor.detach().clone() for name, tensor in policy_weights(self.trainer.model, accelerator)
        }
        if accelerator.is_main_process:
            torch.save(weights, out)
        return end(self)

    Session.end = kept  # type: ignore[method-assign]  # for this process only


if __name__ == "__main__":
    if KIND != "ddp":
        shard_on_cpus()
        # transformers lets bfloat16 on a processor pass with use_cpu alone, with which accelerate would not shard
        transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    keep_weights(Path(sys.argv[2]))
    code = main(sys.argv[3:])
    PartialState().destroy_process_group()
    sys.exit(code)
