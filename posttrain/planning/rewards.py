"""The rewards of a recipe against what the dataset offers and what the method needs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from posttrain.recipe import Recipe
from posttrain.recipe.sections import RewardSection
from posttrain.rewards.image_model_reward import scored_beside
from posttrain.rewards.model_reward import ModelReward
from posttrain.rewards.resolve import (
    RewardSignature,
    RewardSpec,
    RewardSpecError,
    describe,
    faults,
    machine_report,
)
from posttrain.rewards.signature import PROVIDED, provided_instead
from posttrain.rollout.adapter_base import holds_adapter, scores_texts
from posttrain.rollout.engine_options import is_address


def spec_of(reward: RewardSection) -> RewardSpec:
    """Of a reward that is a function."""
    own = ("batch_size", "max_length", "device", "model", "server", "api", "retries", "api_key_env")
    return RewardSpec.of({name: value for name, value in reward.model_dump().items() if name not in own})


def model_of(reward: RewardSection) -> ModelReward:
    """Of a reward that is a model."""
    if reward.model is None:
        raise ValueError(f"reward {reward.name}: it is a function")
    own = (
        "weight",
        "label",
        "batch_size",
        "max_length",
        "device",
        "server",
        "api",
        "timeout_s",
        "retries",
        "api_key_env",
    )
    return ModelReward(reward.model, **{name: vars(reward)[name] for name in own})


def _model_faults(reward: ModelReward) -> list[str]:
    """What a folder shows without loading it; a hub name is looked at when training starts."""
    folder = Path(reward.model)
    if reward.server is not None and not is_address(reward.server):
        return [f"server {reward.server!r} is no address; write it as http://host:port"]
    if not folder.exists():
        return (
            []
            if reward.model.count("/") == 1
            else [f"no folder {reward.model!r}: train the reward model first"]
        )
    if (
        holds_adapter(folder) or reward.server is not None
    ):  # of a server's model the tokenizer alone is read here
        return []
    if not (folder / "config.json").is_file():
        return [
            f"model {reward.model!r} is no model's folder: it has no config.json; a run keeps its in runs/NAME/model"
        ]
    if scores_texts(folder) is None:
        return [
            f"model {reward.model!r} is no sequence classifier, so it gives no reward; `method: reward_model` makes one"
        ]
    return []


def reward_faults(recipe: Recipe, columns: Collection[str] | None) -> list[str]:
    """A sentence for each reward that cannot be found or called; `columns` None: the dataset is not at hand.

    No code of the user's runs: what only a loaded reward shows is left to `plan --try` (`reward_lines` says so).
    """
    signatures: list[RewardSignature] = []
    found: list[str] = []
    functions = [reward for reward in recipe.rewards if reward.model is None]
    for position, reward in enumerate(recipe.rewards):
        if reward.model is not None:
            continue
        try:
            signatures.append(describe(spec_of(reward)))
        except RewardSpecError as error:
            found.append(f"rewards[{position}]: {error}")
            continue
        if columns is not None:
            played = recipe.environment is not None
            of_it = faults(spec_of(reward), sorted(columns), has_environments=played)
            found += [f"rewards[{position}]: {fault}" for fault in of_it]
    found += [fault for signature in signatures for fault in _kind_faults(recipe, signature)]
    judged = len(signatures) == len(functions) and all(signature.known for signature in signatures)
    if judged and recipe.needs_answers() and not any(signature.yields_answers for signature in signatures):
        found.append(
            f"rewards: method '{recipe.method}' compares final answers, and none of the rewards says what a "
            "completion's answer is; use math_answer, or decorate your own with posttrain.rewards.hooks.yields_answers"
        )
    if recipe.rewards and all(reward.weight == 0 for reward in recipe.rewards):
        found.append("rewards: every weight is 0, so nothing would be learned; give one a weight")
    for name in sorted(PROVIDED.intersection(recipe.data.columns) if recipe.rewards else ()):
        found.append(
            f"data.columns: rewards are given {name!r} by the run, so no column of the data can have that name; "
            "choose another"
        )
    return found


def _kind_faults(recipe: Recipe, signature: RewardSignature) -> Iterator[str]:
    """A reward for texts where images are made, or the other way round."""
    images = signature.completions_as == "images"
    if recipe.objective.makes_images:
        if signature.says_which and not images:
            yield (
                f"rewards: {signature.name!r} judges texts, and method '{recipe.method}' makes images; take jpeg_size, "
                "image_statistic, image_class, clip_score, pickscore, ocr_match, or a function of yours with "
                "completions: list[Image.Image]"
            )
        for name in {"completion_ids", "completion_tokens"} & {*signature.runtime}:
            yield f"rewards: {signature.name!r} reads {name!r}, and an image has no tokens; take another reward"
    elif images:
        yield f"rewards: {signature.name!r} judges images, and method '{recipe.method}' writes text; take another"


def reward_model_faults(recipe: Recipe) -> list[str]:
    """A sentence for each reward model whose folder is not there or gives no reward, and for a policy that is one."""
    if recipe.objective.makes_images:
        places = [place for place, reward in enumerate(recipe.rewards) if reward.model is not None]
        return [
            f"rewards[{place}]: a reward model scores texts, and method '{recipe.method}' makes images; name a function"
            for place in places
        ]
    path = recipe.model.path
    policy = []
    scorer = None if path is None or recipe.objective.continues_scorers else scores_texts(path)
    if scorer is not None:
        policy = [f"model: {path!r} is a {scorer}, which scores texts and writes none; name a language model"]
    found = [(i, model_of(reward)) for i, reward in enumerate(recipe.rewards) if reward.model is not None]
    policy += [
        f"rewards[{place}]: no folder {named!r}, which args.reference names; a run keeps its model in runs/NAME/model"
        for place, reward in enumerate(recipe.rewards)
        if reward.name == "drift_penalty"
        and isinstance(named := reward.args.get("reference"), str)
        and not Path(named).exists()
        and named.count("/") != 1
    ]
    return policy + [f"rewards[{place}]: {fault}" for place, model in found for fault in _model_faults(model)]


def reward_warnings(recipe: Recipe, columns: Collection[str] | None) -> list[str]:
    """Data columns that rewards will not see, because the run has values of the same name."""
    mapped = recipe.data.columns  # refused above
    lost = sorted(PROVIDED.intersection(columns or ()).difference(mapped)) if recipe.rewards else []
    return [f"data: {provided_instead(lost)} (data.columns)"] if lost else []


def machine_reports(recipe: Recipe) -> tuple[list[str], list[str], list[str]]:
    """What rewards say of this machine: (lines, warnings, refusals). A built-in one may try things out for it."""
    lines: list[str] = []
    warnings: list[str] = []
    refusals: list[str] = []
    group_size = recipe.rollout.group_size if recipe.rollout is not None else 1
    for position, reward in enumerate(recipe.rewards):
        if reward.model is not None:
            continue
        spec = spec_of(reward)
        try:
            report = machine_report(spec, group_size, reward.timeout_s)
        except RewardSpecError:  # `reward_faults` says it
            continue
        if report is not None:
            lines += [f"{spec.title}: {line}" for line in report.lines]
            warnings += [f"rewards[{position}]: {warning}" for warning in report.warnings]
            refusals += [f"rewards[{position}]: {fault}" for fault in report.faults]
    return lines, warnings, refusals


def reward_lines(recipe: Recipe) -> list[str]:
    """One line a reward: its name, weight, and the columns it reads."""
    lines = []
    if not recipe.rewards and recipe.environment is not None:
        lines.append("none of the recipe's; the environment's own decides (below)")
    elif not recipe.rewards and recipe.spec.family == "policy":
        lines.append(
            f"none, and method '{recipe.method}' needs none as it is set; 'no_reward' stands for them in the logs"
        )
    for reward in recipe.rewards:
        if reward.model is not None:
            model = model_of(reward)
            if model.server is not None:
                lines.append(
                    f"{model.title} x {model.weight:g}, the model {model.model} on {model.server}, {model.batch_size} "
                    f"rows per call, {model.timeout_s:g} s a call with {model.retries} retries, then the run stops"
                )
                continue
            lines.append(
                f"{model.title} x {model.weight:g}, the model {model.model}, {model.batch_size} rows per forward on "
                f"{model.device or 'the device of the trainer'}; its memory is not in the estimate"
            )
            continue
        text = f"{spec_of(reward).title} x {reward.weight:g}"
        try:
            signature = describe(spec_of(reward))
        except RewardSpecError:
            signature = None
        if signature is not None and signature.columns_needed:
            text += f", reads {', '.join(signature.columns_needed)}"
        if reward.name == "drift_penalty":
            text += (
                f"; scored by the trainer with the reference {reward.args.get('reference')}, whose memory is not in "
                "the estimate; timeout_s and on_error have no effect"
            )
            lines.append(text)
            continue
        if scored_beside(spec_of(reward)):
            text += (
                f"; scored by the trainer with the model {reward.args.get('folder')}, whose memory is not in the "
                "estimate; timeout_s and on_error have no effect"
            )
            lines.append(text)
            continue
        text += f"; {reward.timeout_s:g} s per call, then {reward.on_error}"
        if signature is not None and not signature.known:
            text += "; its source does not show what it asks for: posttrain plan --try loads it and looks"
        lines.append(text)
    return lines
