"""Stage one: a model answers a benchmark. Writes run.json and generations.jsonl; interrupted, it goes on.

Batches are a function of the problems and the batch size alone. A resumed run generates a half-written
batch again in whole and keeps the missing rows, so its file equals that of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.answers.chat import REASONING_TAGS
from posttrain.evaluation import store, tasks
from posttrain.evaluation.engine_bridge import EvaluationEngine, tokenizer_hash
from posttrain.evaluation.tasks import Benchmark, BenchmarkSampling, Problem

Progress = Callable[[int, int], None]
"""Called with responses done and responses in all."""

# what may differ between two attempts at one run
_FREE = ("created", "versions", "resumed")


@dataclass(frozen=True)
class SampleRequest:
    """One sample to draw."""

    problem: Problem
    sample: int
    prompt_ids: list[int]
    seed: int


def generate(
    benchmark: Benchmark,
    problems: Sequence[Problem],
    engine: EvaluationEngine,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    model: dict[str, Any],
    sampling: BenchmarkSampling | None = None,
    seed: int = 0,
    batch_size: int = 16,
    overwrite: bool = False,
    progress: Progress | None = None,
    prefix: str = "",
) -> Path:
    """Fills `out` with run.json and generations.jsonl; returns `out`.

    `model` names what answers ({"path": ..., "weights": hash}); `problems` may be the first few of the
    benchmark, `prefix` stands before each question. ValueError where `out` holds another run, or a
    prompt leaves too little room for the response.
    """
    sampling = sampling or benchmark.sampling
    chat = _uses_chat(benchmark, tokenizer)
    requests = _requests(benchmark, problems, tokenizer, chat, sampling, seed, prefix)
    _check_room(requests, engine, sampling)
    run = {
        "format": 1,
        "benchmark": benchmark.name,
        "model": model,
        "tokenizer": {
            "hash": tokenizer_hash(tokenizer),
            "chat_template": _template_hash(tokenizer) if chat else None,
            "opens_reasoning": _opens_reasoning(requests, tokenizer),
        },
        "task": {
            "hash": tasks.task_hash(benchmark, problems),
            "problems": len(problems),
            "of": benchmark.data.rows,
            "definition": benchmark.model_dump(exclude={"sampling"}),
        },
        "sampling": sampling.model_dump(),
        "engine": engine.describe() | {"batch_size": batch_size},
        "seed": seed,
        "versions": store.versions(),
    }
    _open(out, run, overwrite)
    _fill(out, requests, engine, tokenizer, sampling, batch_size, progress)
    return out


def sample_seed(seed: int, problem_id: str, sample: int) -> int:
    """Seed of one sample: 63 bits of a hash, so that it depends on nothing but these three."""
    text = f"{seed}/{problem_id}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _uses_chat(benchmark: Benchmark, tokenizer: PreTrainedTokenizerBase) -> bool:
    has = tokenizer.chat_template is not None
    if benchmark.prompt.chat == "always" and not has:
        raise ValueError(f"{benchmark.name}: prompt.chat is always, but the tokenizer has no chat template")
    if benchmark.prompt.system is not None and not has:
        raise ValueError(f"{benchmark.name}: prompt.system is set, but the tokenizer has no chat template")
    return has and benchmark.prompt.chat != "never"


def _template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    return store.digest(tokenizer.chat_template)


def _opens_reasoning(requests: Sequence[SampleRequest], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the prompt ends in an opened reasoning tag: then a response that never closes it has no
    answer."""
    if not requests:
        return False
    end = str(tokenizer.decode(requests[0].prompt_ids[-16:])).rstrip()
    return end.endswith(tuple(opening for opening, _ in REASONING_TAGS))


def _requests(
    benchmark: Benchmark,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    chat: bool,
    sampling: BenchmarkSampling,
    seed: int,
    prefix: str,
) -> list[SampleRequest]:
    """Longest prompts first (an out-of-memory comes at once, batches pad little); ties in file order."""
    found = []
    for problem in problems:
        ids = _prompt_ids(benchmark, prefix + problem.prompt, tokenizer, chat)
        found += [
            SampleRequest(problem, sample, ids, sample_seed(seed, problem.id, sample))
            for sample in range(sampling.samples)
        ]
    return sorted(found, key=lambda request: -len(request.prompt_ids))


def _prompt_ids(
    benchmark: Benchmark, question: str, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> list[int]:
    if not chat:
        return list(tokenizer(question)["input_ids"])
    system = benchmark.prompt.system
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": question})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)  # not tokenized
    # the template writes the special tokens itself
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _check_room(requests: list[SampleRequest], engine: EvaluationEngine, sampling: BenchmarkSampling) -> None:
    if not requests or engine.max_positions is None:
        return
    longest = requests[0]
    room = engine.max_positions - len(longest.prompt_ids)
    if room < sampling.max_new_tokens:
        raise ValueError(
            f"problem {longest.problem.id}: a prompt of {len(longest.prompt_ids)} tokens and max_new_tokens "
            f"{sampling.max_new_tokens} exceed the model's {engine.max_positions} positions; "
            + (f"set --max-new-tokens {room} or less" if room > 0 else "the prompt alone fills them")
        )


def _open(out: Path, run: dict[str, Any], overwrite: bool) -> None:
    path = out / store.RUN
    if overwrite:
        for name in (store.RUN, store.GENERATIONS, store.GRADES, store.JUDGEMENTS, store.METRICS):
            (out / name).unlink(missing_ok=True)
    if path.exists():
        before = store.read_json(path)
        different = sorted(_differences(before, run))
        if different:
            raise ValueError(
                f"{out} holds another run: {', '.join(different)} differ; give another --out, or --overwrite"
            )
        return
    if (out / store.GENERATIONS).exists():
        raise ValueError(
            f"{out} has {store.GENERATIONS} but no {store.RUN}; give another --out, or --overwrite"
        )
    store.write_json(path, run)


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in before.keys() | now.keys():
        if not prefix and key in _FREE:
            continue
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found


def _fill(
    out: Path,
    requests: list[SampleRequest],
    engine: EvaluationEngine,
    tokenizer: PreTrainedTokenizerBase,
    sampling: BenchmarkSampling,
    batch_size: int,
    progress: Progress | None,
) -> None:
    path = out / store.GENERATIONS
    done = {(row["id"], row["sample"]) for row in store.read_lines(path)}
    if progress is not None:
        progress(0, len(requests))
    with store.LineWriter(path) as writer:
        for start in range(0, len(requests), batch_size):
            batch = requests[start : start + batch_size]
            if any((r.problem.id, r.sample) not in done for r in batch):
                rows = _answer(batch, engine, tokenizer, sampling)
                writer.write([row for row in rows if (row["id"], row["sample"]) not in done])
            if progress is not None:
                progress(min(start + batch_size, len(requests)), len(requests))


def _answer(
    batch: list[SampleRequest],
    engine: EvaluationEngine,
    tokenizer: PreTrainedTokenizerBase,
    sampling: BenchmarkSampling,
) -> list[dict[str, Any]]:
    completions = engine.generate([r.prompt_ids for r in batch], [r.seed for r in batch], sampling)
    return [
        {
            "id": request.problem.id,
            "sample": request.sample,
            "group": request.problem.group,
            "prompt": request.problem.prompt,
            "gold": request.problem.gold,
            "text": tokenizer.decode(completion.token_ids, skip_special_tokens=True),
            "tokens": len(completion.token_ids),
            "finish": completion.finish,
        }
        for request, completion in zip(batch, completions, strict=True)
    ]
