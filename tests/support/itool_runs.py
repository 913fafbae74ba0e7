"""A toy iTool run, for tests in this process and, started by torchrun, in two.

torchrun --nproc_per_node 2 tests/support/itool_runs.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from staged_helpers import options

from posttrain.data.api_calls import ApiCalls
from posttrain.rollout.base import Sampling
from posttrain.trainers.models.load import character_tokenizer, scratch_llama
from posttrain.trainers.staged.itool import IToolConfig, IToolTrainer

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ []()=\"',.>_?\n"
ROWS = list(ApiCalls(size=10, held_out=1).rows("train", completions=False))


def itool_tokenizer() -> Any:
    return character_tokenizer(ALPHABET)


def itool_run(
    folder: Path, *, rows: Any = ROWS, peft: Any = None, callbacks: Any = (), **settings: Any
) -> Any:
    """Ten rows, six of them searched, three side by side; two iterations of two steps."""
    tokenizer = itool_tokenizer()
    given = {
        "iterations": 2,
        "max_steps": 2,
        "hardest_share": 0.6,
        "searches": 2,
        "beta": 2.5,
        "min_gap": 0.0,
        "min_value": -9.0,
    }
    batch = settings.pop("generation_batch_size", 3)
    return IToolTrainer(
        scratch_llama(tokenizer, hidden_size=32, layers=1, heads=2, max_positions=512, seed=0),
        rows,
        options(IToolConfig, folder, **given | settings),
        tokenizer,
        sampling=Sampling(temperature=1.5, max_new_tokens=24),
        generation_batch_size=batch,
        peft_config=peft,
        callbacks=list(callbacks),
    )


if __name__ == "__main__":
    itool_run(Path(sys.argv[1]), per_device_train_batch_size=1).train()
