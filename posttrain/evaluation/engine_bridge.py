"""The bridge from a benchmark's requests to a rollout engine, and the hashes that say which model answered.

A sample draws from a seed of its own, so it does not depend on what else is in the batch, apart from the
rounding of padded forwards; `generate` fixes the batches, which removes that too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain.evaluation.store import file_hash
from posttrain.evaluation.tasks import BenchmarkSampling
from posttrain.rollout import base
from posttrain.rollout.adapter_base import base_of, holds_adapter
from posttrain.rollout.model_folder import dense_folder, load_dense, merged, tokenizer_of
from posttrain.rollout.transformers_engine import TransformersEngine


@dataclass(frozen=True)
class Response:
    """Token ids without the end token, whether the response ended or ran into the limit, and its end token."""

    token_ids: list[int]
    finish: Literal["stop", "length"]
    end: int | None = None


@dataclass(frozen=True)
class EvaluationEngine:
    """A rollout engine with what evaluation needs to know of its model.

    ends           token ids that end a response
    max_positions  bounds prompt and response together; None where nothing does
    description    goes into run.json: what else decides the numbers (dtype, device)
    """

    engine: base.Engine
    ends: frozenset[int]
    max_positions: int | None
    description: dict[str, Any]

    @classmethod
    def around(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EvaluationEngine:
        """The transformers engine around a model that this process holds whole."""
        ends = end_tokens(model, tokenizer)
        pad = tokenizer.pad_token_id
        engine = TransformersEngine.of(model, pad_token_id=pad if isinstance(pad, int) else min(ends))
        return cls(engine, ends, positions(model), {"dtype": engine.dtype, "device": model.device.type})

    def describe(self) -> dict[str, Any]:
        return {"name": self.engine.name, **self.description, "end_tokens": sorted(self.ends)}

    def generate(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: BenchmarkSampling
    ) -> list[Response]:
        """One response for each prompt, in order."""
        wanted = [
            base.Sampling(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p or 0.0,
                max_new_tokens=sampling.max_new_tokens,
                stop_token_ids=tuple(sorted(self.ends)),
                seed=seed,
            )
            for seed in seeds
        ]
        return [self._response(c) for c in self.engine.generate(list(prompts), wanted)]

    def _response(self, completion: base.Completion) -> Response:
        tokens = completion.token_ids
        ended = completion.finish == "stop" and tokens and tokens[-1] in self.ends
        if ended:
            return Response(tokens[:-1], completion.finish, tokens[-1])
        return Response(tokens, completion.finish)


def load_generator(
    path: str, *, dtype: str, device: str, adapter: str | None = None
) -> tuple[EvaluationEngine, PreTrainedTokenizerBase]:
    """A model folder (or hub name), ready to generate. An adapter's folder is merged into the base it names; `adapter`
    is merged into the model of `path`. Raises ModelFault where a folder is not whole."""
    tokenizer = tokenizer_of(path)
    model: Any = load_dense(path, dtype=dtype)
    if model.config.to_dict().get("is_causal") is False:
        raise ValueError(
            f"{path} looks both ways and cannot be read from left to right; "
            "a masked-diffusion model wants --engine masked_diffusion"
        )
    if adapter is not None:
        model = merged(model, adapter)
    # transformers wraps `to` in a decorator without types
    model.to(torch.device(device))  # type: ignore[arg-type]
    return EvaluationEngine.around(model, tokenizer), tokenizer


def load_vllm(
    path: str, *, dtype: str, gpu_memory_utilization: float = 0.85, max_model_length: int | None = None
) -> tuple[EvaluationEngine, PreTrainedTokenizerBase]:
    """The same through vLLM in this process; an adapter is merged into a folder for it, which is then gone."""
    from posttrain.rollout.vllm.colocated import VLLMColocated

    tokenizer = tokenizer_of(path)
    with dense_folder(path, dtype=dtype) as folder:
        config = AutoConfig.from_pretrained(folder)
        try:
            generation = GenerationConfig.from_pretrained(folder)
        except OSError:  # a model folder need not have one
            generation = None
        engine = VLLMColocated(
            folder,
            dtype=dtype,
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_length=max_model_length,
        )
    ends = _ends(generation, tokenizer)
    limit = max_model_length or config.get_text_config().to_dict().get("max_position_embeddings")
    return EvaluationEngine(engine, ends, limit, {"dtype": engine.dtype}), tokenizer


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a response: the tokenizer's and those of the model's generation config."""
    return _ends(model.generation_config, tokenizer)


def _ends(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    listed = config.eos_token_id if config is not None else None
    ends = [*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id]
    found = frozenset(end for end in ends if isinstance(end, int))
    if not found:
        raise ValueError("neither the tokenizer nor the generation config names an end token; set eos_token")
    return found


def positions(model: PreTrainedModel) -> int | None:
    """How many positions the model was made for, where its config says so."""
    return model.config.get_text_config().to_dict().get("max_position_embeddings")


def weights_hash(path: str | Path) -> str | None:
    """Hash of the weight files in a model folder, of an adapter with its base's; None where it holds none (a hub
    name)."""
    folder = Path(path)
    if not folder.is_dir():
        return None
    files = [file for kind in ("*.safetensors", "pytorch_model*.bin") for file in folder.glob(kind)]
    if not files:
        return None
    base = weights_hash(base_of(folder)) if holds_adapter(folder) else None  # of a hub name: none
    return f"files:{file_hash(files)}" + (f" on {base}" if base is not None else "")


def tensors_hash(model: torch.nn.Module) -> str:
    """Hash of a model in memory: names and bytes of its parameters and saved buffers."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return f"tensors:{total.hexdigest()}"


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the vocabulary, the special tokens and what a fixed text becomes."""
    probe = tokenizer("The 3 cats\n  cost $1,200.50 = \\frac{1}{2}! naïve 数", add_special_tokens=False)
    total = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode())
    total.update(repr((sorted(tokenizer.special_tokens_map.items(), key=str), probe["input_ids"])).encode())
    return total.hexdigest()
