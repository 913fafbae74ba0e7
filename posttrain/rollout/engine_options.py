"""Which sampling options and which ways of working each engine has. No torch here: `posttrain plan` reads it.

engine                      where it generates                                  own weights
transformers                in the training process, with the model in training  no, the trainer's own
vllm                        in the training process, beside the model            a copy, on the same device
vllm_server                 one or more server processes, here or elsewhere      a copy, on their devices
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from posttrain.rollout.masked.sampler_options import DIFFUSION_SAMPLING

SAMPLING_OPTIONS = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "max_new_tokens",
        "stop_token_ids",
        "seed",
        "n",
    }
)
"""The one set of names for sampling; `Sampling` has exactly these fields."""

TRUNCATING = frozenset({"top_p", "top_k", "min_p", "repetition_penalty"})
"""Options that make the sampled distribution another one than the model's, even at the same temperature. Their
log-probs cannot stand in for the policy's as old log-probs: the ratio would start away from 1."""


@dataclass(frozen=True)
class EngineOptions:
    """What one engine can do.

    supported    sampling options it honours
    looks_ahead  whether it can generate while the trainer trains: it has weights and a process of its own
    settings     keys of the recipe's `rollout.vllm` that it reads
    """

    supported: frozenset[str]
    looks_ahead: bool
    settings: frozenset[str]


_EVERY_VLLM = frozenset({"dtype", "proof_limit"})
_COLOCATED = _EVERY_VLLM | {
    "gpu_memory_utilization",
    "max_model_length",
    "max_num_seqs",
    "enforce_eager",
    "sleep",
}
_SERVER = _EVERY_VLLM | {
    "servers",
    "api_key_env",
    "sync",
    "sync_dir",
    "sync_host",
    "timeout_s",
    "start_timeout_s",
    "retries",
    "retry_delay_s",
}

ENGINES: dict[str, EngineOptions] = {
    "transformers": EngineOptions(SAMPLING_OPTIONS, looks_ahead=False, settings=frozenset()),
    "vllm": EngineOptions(SAMPLING_OPTIONS, looks_ahead=False, settings=_COLOCATED),
    "vllm_server": EngineOptions(SAMPLING_OPTIONS, looks_ahead=True, settings=_SERVER),
    "masked_diffusion": EngineOptions(DIFFUSION_SAMPLING, looks_ahead=False, settings=frozenset()),
}
SUPPORTED: dict[str, frozenset[str]] = {name: options.supported for name, options in ENGINES.items()}

CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
"""TRL's names for what is done to pi_trainer / pi_sampling before it weighs a token's loss."""

RESAMPLE_NOT_PARTIAL = (
    "resample does not go with partial_budget: a completion that is cut is judged in a later rollout, so what would "
    "stand in for its group has to be begun before it is known that one is wanted; drop one of them"
)

PROOF_LIMITS = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.5}
"""Largest |log-prob of the engine - log-prob of the trainer| allowed after a sync, in nats, by the engine's dtype."""


def refused_options(engine: str, used: Iterable[str]) -> list[str]:
    """The sampling options among `used` that the engine lacks, sorted."""
    return sorted(set(used) - SUPPORTED[engine])


def refused_settings(engine: str, used: Iterable[str]) -> list[str]:
    """The keys of `rollout.vllm` among `used` that have no effect on this engine, sorted."""
    return sorted(set(used) - ENGINES[engine].settings)


def check_ahead(
    engine: str,
    *,
    staleness: int,
    partial_budget: int | None,
    max_new_tokens: int,
    truncating: Iterable[str] = (),
    correction: str | None = None,
) -> list[str]:
    """What is wrong with a recipe's look-ahead and partial rollouts, one sentence each.

    truncating  the options of TRUNCATING that the recipe sets to something other than their neutral value
    """
    problems = []
    if staleness < 0:
        problems.append(f"staleness counts generations, it cannot be {staleness}")
    if staleness > 0 and not ENGINES[engine].looks_ahead:
        able = " or ".join(name for name, options in ENGINES.items() if options.looks_ahead)
        problems.append(
            f"staleness {staleness} needs an engine in a process of its own: set engine to {able}, or staleness to 0"
        )
    if partial_budget is not None and not 0 < partial_budget < max_new_tokens:
        problems.append(f"partial_budget {partial_budget} must lie between 1 and max_new_tokens - 1")
    if correction is not None and correction not in CORRECTIONS:
        problems.append(f"importance_correction {correction!r} is none of {', '.join(CORRECTIONS)}")
    shaped = sorted(truncating)
    if shaped and (staleness > 0 or partial_budget is not None):
        problems.append(
            f"{', '.join(shaped)} make the sampled distribution another one than the policy's, and a sample of older "
            "weights has no other old log-probs than the sampled ones: leave them neutral, or set staleness to 0 and "
            "drop partial_budget"
        )
    return problems


def is_address(url: str) -> bool:
    """Whether it is http://host:port, https, or without a port, and nothing more."""
    parts = urlsplit(url)
    try:
        parts.port  # noqa: B018  # reading it checks it
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/")


def check_servers(
    urls: Sequence[str],
    *,
    sync: str | None,
    sync_dir: str | None = None,
    sync_host: str | None = None,
    use_cpu: bool = False,
) -> list[str]:
    """What is wrong with a recipe's servers and its way of sending weights, one sentence each.

    use_cpu  the trainer is told to leave GPUs alone
    """
    problems = [f"server {url!r}: write it as http://host:port" for url in urls if not is_address(url)]
    if not urls:
        problems.append("'servers' is empty: name at least one, for example http://127.0.0.1:8000")
    plain = [url.rstrip("/") for url in urls]
    problems += [f"'servers' lists {url} twice" for url in sorted({u for u in plain if plain.count(u) > 1})]
    if sync == "nccl" and use_cpu:
        problems.append("sync: nccl needs a GPU in the trainer, and train.use_cpu is set; use gloo or disk")
    if sync_dir is not None and sync != "disk":
        problems.append("'sync_dir' does nothing without sync: disk; add that, or remove it")
    if sync_host is not None and sync == "disk":
        problems.append("'sync_host' does nothing with sync: disk; remove it")
    return problems
