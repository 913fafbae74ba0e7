"""How TRL's own generation samples held-out prompts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NO_SAMPLING = {"temperature": None, "top_p": None, "top_k": None, "min_p": None}


@contextmanager
def held_out_sampling(trainer: Any) -> Iterator[None]:
    """Evaluation samples at its own temperature; 0 is greedy."""
    temperature = trainer.args.eval_temperature
    if trainer.model.training or temperature is None or trainer.use_vllm:
        yield
        return
    training_config = trainer.generation_config
    trainer.generation_config = copy.deepcopy(training_config)
    changes = {"temperature": temperature} if temperature > 0 else {"do_sample": False, **_NO_SAMPLING}
    trainer.generation_config.update(**changes)
    try:
        yield
    finally:
        trainer.generation_config = training_config
