"""Flat trainer configs: TRL's own arguments plus the settings of one method.

`BAPOConfig(output_dir="out", target=0.5)` reads like any TRL config. The settings stay declared once, in the
method's dataclass; `flat_config` copies them over and `settings_from` collects them again.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic.dataclasses import is_pydantic_dataclass
from trl import GRPOConfig

from posttrain.recipe.errors import suggest
from posttrain.settings.base import REQUIRED, checked, list_settings
from posttrain.settings.beta_family import family_beta
from posttrain.settings.run import balance_fault
from posttrain.settings.spelling import spell_type
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
    "multi_objective_aggregation": "GDPOTrainer normalises each reward by itself; the other methods sum first",
    "sapo_temperature_pos": "SAPOTrainer has it as gate_positive",
    "sapo_temperature_neg": "SAPOTrainer has it as gate_negative",
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
    reward_workers     worker processes per reward function; None: half the processors, four at most
    eval_temperature   sampling temperature of evaluation: 0 is greedy, None the one of training
    record_steps       optimizer steps whose micro-batches are saved for `posttrain replay`
    layout             how rows go through the model: "padded" as TRL does; "trimmed" to the longest of a micro-batch;
                       "shared", packed, each prompt once for its group; "auto": shared where the model can take it
    max_tokens_per_micro_batch  most tokens of one forward and backward; micro-batches that hold more are split into
                       groups of prompts, with the same loss and gradient. None: no limit
    beta_by            what the KL coefficient of a prompt follows: "pass_rate", the mean reward of its samples, or
                       "reference_entropy", its place among the prompts of the rollout, or "learned"; None: beta for all
    beta_low, beta_high  factors of beta where that is lowest and highest
    beta_model         file of the balance model that `beta_by="learned"` reads
    beta_family        KL coefficients that one policy is trained with, told by a prefix; beta is the largest
    beta_prefixes      what a prompt of each begins with; None: "[beta 0.1] " and the like
    """

    reward_timeout_s: float = field(default=30.0, metadata={"help": "Seconds one reward call may take."})
    reward_on_error: str = field(default="raise", metadata={"help": "'raise' or 'skip'."})
    reward_workers: int | None = field(
        default=None, metadata={"help": "Worker processes per reward function."}
    )
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
    beta_by: str | None = field(
        default=None, metadata={"help": "'pass_rate', 'reference_entropy' or 'learned'."}
    )
    beta_low: float = field(default=1.0, metadata={"help": "Factor of beta where that is lowest."})
    beta_high: float = field(default=1.0, metadata={"help": "Factor of beta where that is highest."})
    beta_model: str | None = field(default=None, metadata={"help": "File of the balance model."})
    beta_family: list[float] | None = field(
        default=None, metadata={"help": "KL coefficients of a family of policies."}
    )
    beta_prefixes: list[str] | None = field(default=None, metadata={"help": "A prompt's prefix for each."})

    def check_carried(self) -> None:
        """ValueError for an argument that only TRL's own loss body reads."""
        refuse_changed(self, {**_OWNED_BY_THE_OBJECTIVE, **_NOT_CARRIED}, GRPOConfig)

    def check_window(self) -> None:
        """ValueError where an optimizer step would mix two rollouts."""
        micro_batches = (self.steps_per_generation or self.gradient_accumulation_steps) * self.num_iterations
        if micro_batches % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation x num_iterations = {micro_batches} is not a multiple of "
                f"gradient_accumulation_steps = {self.gradient_accumulation_steps}: an optimizer step would mix two "
                "rollouts. Raise steps_per_generation or lower gradient_accumulation_steps."
            )

    def __post_init__(self) -> None:
        self.check_carried()
        if self.reward_on_error not in ("raise", "skip"):
            raise ValueError(f"reward_on_error is 'raise' or 'skip', not {self.reward_on_error!r}")
        if not self.reward_timeout_s > 0:
            raise ValueError(f"reward_timeout_s is a number of seconds above 0, not {self.reward_timeout_s}")
        if self.reward_workers is not None and self.reward_workers < 1:
            raise ValueError(f"reward_workers is 1 or more, or None, not {self.reward_workers}")
        if self.eval_temperature is not None and not 0 <= self.eval_temperature <= 100:
            raise ValueError(f"eval_temperature lies between 0 (greedy) and 100, not {self.eval_temperature}")
        self.beta = family_beta(self.beta, self.beta_family, self.beta_prefixes, self.beta_by)
        fault = balance_fault(self.beta, self.beta_by, self.beta_low, self.beta_high, self.beta_model)
        if fault is not None:
            raise ValueError(fault)
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, not {self.layout!r}")
        if self.max_tokens_per_micro_batch is not None and self.max_tokens_per_micro_batch < 1:
            raise ValueError(
                f"max_tokens_per_micro_batch is 1 or more, or None, not {self.max_tokens_per_micro_batch}"
            )
        super().__post_init__()


def flat_config(name: str, base: type[ConfigT], settings: type, module: str) -> type[ConfigT]:
    """A subclass of `base` with the fields of the frozen dataclass `settings` added as keyword arguments.

    A config checks itself when it is made: an unknown argument is a TypeError that names the nearest one, a setting
    out of range a ValueError. `made_of` lists the settings classes it has the fields of.

    Raises TypeError when a setting would shadow an argument of `base`.
    """
    taken = {f.name for f in dataclasses.fields(base)}  # type: ignore[arg-type]  # TRL configs are dataclasses
    own = fields_of(settings)
    clash = sorted(taken & {f.name for f in own})
    if clash:
        raise TypeError(f"{settings.__name__}: settings {clash} would shadow arguments of {base.__name__}")
    added = [(f.name, f.type, field(default=f.default, default_factory=f.default_factory)) for f in own]  # type: ignore[arg-type]  # one of the two is MISSING
    config = dataclasses.make_dataclass(name, added, bases=(base,))
    config.made_of = (*vars(base).get("made_of", ()), settings)  # type: ignore[attr-defined]  # the class is made here
    config.__doc__ = config_page(base, config.made_of)  # type: ignore[attr-defined]
    config.__module__ = (
        module  # from Python 3.12 on, make_dataclass puts its caller's there; a checkpoint pickles it
    )
    _check_when_made(config, settings)
    return config


def _check_when_made(config: Any, settings: type) -> None:
    plain = config.__init__
    names = [f.name for f in dataclasses.fields(config) if f.init]

    @functools.wraps(plain)
    def checked_init(self: Any, *arguments: Any, **named: Any) -> None:
        for name in named:
            if name not in names:
                near = (
                    suggest(name, names)
                    or f"; its own settings: {', '.join(f.name for f in fields_of(settings))}"
                )
                raise TypeError(f"{config.__name__}: no argument '{name}'{near}")
        plain(self, *arguments, **named)
        settings_from(self, settings)

    checked_init.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]  # help() and editors read it
    config.__init__ = checked_init


def fields_of(settings: type) -> list[dataclasses.Field[Any]]:
    """The settings that can be given."""
    return [f for f in dataclasses.fields(settings) if f.init]


def config_page(base: type, made_of: Sequence[type]) -> str:
    """What `help` shows of a config: each setting of the method, each of our own, with type, default and meaning."""
    page = []
    for settings in reversed(made_of):
        page += [f"Settings of {settings.__name__} ({settings.__module__}):", ""]
        if is_pydantic_dataclass(settings):
            for setting in list_settings(settings):
                page += _paragraph(
                    setting.name, spell_type(setting.annotation), setting.default, setting.meaning
                )
    static = next(cls for cls in base.__mro__ if "made_of" not in vars(cls))
    own = [f for f in fields_of(static) if f.name in vars(static).get("__annotations__", {})]
    page += [f"Of {static.__name__}:", ""] if own else []
    for one in own:
        default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        page += _paragraph(one.name, str(one.type), default, one.metadata.get("help", ""))
    upstream = next(cls for cls in base.__mro__ if not cls.__module__.startswith("posttrain."))
    return "\n".join([*page, f"All other arguments are {upstream.__module__}.{upstream.__name__}'s."])


def _paragraph(name: str, kind: str, default: Any, meaning: str) -> list[str]:
    said = "required" if default is REQUIRED else f"default {default!r}"
    indented = textwrap.indent(textwrap.fill(meaning, 96), "    ")
    return [f"{name}: {kind}, {said}", *([indented] if meaning else []), ""]


def settings_from(args: Any, settings: type[SettingsT]) -> SettingsT:
    """The method's settings, collected from a flat config. ValueError names a value that a recipe could not hold."""
    values = {f.name: vars(args)[f.name] for f in dataclasses.fields(settings) if f.init}  # type: ignore[arg-type]  # a dataclass
    if is_pydantic_dataclass(settings):
        return checked(settings, values, f"{settings.__name__}: ")
    return settings(**values)  # an objective of someone's own, as a plain dataclass
