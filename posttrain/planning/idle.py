"""Options that were written and would do nothing. Each is refused, with what it would need to have an effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from posttrain.recipe import Recipe
from posttrain.recipe.data_sections import DataSection
from posttrain.recipe.methods import Family
from posttrain.recipe.sections import RolloutSection
from posttrain.recipe.train_options import PolicyTrain, PreferenceTrain, SFTTrain
from posttrain.rollout.engine_options import TRUNCATING, check_ahead, refused_options, refused_settings

_NO_MOMENTS = {"sgd", "adafactor", "rmsprop"}


@dataclass(frozen=True)
class Rule:
    """`keys` of `section` do nothing when `idle(recipe)`; `needs` says what would change that."""

    section: str
    keys: tuple[str, ...]
    idle: Callable[[Recipe], bool]
    needs: str


def _train(kind: type, idle: Callable[..., bool]) -> Callable[[Recipe], bool]:
    """A rule on a family's own options: never idle for the others, which do not have the key."""
    return lambda recipe: isinstance(recipe.train, kind) and idle(recipe.train)


def _engine_is(*names: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.rollout is not None and recipe.rollout.engine in names


def _masked_diffusion(recipe: Recipe) -> bool:
    return recipe.objective.masked_diffusion


def _makes_images(recipe: Recipe) -> bool:
    return recipe.objective.makes_images


def _always_fresh(recipe: Recipe) -> bool:
    """Whether the policy that trains is always the one that sampled, to the last bit."""
    train, rollout = recipe.train, recipe.rollout
    if not isinstance(train, PolicyTrain) or rollout is None or rollout.engine != "transformers":
        return False
    return train.window * train.num_iterations == train.gradient_accumulation_steps and rollout.staleness == 0


_MOMENTS = ("adam_beta1", "adam_beta2", "adam_epsilon")
_EVALUATION = ("eval_steps", "eval_on_start", "per_device_eval_batch_size")
_FOLLOWERS = ("ref_model_sync_steps", "ref_model_mixup_alpha")
RULES: list[Rule] = [
    Rule("train", _FOLLOWERS, _train(PolicyTrain, lambda t: not t.sync_ref_model), "sync_ref_model: true"),
    Rule("train", _FOLLOWERS, _train(PreferenceTrain, lambda t: not t.sync_ref_model), "sync_ref_model: true"),
    Rule("train", ("sync_ref_model",), _train(PolicyTrain, lambda t: t.beta == 0), "a KL penalty: beta above 0"),
    Rule("train", ("use_bias_correction_kl",), _train(PolicyTrain, lambda t: t.beta == 0), "beta above 0"),
    Rule("train", ("off_policy_mask_threshold",), _always_fresh,
         "several updates on a rollout (num_iterations, steps_per_generation) or a vLLM engine"),
    Rule("train", ("warmup_steps",), lambda r: r.train.lr_scheduler_type == "constant",
         "lr_scheduler_type: constant_with_warmup, or another with a warm-up"),
    Rule("train", _MOMENTS, lambda r: r.train.optim in _NO_MOMENTS, "an Adam optimizer"),
    Rule("train", ("gradient_checkpointing_kwargs",), lambda r: not r.train.gradient_checkpointing,
         "gradient_checkpointing: true"),
    Rule("train", _EVALUATION, lambda r: r.data.eval is None, "data.eval"),
    Rule("train", ("chat_template_kwargs",), lambda r: not r.data.chat, "data.chat: true"),
    Rule("train", ("assistant_only_loss",), lambda r: not r.data.chat, "data.chat: true"),
    Rule("train", ("packing_strategy",), _train(SFTTrain, lambda t: not t.packing), "packing: true"),
    Rule("train", ("precompute_ref_batch_size",), _train(PreferenceTrain, lambda t: not t.precompute_ref_log_probs),
         "precompute_ref_log_probs: true"),
    Rule("train", ("cache_implementation",), _engine_is("vllm", "vllm_server"), "rollout.engine: transformers"),
    Rule("rollout", ("importance_correction", "importance_clip_max", "importance_clip_min"),
         _engine_is("transformers", "masked_diffusion"), "a vLLM engine: rollout.engine"),
    Rule("rollout", ("importance_clip_max", "importance_clip_min"),
         lambda r: isinstance(r.rollout, RolloutSection) and r.rollout.importance_correction is None,
         "importance_correction"),
    Rule("rollout", ("staleness", "partial_budget"), _engine_is("masked_diffusion"), "an autoregressive method"),
    Rule("rollout", ("resample", "logged"), _engine_is("masked_diffusion"), "an autoregressive method"),
    Rule("rollout", ("vllm",), _engine_is("transformers", "masked_diffusion"), "a vLLM engine: rollout.engine"),
    Rule("train", ("beta_by", "beta_low", "beta_high", "beta_model", "beta_family", "beta_prefixes"),
         _engine_is("masked_diffusion"), "an autoregressive method"),
    Rule("train", ("entropy_coef", "top_entropy_quantile", "off_policy_mask_threshold", "use_bias_correction_kl",
                   "cast_lm_head_to_fp32", "cache_implementation", "router_aux_loss_coef", "disable_dropout", "layout",
                   "max_tokens_per_micro_batch"),
         _engine_is("masked_diffusion"), "an autoregressive method"),
    Rule("output", ("record",), _engine_is("masked_diffusion"), "an autoregressive method"),
    Rule("train", ("packing", "packing_strategy", "padding_free", "assistant_only_loss", "neftune_noise_alpha",
                   "activation_offloading", "dataset_num_proc", "shuffle_dataset"),
         lambda r: r.spec.family == "sft" and _masked_diffusion(r), "an autoregressive model"),
    Rule("model", ("mask",), lambda r: not _masked_diffusion(r), "a masked-diffusion method"),
    Rule("rollout", ("max_turns",), lambda r: not r.has_tools, "tools or an environment"),
    Rule("rollout", ("eval_temperature", "eval_denoising_steps"), lambda r: r.data.eval is None, "data.eval"),
    Rule("train", ("router_aux_loss_coef",), _makes_images, "a language model"),
    Rule("data", ("chat", "system", "max_prompt_tokens"), _makes_images, "a method for texts"),
    Rule("output", ("log_completions",), lambda r: r.rollout is None, "a method that generates"),
    Rule("output", ("record",), lambda r: not isinstance(r.train, PolicyTrain), "a method that learns from rewards"),
]  # fmt: skip

_DATA_KEYS: dict[str, set[Family]] = {
    "answer": {"policy", "diffusion", "images"},
    "order": {"policy", "diffusion"},
    "columns": {"policy", "diffusion", "images", "image_sft"},
    "completion": {"sft"},
    "chosen": {"preference"},
    "rejected": {"preference"},
    "label": set(),  # of methods that read marked answers
}


def idle_options(recipe: Recipe) -> Iterator[str]:
    """A sentence for each option of the recipe that was set and does nothing."""
    for rule in RULES:
        section = vars(recipe)[rule.section]
        if section is None or not rule.idle(recipe):
            continue
        for key in rule.keys:
            if key in section.changed():
                yield f"{rule.section}: '{key}' does nothing without {rule.needs}; add that, or remove it"
    yield from _idle_data(recipe.data, "data", recipe)
    if recipe.data.eval is not None:
        yield from _idle_data(recipe.data.eval, "data.eval", recipe)
    yield from _lacking_in_engine(recipe)


def beyond_the_run(recipe: Recipe, steps: int | None) -> Iterator[str]:
    """Steps at which something was asked for and that the run of `steps` steps does not reach."""
    if not steps or recipe.objective.stages is not None:  # `train` speaks of one of them
        return
    of = f"and the run has {steps} steps"
    if recipe.train.eval_steps is not None and recipe.train.eval_steps > steps:
        yield (
            f"train: 'eval_steps' {recipe.train.eval_steps} is never reached, {of}; lower it, or remove it (the "
            "end is evaluated anyhow)"
        )
    for step in sorted(step for step in recipe.output.record if step > steps):
        yield f"output: 'record' names step {step}, {of}; lower it, or remove it"
    if recipe.output.logging_steps > steps:
        yield f"output: 'logging_steps' {recipe.output.logging_steps} is never reached, {of}; lower it"
    if isinstance(recipe.train, PolicyTrain | PreferenceTrain) and recipe.train.sync_ref_model:
        every = recipe.train.ref_model_sync_steps
        if every > steps:
            yield f"train: 'ref_model_sync_steps' {every} is never reached, {of}; lower it, or remove sync_ref_model"


def _idle_data(data: DataSection, place: str, recipe: Recipe) -> Iterator[str]:
    marked = recipe.objective.marked_answers
    for key, families in _DATA_KEYS.items():
        if key in data.changed() and recipe.spec.family not in families and place == "data":
            if (marked and key in ("completion", "label")) or (key == "order" and _pairs_in_order(recipe)):
                continue
            yield f"{place}: '{key}' does nothing with method '{recipe.method}'; remove it"
    if "on_long" in data.changed() and data.max_prompt_tokens is None:
        yield f"{place}: 'on_long' does nothing without max_prompt_tokens; add that, or remove it"
    if recipe.spec.family != "sft" and not recipe.objective.makes_images:
        for key in {"teacher_accuracy", "demonstrations"} & data.args.keys():
            yield f"{place}: args: '{key}' is about a teacher's completions, which only sft reads; remove it"


def _pairs_in_order(recipe: Recipe) -> bool:
    """Whether the method reads pairs of texts once through: staged loops make rounds of theirs, and marked answers are
    mixed for their reference point."""
    objective = recipe.objective
    mixed = objective.in_stages or objective.marked_answers or objective.makes_images
    return recipe.spec.family == "preference" and not mixed


def _lacking_in_engine(recipe: Recipe) -> Iterator[str]:
    if not isinstance(recipe.rollout, RolloutSection):
        return
    engine = recipe.rollout.engine
    sampling = recipe.rollout.changed() & {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
    for key in refused_options(engine, sampling):
        yield f"rollout: engine '{engine}' has no '{key}'; remove it or choose another engine"
    yield from (f"rollout: {problem}" for problem in _ahead_problems(recipe.rollout))
    if recipe.rollout.vllm is not None and engine not in ("transformers", "masked_diffusion"):
        for key in refused_settings(engine, recipe.rollout.vllm.changed()):
            yield f"rollout.vllm: '{key}' does nothing with engine '{engine}'; remove it"


def _ahead_problems(rollout: RolloutSection) -> list[str]:
    if rollout.engine == "masked_diffusion":
        return []
    return check_ahead(
        rollout.engine,
        staleness=rollout.staleness,
        partial_budget=rollout.partial_budget,
        max_new_tokens=rollout.max_new_tokens,
        truncating=(rollout.changed() & TRUNCATING) - ({"min_p"} if rollout.min_p == 0 else set()),
        correction=rollout.importance_correction,
    )
