"""Data sets from Python: a missing column and a missing reward are said before a model is loaded."""

from __future__ import annotations

import pytest
from datasets import Dataset

from posttrain.trainers import (
    BAPOConfig,
    BAPOTrainer,
    DPOConfig,
    DPOTrainer,
    SFTConfig,
    SFTTrainer,
)

NOWHERE = "/no/such/model"  # would fail, were it loaded
ROWS = Dataset.from_list([{"question": "1+1", "answer": "2"}])


def options(tmp_path) -> dict:
    return {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": []}


def test_columns_are_named(tmp_path) -> None:
    with pytest.raises(
        ValueError, match="BAPOTrainer: train_dataset has no 'prompt'; the columns are question"
    ):
        BAPOTrainer(NOWHERE, "exact_match", args=BAPOConfig(**options(tmp_path)), train_dataset=ROWS)
    with pytest.raises(ValueError, match="DPOTrainer: train_dataset has no 'chosen' and 'rejected'"):
        DPOTrainer(NOWHERE, args=DPOConfig(**options(tmp_path)), train_dataset=ROWS)
    with pytest.raises(
        ValueError, match="SFTTrainer: train_dataset has no 'prompt' and 'completion' or 'messages'"
    ):
        SFTTrainer(NOWHERE, args=SFTConfig(**options(tmp_path)), train_dataset=ROWS)


def test_a_trainer_without_a_reward_says_what_one_is(tmp_path) -> None:
    rows = Dataset.from_list([{"prompt": "1+1"}])
    with pytest.raises(ValueError, match="BAPOTrainer: no reward: pass reward_funcs"):
        BAPOTrainer(NOWHERE, args=BAPOConfig(**options(tmp_path)), train_dataset=rows)
