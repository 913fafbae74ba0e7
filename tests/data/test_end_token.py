"""An answer of text needs an end token to be learned."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from posttrain.data import DataError
from posttrain.data.tokens import ended


def test_an_answer_ends_once() -> None:
    tokenizer = SimpleNamespace(eos_token="</s>")
    assert ended(tokenizer, "4") == ended(tokenizer, "4</s>") == "4</s>"


def test_a_tokenizer_without_an_end_is_said() -> None:
    with pytest.raises(DataError, match="no end token"):
        ended(SimpleNamespace(eos_token=None), "4")
