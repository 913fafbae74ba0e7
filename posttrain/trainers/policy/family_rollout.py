"""The rollouts of a family of policies (`beta_family`): rows with a prefix, the reference without it, an account of
each value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posttrain.settings.beta_family import CONFIG_KEY, METRICS, BetaFamily
from posttrain.trainers.engines.rollouts import Rollouts
from posttrain.trainers.forward.base import Rows

COLUMN = "beta_value"
"""Of the trainer's rows, and of its buffer: the coefficient whose policy is asked."""


class FamilyHost(Protocol):
    """What a family reads of its trainer. The names are TRL's, but for `rollouts` and `judge`."""

    args: Any
    model: Any
    ref_model: Any
    rollouts: Rollouts
    judge: Any
    accelerator: Any
    processing_class: Any
    _metrics: Any


class FamilyRollout:
    """The family of a trainer, or none: then it does nothing.

    rows  this rank's rows of the rollout in hand, in their order
    """

    def __init__(self, host: FamilyHost, args: Any) -> None:
        self.host = host
        self.family = (
            None if args.beta_family is None else BetaFamily.of(args.beta_family, args.beta_prefixes)
        )
        self.rows: Sequence[Mapping[str, Any]] = []

    def rows_of(self, train: Any, held_out: Any) -> tuple[Any, Any]:
        """The trainer's rows: each prompt of training once for each value, the held-out ones in turn."""
        if self.family is None:
            return train, held_out
        return family_rows(train, self.family), None if held_out is None else family_rows(
            held_out, self.family, in_turn=True
        )

    def begin(self) -> None:
        """Once the trainer is made. Raises ValueError where it cannot tell its members apart, or not ask its reference
        alone; writes the family into the model's config, which is saved with it."""
        if self.family is None:
            return
        if self.host.ref_model is None:
            raise ValueError(
                "beta_family: the reference is asked without the prefix, and an adapter's is its own base, which is "
                "not held by itself; train the whole model"
            )
        if self.host.judge.drifts:
            raise ValueError(
                "beta_family does not go with drift_penalty, which reads the policy without its prefix"
            )
        tokenizer = self.host.processing_class
        if (fault := prefix_fault(tokenizer, self.family)) is not None:
            raise ValueError(fault)
        config = self.host.accelerator.unwrap_model(self.host.model).config
        setattr(config, CONFIG_KEY, self.family.for_config())

    @property
    def metrics(self) -> list[str]:
        """Names of what an evaluation logs of it."""
        values = () if self.family is None else self.family.values
        return [f"{METRICS}{value:g}/{what}" for value in values for what in ("share", "reward")]

    # The rollout in hand

    def plain_prompts(self, inputs: Sequence[Mapping[str, Any]], prompts: list[Any]) -> list[Any]:
        """The prompts as rewards read them: without the prefix."""
        if self.family is None:
            return prompts
        return [self.family.plain(prompt, row[COLUMN]) for prompt, row in zip(prompts, inputs, strict=True)]

    def for_reference(self, model: Any, rows: Rows) -> Rows:
        """The rows in hand as `model` scores them: the reference reads the prompts without the prefix."""
        if self.family is None or model is not self.host.ref_model:
            return rows
        asked = self.plain_prompts(self.rows, [row["prompt"] for row in self.rows])
        ids = self.host.rollouts.prompts_of(
            [{**row, "prompt": p} for row, p in zip(self.rows, asked, strict=True)]
        )
        prompts, mask = _left_padded(ids, rows.prompt_ids)
        return replace(rows, prompt_ids=prompts, prompt_mask=mask, groups=None)

    def factors(self, beta: float, output: dict[str, Any]) -> Tensor:
        """Of each of this rank's responses its coefficient over `beta`. (B,). Leaves the coefficients in `output`."""
        values = [float(row[COLUMN]) for row in self.rows]
        output[COLUMN] = torch.tensor(values, dtype=torch.float64, device=output["completion_ids"].device)
        return output[COLUMN] / beta

    def masks(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """beta_family/VALUE/kl -> which rows of a micro-batch are of that value. (B, 1) each."""
        if self.family is None:
            return {}
        of = inputs[COLUMN].unsqueeze(1)
        return {f"{METRICS}{self.family.name(one)}/kl": of == one for one in self.family.values}

    def account(self, mode: str) -> None:
        """Logs share and mean reward of each value in the rollout of all ranks that was judged last."""
        if self.family is None:
            return
        judge = self.host.judge
        rewards = judge.groups(1).rewards
        of = torch.tensor(judge.last().columns[COLUMN], dtype=torch.float64, device=rewards.device)
        for value in self.family.values:
            mine = rewards.reshape(-1)[of == value]
            name = f"{METRICS}{self.family.name(value)}"
            self.host._metrics[mode][f"{name}/share"].append(len(mine) / max(1, len(of)))
            if len(mine) and not bool(mine.isnan().all()):
                self.host._metrics[mode][f"{name}/reward"].append(float(mine.nanmean()))


def family_rows(rows: Any, family: BetaFamily, *, in_turn: bool = False) -> Any:
    """Each row once for each value, its prompt with that prefix; in_turn: each row once, its value by its place."""
    if isinstance(rows, Mapping):
        return {name: family_rows(one, family, in_turn=in_turn) for name, one in rows.items()}
    if not isinstance(rows, Dataset):
        raise ValueError(
            f"beta_family: rows are doubled by their number, and {type(rows).__name__} has none; give a Dataset"
        )
    count = len(family.values)
    places = range(len(rows)) if in_turn else [at for at in range(len(rows)) for _ in range(count)]
    values = [family.values[at % count] for at in range(len(places))]
    chosen = rows.select(places)
    prompts = [family.prefixed(prompt, value) for prompt, value in zip(chosen["prompt"], values, strict=True)]
    if COLUMN in chosen.column_names:
        chosen = chosen.remove_columns(COLUMN)
    # a data set without a column has no rows: the prompt goes when there is another
    return chosen.add_column(COLUMN, values).remove_columns("prompt").add_column("prompt", prompts)


def prefix_fault(tokenizer: Any, family: BetaFamily) -> str | None:
    """Why a tokenizer cannot tell the prefixes apart."""
    text = getattr(tokenizer, "tokenizer", tokenizer)
    ids = [text(prefix, add_special_tokens=False)["input_ids"] for prefix in family.prefixes]
    for prefix, one in zip(family.prefixes, ids, strict=True):
        if not one or (text.unk_token_id is not None and text.unk_token_id in one):
            return (
                f"beta_prefixes: the tokenizer has no tokens for {prefix!r}; give prefixes it knows, one for each "
                "coefficient"
            )
    if len(set(map(tuple, ids))) < len(ids):
        return f"beta_prefixes: {list(family.prefixes)}: two are the same tokens; give others"
    return None


def _left_padded(ids: Sequence[Sequence[int]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, S), padded on the left. What stands under a mask of 0 is read by no layout."""
    rows = [torch.tensor(list(one), dtype=like.dtype, device=like.device) for one in ids]
    padded = pad_sequence(rows, batch_first=True, padding_value=0, padding_side="left")
    ones = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return padded, ones
