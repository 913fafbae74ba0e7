"""Log-probability of a data set's answers under a model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posttrain.data.describe.described_rows import DescribedRow
from posttrain.evaluation.answer_fit import fit_of


class Uniform(nn.Module):
    """A model that finds every token of the vocabulary equally likely, but one twice as likely as any other."""

    def __init__(self, vocabulary: int, favourite: int) -> None:
        super().__init__()
        self.vocabulary, self.favourite = vocabulary, favourite
        self.config = type("Config", (), {"max_position_embeddings": 32})()
        self.device = torch.device("cpu")

    def forward(self, input_ids: Tensor) -> Any:
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        logits[..., self.favourite] = math.log(2.0)
        return type("Output", (), {"logits": logits})()


def row(prompt: str, **answers: str) -> DescribedRow:
    return DescribedRow(1, prompt, answers)


def test_mean_log_prob_per_token_by_hand(tokenizer) -> None:
    one = tokenizer("1", add_special_tokens=False)["input_ids"][0]
    size = len(tokenizer)
    other, liked = -math.log(size + 1), math.log(2) - math.log(size + 1)
    found = fit_of(
        [row("23>", completion="11"), row("3>", completion="2")], Uniform(size, one), tokenizer, "uniform"
    )
    assert found is not None
    # tokens learned: 1 1 <eos> and 2 <eos>
    assert found.tokens == {"completion": 5}
    assert found.per_token["completion"] == pytest.approx((2 * liked + 3 * other) / 5, abs=1e-6)
    assert found.perplexity["completion"] == pytest.approx(math.exp(-(2 * liked + 3 * other) / 5), rel=1e-5)
    assert found.by_row["completion"].largest == pytest.approx((2 * liked + other) / 3, abs=1e-6)
    assert found.by_row["completion"].smallest == pytest.approx(other, abs=1e-6)
    assert found.preferred is None


def test_pairs_say_which_answer_is_likelier_and_long_rows_are_counted(tokenizer) -> None:
    one = tokenizer("1", add_special_tokens=False)["input_ids"][0]
    model = Uniform(len(tokenizer), one)
    rows = [
        row("2>", chosen="1", rejected="2"),
        row("2>", chosen="2", rejected="1"),
        row("2" * 40, chosen="1", rejected="2"),
    ]
    found = fit_of(rows, model, tokenizer, "uniform")
    assert found is not None
    assert (found.rows, found.left_out, found.preferred) == (2, 1, 0.5)
    assert found.per_token["chosen"] == pytest.approx(found.per_token["rejected"])
    assert fit_of(rows[2:], model, tokenizer, "uniform") is None


def test_it_agrees_with_the_models_own_loss(tokenizer, tiny_model) -> None:
    """transformers' loss over the answer's tokens is the same mean."""
    found = fit_of([row("52913>", completion="12359")], tiny_model, tokenizer, "tiny")
    assert found is not None
    ids = tokenizer("52913>12359" + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    labels = [-100] * 6 + ids[6:]
    with torch.no_grad():
        loss = tiny_model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    assert found.per_token["completion"] == pytest.approx(-float(loss), abs=1e-5)
