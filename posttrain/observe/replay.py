"""`posttrain replay FILE --objective bapo --objective grpo --set bapo.target=0.5`

Computes one recorded optimizer step again on a CPU, for several objectives side by side: loss, gradient with
respect to the log-probs, masks, bounds. It uses the Objective protocol alone, in the trainer's order:
advantages, observe_step, keep, token_loss, reduce. The KL penalty and the entropy bonus, which the trainer
adds around an objective, are not part of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from posttrain.objectives.base import Objective, TokenBatch
from posttrain.objectives.logged_rows import logged_in_words, samples_only
from posttrain.objectives.step import StepResult, step_losses
from posttrain.objectives.streams import column, stream_rows
from posttrain.observe.reasons import CARRIED, REASONS
from posttrain.observe.recorder import Record, load_record
from posttrain.observe.signal import SignalCounts, account_objective
from posttrain.ops.logprobs import top_candidates
from posttrain.recipe.methods import METHODS
from posttrain.recipe.strict_yaml import parse
from posttrain.settings.base import checked


@dataclass(frozen=True)
class Replay:
    """What one objective makes of a recorded step.

    gradients   for each micro-batch (B, T): derivative of the step's loss with respect to the log-probs
    ratios      for each micro-batch (B, T)
    masks       for each micro-batch (B, T) bool: loss tokens the objective kept
    advantages  for each micro-batch (B, T), as the objective computed them
    signal      counts over the loss tokens
    bounds      (lowest lower, highest upper) bound over the micro-batches, or None where nothing clips
    """

    label: str
    loss: float
    gradients: list[Tensor]
    ratios: list[Tensor]
    masks: list[Tensor]
    advantages: list[Tensor]
    loss_tokens: int
    signal: SignalCounts
    bounds: tuple[float, float] | None
    metrics: dict[str, float]
    notes: list[str]

    @property
    def gradient(self) -> Tensor:
        """All entries of `gradients`, flat."""
        return torch.cat([g.flatten() for g in self.gradients])

    @property
    def kept_share(self) -> float:
        """Kept loss tokens over loss tokens."""
        return sum(int(m.sum()) for m in self.masks) / max(1, self.loss_tokens)


def replay_step(record: Record, objective: Objective, label: str) -> Replay:
    """Loss, gradient and masks of `objective` on every micro-batch found. ValueError where the record lacks
    what the objective reads."""
    notes = [*_check_needs(record, objective), *logged_in_words(record.batches)]
    if objective.reads_texts:
        notes.append(
            "texts beside (PPO-ptx) are not in a record: loss and gradient are those of the responses alone"
        )
    batches = [
        replace(batch, logprobs=batch.logprobs.detach().clone().requires_grad_())
        for batch in (_with_candidates(one, objective) for one in _with_advantages(record, objective, notes))
    ]
    results = _run_ranks(record, objective, batches)
    shares = [share for result in results for share in result.losses]
    masks = [mask for result in results for mask in result.masks]
    seen = [batch for result in results for batch in result.batches]
    loss = torch.stack(shares).sum()
    leaves = [batch.logprobs for batch in batches]
    if loss.requires_grad:
        gradients = list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
    else:
        gradients = [torch.zeros_like(leaf) for leaf in leaves]
    detached = [replace(batch, logprobs=batch.logprobs.detach()) for batch in seen]
    signal = SignalCounts.zero()
    for batch, mask, reasons in zip(detached, masks, _group_reasons(record), strict=True):
        dropped = (batch.mask > 0) & (mask == 0)
        signal = signal + account_objective(objective, batch, generated=batch.mask, keep=~dropped, **reasons)
    return Replay(
        label=label,
        loss=float(loss.detach()),
        gradients=gradients,
        ratios=[objective.ratio(b).expand_as(b.logprobs) for b in detached],
        masks=[mask > 0 for mask in masks],
        advantages=[objective.effective_advantages(b).expand_as(b.logprobs) for b in detached],
        loss_tokens=sum(int((b.mask > 0).sum()) for b in detached),
        signal=signal,
        bounds=_bounds(objective, detached),
        metrics=_mean_metrics(objective, detached),
        notes=notes,
    )


def _group_reasons(record: Record) -> list[dict[str, Tensor]]:
    """For each micro-batch the (B, 1) flags that only the rewards know: unjudged, and equal rewards in the group."""
    if record.groups is None or record.rows is None:
        return [{} for _ in record.batches]
    rewards = record.groups.rewards
    unjudged = rewards.isnan()
    highest, lowest = rewards.masked_fill(unjudged, -torch.inf), rewards.masked_fill(unjudged, torch.inf)
    equal = (highest.amax(1, keepdim=True) == lowest.amin(1, keepdim=True)).expand_as(rewards)
    flags = {"unjudged": unjudged.flatten(), "equal_rewards": equal.flatten()}
    return [{name: flag[row].unsqueeze(1) for name, flag in flags.items()} for row in record.rows]


def _run_ranks(record: Record, objective: Objective, batches: Sequence[TokenBatch]) -> list[StepResult]:
    """One optimizer step as the ranks ran it: each in a thread of its own, so that their sums can meet."""
    by_rank: list[list[TokenBatch]] = [[] for _ in record.ranks]
    for batch, rank in zip(batches, record.rank_of, strict=True):
        by_rank[record.ranks.index(rank)].append(batch)
    meeting = _Meeting(len(by_rank))

    def run(place: int) -> StepResult:
        try:
            return step_losses(
                objective,
                by_rank[place],
                max_completion_length=record.totals.max_completion_length,
                known=record.known,
                all_sum=lambda value: meeting.all_sum(place, value),
            )
        except BaseException:
            meeting.barrier.abort()  # the other threads must not wait for this one
            raise

    if len(by_rank) == 1:
        return [run(0)]
    with ThreadPoolExecutor(len(by_rank)) as pool:
        futures = [pool.submit(run, place) for place in range(len(by_rank))]
    errors = [e for e in (f.exception() for f in futures) if e is not None]
    for error in errors:
        if not isinstance(error, BrokenBarrierError):
            raise error
    return [future.result() for future in futures]


class _Meeting:
    """Sums a value over threads that play ranks."""

    def __init__(self, ranks: int) -> None:
        self.barrier = Barrier(ranks)
        self._values: list[Tensor | None] = [None] * ranks

    def all_sum(self, place: int, value: Tensor) -> Tensor:
        self._values[place] = value
        self.barrier.wait()
        total = torch.stack([v for v in self._values if v is not None]).sum(dim=0)
        self.barrier.wait()  # nobody writes the next value before all have read this one
        return total


_FORWARD_KEYS = {"hidden": ("hidden",), "candidates": ("actions", "candidate_ids", "candidate_logits")}


def _check_needs(record: Record, objective: Objective) -> list[str]:
    found = set.intersection(*(set(batch.forward) for batch in record.batches))
    missing = [need for need in sorted(objective.needs) if not found.issuperset(_FORWARD_KEYS[need])]
    if missing:
        left_out = f" (too large, left out: {', '.join(record.left_out)})" if record.left_out else ""
        raise ValueError(
            f"{type(objective).__name__} reads {' and '.join(missing)} of the forward pass, which the record does "
            f"not hold{left_out}; record a step of a run whose objective reads them"
        )
    if "candidates" in objective.needs:
        recorded = min(batch.forward["candidate_ids"].size(-1) for batch in record.batches)
        if objective.num_candidates > recorded:
            raise ValueError(
                f"{type(objective).__name__} wants {objective.num_candidates} candidates per token and the record "
                f"holds {recorded}; --set num_candidates to {recorded} or less"
            )
    if len(record.ranks) < record.world_size:
        return [f"ranks {record.ranks} of {record.world_size} found: sums are over these ranks alone"]
    return []


def _with_candidates(batch: TokenBatch, objective: Objective) -> TokenBatch:
    """The micro-batch with as many of the recorded candidates as the objective wants, the sampled id among them."""
    if "candidates" not in objective.needs:
        return batch
    forward, wanted = batch.forward, objective.num_candidates
    ids, logits, actions = (forward[name] for name in ("candidate_ids", "candidate_logits", "actions"))
    if ids.size(-1) == wanted:
        return batch
    rows, logits = ids.flatten(0, 1), logits.flatten(0, 1)
    sampled = (rows == actions.reshape(-1, 1)).int().argmax(dim=-1)  # its place among the recorded ones
    places, logits = top_candidates(logits, sampled, wanted)
    cut = {"candidate_ids": rows.gather(1, places), "candidate_logits": logits}
    shape = (*actions.shape, wanted)
    return replace(batch, forward={**forward, **{name: value.view(shape) for name, value in cut.items()}})


def _with_advantages(record: Record, objective: Objective, notes: list[str]) -> list[TokenBatch]:
    """The micro-batches with this objective's own advantages and streams, where the record allows it."""
    groups, rows = record.groups, record.rows
    if groups is None or rows is None:
        if objective.needs_answers:
            raise ValueError(f"{type(objective).__name__} needs rewards and answers, which the record lacks")
        notes.append("advantages as recorded: the record holds no rewards")
        return record.batches
    if objective.needs_answers and groups.answers is None:
        raise ValueError(
            f"{type(objective).__name__} needs final answers, but no reward of the recorded run yields them"
        )
    streams = objective.advantages(groups)
    batches = []
    for batch, row in zip(record.batches, rows, strict=True):
        width = batch.logprobs.size(1)
        own = {
            name: column(stream_rows(value, row, width)).to(batch.logprobs.dtype)
            for name, value in streams.items()
        }
        advantages = own.pop("advantages")
        batches.append(replace(batch, advantages=advantages, streams={**batch.streams, **own}))
    return batches


def _bounds(objective: Objective, batches: Sequence[TokenBatch]) -> tuple[float, float] | None:
    found = [bounds for batch in batches if (bounds := objective.clip_bounds(batch)) is not None]
    if not found:
        return None
    return (
        min(float(torch.as_tensor(low).min()) for low, _ in found),
        max(float(torch.as_tensor(high).max()) for _, high in found),
    )


def _mean_metrics(objective: Objective, batches: Sequence[TokenBatch]) -> dict[str, float]:
    values = [objective.metrics(samples_only(batch)) for batch in batches]
    return {
        name: float(torch.stack([torch.as_tensor(v[name]).float() for v in values]).mean())
        for name in values[0]
    }


# The command


def build_objective(name: str, settings: Mapping[str, Any]) -> Objective:
    """The objective NAME with the given settings; ValueError with the nearest name where one is unknown."""
    policies = [m.name for m in METHODS.values() if m.family == "policy"]
    if name not in policies:
        raise ValueError(f"no objective {name!r}{_nearest(name, policies)}; known: {', '.join(policies)}")
    cls = METHODS[name].load_settings()
    fields = [f.name for f in dataclasses.fields(cls)]
    for key in settings:
        if key not in fields:
            raise ValueError(f"{name} has no setting {key!r}{_nearest(key, fields)}")
    return checked(cls, settings, f"{name}.")


def replay_file(
    path: str | Path, wanted: Sequence[str], overrides: Sequence[str]
) -> tuple[Record, list[Replay]]:
    """`wanted` are `NAME` or `LABEL=NAME`, `overrides` `LABEL.SETTING=VALUE`; without `wanted` the recorded
    objective is replayed."""
    record = load_record(path)
    names = dict(_label(w) for w in (wanted or [record.objective]))
    if len(names) < len(wanted):
        raise ValueError("--objective: two of the same label; write LABEL=NAME, for instance wide=bapo")
    settings = _overrides(overrides, list(names))
    replays = []
    for label, name in names.items():
        # the bare name of the recorded objective means it as it ran; LABEL=NAME and others start at the defaults
        as_it_ran = label == name == record.objective
        objective = build_objective(name, {**(record.settings if as_it_ran else {}), **settings[label]})
        notes = [] if _take_up_state(objective, name, record) else ["running statistics start empty"]
        found = replay_step(record, objective, label)
        replays.append(replace(found, notes=[*found.notes, *notes]))
    return record, replays


def _take_up_state(objective: Objective, name: str, record: Record) -> bool:
    """Loads the recorded running statistics where they are of this objective; True also where it has none."""
    wanted = set(objective.state_dict())
    if not wanted:
        return True
    left_out = any(key.startswith("state/") for key in record.left_out)
    if name != record.objective or left_out or not wanted <= set(record.state):
        return False
    try:
        objective.load_state_dict({key: record.state[key] for key in wanted})
    except ValueError:  # of another base
        return False
    return True


def _label(text: str) -> tuple[str, str]:
    label, _, name = text.rpartition("=")
    return (label or name, name)


def _overrides(texts: Sequence[str], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {label: {} for label in labels}
    for text in texts:
        path, equals, value = text.partition("=")
        label, dot, key = path.partition(".")
        if not (equals and dot):
            raise ValueError(f"--set {text}: write OBJECTIVE.SETTING=VALUE, for instance bapo.target=0.5")
        if label not in found:
            raise ValueError(f"--set {text}: no --objective {label!r}{_nearest(label, labels)}")
        try:
            found[label][key] = parse(value)
        except ValueError as error:
            raise ValueError(f"--set {text}: the value cannot be read: {error}") from None
    return found


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def table_rows(replays: Sequence[Replay]) -> list[tuple[str, list[str]]]:
    """(quantity, one value an objective), empty quantities left out."""
    first = replays[0].gradient
    shares = [r.signal.shares() for r in replays]
    rows = [
        ("loss", [f"{r.loss:.6g}" for r in replays]),
        ("gradient norm", [f"{float(r.gradient.norm()):.4g}" for r in replays]),
        ("  on tokens pushed up", [f"{float(r.gradient.clamp(max=0).norm()):.4g}" for r in replays]),
        ("  on tokens pushed down", [f"{float(r.gradient.clamp(min=0).norm()):.4g}" for r in replays]),
        (f"cosine with {replays[0].label}", [f"{_cosine(r.gradient, first):.4f}" for r in replays]),
        (
            "ratio bounds",
            ["none" if r.bounds is None else "{:.4g} - {:.4g}".format(*r.bounds) for r in replays],
        ),
        ("loss tokens", [str(r.loss_tokens) for r in replays]),
        ("kept by the objective", [f"{r.kept_share:.2%}" for r in replays]),
        ("carried gradient", [f"{s[CARRIED]:.2%}" for s in shares]),
    ]
    for name in REASONS:
        if any(s[name] for s in shares):
            rows.append((f"  not: {name}", [f"{s[name]:.2%}" for s in shares]))
    for key in sorted({key for r in replays for key in r.metrics}):
        rows.append((key, [f"{r.metrics[key]:.5g}" if key in r.metrics else "" for r in replays]))
    return rows


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(
        torch.dot(a.double(), b.double()) / (a.double().norm() * b.double().norm()).clamp(min=1e-300)
    )


def plot(replays: Sequence[Replay], path: Path) -> None:
    """One panel an objective: each kept token's ratio against the push on its log-prob, with the bounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(replays), figsize=(1.2 + 3.6 * len(replays), 3.6), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, r in zip(axes[0], replays, strict=True):
        mask = torch.cat([m.flatten() for m in r.masks])
        push = -r.gradient[mask] * r.loss_tokens
        ratio = torch.cat([x.flatten() for x in r.ratios])[mask]
        for chosen, colour, name in (
            (push == 0, "#9ca3af", "no gradient"),
            (push > 0, "#2563eb", "pushed up"),
            (push < 0, "#d97706", "pushed down"),
        ):
            ax.plot(ratio[chosen], push[chosen], ".", color=colour, alpha=0.45, markersize=4, label=name)
        ends = ax.get_xlim()  # of the tokens: a bound far off must not squeeze them
        for bound in r.bounds or ():
            ax.axvline(bound, color="#6b7280", linestyle="--", linewidth=1)
        ax.set_xlim(ends)
        ax.axhline(0, color="#d1d5db", linewidth=0.8, zorder=0)
        ax.set_title(r.label, fontsize=11, loc="left")
        ax.set_xlabel("ratio to the rollout policy")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("push on the log-prob × loss tokens")
    axes[0][-1].legend(frameon=False, fontsize=8, loc="best")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file", help="a recorded step: step-XXXXXX.rankR.safetensors, or a folder with one step"
    )
    parser.add_argument(
        "--objective",
        action="append",
        default=[],
        metavar="[LABEL=]NAME",
        help="objective to replay, may be repeated; default: the recorded one",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="LABEL.SETTING=VALUE", help="a setting of one objective"
    )
    parser.add_argument("--plot", metavar="PNG", help="where the plot goes; default: FILE.replay.png")
    parser.add_argument("--no-plot", action="store_true", help="print the table only")


def main(args: Namespace) -> int:
    """Compute a recorded optimizer step again, on a CPU, under one objective or several side by side."""
    try:
        record, replays = replay_file(args.file, args.objective, args.set)
    except (ValueError, OSError) as error:
        print(f"posttrain replay: {error}", file=sys.stderr)
        return 2
    console = Console()
    tokens = f"{len(record.batches)} micro-batches, {replays[0].loss_tokens} loss tokens"
    table = Table(
        title=f"step {record.step}, recorded under {record.objective}: {tokens}", title_justify="left"
    )
    table.add_column("", no_wrap=True)
    for r in replays:
        table.add_column(r.label, justify="right")
    for name, values in table_rows(replays):
        table.add_row(name, *values)
    console.print(table)
    for r in replays:
        for note in r.notes:
            console.print(f"{r.label}: {note}", style="yellow", markup=False)
    if not args.no_plot:
        path = Path(args.plot) if args.plot else Path(args.file).with_suffix(".replay.png")
        plot(replays, path)
        console.print(f"plot: {path}", markup=False, soft_wrap=True)
    return 0
