"""Trainers are imported without vLLM; what TRL took from it comes when it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRETEND = """
class LLM:
    family = "real"
    def __init__(self, model):
        self.model = model
"""
SCRIPT = """
import sys
from late import vllm_when_used   # the module under test, alone: no torch in this process
with vllm_when_used():
    from vllm import LLM
    from vllm.utils.network_utils import get_ip
assert not [name for name in sys.modules if name.partition(".")[0] == "vllm"], "a stand-in stayed behind"
assert LLM(model="m").model == "m"
assert LLM.family == "real"
assert get_ip() == "::1"
import vllm
with vllm_when_used():            # loaded already: nothing to put off
    from vllm import LLM as again
assert again is vllm.LLM
"""


def test_a_stand_in_becomes_the_real_thing_at_its_first_use(tmp_path: Path, root: Path) -> None:
    (tmp_path / "vllm" / "utils").mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").write_text(PRETEND)
    (tmp_path / "vllm" / "utils" / "__init__.py").write_text("")
    (tmp_path / "vllm" / "utils" / "network_utils.py").write_text("def get_ip(): return '::1'\n")
    (tmp_path / "late.py").write_text((root / "posttrain/trainers/seam/late_vllm.py").read_text())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=environment, timeout=60)


def test_what_is_not_installed_stays_so(tmp_path: Path, root: Path) -> None:
    (tmp_path / "late.py").write_text((root / "posttrain/trainers/seam/late_vllm.py").read_text())
    script = (
        "import sys\nfrom importlib.util import find_spec\nfrom late import vllm_when_used\n"
        "sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        "with vllm_when_used():\n    assert find_spec('vllm') is None\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=60)


@pytest.mark.vllm
def test_a_trainer_is_imported_without_vllm(root: Path) -> None:
    script = "import sys; from posttrain.trainers import BAPOTrainer; assert 'vllm' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=300)
