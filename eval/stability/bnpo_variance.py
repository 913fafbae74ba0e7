"""BNPO's claim on synthetic rewards: the second moment of its advantages against REINFORCE's and GRPO's.

    python eval/stability/bnpo_variance.py [--prompts 32 --responses 16 --prior 5 2 --batches 400 --seeds 0 1 2]

Each prompt's success rate is drawn from the Beta prior, its rewards from that rate. Prints, for each seed, E[A^2] of
the advantages, the same over E[|A|]^2, and BNPO's E[A^2] over that of GRPO's shape, Beta(3/2, 3/2).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from posttrain.objectives.bnpo import beta_normalized_advantages  # after the path is set

SHAPES = {"REINFORCE": (1.0, 1.0), "GRPO's shape": (1.5, 1.5), "BNPO": (None, None)}


def moments(args: argparse.Namespace, seed: int) -> dict[str, tuple[float, float]]:
    """{method: (E[A^2], E[A^2] / E[|A|]^2)}; all methods see the same rewards."""
    torch.manual_seed(seed)
    first, second = (torch.tensor(value, dtype=torch.float64) for value in args.prior)
    prior = torch.distributions.Beta(first, second)
    drawn: dict[str, list[torch.Tensor]] = {name: [] for name in SHAPES}
    for _ in range(args.batches):
        rates = prior.sample((args.prompts, 1)).expand(-1, args.responses)
        rewards = torch.bernoulli(rates)
        for name, (alpha, beta) in SHAPES.items():
            drawn[name].append(beta_normalized_advantages(rewards, alpha=alpha, beta=beta))
    found = {}
    for name, parts in drawn.items():
        advantages = torch.cat(parts)
        square = advantages.square().mean()
        found[name] = float(square), float(square / advantages.abs().mean().square())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, value in (("prompts", 32), ("responses", 16), ("batches", 400)):
        parser.add_argument(f"--{flag}", type=int, default=value)
    parser.add_argument("--prior", nargs=2, type=float, default=[5.0, 2.0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    print(f"{'seed':>4} " + " ".join(f"{name:>20}" for name in SHAPES) + "   BNPO / GRPO's")
    for seed in args.seeds:
        found = moments(args, seed)
        values = " ".join(f"{f'{second:.4f} ({free:.3f})':>20}" for second, free in found.values())
        ratio = found["BNPO"][0] / found["GRPO's shape"][0]
        print(f"{seed:4} {values}   {ratio:.3f}")


if __name__ == "__main__":
    main()
