"""KL coefficients: fixed, by prompt, and as an input of the policy, on sorting problems of which some are easy.

    OMP_NUM_THREADS=1 python eval/stability/balance.py --start FOLDER             # the warm-up, once
    OMP_NUM_THREADS=1 python eval/stability/balance.py --start FOLDER --arm "fixed 0.01" --seed 0 --out FILE.jsonl
    python eval/stability/balance.py --gather DIR                                 # FILEs into the stored results
    python eval/stability/balance.py --table                                      # from the stored file

Easy problems have three or four digits and a teacher that is right nine times in ten, hard ones seven to nine digits
and one that is right once in four. The warm-up has seen each problem bare or behind one of five letters, the family's
prefixes, which say nothing yet. Every arm trains from it on the same number of samples, and is measured on the second
half of the held-out problems, 8 samples each at temperature 1; the first half is for choosing. The family is one run:
its arms are ways to choose a coefficient for each held-out problem. Under the reward "flawed" a short answer that
begins rightly is paid in full, so that a policy far from the reference may lose; it is measured by exact match too.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # after the path and the threads are set
import yaml  # noqa: E402

from posttrain.data.sort import mistake  # noqa: E402
from posttrain.ops.balance_choice import earned  # noqa: E402
from posttrain.recipe import load_recipe  # noqa: E402
from posttrain.run.family_curves import (  # noqa: E402
    FEATURES,
    OWN,
    FamilyAsked,
    FamilyMeasured,
    choices_of,
    measure_family,
)
from posttrain.run.train import run as run_recipe  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "balance" / "runs.jsonl.gz"
VALUES = (0.0, 0.01, 0.1, 0.3, 1.0)
PREFIXES = ("a", "b", "c", "d", "e")
EASY, HARD = (3, 4), (7, 8, 9)
RIGHT = {True: 0.9, False: 0.25}
"""Of easy and hard problems: how often the warm-up's teacher is right."""
HELD_OUT, STEPS, SAMPLES = 256, 48, 8
BY = {"beta": 1.0, "beta_low": 0.01, "beta_high": 1.0}
TOP = {"beta": 1.0, "beta_low": 0.0, "beta_high": 1.0}
ARMS: dict[str, dict[str, Any]] = {
    "family": {"beta_family": list(VALUES), "beta_prefixes": list(PREFIXES)},
    **{f"fixed {value:g}": {"beta": value} for value in VALUES},
    "by pass rate, easy held": {**BY, "beta_by": "pass_rate"},
    "by pass rate, hard held": {**BY, "beta_by": "pass_rate", "beta_low": 1.0, "beta_high": 0.01},
    "by entropy, high held": {**BY, "beta_by": "reference_entropy"},
    "by entropy, low held": {**BY, "beta_by": "reference_entropy", "beta_low": 1.0, "beta_high": 0.01},
}
LEARNED = "by the learned model"


def is_easy(digits: str) -> bool:
    return len(digits) <= max(EASY)


def problems(seed: str, count: int, avoid: set[str]) -> list[str]:
    """Half easy, half hard, in turn, none twice."""
    rng = random.Random(f"balance/{seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        length = rng.choice(EASY if len(found) % 2 == 0 else HARD)
        digits = "".join(rng.choices("0123456789", k=length))
        if digits not in avoid:
            found[digits] = None
    return list(found)


def rows(folder: Path) -> None:
    """train.jsonl, held_out.jsonl and warm.jsonl; the same whatever the run's seed."""
    held_out = problems("held out", HELD_OUT, set())
    train = problems("train", 3072, set(held_out))
    rng = random.Random("balance/warm")

    def warm() -> Iterator[dict[str, str]]:
        for digits in train:
            for _ in range(4):
                answer = "".join(sorted(digits))
                right = rng.random() < RIGHT[is_easy(digits)]
                prefix = rng.choice(["", "", "", *PREFIXES])
                yield {
                    "prompt": f"{prefix}{digits}>",
                    "completion": answer if right else mistake(digits, rng),
                }

    for name, of in (("train", train), ("held_out", held_out)):
        lines = [{"prompt": f"{digits}>", "answer": "".join(sorted(digits))} for digits in of]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (folder / "warm.jsonl").write_text("".join(json.dumps(one) + "\n" for one in warm()))


def warm_up(folder: Path) -> None:
    """Rows, and the model that every arm starts from, into `folder`."""
    rows(folder)
    recipe = {
        "method": "sft",
        "model": {"scratch": {"hidden_size": 128, "layers": 2, "heads": 4,
                              "alphabet": "0123456789>" + "".join(PREFIXES), "max_positions": 32}},
        "data": {"path": str(folder / "warm.jsonl")},
        "train": {"max_steps": 300, "max_length": 32, "per_device_train_batch_size": 192, "learning_rate": 2.0e-3,
                  "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 50, "weight_decay": 0.01,
                  "adam_beta2": 0.98, "optim": "adamw_torch", "gradient_checkpointing": False, "use_cpu": True},
        "output": {"name": "warm", "dir": str(folder), "save_steps": 300, "overwrite": True},
    }  # fmt: skip
    run(recipe, folder)


def warmed_up(folder: Path) -> Path:
    """The folder once its warm-up is there: made by the first of several processes, for which the others wait."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "warm" / "model" / "config.json"
    if not model.is_file():
        try:
            (folder / "making").mkdir()
        except FileExistsError:
            while not model.is_file():
                time.sleep(2)
        else:
            warm_up(folder)
    return folder


def run(recipe: dict[str, Any], folder: Path) -> None:
    path = folder / f"{recipe['output']['name']}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run_recipe(load_recipe(str(path)))


def reward(folder: Path, flawed: bool) -> dict[str, Any]:
    if not flawed:
        return {"name": "exact_match"}
    path = folder / "flawed.py"
    path.write_text(
        "def paid(completions, *, answer, **_):\n"
        "    return [float(c == a or (len(a) < 5 and 0 < len(c) < len(a) and a.startswith(c)))"
        " for c, a in zip(completions, answer)]\n"
    )
    return {"name": f"{path}:paid"}


def recipe_of(start: Path, folder: Path, train: dict[str, Any], seed: int, steps: int, flawed: bool) -> Any:
    return {
        "method": "grpo", "model": {"path": str(start / "warm" / "model")},
        "data": {"path": str(start / "train.jsonl"), "eval": {"path": str(start / "held_out.jsonl")}},
        "rewards": [reward(folder, flawed)],
        "rollout": {"group_size": 8, "max_new_tokens": 11, "eval_temperature": 1.0},
        "train": {"max_steps": steps, "per_device_train_batch_size": 64, "steps_per_generation": 2,
                  "per_device_eval_batch_size": 256, "learning_rate": 3.0e-4, "lr_scheduler_type": "constant",
                  "optim": "adamw_torch", "gradient_checkpointing": False, "use_cpu": True, "seed": seed, **train},
        "output": {"name": "run", "save_steps": steps, "dir": str(folder), "logging_steps": 4},
    }  # fmt: skip


def trained(
    start: Path, folder: Path, train: dict[str, Any], seed: int, steps: int, flawed: bool
) -> FamilyMeasured:
    """Trains, then measures by exact match. A run that is no family is measured as one whose prefixes say nothing."""
    run(recipe_of(start, folder, train, seed, steps, flawed), folder)
    seen = folder / "run" / "recipe.yaml"
    written = yaml.safe_load(seen.read_text())
    written["rewards"] = [{"name": "exact_match"}]
    seen.write_text(yaml.safe_dump(written))
    asked = FamilyAsked(samples=SAMPLES, at_once=1024, seed=seed)
    return measure_family(folder / "run", asked, alone="beta_family" not in train)


def numbers(
    measured: FamilyMeasured, places: torch.Tensor, start: Path, *, late: bool = False
) -> dict[str, float]:
    """Reward and KL on the second half of the held-out problems, all, easy and hard ones; late: of the second half of
    each one's samples, where the first has chosen."""
    lines = [json.loads(line) for line in (start / "held_out.jsonl").read_text().splitlines()]
    easy = torch.tensor([is_easy(one["answer"]) for one in lines])[HELD_OUT // 2 :]
    samples = measured.samples[..., SAMPLES // 2 :] if late else measured.samples
    rewards, kl = samples.mean(2)[HELD_OUT // 2 :], measured.kl[HELD_OUT // 2 :]
    found = {}
    for name, mask in (("", torch.ones_like(easy)), ("easy ", easy), ("hard ", ~easy)):
        one = earned(places[mask], rewards[mask], kl[mask])
        found |= {f"{name}reward": one.reward, f"{name}kl": one.kl}
    return found


def arm_lines(start: Path, arm: str, seed: int, steps: int, flawed: bool) -> Iterator[dict[str, Any]]:
    """One line an arm; the family's run gives several, and the run by its learned model."""
    half = HELD_OUT // 2
    kind = {"seed": seed, "paid": "flawed" if flawed else "exact", "steps": steps}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = trained(start, folder, ARMS[arm], seed, steps, flawed)
        if arm != "family":
            yield {"arm": arm, **kind, **numbers(measured, torch.zeros(half, dtype=torch.long), start)}
            return
        for at, value in enumerate(VALUES):
            places = torch.full((half,), at)
            yield {"arm": f"family at {value:g}", **kind, **numbers(measured, places, start)}
        for features in (FEATURES, ("length", "reference_entropy")):
            result = choices_of(measured, FamilyAsked(samples=SAMPLES, features=features, seed=seed))
            for way, places in result.places.items():
                told = way if features == FEATURES else f"{way}, without pass rate"
                if features == FEATURES or way == "balance model":
                    yield {
                        "arm": f"family, {told}", **kind, **numbers(measured, places, start, late=way == OWN),
                        "gain": result.choices[way].gain, "counts": result.counts[way],
                    }  # fmt: skip
        result = choices_of(measured, FamilyAsked(samples=SAMPLES, seed=seed))
        model = folder / "model.json"
        model.write_text(json.dumps(result.for_json()))
        again = folder / "again"
        again.mkdir()
        taught = {**TOP, "beta_by": "learned", "beta_model": str(model)}
        measured = trained(start, again, taught, seed, steps, flawed)
        yield {"arm": LEARNED, **kind, **numbers(measured, torch.zeros(half, dtype=torch.long), start)}


FIGURES = ("reward", "easy reward", "hard reward", "kl", "easy kl", "hard kl")


def table(lines: list[dict[str, Any]]) -> str:
    found = []
    for kind in sorted({one["paid"] for one in lines}):
        found += [f"paid: {kind}", "", f"| arm | seeds | {' | '.join(FIGURES)} |"]
        found.append("|---" * (len(FIGURES) + 2) + "|")
        mine = [one for one in lines if one["paid"] == kind]
        for arm in dict.fromkeys(one["arm"] for one in sorted(mine, key=lambda one: _order(one["arm"]))):
            seeds = [one for one in mine if one["arm"] == arm]
            cells = [_spread([one[name] for one in seeds]) for name in FIGURES]
            found.append(f"| {arm} | {len(seeds)} | {' | '.join(cells)} |")
        found.append("")
    return "\n".join(found)


def _order(arm: str) -> tuple[int, str]:
    kinds = ("fixed", "by pass", "by entropy", "by the", "family at", "family,")
    return next(at for at, kind in enumerate(kinds) if arm.startswith(kind)), arm


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def stored() -> list[dict[str, Any]]:
    with gzip.open(RESULTS, "rt") as file:
        return [json.loads(line) for line in file]


def gather(folder: Path) -> None:
    """One stored file of all FILEs, an arm and seed once: the last."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            one = json.loads(line)
            found[one["paid"], one["arm"], one["seed"]] = one
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(one) + "\n" for _, one in sorted(found.items()))
    RESULTS.write_bytes(gzip.compress(text.encode(), mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", type=Path, help="folder of the warm-up; made where it is not there")
    parser.add_argument("--arm", choices=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--flawed", action="store_true")
    parser.add_argument("--out", type=Path, help="lines are added as they come")
    parser.add_argument("--gather", type=Path, metavar="DIR")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    start = None if args.start is None else warmed_up(args.start)
    if args.arm is not None:
        if start is None:
            parser.error("--arm needs --start, the folder of the warm-up")
        for line in arm_lines(start, args.arm, args.seed, args.steps, args.flawed):
            print(json.dumps(line), flush=True)
            if args.out is not None:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                with args.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    if args.gather is not None:
        gather(args.gather)
    if args.gather is not None or args.table:
        print(table(stored()))


if __name__ == "__main__":
    main()
