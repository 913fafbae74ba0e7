"""Fixtures every room may use: a tiny model, its tokenizer, and the shared data where a checkout has it beside it."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public benchmark files beside the checkout (../shared/data); tests that read them say so in their name."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "the benchmark files are not part of the repository; see docs/evaluation.md for where to get them"
        )
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    from posttrain.trainers.models import character_tokenizer

    return character_tokenizer()


@pytest.fixture
def tiny_model(tokenizer):
    """A random two-layer Llama, hidden size 32, float32, the same in every test."""
    from posttrain.trainers.models import scratch_llama

    return scratch_llama(tokenizer, hidden_size=32, layers=2, heads=2, max_positions=64, seed=0)
