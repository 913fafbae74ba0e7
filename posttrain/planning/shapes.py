"""The shape of a model from its config.json (or the recipe's `scratch`), and what it weighs. No torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from posttrain.recipe.sections import ModelSection, ScratchSection
from posttrain.rollout.adapter_base import BaseMissing, base_of, holds_adapter

LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
SPECIAL_TOKENS = 5  # of the character tokenizer: <pad> <eos> <bos> <unk> <mask>


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped decoder: embedding, layers of attention and a gated feed-forward, head."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    tied: bool
    source: str
    counted: int | None = None  # parameters by the checkpoint's own headers, where it is local

    @property
    def linears(self) -> Iterator[tuple[str, int, int]]:
        """(name, inputs, outputs) of the linear maps of one layer."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        yield "q_proj", self.hidden, query
        yield "k_proj", self.hidden, key
        yield "v_proj", self.hidden, key
        yield "o_proj", query, self.hidden
        yield "gate_proj", self.hidden, self.intermediate
        yield "up_proj", self.hidden, self.intermediate
        yield "down_proj", self.intermediate, self.hidden

    @property
    def parameters(self) -> int:
        if self.counted is not None:
            return self.counted
        layer = sum(i * o for _, i, o in self.linears) + 2 * self.hidden
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * layer + self.hidden

    def lora_parameters(self, rank: int, targets: str | list[str]) -> int:
        chosen = [(i, o) for name, i, o in self.linears if isinstance(targets, str) or name in targets]
        return self.layers * sum(rank * (i + o) for i, o in chosen)


def _qwen(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, tied: bool
) -> dict[str, Any]:
    return {
        "vocab_size": 151936 if tied else 152064,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
    }


_QWEN_1_5B, _QWEN_7B = _qwen(1536, 8960, 28, 12, 2, True), _qwen(3584, 18944, 28, 28, 4, False)
LLADA_NAMES = {
    "hidden_size": "d_model",
    "intermediate_size": "mlp_hidden_size",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "tie_word_embeddings": "weight_tying",
}
"""Our name -> the name in LLaDA's config.json."""
_LLADA_8B = {
    "vocab_size": 126464,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B": _qwen(896, 4864, 24, 14, 2, True),
    "Qwen/Qwen2.5-1.5B": _QWEN_1_5B,
    "Qwen/Qwen2.5-3B": _qwen(2048, 11008, 36, 16, 2, True),
    "Qwen/Qwen2.5-7B": _QWEN_7B,
    "Qwen/Qwen2.5-14B": _qwen(5120, 13824, 48, 40, 8, False),
    "Qwen/Qwen2.5-32B": _qwen(5120, 27648, 64, 40, 8, False),
    "Qwen/Qwen2.5-72B": _qwen(8192, 29568, 80, 64, 8, False),
    "Qwen/Qwen2.5-Math-1.5B": _QWEN_1_5B,
    "Qwen/Qwen2.5-Math-7B": _QWEN_7B,
    "GSAI-ML/LLaDA-8B": _LLADA_8B,
    "Dream-org/Dream-v0-7B": _QWEN_7B,
}
"""Published config.json of models the recipes name, so that a laptop without them can plan; -Instruct is alike."""


def is_folder_name(path: str, output_dir: str) -> bool:
    """Whether a model path means a folder here rather than a hub name."""
    return path.startswith((".", "/", "~", f"{output_dir}/")) or Path(path).is_dir() or path.count("/") != 1


def read_shape(model: ModelSection) -> Shape | None:
    """The model's shape, or None where nothing here tells it."""
    if model.scratch is not None:
        return _scratch(model.scratch)
    assert model.path is not None
    try:
        config = read_config(model)
    except ValueError:  # config_faults says it
        return None
    if config is not None:
        file = local_file(model.path, "config.json", model.revision)
        return _shape(config, model.path, None if file is None else count_parameters(file.parent))
    published = PUBLISHED.get(model.path.replace("-Instruct", ""))
    return None if published is None else _shape(published, "its published config.json")


def _scratch(scratch: ScratchSection) -> Shape:
    return Shape(
        vocabulary=len(scratch.alphabet) + SPECIAL_TOKENS,
        hidden=scratch.hidden_size,
        layers=scratch.layers,
        heads=scratch.heads,
        kv_heads=scratch.heads,
        head_size=scratch.hidden_size // scratch.heads,
        intermediate=scratch.intermediate_size or 3 * scratch.hidden_size,
        tied=False,
        source="model.scratch",
    )


def _shape(config: Mapping[str, Any], source: str, counted: int | None = None) -> Shape | None:
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    if "d_model" in config:  # LLaDA's names
        config = {**config, **{name: config[own] for name, own in LLADA_NAMES.items() if own in config}}
    needed = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    if not all(_is_count(config.get(name)) for name in needed):
        return None
    heads = config["num_attention_heads"]
    return Shape(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config["intermediate_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        source=source,
        counted=counted,
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def count_parameters(folder: Path) -> int | None:
    """Parameters by the headers of a folder's safetensors files; None without any."""
    headers = [read_header(file) for file in folder.glob("*.safetensors")]
    return sum(prod(entry["shape"]) for header in headers for entry in header.values()) or None


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Tensor -> what a safetensors file says of it; nothing where the file is cut, or is none."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, LARGEST_HEADER)))
    except (OSError, ValueError, struct.error):
        return {}
    return {
        name: entry
        for name, entry in header.items()
        if name != "__metadata__" and isinstance(entry, dict) and "shape" in entry
    }


def read_config(model: ModelSection) -> dict[str, Any] | None:
    """The model's config.json, from its folder or the local hub cache; None where there is none here.

    ValueError says why a file that is here is no config.
    """
    file = None if model.path is None else local_file(model.path, "config.json", model.revision)
    return None if file is None else read_mapping(file)


def read_mapping(file: Path) -> dict[str, Any]:
    """A JSON file of a model's folder. ValueError says why it is none."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} cannot be read: {reason}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is no model's: it holds no mapping")
    return config


def config_faults(model: ModelSection) -> Iterator[str]:
    """A config.json that is here and cannot be read."""
    try:
        read_config(model)
    except ValueError as error:
        yield f"model: {error}"


def local_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a model, in its folder or in the local hub cache; nothing is downloaded."""
    if (Path(name) / file).is_file():
        return Path(name) / file
    if holds_adapter(name):  # the rest lies with its base
        try:
            return local_file(base_of(name), file)
        except BaseMissing:
            return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
