"""Flat trainer configs: TRL's own arguments plus the settings of one method.

`BAPOConfig(output_dir="out", target=0.5)` reads like any TRL config. The settings stay declared once, in the
method's dataclass; `flat_config` copies them over and `settings_from` collects them again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic.dataclasses import is_pydantic_dataclass
from trl import GRPOConfig

from posttrain.settings.base import checked
from posttrain.trainers.seam.taken_over import refuse_changed

LAYOUTS = ("auto", "padded", "trimmed", "shared")

ConfigT = TypeVar("ConfigT")
SettingsT = TypeVar("SettingsT")

# What an objective decides here; as TRL options they would be read by nobody.
_OWNED_BY_THE_OBJECTIVE = {
    "loss_type": "choose the trainer of the method instead (GRPOTrainer, DAPOTrainer, ...)",
    "importance_sampling_level": "GSPOTrainer is the sequence-level method",
    "epsilon": "use the method's clip_low",
    "epsilon_high": "use the method's clip_high",
    "delta": "use the method's dual_clip",
    "scale_rewards": "use the method's own setting",
    "multi_objective_aggregation": "weights are summed, BNPO decomposes by itself",
    "sapo_temperature_pos": "SAPO is not one of the methods",
    "sapo_temperature_neg": "SAPO is not one of the methods",
    **dict.fromkeys(
        ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
        "VESPO is not one of the methods",
    ),
}
# Carried by TRL's own loss body only.
_NOT_CARRIED = {
    **dict.fromkeys(
        (
            "use_adaptive_entropy",
            "entropy_target",
            "entropy_coef_min",
            "entropy_coef_max",
            "entropy_coef_delta",
        ),
        "adaptive entropy control is not carried; use a constant entropy_coef",
    ),
    "use_liger_kernel": "the fused LM head already avoids the logits",
}


@dataclass
class PolicyConfig(GRPOConfig):
    """TRL's GRPOConfig for a `PolicyTrainer`, with what this project adds.

    reward_timeout_s   seconds one reward call may take before its group is given up
    reward_on_error    "raise" stops the run with the reward's traceback; "skip" leaves the group unjudged
    reward_workers     worker processes a reward function; None: half the processors, four at most
    eval_temperature   sampling temperature of evaluation: 0 is greedy, None the one of training
    record_steps       optimizer steps whose micro-batches are saved for `posttrain replay`
    layout             how rows go through the model: "padded" as TRL does; "trimmed" to the longest of a micro-batch;
                       "shared", packed, each prompt once for its group; "auto": shared where the model can take it
    max_tokens_per_micro_batch  most tokens of one forward and backward; micro-batches that hold more are split into
                       groups of prompts, with the same loss and gradient. None: no limit
    """

    reward_timeout_s: float = field(default=30.0, metadata={"help": "Seconds one reward call may take."})
    reward_on_error: str = field(default="raise", metadata={"help": "'raise' or 'skip'."})
    reward_workers: int | None = field(default=None, metadata={"help": "Worker processes a reward function."})
    eval_temperature: float | None = field(
        default=None,
        metadata={"help": "Sampling temperature of evaluation; 0 is greedy, None the training one."},
    )
    record_steps: list[int] = field(
        default_factory=list, metadata={"help": "Optimizer steps to save for `posttrain replay`."}
    )
    layout: str = field(default="auto", metadata={"help": "'auto', 'padded', 'trimmed' or 'shared'."})
    max_tokens_per_micro_batch: int | None = field(
        default=None, metadata={"help": "Most tokens of one forward and backward."}
    )

    def check_carried(self) -> None:
        """ValueError for an argument that only TRL's own loss body reads."""
        refuse_changed(self, {**_OWNED_BY_THE_OBJECTIVE, **_NOT_CARRIED}, GRPOConfig)

    def __post_init__(self) -> None:
        self.check_carried()
        if self.reward_on_error not in ("raise", "skip"):
            raise ValueError(f"reward_on_error is 'raise' or 'skip', not {self.reward_on_error!r}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, not {self.layout!r}")
        if self.max_tokens_per_micro_batch is not None and self.max_tokens_per_micro_batch < 1:
            raise ValueError(
                f"max_tokens_per_micro_batch is 1 or more, or None, not {self.max_tokens_per_micro_batch}"
            )
        super().__post_init__()


def flat_config(name: str, base: type[ConfigT], settings: type, module: str) -> type[ConfigT]:
    """A subclass of `base` with the fields of the frozen dataclass `settings` added as keyword arguments.

    Raises TypeError when a setting would shadow an argument of `base`.
    """
    taken = {f.name for f in dataclasses.fields(base)}  # type: ignore[arg-type]  # TRL configs are dataclasses
    own = [f for f in dataclasses.fields(settings) if f.init]
    clash = sorted(taken & {f.name for f in own})
    if clash:
        raise TypeError(f"{settings.__name__}: settings {clash} would shadow arguments of {base.__name__}")
    added = [(f.name, f.type, field(default=f.default, default_factory=f.default_factory)) for f in own]  # type: ignore[arg-type]  # one of the two is MISSING
    namespace = {
        "__doc__": f"{base.__name__} plus the settings of {settings.__name__} (see its docstring).",
    }
    config = dataclasses.make_dataclass(name, added, bases=(base,), namespace=namespace)
    config.__module__ = (
        module  # from Python 3.12 on, make_dataclass puts its caller's there; a checkpoint pickles it
    )
    return config


def settings_from(args: Any, settings: type[SettingsT]) -> SettingsT:
    """The method's settings, collected from a flat config. ValueError names a value that a recipe could not hold."""
    values = {f.name: vars(args)[f.name] for f in dataclasses.fields(settings) if f.init}  # type: ignore[arg-type]  # a dataclass
    if is_pydantic_dataclass(settings):
        return checked(settings, values, f"{settings.__name__}: ")
    return settings(**values)  # an objective of someone's own, as a plain dataclass
