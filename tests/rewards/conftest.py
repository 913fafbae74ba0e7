from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_machine import Machine

from posttrain.rewards.sandbox.enclosure import KINDS
from posttrain.rewards.sandbox.protection import find_protection, protection_of


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """Each kind of enclosure. One that is not on this machine has to be named so by `describe()`, and is reported as an
    expected failure; after a test nothing of the attack is left."""
    protection = protection_of(request.param)
    if isinstance(protection, str):
        assert any(line.startswith(f"not used: {request.param}: ") for line in find_protection().describe())
        pytest.xfail(f"{request.param} is not on this machine, and describe() says so: {protection}")
    found = Machine(protection, tmp_path)
    yield found
    end = time.monotonic() + 3.0
    while found.left() and time.monotonic() < end:
        time.sleep(0.05)
    assert found.left() == []
