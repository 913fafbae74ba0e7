"""The lab's regimes and the methods run in each: overrides of base.yaml, the strict recipe's own keys.

A regime's overrides say how aggressive training is; a cell's say which method meets it. `control` names what a
cell is run beside, where it is no method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Override = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A method with its settings.

    random_rejection  CAPO's count of rejected tokens, but drawn at random: what the choice of tokens is worth
    """

    method: str
    objective: Override = field(default_factory=dict)
    train: Override = field(default_factory=dict)
    rollout: Override = field(default_factory=dict)
    random_rejection: bool = False


@dataclass(frozen=True)
class Regime:
    """A way to train, and the methods that meet it.

    own       the cells it is about, which the report draws together
    warmup    "plain" is the demo's; in "long_wrong" the teacher's wrong answers are twice as long; "real" is the chat
              model of recipes/real/make_model.py, in "real_sums" with rows that run.py writes
    base      the recipe whose keys it overrides
    held_out  what its evaluations on held-out prompts measure
    family    whether it stands in the table of the family on the sort task
    """

    about: str
    overrides: Override
    cells: Mapping[str, Cell]
    own: tuple[str, ...]
    warmup: Literal["plain", "long_wrong", "real", "real_sums"] = "plain"
    base: str = "base.yaml"
    held_out: Literal["eval_accuracy", "eval_reward"] = "eval_accuracy"
    family: bool = True


ADAPTIVE = {"low": [0.8, 0.9, 0.02], "high": [1.2, 2.0, 0.05], "target": 0.5}
SIZED = {"rho": 1.16}  # the paper's rho .58 of log2 G, for G = 4
FILL_IN = {"selective": "degenerate", "gamma": 20.0, "rho": 0.3}

CALIBRATED = {"calibrate": True, "calibration_steps": 8, "calibration_holds": True}

FOLLOWING = {**CALIBRATED, "calibration_follows": True}
SPARING = {**FOLLOWING, "target_rejection": 0.01}

FAMILY = {
    "grpo": Cell("grpo"),
    "dr_grpo": Cell("dr_grpo"),
    "dapo": Cell("dapo"),
    "gspo": Cell("gspo"),
    "cispo": Cell("cispo"),
    "reinforce": Cell("reinforce"),
    "bnpo": Cell("bnpo"),
    "bapo": Cell("bapo", ADAPTIVE),
    "copo": Cell("copo"),
    "capo": Cell("capo", CALIBRATED),
}
# Departures from the published forms, looked for beside GRPO (docs/stability.md, "Variants")
BALANCE = {"counted": "gradient", "low": [0.8, 0.98, 0.02], "high": [1.2, 2.0, 0.05]}
BAPO_VARIANTS = {
    "bapo_gradient_55": Cell("bapo", {**BALANCE, "target": 0.55}),
    "bapo_gradient_60": Cell("bapo", {**BALANCE, "target": 0.6}),
    # where bapo_gradient_60's bounds lie on average
    "fixed_narrow_low": Cell("dapo", {"clip_low": 0.03, "clip_high": 1.0}),
}
CAPO_VARIANTS = {
    "capo_scale_20": Cell("capo", {**FOLLOWING, "excess": "scale", "target_rejection": 0.2}),
    "capo_scale_50": Cell("capo", {**FOLLOWING, "excess": "scale", "target_rejection": 0.5}),
    "capo_off": Cell("capo", {"objective_threshold": 0.0, "policy_threshold": 0.0}),  # GRPO, metered
}
BNPO_VARIANTS = {
    "bnpo_matched": Cell("bnpo", {"aggregate": "per_response", "match_scale": True}),
    **{
        f"bnpo_{a}_{b}": Cell(
            "bnpo", {"aggregate": "per_response", "match_scale": True, "fixed_shape": [a, b]}
        )
        for a, b in ((2.0, 2.0), (1.0, 2.0))
    },
}
CAPO_FORMS = {"capo_follows": Cell("capo", FOLLOWING), "capo_1_percent": Cell("capo", SPARING)}
CLIPPED = {
    **FAMILY,
    "bapo_paper": Cell("bapo"),
    "fixed_wide": Cell(
        "dapo", {"clip_low": 0.1, "clip_high": 1.0}
    ),  # what BAPO is when its bounds do not move
}
AGGRESSIVE = {
    "capo_sgd_model": Cell("capo", {"optimizer_model": "sgd", **CALIBRATED}),
    "capo_random": Cell("capo", CALIBRATED, random_rejection=True),
    "grpo_clip_0.2": Cell("grpo", train={"max_grad_norm": 0.2}),
}
SGD = {"optimizer_model": "sgd", **CALIBRATED}

CLIP = ("dapo", "fixed_wide", "bapo", "bapo_paper")

# a writing request has no final answer whose agreement COPO could count: its cells are in real_sums
REAL = {name: CLIPPED[name] for name in ("grpo", "dapo", "gspo", "bnpo", "bapo", "fixed_wide", "capo")}
REUSED = {"train.num_iterations": 4, "train.max_steps": 64, "train.eval_steps": 4}

CHOOSING_SEEDS = (10, 11)
"""Seeds that departures are chosen on; the tables of methods leave them out."""

# Departures and what they are held against, by regime; the first is the reference.
VARIANTS: dict[str, tuple[str, ...]] = {
    "reuse8_1e-4": (
        *("grpo", "gspo", "fixed_wide", "fixed_narrow_low"),
        *("bapo", "bapo_paper", "bapo_gradient_55", "bapo_gradient_60"),
    ),
    "plain_sgd": (
        *("grpo", "dr_grpo", "grpo_clip_1.4", "grpo_clip_0.2"),
        *("capo", "capo_random", "capo_scale_20", "capo_scale_50"),
    ),
    "aggressive_adamw_5e-4": (
        *("grpo", "grpo_clip_0.2"),
        *("capo", "capo_1_percent", "capo_random", "capo_scale_20", "capo_scale_50"),
    ),
    "degenerate": ("grpo", "copo", "copo_sized", "copo_fill_in"),
    "degenerate_2": ("grpo", "copo", "copo_fill_in"),
    "on_policy": ("grpo", "bnpo", "bnpo_per_response", "bnpo_matched", "bnpo_2.0_2.0", "bnpo_1.0_2.0"),
}

REGIMES: dict[str, Regime] = {
    "on_policy": Regime(
        "one update per rollout, learning rate 1e-4",
        {"train.max_steps": 120, "train.eval_steps": 5},
        {
            **FAMILY,
            **CAPO_FORMS,
            # GRPO's divisor, so that gradients compare
            "bnpo_per_response": Cell("bnpo", {"aggregate": "per_response"}),
            **BNPO_VARIANTS,
            **CAPO_VARIANTS,
        },
        ("reinforce", "bnpo", "bnpo_per_response", "capo_follows"),
    ),
    "reuse8_1e-4": Regime(
        "eight updates per rollout, learning rate 1e-4",
        {"train.num_iterations": 8, "train.max_steps": 240, "train.eval_steps": 16},
        {**CLIPPED, **CAPO_FORMS, **BAPO_VARIANTS, **CAPO_VARIANTS},
        CLIP,
    ),
    "reuse8_3e-4": Regime(
        "eight updates per rollout, learning rate 3e-4",
        {
            "train.num_iterations": 8,
            "train.max_steps": 240,
            "train.eval_steps": 16,
            "train.learning_rate": 3e-4,
        },
        CLIPPED,
        CLIP,
    ),
    "stale": Regime(
        "a rollout of 1024 responses trained on in eight steps, learning rate 1e-4",
        {"train.steps_per_generation": 8, "train.max_steps": 120},
        {**CLIPPED, **BAPO_VARIANTS},
        CLIP,
    ),
    "long_wrong": Regime(
        "wrong answers twice as long as right ones, eight updates per rollout, learning rate 1e-4",
        {
            "train.num_iterations": 8,
            "train.max_steps": 240,
            "train.eval_steps": 16,
            "rollout.max_new_tokens": 16,
        },
        {**CLIPPED, **BAPO_VARIANTS},
        CLIP,
        warmup="long_wrong",
    ),
    "aggressive_adamw": Regime(
        "one update per rollout, learning rate 8e-4, AdamW: plain GRPO ends below its start",
        {"train.max_steps": 120, "train.learning_rate": 8e-4},
        {**FAMILY, **AGGRESSIVE},
        ("capo", *AGGRESSIVE),
    ),
    "aggressive_adamw_5e-4": Regime(
        "one update per rollout, learning rate 5e-4, AdamW: plain GRPO learns, and loses some of it again",
        {"train.max_steps": 120, "train.learning_rate": 5e-4},
        {"grpo": FAMILY["grpo"], "capo": FAMILY["capo"], **CAPO_FORMS, **AGGRESSIVE, **CAPO_VARIANTS},
        ("capo", "capo_follows", "capo_random", "capo_sgd_model", "grpo_clip_0.2"),
    ),
    "plain_sgd": Regime(
        "one update per rollout, plain SGD at .06, gradients not clipped",
        {
            "train.max_steps": 120,
            "train.learning_rate": 0.06,
            "train.optim": "sgd",
            "train.max_grad_norm": 0.0,
        },
        {
            **{name: cell for name, cell in FAMILY.items() if cell.method != "capo"},
            "capo": Cell("capo", SGD),
            "capo_random": Cell("capo", SGD, random_rejection=True),
            "grpo_clip_1.4": Cell("grpo", train={"max_grad_norm": 1.4}),
            "grpo_clip_0.2": Cell("grpo", train={"max_grad_norm": 0.2}),  # the mean norm under capo_scale_50
            **{
                f"capo_scale_{share}": Cell(
                    "capo", {**SGD, "excess": "scale", "target_rejection": share / 100}
                )
                for share in (20, 50)
            },
            "capo_off": Cell(
                "capo", {"optimizer_model": "sgd", "objective_threshold": 0.0, "policy_threshold": 0.0}
            ),
        },
        ("capo", "capo_random", "grpo_clip_1.4"),
    ),
    "degenerate": Regime(
        "32 prompts x 4: most groups have equal rewards; learning rate 1e-4",
        {"train.max_steps": 120, "rollout.group_size": 4},
        {
            **FAMILY,
            "copo_sized": Cell("copo", SIZED),
            "copo_fill_in": Cell("copo", FILL_IN),
            # it draws up to four times the samples a step: 60 steps are more than the regime's samples
            "grpo_resample": Cell(
                "grpo",
                train={"max_steps": 60, "eval_steps": 4},
                rollout={"resample": {"until": "unequal", "max_rounds": 4, "on_short": "train"}},
            ),
            **BNPO_VARIANTS,
        },
        ("copo", "copo_sized", "copo_fill_in"),
    ),
    "degenerate_2": Regime(
        "64 prompts x 2: nearly all groups have equal rewards; learning rate 1e-4",
        {"train.max_steps": 120, "rollout.group_size": 2},
        {
            "grpo": FAMILY["grpo"],
            "copo": FAMILY["copo"],
            "copo_fill_in": Cell("copo", FILL_IN),
            "reinforce": FAMILY["reinforce"],
        },
        ("copo", "copo_fill_in"),
        family=False,
    ),
    "real": Regime(
        "SmolLM2-135M-Instruct on instructions, all weights, four updates per rollout, learning rate 2e-5",
        REUSED,
        REAL,
        CLIP,
        warmup="real",
        base="real.yaml",
        held_out="eval_reward",
        family=False,
    ),
    "real_lora": Regime(
        "SmolLM2-135M-Instruct on instructions, LoRA of rank 16, four updates per rollout, learning rate 2e-4",
        {**REUSED, "train.learning_rate": 2e-4, "model.peft": {"r": 16, "alpha": 32}},
        REAL,
        CLIP,
        warmup="real",
        base="real.yaml",
        held_out="eval_reward",
        family=False,
    ),
    "real_sums": Regime(
        "SmolLM2-135M-Instruct on small sums, all weights, one update per rollout, learning rate 1e-5",
        {},
        {
            **{name: FAMILY[name] for name in ("grpo", "dapo", "bnpo", "copo")},
            "copo_fill_in": Cell("copo", FILL_IN),
        },
        ("grpo", "copo", "copo_fill_in"),
        warmup="real_sums",
        base="real_sums.yaml",
        held_out="eval_reward",
        family=False,
    ),
}
