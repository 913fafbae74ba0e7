"""Rewards of a CLIP model: formulas against a float64 computation apart, batches, a trainer, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flow_helpers import CLASSES, flow_trainer
from image_judges import bright
from image_pipelines import clip_text_config, clip_tokenizer
from PIL import Image
from safetensors.torch import load_file

from posttrain.rewards.image_model_reward import ImageModelReward, clip_score, pickscore
from posttrain.rewards.resolve import RewardSpec, RewardSpecError, describe
from posttrain.rollout.adapter_base import ModelFault
from posttrain.trainers.models.clip_scorer import ClipScorer, image_text_scores


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """Random weights, images of 8 x 8 pixels, a vocabulary of letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPVisionConfig

    place = tmp_path_factory.mktemp("clip")
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=clip_text_config().to_dict(), vision_config=vision.to_dict(), projection_dim=8
    )
    CLIPModel(config).save_pretrained(place / "model")
    pixels = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    CLIPProcessor(pixels, clip_tokenizer(place / "words")).save_pretrained(place / "model")
    return str(place / "model")


def pictures(count: int = 5) -> list[Any]:
    noise = torch.randint(
        0, 256, (count, 12, 12, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    return [Image.fromarray(one.numpy()) for one in noise]


PROMPTS = ["a", "b", "a", "a cat", "b"]


def test_formulas_by_hand():
    images, texts = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [-2.0, 0.0]])
    logit_scale = torch.tensor(100.0).log()
    found = image_text_scores(images, texts, logit_scale, "pickscore", 0.5)
    assert found.tolist() == pytest.approx([0.5 * 100 * 0.8, -50.0])
    assert image_text_scores(images, texts, logit_scale, "clip_score", 2.5).tolist() == pytest.approx(
        [2.0, 0.0]
    )


@pytest.mark.parametrize("kind", ["clip_score", "pickscore"])
def test_scores_are_the_models_own_in_any_batches(kind, clip):
    """Against transformers' own logits, which are exp(logit_scale) cos, of one pair at a time."""
    scorer = ClipScorer(ImageModelReward.of(RewardSpec(kind, {"folder": clip, "batch_size": 2})), "cpu")
    found = scorer.scores(pictures(), PROMPTS)
    apart = []
    for image, prompt in zip(pictures(), PROMPTS, strict=True):
        read = scorer.processor(text=[prompt], images=[image], return_tensors="pt")
        logits = float(scorer.model(**read).logits_per_image)
        cosine = logits / float(scorer.model.logit_scale.exp())
        apart.append(logits if kind == "pickscore" else 2.5 * max(cosine, 0.0))
    assert found == pytest.approx(apart, abs=1e-4)
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())


def test_a_trainer_scores_by_it_among_other_rewards(clip, tmp_path):
    """Columns stand in the order of the recipe, the rest of training is as ever, and no checkpoint holds the model."""
    rewards = [
        RewardSpec("pickscore", {"folder": clip, "scale": 0.5}, weight=2.0, label="pick"),
        bright,
        RewardSpec("clip_score", {"folder": clip}),
    ]
    made = flow_trainer("FlowGRPO", tmp_path, rewards=rewards, save_strategy="steps", save_steps=2)
    made.train()
    assert made.reward_func_names == ["pick", "bright", "clip_score"]
    assert made.reward_weights.tolist() == [2.0, 1.0, 1.0]
    scored = made.rollout
    apart = ClipScorer(ImageModelReward.of(rewards[0]), "cpu").scores(scored.images, scored.prompts)
    assert scored.rewards_per_function[:, 0].tolist() == pytest.approx(apart, abs=1e-5)
    assert scored.rewards_per_function[:, 1].tolist() == pytest.approx(bright(scored.images))
    names = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert set(names) == {name for name, _ in made.model.named_parameters()}
    assert "rewards/pick/mean" in made.state.log_history[0]


def test_by_itself_it_has_no_runner(clip, tmp_path):
    made = flow_trainer("FlowGRPO", tmp_path, rewards=[RewardSpec("clip_score", {"folder": clip})])
    made.train()
    assert made.judge.runner is None
    assert set(made.rollout.prompts) <= set(CLASSES)


def test_what_is_refused(clip, tmp_path):
    for args, words in (
        ({"folder": str(tmp_path / "nowhere")}, "there is no folder"),
        ({"folder": clip, "batch_size": 0}, "batch_size is 0"),
    ):
        with pytest.raises(RewardSpecError, match=words):
            describe(RewardSpec("clip_score", args))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(RewardSpecError, match="holds no CLIP model: its config.json says 'llama'"):
        describe(RewardSpec("pickscore", {"folder": str(tmp_path)}))
    with pytest.raises(RewardSpecError, match=r"needs args.folder"):
        ImageModelReward.of(RewardSpec("pickscore"))
    (Path(tmp_path) / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ModelFault, match="reward 'pickscore'"):
        ClipScorer(ImageModelReward.of(RewardSpec("pickscore", {"folder": str(tmp_path)})), "cpu")
    for function in (clip_score, pickscore):
        with pytest.raises(RuntimeError, match="the trainer scores it"):
            function(pictures(), prompts=PROMPTS, folder=clip)
