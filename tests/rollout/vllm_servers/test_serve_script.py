"""launch/serve_vllm.sh: what it refuses, and what it asks vLLM for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

STUB = '#!/bin/sh\n[ "$1" = -c ] && exit 0\nprintf "%s\\n" "$VLLM_SERVER_DEV_MODE" "$@"\n'


@pytest.fixture
def serve(root: Path, tmp_path: Path):
    """serve(*words, **settings): the script with an interpreter that prints its arguments, on a machine without GPU."""
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env"):  # and no nvidia-smi
        (tools / name).symlink_to(shutil.which(name) or name)

    def run(*words: str, **settings: str) -> subprocess.CompletedProcess:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("VLLM")}
        for name in ("HOST", "PORT", "SYNC", "DTYPE"):
            kept.pop(name, None)
        env = {**kept, "PYTHON": str(python), "PATH": str(tools), **settings}
        script = root / "launch" / "serve_vllm.sh"
        return subprocess.run([str(script), *words], env=env, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ((), {}, "usage: launch/serve_vllm.sh MODEL"),
        (("--port", "1"), {}, "usage: launch/serve_vllm.sh MODEL"),
        (("m",), {"HOST": "0.0.0.0"}, "can be reached from other machines: set VLLM_API_KEY first"),
        (("m",), {"HOST": "10.0.0.2", "VLLM_API_KEY": ""}, "can be reached from other machines"),
        (("m",), {"PYTHON": "/bin/false"}, "/bin/false has no vllm or no posttrain: pip install"),
    ],
)
def test_it_refuses(serve, words: tuple[str, ...], settings: dict[str, str], message: str) -> None:
    done = serve(*words, **settings)
    assert done.returncode == 2
    assert message in done.stderr


def options_of(done: subprocess.CompletedProcess) -> dict[str, str]:
    lines = done.stdout.splitlines()
    return {name: value for name, value in zip(lines, [*lines[1:], ""], strict=True) if name.startswith("--")}


def test_it_binds_to_loopback_in_float32_and_takes_weights_over_gloo(serve) -> None:
    done = serve("m", "--max-model-len", "32")
    assert done.stdout.splitlines()[0] == "1"
    found = options_of(done)
    assert found["--host"] == "127.0.0.1"
    assert found["--dtype"] == "float32"
    assert found["--weight-transfer-config"] == '{"backend": "posttrain_gloo"}'
    assert found["--logprobs-mode"] == "processed_logprobs"
    assert found["--middleware"] == "posttrain.rollout.vllm.guard.RequireKey"
    assert found["--max-model-len"] == "32"
    assert (
        "--no-enable-chunked-prefill" in found
    )  # without a GPU, seeded responses need their prompt read at once


def test_its_settings_come_from_the_environment(serve) -> None:
    found = options_of(serve("m", HOST="10.0.0.2", VLLM_API_KEY="k", PORT="9", SYNC="disk", DTYPE="bfloat16"))
    assert (found["--host"], found["--port"], found["--dtype"]) == ("10.0.0.2", "9", "bfloat16")
    assert "--weight-transfer-config" not in found
