"""vLLM in the training process, one engine a rank, on the device that also trains.

On CUDA weights are loaded as TRL does it. On a CPU vLLM drops a layer's weight once it has prepacked it, so there
the layerwise reload takes its place, which prepacks again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor

from posttrain.process.phases import PHASES
from posttrain.rollout.arrivals import silent_bar
from posttrain.rollout.base import (
    Completion,
    EngineError,
    EngineLost,
    EngineRefused,
    NamedTensors,
    Sampling,
    rows,
)
from posttrain.rollout.checksum import signature
from posttrain.rollout.vllm.reload import renew_tied_heads
from posttrain.rollout.vllm.spreading import merge_rows

_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # what vLLM's CPU attention is compiled for


class VLLMColocated:
    """One vLLM engine in this process.

    model_path              where configuration and tokenizer lie; its weights are replaced before the first use
    dtype                   what to compute in: the trainer's, unless the recipe says otherwise
    gpu_memory_utilization  share of the device's memory (on a CPU: of the machine's) vLLM may take
    max_model_length        longest prompt plus completion; None: the model's own limit
    enforce_eager           no CUDA graphs and no compilation: starts in seconds, generates more slowly
    sleep                   give weights and cache back to the device while the trainer trains (CUDA only)
    """

    name = "vllm"
    shared = False
    shares_weights = False
    looks_ahead = False
    replicas = 1

    def __init__(
        self,
        model_path: str,
        *,
        dtype: str,
        gpu_memory_utilization: float = 0.3,
        max_model_length: int | None = None,
        max_num_seqs: int | None = None,
        enforce_eager: bool = False,
        sleep: bool = False,
        seed: int = 0,
        distributed: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.dtype = dtype
        self.version: int | None = None
        self._received: dict[str, tuple[str, int]] = {}
        _prepare_process()
        from vllm import LLM  # pyright: ignore[reportAttributeAccessIssue]  # without vLLM it takes this folder for it
        from vllm.platforms import current_platform

        self._on_cpu = current_platform.is_cpu()
        if self._on_cpu:
            check_cpu_model(model_path, trust_remote_code)
            if sleep:
                raise EngineRefused(
                    "rollout.vllm.sleep: on a CPU vLLM cannot give its memory back; remove it"
                )
        self._sleeps = sleep
        self._joined_a_group = dist.is_initialized()
        limits: dict[str, Any] = {} if max_num_seqs is None else {"max_num_seqs": max_num_seqs}
        if self._on_cpu:
            # A prompt read in parts has its draws taken back, which torch's CPU generators cannot: rows have seeds.
            limits["enable_chunked_prefill"] = False
        with _explained(f"vllm could not load {model_path}", gpu_memory_utilization):
            self._llm = LLM(
                model=model_path,
                dtype=dtype,  # type: ignore[arg-type]  # vLLM's Literal of the same names
                gpu_memory_utilization=gpu_memory_utilization,
                max_model_len=max_model_length,
                enforce_eager=enforce_eager,
                enable_sleep_mode=self._sleeps,
                distributed_executor_backend="external_launcher" if distributed else "uni",
                logprobs_mode="processed_logprobs",
                generation_config="vllm",
                seed=seed,
                trust_remote_code=trust_remote_code,
                **limits,
            )
        self._memory = gpu_memory_utilization
        self._rest()

    def generate(self, prompts: list[list[int]], sampling: Sampling | Sequence[Sampling]) -> list[Completion]:
        from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]  # as above

        requests = merge_rows(rows(prompts, sampling))
        params = [
            SamplingParams(
                n=one.n,
                temperature=one.temperature,
                top_p=one.top_p,
                top_k=one.top_k,
                min_p=one.min_p,
                repetition_penalty=one.repetition_penalty,
                max_tokens=one.max_new_tokens,
                stop_token_ids=list(one.stop_token_ids),
                seed=one.seed,
                logprobs=0,
                detokenize=False,
            )
            for one in (request.sampling for request in requests)
        ]
        self._wake()
        total = sum(request.sampling.n for request in requests)
        with (
            _explained("vllm could not generate", self._memory),
            PHASES.within("generating", total) as phase,
        ):
            outputs = self._llm.generate(
                [{"prompt_token_ids": request.prompt} for request in requests],
                params,
                use_tqdm=silent_bar(phase),
            )
        self._rest()
        return [
            self._completion(one)
            for output in outputs
            for one in sorted(output.outputs, key=lambda o: o.index)
        ]

    def _completion(self, output: Any) -> Completion:
        ids = list(output.token_ids)
        logprobs = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)]
        bad = [value for value in logprobs if not math.isfinite(value)]
        if bad:
            raise EngineError(
                f"vllm gave {len(bad)} log-probs that are {bad[0]} (of {len(ids)} tokens): the model's logits are "
                "broken. Check the last losses and gradients; resume from an earlier checkpoint."
            )
        finish = "stop" if output.finish_reason == "stop" else "length"
        return Completion(ids, logprobs, finish, ((self.version or 0, len(ids)),))

    def update_weights(self, named_tensors: NamedTensors, version: int) -> None:
        self._wake()
        self._received = {}
        worker = self._llm.llm_engine.model_executor.driver_worker  # type: ignore[attr-defined]  # in-process executor
        with _explained("vllm could not take the weights", self._memory):
            if self._on_cpu:
                worker.reload_weights(weights_iterator=self._recorded(named_tensors))
                renew_tied_heads(worker.model_runner.model)
            else:
                for name, tensor in self._recorded(named_tensors):
                    worker.model_runner.model.load_weights([(name, tensor)])
        self._llm.reset_prefix_cache()
        self.version = version

    def _recorded(self, named_tensors: NamedTensors) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in named_tensors:
            self._received[name] = signature(tensor)
            yield name, tensor

    def weight_checksums(self) -> Mapping[str, tuple[str, int]]:
        if self._received:
            return self._received
        from vllm.model_executor.model_loader import get_model_loader

        worker = self._llm.llm_engine.model_executor.driver_worker  # type: ignore[attr-defined]  # in-process executor
        loader: Any = get_model_loader(worker.vllm_config.load_config)
        weights = loader.get_all_weights(worker.model_config, worker.model_runner.model)
        return {name: signature(tensor) for name, tensor in weights}

    def _wake(self) -> None:
        if self._sleeps:
            self._llm.wake_up()

    def _rest(self) -> None:
        """Level 1 keeps the weights in host memory, so that a second rollout of the same step needs no sync."""
        if self._sleeps:
            self._llm.sleep(level=1)

    def health(self) -> None:
        return None

    def close(self) -> None:
        """Frees vLLM's workers and cache; a process group that was there before it stays."""
        with _group_kept() if self._joined_a_group else nullcontext():
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm


@contextmanager
def _group_kept() -> Iterator[None]:
    """vLLM's shutdown ends the default process group, which here is the training's; groups of its own may end."""
    end = dist.destroy_process_group

    def end_another(group: Any = None) -> None:
        if group is not None and group is not dist.group.WORLD:
            end(group)

    dist.destroy_process_group = end_another
    try:
        yield
    finally:
        dist.destroy_process_group = end


def _prepare_process() -> None:
    """What vLLM reads from the environment when it is imported: run in this process, send no statistics, and on a
    CPU a cache of one GiB instead of a share of the memory."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def check_cpu_model(model_path: str, trust_remote_code: bool = False) -> None:
    """vLLM's CPU attention kills the process on a head size it was not compiled for; this says so before."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code).get_text_config()
    given = config.to_dict().get("head_dim")
    size = given or config.hidden_size // config.num_attention_heads
    if size not in _HEAD_DIMS:
        sizes = ", ".join(map(str, _HEAD_DIMS))
        raise EngineError(
            f"{model_path}: attention heads of size {size}; on a CPU vLLM has only {sizes}. Use rollout.engine: "
            "transformers, or a model with such heads."
        )


@contextmanager
def _explained(what: str, memory: float) -> Iterator[None]:
    """vLLM's errors with what to do about them."""
    try:
        yield
    except EngineError:
        raise
    except (RuntimeError, ValueError, MemoryError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or "memory" in text.lower():
            raise EngineLost(
                f"{what}: {text} Lower rollout.vllm.gpu_memory_utilization (now {memory}) or max_model_length, set "
                "rollout.vllm.sleep: true, or use a server on another device; then resume with --resume."
            ) from error
        raise EngineLost(f"{what}: {text}") from error
