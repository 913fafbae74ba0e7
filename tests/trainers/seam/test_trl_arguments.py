"""TRL's configs in our trainers: what means the same is taken over, what nobody would read is refused by name."""

from __future__ import annotations

import logging

import pytest
import transformers
import trl
from datasets import Dataset
from finite_runs import PAIRS
from tiny_run import arguments, judged, rows

import posttrain.trainers as trainers
from posttrain.recipe.methods import METHODS
from posttrain.trainers.preference.trainer import PreferenceConfig
from posttrain.trainers.seam.config import PolicyConfig
from posttrain.trainers.seam.taken_over import own_arguments

FAMILY = {
    "policy": trl.GRPOConfig,
    "preference": trl.DPOConfig,
    "diffusion": trl.GRPOConfig,
    "sft": trl.SFTConfig,
}


def config_of(method):
    name = METHODS[method].trainer.partition(":")[2].removesuffix("Trainer")
    return vars(trainers).get(f"{name}Config") or getattr(trainers, f"{name}Config")


def trl_config_of(method):
    return trl.KTOConfig if method == "kto" else FAMILY[METHODS[method].family]


def over(method, args):
    return own_arguments(
        METHODS[method].load_trainer(), args, config_of(method), trl_config_of(method), method
    )


def grpo(folder, **changes):
    return trl.GRPOConfig(**arguments(folder, **changes))


def pairs(folder, **changes):
    given = arguments(folder, per_device_train_batch_size=2, **changes)
    del given["num_generations"], given["max_completion_length"]
    return given


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in ("sft", "salsa") and METHODS[m].family in FAMILY]
)
def test_every_method_takes_over_what_it_shares_with_trl(method, tmp_path):
    trl_class = trl_config_of(method)
    given = trl_class(
        output_dir=str(tmp_path), learning_rate=0.125, use_cpu=True, bf16=False, report_to="none"
    )
    taken, own = over(method, given), config_of(method)(output_dir=str(tmp_path), use_cpu=True)
    assert type(taken) is type(own)
    assert taken.learning_rate == 0.125
    settings = set(vars(own)) - set(vars(given))
    assert {n: vars(taken)[n] for n in settings} == {n: vars(own)[n] for n in settings}
    assert not settings & set(vars(given))  # the user's own object is as it was


def test_what_means_the_same_becomes_a_setting(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        taken = over(
            "grpo",
            grpo(tmp_path, epsilon=0.1, scale_rewards=False, temperature=0.7, beta=0.01, num_generations=6),
        )
    assert (taken.clip_low, taken.clip_high, taken.scale) == (0.1, 0.1, "none")
    assert (taken.temperature, taken.beta, taken.num_generations) == (0.7, 0.01, 6)
    assert taken.steps_per_generation == 1
    assert "clip_low 0.1" in caplog.text
    two = over("dapo", grpo(tmp_path, epsilon=0.1, epsilon_high=0.3, loss_type="dapo"))
    assert (two.clip_low, two.clip_high) == (0.1, 0.3)
    assert over("dapo", grpo(tmp_path, epsilon_high=0.3)).clip_low == 0.2
    assert over("cispo", grpo(tmp_path, loss_type="cispo", epsilon_high=4.0)).ratio_max == 4.0
    assert over("gspo", grpo(tmp_path, importance_sampling_level="sequence")).clip_low == 3e-4
    assert over("dr_grpo", grpo(tmp_path, loss_type="dr_grpo", scale_rewards="none")).clip_low == 0.2
    assert over("ipo", trl.DPOConfig(**pairs(tmp_path, loss_type="ipo"))).loss_type == ["sigmoid"]


@pytest.mark.parametrize(
    ("method", "changes", "named"),
    [
        ("grpo", {"loss_type": "dr_grpo"}, "loss_type"),
        ("bnpo", {"loss_type": "bnpo"}, "loss_type"),
        ("grpo", {"delta": 4.0}, "delta"),
        ("grpo", {"importance_sampling_level": "sequence"}, "importance_sampling_level"),
        ("gspo", {"importance_sampling_level": "sequence_token"}, "importance_sampling_level"),
        ("bapo", {"epsilon": 0.1}, "epsilon"),
        ("cispo", {"epsilon_high": 4.0}, "epsilon_high"),
        ("dr_grpo", {"scale_rewards": "batch"}, "scale_rewards"),
        ("grpo", {"use_liger_kernel": True}, "use_liger_kernel"),
        ("grpo", {"use_adaptive_entropy": True}, "use_adaptive_entropy"),
        ("grpo", {"vespo_k_pos": 3.0}, "vespo_k_pos"),
        ("dpo", {"loss_type": "robust"}, "loss_type"),
        ("dpo", {"loss_type": ["sigmoid", "sft"]}, "loss_type"),
        ("rpo", {"use_weighting": True}, "use_weighting"),
        ("seppo", {"label_smoothing": 0.1}, "label_smoothing"),
        ("drift", {"f_divergence_type": "js_divergence"}, "f_divergence_type"),
        ("mdlm_sft", {"packing": True}, "packing"),
        ("mdlm_sft", {"loss_type": "dft"}, "loss_type"),
    ],
)
def test_what_nobody_would_read_is_refused_by_name(method, changes, named, tmp_path):
    trl_class = trl_config_of(method)
    shared = arguments(tmp_path) if trl_class is trl.GRPOConfig else pairs(tmp_path)
    with pytest.raises(ValueError, match=f"Config: {named} has no effect here: "):
        over(method, trl_class(**shared | changes))


@pytest.mark.parametrize(
    ("method", "make"),
    [
        ("grpo", lambda folder: trainers.BAPOConfig(output_dir=folder, use_cpu=True)),
        ("grpo", lambda folder: trl.DPOConfig(output_dir=folder, use_cpu=True)),
        ("dpo", lambda folder: trl.GRPOConfig(output_dir=folder, use_cpu=True)),
        ("dpo", lambda folder: trainers.IPOConfig(output_dir=folder, use_cpu=True)),
        ("rpo", lambda folder: transformers.TrainingArguments(output_dir=folder, use_cpu=True)),
        ("drift", lambda folder: trainers.SePPOConfig(output_dir=folder, use_cpu=True)),
        ("bgpo", lambda folder: trainers.GRPOConfig(output_dir=folder, use_cpu=True)),
        ("mdlm_sft", lambda folder: trl.GRPOConfig(output_dir=folder, use_cpu=True)),
        ("grpo", lambda folder: {"output_dir": folder}),
    ],
)
def test_another_kind_of_config_is_refused(method, make, tmp_path):
    name = METHODS[method].trainer.partition(":")[2]
    with pytest.raises(TypeError, match=f"^{name}: args is a .*pass a posttrain.trainers.*Config"):
        over(method, make(str(tmp_path)))


def test_the_general_config_of_a_family_serves(tmp_path):
    assert over("grpo", PolicyConfig(**arguments(tmp_path), reward_workers=1)).reward_workers == 1
    assert over("rpo", PreferenceConfig(output_dir=str(tmp_path), use_cpu=True)).eta == 0.005


def test_the_trainers_themselves_ask(tmp_path, tiny_model, tokenizer):
    given = grpo(tmp_path, epsilon=0.1, max_steps=1)
    trainer = trainers.GRPOTrainer(tiny_model, judged, given, rows(), processing_class=tokenizer)
    assert trainer.objective.clip_low == trainer.objective.clip_high == 0.1
    trainer.train()
    assert trainer.state.global_step == 1
    with pytest.raises(ValueError, match="loss_type has no effect"):
        trainers.DPOTrainer(
            tiny_model,
            None,
            trl.DPOConfig(**pairs(tmp_path, loss_type="robust")),
            Dataset.from_list(PAIRS),
            processing_class=tokenizer,
        )
    with pytest.raises(TypeError, match="SFTTrainer: args is a trl"):
        trainers.SFTTrainer(tiny_model, trl.DPOConfig(**pairs(tmp_path)), Dataset.from_list(PAIRS))
    with pytest.raises(TypeError, match="SALSATrainer: args is a"):
        trainers.SALSATrainer(tiny_model, judged, given, rows())


def test_without_args_the_methods_own_config_is_used(tmp_path, tiny_model, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = trainers.DAPOTrainer(tiny_model, judged, train_dataset=rows(), processing_class=tokenizer)
    assert type(trainer.args) is trainers.DAPOConfig
    assert (trainer.objective.clip_low, trainer.objective.clip_high) == (0.2, 0.28)
    trainer = trainers.SimPOTrainer(
        tiny_model, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer
    )
    assert trainer.method.margin == 1.0
    assert trainers.SFTConfig is trl.SFTConfig
