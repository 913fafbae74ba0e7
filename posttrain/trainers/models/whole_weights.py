"""Weights on every rank, where FSDP would load them on one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_FSDP_MAIN_RANK_ONLY = "FSDP_CPU_RAM_EFFICIENT_LOADING"


@contextmanager
def whole_weights_everywhere() -> Iterator[None]:
    """FSDP may load weights on the main rank only, to spread them when training begins; to generate, every rank
    needs them now."""
    before = os.environ.get(_FSDP_MAIN_RANK_ONLY)
    os.environ[_FSDP_MAIN_RANK_ONLY] = "False"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FSDP_MAIN_RANK_ONLY]
        else:
            os.environ[_FSDP_MAIN_RANK_ONLY] = before
