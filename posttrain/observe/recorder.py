"""Saves the micro-batches of one optimizer step: any objective can then be replayed on them without a model.

One step is `step-XXXXXX.rankR.safetensors` (every tensor) beside a `.json` of the same name (what is not a
tensor), one pair a rank. No pickle: a record can be opened wherever it came from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.objectives.base import Groups, StepTotals, TokenBatch

FORMAT = 1
MAX_FORWARD_BYTES = 1 << 30  # per-token forward outputs beyond this are left out, and named in the record

_PLAIN = ("logprobs", "old_logprobs", "mask", "advantages", "ref_logprobs", "entropy", "logged", "shaping")
# what a forward pass gives; whatever an objective derived from it (`prepare`) would be stale in a replay
_FORWARD = {"hidden", "actions", "candidate_ids", "candidate_logits"}


@dataclass(frozen=True)
class Record:
    """One optimizer step: the micro-batches of every rank found.

    rows        for each micro-batch (B,) int64: index of each response in the flattened (P*G) groups, or None
                where the trainer gave none; then advantages cannot be computed again
    rank_of     for each micro-batch the rank it belongs to
    world_size  ranks the step had; `ranks` are those found
    state       the objective's state_dict before the step, as recorded
    known       what was known before `observe_step`: the numbers of `TokenBatch.step` ("learning_rate")
    """

    step: int
    objective: str
    settings: dict[str, Any]
    batches: list[TokenBatch]
    totals: StepTotals
    groups: Groups | None
    rows: list[Tensor] | None
    rank_of: list[int]
    world_size: int
    ranks: list[int]
    left_out: dict[str, int] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    known: dict[str, float] = field(default_factory=dict)


def record_step(
    folder: str | Path,
    step: int,
    batches: Sequence[TokenBatch],
    totals: StepTotals,
    objective_name: str,
    settings: Mapping[str, Any],
    *,
    groups: Groups | None = None,
    rows: Sequence[Tensor] | None = None,
    state: Mapping[str, Any] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Path:
    """Writes this rank's micro-batches of one optimizer step; returns the .safetensors path.

    groups  the whole global rollout batch the micro-batches were drawn from, needed to replay advantage rules
    rows    with `groups`: for each micro-batch (B,) the index p*G + g of each of its responses
    state   `objective.state_dict()` before the step: tensors, numbers and nested mappings of them
    """
    if rows is not None and len(rows) != len(batches):
        raise ValueError(f"record_step: {len(batches)} micro-batches, but rows for {len(rows)}")
    tensors: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        tensors |= _batch_tensors(f"batch{i}/", batch)
        if rows is not None:
            tensors[f"batch{i}/row"] = rows[i].reshape(-1).to(torch.int64)
    tensors["totals/num_tokens"] = totals.num_tokens
    tensors["totals/num_responses"] = totals.num_responses
    tensors |= {} if groups is None else _group_tensors(groups)
    state_tensors, state_json = _split_state(state or {})
    tensors |= state_tensors
    left_out = _too_large(tensors)
    about = {
        "format": FORMAT,
        "step": step,
        "objective": objective_name,
        "settings": dict(settings),
        "micro_batches": len(batches),
        "max_completion_length": totals.max_completion_length,
        "answers": None if groups is None or groups.answers is None else [list(a) for a in groups.answers],
        "rank": rank,
        "world_size": world_size,
        "known": {k: v for k, v in batches[0].step.items() if isinstance(v, int | float)} if batches else {},
        "left_out": left_out,
        "state": state_json,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.rank{rank}.safetensors"
    kept = {
        name: t.detach().cpu().contiguous().clone() for name, t in tensors.items() if name not in left_out
    }
    aside = path.with_suffix(".tmp")
    save_file(kept, aside)
    path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)  # last: a record whose tensors exist is whole
    return path


def _group_tensors(groups: Groups) -> dict[str, Tensor]:
    """What advantage rules read of the batch, but for answers, which are text, and a critic's values and their mask,
    which replay has no critic for."""
    found: dict[str, Tensor | None] = {
        "rewards": groups.rewards,
        "rewards_per_function": groups.rewards_per_function,
        "weights": groups.weights,
        "lengths": groups.lengths,
        "written": groups.written,
        "mask": groups.mask if groups.values is None else None,
        "token_kl": groups.token_kl,
        "beta": None if groups.token_kl is None else torch.tensor(groups.beta, dtype=torch.float64),
        "teacher_gap": groups.teacher_gap,
        "logged": groups.logged,
    }
    return {f"groups/{name}": tensor for name, tensor in found.items() if tensor is not None}


def load_record(path: str | Path) -> Record:
    """Reads a step from one of its files, joined with those of the other ranks that lie beside it.

    A folder is read when it holds a single step. FileNotFoundError or ValueError say what is wrong.
    """
    path = _pick(Path(path))
    stem = path.name.split(".rank")[0]
    files = sorted(path.parent.glob(f"{stem}.rank*.safetensors"), key=_rank_of)
    abouts, parts = [], []
    for file in files:
        abouts.append(json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
        parts.append(load_file(file))
    first = abouts[0]
    if first["format"] != FORMAT:
        raise ValueError(f"{path}: record format {first['format']}; this version reads format {FORMAT}")
    batches: list[TokenBatch] = []
    rows: list[Tensor] = []
    rank_of: list[int] = []
    for about, tensors in zip(abouts, parts, strict=True):
        for i in range(about["micro_batches"]):
            batches.append(replace(_batch_from(f"batch{i}/", tensors), step=about["known"], index=i))
            rank_of.append(about["rank"])
            if f"batch{i}/row" in tensors:
                rows.append(tensors[f"batch{i}/row"])
    head = parts[0]
    return Record(
        step=first["step"],
        objective=first["objective"],
        settings=first["settings"],
        batches=batches,
        totals=StepTotals(
            head["totals/num_tokens"], head["totals/num_responses"], first["max_completion_length"]
        ),
        groups=_groups_from(head, first["answers"]),
        rows=rows if len(rows) == len(batches) else None,
        rank_of=rank_of,
        world_size=first["world_size"],
        ranks=[about["rank"] for about in abouts],
        left_out={name: size for about in abouts for name, size in about["left_out"].items()},
        state=_join_state(first["state"], head),
        known=first["known"],
    )


def _batch_tensors(prefix: str, batch: TokenBatch) -> dict[str, Tensor]:
    fields = vars(batch)
    found = {prefix + name: fields[name] for name in _PLAIN if fields[name] is not None}
    found |= {f"{prefix}streams/{name}": value for name, value in batch.streams.items()}
    return found | {
        f"{prefix}forward/{name}": value for name, value in batch.forward.items() if name in _FORWARD
    }


def _batch_from(prefix: str, tensors: Mapping[str, Tensor]) -> TokenBatch:
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    def mapped(group: str) -> dict[str, Tensor]:
        return {name.removeprefix(group): t for name, t in own.items() if name.startswith(group)}

    return TokenBatch(
        logprobs=own["logprobs"],
        old_logprobs=own["old_logprobs"],
        mask=own["mask"],
        advantages=own["advantages"],
        ref_logprobs=own.get("ref_logprobs"),
        entropy=own.get("entropy"),
        logged=own.get("logged"),
        shaping=own.get("shaping"),
        streams=mapped("streams/"),
        forward=mapped("forward/"),
    )


def _groups_from(tensors: Mapping[str, Tensor], answers: list[list[str | None]] | None) -> Groups | None:
    if "groups/rewards" not in tensors:
        return None
    return Groups(
        tensors["groups/rewards"],
        tensors["groups/rewards_per_function"],
        tensors["groups/weights"],
        answers,
        lengths=tensors.get("groups/lengths"),
        token_kl=tensors.get("groups/token_kl"),
        beta=float(tensors.get("groups/beta", 0.0)),
        teacher_gap=tensors.get("groups/teacher_gap"),
        mask=tensors.get("groups/mask"),
        written=tensors.get("groups/written"),
        logged=tensors.get("groups/logged"),
    )


def _too_large(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Forward outputs and state, largest first, that exceed the limit together: name -> bytes."""
    sizes = {
        name: t.numel() * t.element_size()
        for name, t in tensors.items()
        if "/forward/" in name or name.startswith("state/")
    }
    left_out, total = {}, sum(sizes.values())
    for name in sorted(sizes, key=lambda n: sizes[n], reverse=True):
        if total <= MAX_FORWARD_BYTES:
            break
        left_out[name] = sizes[name]
        total -= sizes[name]
    return left_out


def _split_state(
    state: Mapping[str, Any], prefix: str = "state/"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a nested state by path, and the same nesting with `{"tensor": path}` in their places."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{key}"] = value
            plain[key] = {"tensor": f"{prefix}{key}"}
        elif isinstance(value, Mapping):
            inner, plain[key] = _split_state(value, f"{prefix}{key}/")
            tensors |= inner
        else:
            plain[key] = value
    return tensors, plain


def _join_state(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Inverse of `_split_state`; a tensor that was left out becomes None."""
    joined: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict) and set(value) == {"tensor"}:
            joined[key] = tensors.get(value["tensor"])
        else:
            joined[key] = _join_state(value, tensors) if isinstance(value, dict) else value
    return joined


def _rank_of(path: Path) -> int:
    return int(path.name.split(".rank")[1].split(".")[0])


def _pick(path: Path) -> Path:
    if path.is_dir():
        steps = sorted({file.name.split(".rank")[0] for file in path.glob("step-*.rank*.safetensors")})
        if len(steps) != 1:
            found = ", ".join(steps) if steps else "none"
            raise ValueError(f"{path}: a folder is replayed when it holds one recorded step; found: {found}")
        return next(iter(sorted(path.glob(f"{steps[0]}.rank*.safetensors"))))
    path = path.with_suffix(".safetensors")
    if not path.exists() or ".rank" not in path.name:
        raise FileNotFoundError(f"{path}: not a recorded step; expected step-XXXXXX.rankR.safetensors")
    return path
