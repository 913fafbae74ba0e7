"""What generation asks of an engine, and the engine that needs nothing but transformers.

Each sample has a seed of its own. The transformers engine draws by the Gumbel trick from per-row
generators, so a sample depends on its seed and not on what else is in the batch, apart from the rounding of
padded forwards; `generate` fixes the batches, which removes that too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from posttrain.evaluation.store import file_hash
from posttrain.evaluation.tasks import Sampling


@dataclass(frozen=True)
class Completion:
    """One response: its token ids without the end token, and whether it ended or ran into the limit."""

    token_ids: list[int]
    finish: Literal["stop", "length"]


class Engine(Protocol):
    """One completion for each prompt, in order. `describe` goes into run.json; `max_positions` bounds
    prompt + new tokens, None where nothing does."""

    max_positions: int | None

    def describe(self) -> dict[str, Any]: ...

    def generate(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling
    ) -> list[Completion]: ...


class TransformersEngine:
    """`model.generate` on left-padded batches, the model as it is (dtype, device, adapters)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.ends = end_tokens(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad = pad if pad is not None else min(self.ends)
        self.max_positions: int | None = (
            model.config.get_text_config().to_dict().get("max_position_embeddings")
        )

    def describe(self) -> dict[str, Any]:
        return {
            "name": "transformers",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "end_tokens": sorted(self.ends),
        }

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling
    ) -> list[Completion]:
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device
        )
        processors = [] if sampling.temperature == 0 else [SeededSampling(sampling, seeds, self.model.device)]
        was_training = self.model.training
        self.model.eval()
        try:
            out: Any = self.model.generate(  # type: ignore[operator]  # a mixin pyright loses
                input_ids=ids,
                attention_mask=mask,
                # a config of our own: the model's would bring its own temperature, top_k, penalties
                generation_config=GenerationConfig(
                    max_new_tokens=sampling.max_new_tokens,
                    do_sample=False,
                    eos_token_id=sorted(self.ends),
                    pad_token_id=self.pad,
                    use_cache=True,
                ),
                logits_processor=LogitsProcessorList(processors),
            )
        finally:
            self.model.train(was_training)
        return [self._completion(row) for row in out[:, width:].tolist()]

    def _completion(self, row: list[int]) -> Completion:
        for position, token in enumerate(row):
            if token in self.ends:
                return Completion(row[:position], "stop")
        return Completion(row, "length")


class SeededSampling(LogitsProcessor):
    """Temperature, top-k, top-p, min-p, then Gumbel noise of each row's own seed: the arg max of the sum is a
    sample of the filtered distribution."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], device: torch.device) -> None:
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
        if sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            self.warpers.append(MinPLogitsWarper(sampling.min_p))
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # float32: in bfloat16 the noise would take few distinct values and tie
        scores = self.warpers(input_ids, scores.float())  # type: ignore[arg-type]  # stub says LongTensor
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log()


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends a response: the tokenizer's and those of the model's generation config."""
    listed = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = [*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id]
    found = {end for end in ends if isinstance(end, int)}
    if not found:
        raise ValueError("neither the tokenizer nor the generation config names an end token; set eos_token")
    return found


def load_engine(
    path: str, *, dtype: str, device: str, adapter: str | None = None
) -> tuple[TransformersEngine, PreTrainedTokenizerBase]:
    """A model folder (or hub name), optionally with a LoRA adapter merged in, ready to generate."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    # transformers wraps `to` in a decorator without types
    model.to(torch.device(device))  # type: ignore[arg-type]
    return TransformersEngine(model, tokenizer), tokenizer


def weights_hash(path: str | Path) -> str | None:
    """Hash of the weight files in a model folder; None where it holds none (a hub name)."""
    folder = Path(path)
    files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")] if folder.is_dir() else []
    return f"files:{file_hash(files)}" if files else None


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
