"""The one list of methods: the name in a recipe, what kind of learning it is, and where its parts live.

No torch here: the table is read to list the methods. A new method is one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal

from posttrain.settings import Settings

Family = Literal["sft", "policy", "preference", "diffusion", "image_sft", "images"]


@dataclass(frozen=True)
class Method:
    """`settings` is the frozen dataclass behind the recipe's `objective:` section, `trainer` what trains it;
    both as "module:name", so that nothing is imported before it is needed."""

    name: str
    family: Family
    settings: str
    trainer: str
    summary: str

    def load_settings(self) -> Any:
        return load(self.settings)

    def load_trainer(self) -> Any:
        return load(self.trainer)


def load(path: str) -> Any:
    """The object at "module:name"."""
    module, name = path.split(":")
    return getattr(import_module(module), name)


_ROOMS: dict[Family, tuple[str, str]] = {
    "policy": ("objectives", "policy"),
    "preference": ("preferences", "preference"),
    "diffusion": ("objectives", "masked"),
    "images": ("objectives", "flow"),
}
"""Family -> the room of its methods' files, and the wing of `trainers/` that makes their trainers."""


def _listed(family: Family, name: str, cls: str, summary: str) -> Method:
    """A method whose trainer is made from this list."""
    room, wing = _ROOMS[family]
    settings, trainer = f"posttrain.{room}.{name}:{cls}", f"posttrain.trainers.{wing}.bindings:{cls}Trainer"
    return Method(name, family, settings, trainer, summary)


METHODS: dict[str, Method] = {
    m.name: m
    for m in [
        Method(
            "sft",
            "sft",
            "posttrain.preferences.sft:SFTSettings",
            "posttrain.trainers.preference.sft:SFTTrainer",
            "supervised fine-tuning",
        ),
        _listed("policy", "grpo", "GRPO", "group-relative policy optimisation"),
        _listed("policy", "dr_grpo", "DrGRPO", "GRPO without its length and difficulty bias"),
        _listed("policy", "dapo", "DAPO", "clip-higher and a token-level loss"),
        _listed("policy", "gspo", "GSPO", "one importance ratio per response"),
        _listed("policy", "cispo", "CISPO", "clipped importance weights, no token loses its gradient"),
        _listed("policy", "reinforce", "REINFORCE", "group baseline, no ratio clip"),
        _listed("policy", "rloo", "RLOO", "whole responses against the mean of the others"),
        _listed(
            "policy",
            "reinforce_pp",
            "REINFORCEPlusPlus",
            "advantages normalised over the batch, KL in the reward",
        ),
        Method(
            "ppo",
            "policy",
            "posttrain.objectives.ppo:PPO",
            "posttrain.trainers.policy.ppo_trainer:PPOTrainer",
            "a critic's values and GAE instead of a group's mean",
        ),
        Method(
            "ppo_max",
            "policy",
            "posttrain.objectives.ppo_max:PPOMax",
            "posttrain.trainers.policy.ppo_trainer:PPOMaxTrainer",
            "PPO with normalised, clipped rewards and a critic that learns first",
        ),
        Method(
            "opd",
            "policy",
            "posttrain.objectives.opd:OPD",
            "posttrain.trainers.policy.opd_trainer:OPDTrainer",
            "on-policy distillation: a teacher's opinion of each token that the policy samples",
        ),
        _listed(
            "policy",
            "online_dpo",
            "OnlineDPO",
            "DPO on pairs that the policy samples and the rewards judge, with PARL's term as an option",
        ),
        _listed("policy", "sapo", "SAPO", "a soft gate on each token's ratio instead of a clip"),
        _listed("policy", "gdpo", "GDPO", "several rewards, each normalised by itself before the sum"),
        _listed("policy", "bapo", "BAPO", "adaptive clipping bounds"),
        _listed("policy", "bnpo", "BNPO", "Beta-normalised advantages"),
        _listed(
            "policy",
            "copo",
            "COPO",
            "consistency-aware: local and global advantages blended by answer entropy",
        ),
        _listed("policy", "capo", "CAPO", "curvature-aware token rejection"),
        Method(
            "mdlm_sft",
            "sft",
            "posttrain.objectives.mdlm_sft:MaskedSFT",
            "posttrain.trainers.masked.sft:MaskedSFTTrainer",
            "diffusion: supervised fine-tuning by the ELBO",
        ),
        _listed(
            "diffusion",
            "bgpo",
            "BGPO",
            "diffusion: a bound of the objective, one pass's memory for any sample size",
        ),
        _listed("diffusion", "vrpo_ol", "VRPOOL", "diffusion: ratio of ELBO estimates, in two passes"),
        _listed("diffusion", "diffu_grpo", "DiffuGRPO", "diffusion: GRPO on a fully masked response"),
        _listed("diffusion", "coupled_grpo", "CoupledGRPO", "diffusion: GRPO on complementary masks"),
        Method(
            "flow_sft",
            "image_sft",
            "posttrain.objectives.flow_sft:FlowSFT",
            "posttrain.trainers.flow.flow_sft_trainer:FlowSFTTrainer",
            "images: supervised training of a flow model by flow matching",
        ),
        Method(
            "diffusion_dpo",
            "image_sft",
            "posttrain.preferences.diffusion_dpo:DiffusionDPO",
            "posttrain.trainers.flow.diffusion_dpo_trainer:DiffusionDPOTrainer",
            "images: DPO on pairs of images, by a denoiser's errors",
        ),
        Method(
            "seppo_diffusion",
            "image_sft",
            "posttrain.preferences.seppo_diffusion:SePPODiffusion",
            "posttrain.trainers.flow.seppo_diffusion_trainer:SePPODiffusionTrainer",
            "images: rounds of diffusion_dpo on good images against samples of past checkpoints",
        ),
        _listed("images", "flow_grpo", "FlowGRPO", "images: GRPO on the steps of a flow model made random"),
        _listed(
            "images",
            "grpo_guard",
            "GRPOGuard",
            "images: Flow-GRPO with ratios that a clip bounds at every step",
        ),
        Method(
            "salsa",
            "policy",
            "posttrain.references.salsa:SALSA",
            "posttrain.trainers.policy.salsa_trainer:SALSATrainer",
            "a policy objective pulled towards a soup of SFT models",
        ),
        Method(
            "reward_model",
            "preference",
            "posttrain.preferences.reward_model:RewardModel",
            "posttrain.trainers.preference.reward_trainer:RewardModelTrainer",
            "a reward from pairs, for the methods that learn from rewards",
        ),
        Method(
            "kto",
            "preference",
            "posttrain.preferences.kto:KTO",
            "posttrain.trainers.preference.kto_trainer:KTOTrainer",
            "single answers, marked good or bad, against a reference point",
        ),
        _listed("preference", "dpo", "DPO", "direct preference optimisation"),
        _listed("preference", "ipo", "IPO", "a squared target instead of DPO's logistic"),
        _listed("preference", "simpo", "SimPO", "no reference, token-mean rewards and a margin"),
        _listed("preference", "hinge", "Hinge", "DPO's margin under a hinge"),
        Method(
            "drift",
            "preference",
            "posttrain.preferences.drift:DRIFT",
            "posttrain.trainers.staged.drift:DRIFTTrainer",
            "iterations of DPO on answers sampled after a complaint, against the logged bad ones",
        ),
        Method(
            "seppo",
            "preference",
            "posttrain.preferences.seppo:SePPO",
            "posttrain.trainers.staged.seppo:SePPOTrainer",
            "rounds of DPO against samples of past checkpoints, flipped where those are good",
        ),
        Method(
            "itool",
            "preference",
            "posttrain.preferences.itool:ITool",
            "posttrain.trainers.staged.itool:IToolTrainer",
            "calls of tools: SimPO on steps of a tree that the policy searches and judges, of the rows it is worst at",
        ),
        _listed("preference", "rpo", "RPO", "DPO with an imitation term against overoptimisation"),
    ]
}


def bases_of(cls: type[Settings]) -> dict[str, type[Settings]]:
    """The methods that a method can be built on, by name; {} where it is built on none."""
    if cls.built_on is None:
        return {}
    listed = {name: method.load_settings() for name, method in METHODS.items() if method.family == "policy"}
    asked = cls.built_on.asks
    return {name: base for name, base in listed.items() if base is not cls and getattr(base, asked)}


def with_inner(settings: Settings, place: str = "objective") -> Iterator[tuple[str, Settings]]:
    """Settings and their place in a recipe, then those of the method they are built on, and so on."""
    yield place, settings
    inner = settings.inner()
    if inner is not None:
        built_on = inner_class(type(settings), inner.method)(**inner.values)
        yield from with_inner(built_on, f"{place}.{inner.field}")


def inner_class(cls: type[Settings], name: str) -> type[Settings]:
    """The settings class of the method `name` that `cls` is built on. ValueError where it cannot be."""
    bases = bases_of(cls)
    if name not in bases:
        chooser = "" if cls.built_on is None else f"{cls.built_on.chooser}: "
        hint = f"; did you mean {near[0]!r}?" if (near := get_close_matches(name, bases, 1)) else ""
        raise ValueError(f"{cls.__name__}: {chooser}'{name}' is none of {', '.join(bases)}{hint}")
    return bases[name]


NOT_HERE: dict[str, str] = {
    "reinforce_plus_plus": "it is written reinforce_pp",
    "remax": "reinforce has a group's mean as its baseline instead of a greedy response",
    "vapo": "ppo has its critic and critic_warmup; its lambda per length and its positive-example loss are not here",
    "bco": "kto learns from single answers too, marked good or bad",
    "apo_zero_unpaired": "it is kto with objective.reference_point: zero",
    "orpo": "simpo needs no reference model either; rpo adds an imitation term to dpo",
    "cpo": "simpo needs no reference model either; rpo adds an imitation term to dpo",
    "slic": "hinge is its loss on pairs",
    "iterative_dpo": "online_dpo samples its pairs anew for each rollout; seppo and drift between rounds of dpo",
    "oaif": "online_dpo is its method, with a recipe's rewards in place of an annotating model",
    "parl": "online_dpo with objective.parl_coef has its term, for a KL-regularised policy",
    "sail": "online_dpo with objective.parl_coef: 1 and pairs: drawn has its gradient",
    "spin": "seppo sets pairs against samples of past checkpoints",
    "sppo": "seppo sets pairs against samples of past checkpoints",
    "nash_md": "seppo sets pairs against samples of past checkpoints",
    "xpo": "seppo sets pairs against samples of past checkpoints",
    "tdpo": "dpo, with train.sync_ref_model for a reference that moves",
    "raft": "sample and sort with posttrain eval, then sft on what is kept",
    "rejection_sampling": "sample and sort with posttrain eval, then sft on what is kept",
    "best_of_n": "sample and sort with posttrain eval, then sft on what is kept",
    "reward": "it is written reward_model",
    "rm": "it is written reward_model",
    "prm": "reward_model scores whole answers; rewards of single steps are not trained here",
    "gkd": "opd is its on-policy part with the reverse KL; sft on a teacher's completions is its other end",
    "minillm": "opd has its reverse KL on the policy's samples, token by token",
    "distillation": "opd is on-policy distillation; sft learns a teacher's completions",
    "pretrain": "sft trains on given texts; pretraining is not here",
    "pt": "sft trains on given texts; pretraining is not here",
    "lora": "any method trains an adapter: write model.peft",
    "qlora": "any method trains an adapter: write model.peft",
    "gmpo": "gspo has one ratio per response, which is the geometric mean of its tokens'",
    "mdpo": "bgpo, vrpo_ol, coupled_grpo and diffu_grpo are the methods for masked diffusion",
    "d1": "diffu_grpo is its method",
    "vrpo": "vrpo_ol is the method for rewards, with the same estimate of the likelihood",
    "dream": "a model, not a method; bgpo, vrpo_ol, coupled_grpo and diffu_grpo train it",
    "ddpo": "flow_grpo and grpo_guard train flow models of images from rewards",
    "dancegrpo": "flow_grpo and grpo_guard train flow models of images from rewards",
    "spin_diffusion": "it is seppo_diffusion with objective.reference: latest and flip: none",
    "flow_matching": "it is written flow_sft",
    "llada": "a model, not a method; bgpo, vrpo_ol, coupled_grpo and diffu_grpo train it",
}
"""Names known from papers and other toolkits -> what it is to them that is here."""


def not_here(name: str) -> str:
    """ "'ppo' is not a method here: ...", or "" for a name that is not known either."""
    plain = name.lower().replace("+", "_plus").replace("-", "_").replace(" ", "_")
    word = NOT_HERE.get(plain) or NOT_HERE.get(plain.removesuffix("trainer").strip("_"))
    return "" if word is None else f"'{name}' is not a method here: {word}"
