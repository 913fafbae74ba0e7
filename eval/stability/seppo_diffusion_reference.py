"""SePPO on images at toy size: a random past checkpoint as the reference, the first, the latest, and plain training.

    posttrain train recipes/smoke/flow_sft_digits.yaml
    python eval/stability/seppo_diffusion_reference.py --seeds 0 1 2 --out FILE

All arms start from that one model and train on the boldest fifth of each class for 210 steps. Of 40 images per class,
the same noise in every arm: their ink (mean pixel, 0 to 1), the root mean squared distance to the nearest bold digit
of the class, and what a classifier on other digits holds for the probability of the class.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy

from posttrain.recipe import load_recipe

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke"
PER_CLASS = 40
ARMS = {name: [f"objective.reference={name}"] for name in ("random", "latest", "initial")}


def measured(trainer: Any) -> dict[str, float]:
    """Of images that the trainer's model makes."""
    sys.path.insert(0, str(SMOKE))
    from digit_rewards import gold_confidence

    prompts = [str(digit) for digit in range(10) for _ in range(PER_CLASS)]
    with trainer._still():
        latents = trainer.sampler.held_out(trainer.model, prompts, range(len(prompts)))
    images = trainer.frame.to_images(latents)
    pixels = numpy.stack([numpy.asarray(image, dtype=float).reshape(-1) / 255 for image in images])
    winners = {str(digit): [] for digit in range(10)}
    for row in trainer.train_dataset:
        winners[row["prompt"]].append(numpy.asarray(row["image"], dtype=float).reshape(-1) / 255)
    near = [
        float(numpy.sqrt(((numpy.stack(winners[prompt]) - image) ** 2).mean(1)).min())
        for prompt, image in zip(prompts, pixels, strict=True)
    ]
    confidence = gold_confidence(images, label=prompts)
    return {
        "ink": float(pixels.mean()),
        "distance": float(numpy.mean(near)),
        "confidence": float(numpy.mean([value for value in confidence if value is not None])),
    }


def one(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    output = [f"output.name={arm}-{seed}", f"output.dir={folder}", f"train.seed={seed}"]
    if arm in ("start", "sft"):
        change = ["data.args={bold: true}", "model={path: runs/flow_sft_digits/model}", "train.max_steps=210",
                  "train.learning_rate=1e-4", "train.lr_scheduler_type=constant_with_warmup",
                  "train.warmup_steps=20"]  # fmt: skip
        recipe = load_recipe(SMOKE / "flow_sft_digits.yaml", [*change, *output])
    else:
        recipe = load_recipe(SMOKE / "seppo_diffusion_digits.yaml", [*ARMS[arm], *output])
    trainer = recipe.spec.load_trainer().from_recipe(recipe)
    begun = time.monotonic()
    if arm != "start":
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "seppo_diffusion/flip_rate" in entry]
    flips = [entry["seppo_diffusion/flip_rate"] for entry in logs]
    return {
        "arm": arm,
        "seed": seed,
        "seconds": time.monotonic() - begun,
        "flip_rate": flips,
        **measured(trainer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for arm in ("start", "sft", *ARMS):
                found.append(one(arm, seed, Path(folder)))
                print(json.dumps(found[-1]), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
