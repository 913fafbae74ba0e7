"""What n Monte Carlo passes cost: memory kept for the backward, peak memory of the process, seconds of a step.

    python eval/speed/bgpo_memory.py [--hidden 256 --layers 4 --vocabulary 4000 --responses 4 --prompt 32 --tokens 96]

Three ways to the update, each through the trainer a recipe uses, off-policy (the second update of a rollout), on given
responses:

    bgpo            one backward a pass
    vrpo_ol         a first pass without gradient for exp(mean d), then one backward a pass
    vrpo_ol_joint   the graphs of all passes at once, as the method is published

Each way and n runs in a process of its own. Kept bytes are what autograd holds at its fullest, counted as each distinct
storage is saved and released, parameters left out. Peak memory is the process's highest resident size in all updates
less its size before the first. CPU seconds are the median of `--steps` updates without the counting; on a machine that
does other work they say more than the clock, which stands in the JSON. The gradient norm shows that vrpo_ol and
vrpo_ol_joint are the same update. Prints a table and writes eval/speed/results/bgpo_memory-*.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

RESULTS = Path(__file__).with_name("results")
WAYS = ("bgpo", "vrpo_ol", "vrpo_ol_joint")
GROUP = 4
MIB = 2**20


# ------------------------------------------------------------------------------------------------ one way, one n


class Kept:
    """Counts the bytes autograd holds: `pack` and `unpack` are hooks of torch.autograd.graph.saved_tensors_hooks."""

    def __init__(self, parameters: Any) -> None:
        self._not_counted = {p.untyped_storage().data_ptr() for p in parameters}
        self._holders: Counter[int] = Counter()
        self.now = self.peak = 0

    class _Held:
        """What a graph node stores; it goes when the node's backward has run."""

        def __init__(self, owner: Kept, tensor: Any) -> None:
            self.owner, self.tensor = owner, tensor
            storage = tensor.untyped_storage()
            self.key, self.size = storage.data_ptr(), storage.nbytes()
            owner.change(self, 1)

        def __del__(self) -> None:
            self.owner.change(self, -1)

    def change(self, held: _Held, count: int) -> None:
        if held.key in self._not_counted:
            return
        before = self._holders[held.key] > 0
        self._holders[held.key] += count
        after = self._holders[held.key] > 0
        self.now += held.size * (int(after) - int(before))
        self.peak = max(self.peak, self.now)

    def pack(self, tensor: Any) -> _Held:
        return self._Held(self, tensor)

    def unpack(self, held: _Held) -> Any:
        return held.tensor


def resident(field: str) -> int:
    """Bytes of /proc/self/status: VmRSS now, or VmHWM, the highest since `forget_the_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {field} in /proc/self/status")


def forget_the_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def trainer_of(way: str) -> type:
    import torch

    from posttrain.objectives.masked_base import reduced_loss
    from posttrain.trainers.masked.bindings import BGPOTrainer, VRPOOLTrainer
    from posttrain.trainers.masked.diffusion_metrics import DiffusionMetrics
    from posttrain.trainers.masked.likelihood import from_buffer, pass_terms
    from posttrain.trainers.masked.masked_step import DiffusionStep

    if way != "vrpo_ol_joint":
        return {"bgpo": BGPOTrainer, "vrpo_ol": VRPOOLTrainer}[way]

    class JointStep(DiffusionStep):
        def loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            totals = self.begin()
            canvas, noise = from_buffer(inputs)
            known = self._known_terms(inputs, canvas, slice(0, noise.num_passes))
            predictor = self.host.predictor.with_model(model)
            level = self.objective.level
            passes = [pass_terms(predictor, canvas, noise, j, level) for j in range(noise.num_passes)]
            whole = self._whole_batch(known, torch.cat(passes, dim=1))
            self.close()
            return reduced_loss(self.objective, whole, totals)

    class Joint(VRPOOLTrainer):
        """One backward through the graphs of all passes."""

        def make_step(self) -> DiffusionStep:
            return JointStep(self, self.objective, self.method, DiffusionMetrics(self.accelerator))

    return Joint


def config_of(way: str, samples: int, folder: str, args: argparse.Namespace) -> Any:
    """Two updates per rollout, so that the second is off-policy; one rollout more than is timed, for counting."""
    from posttrain.trainers.masked import bindings as diffusion_bindings

    config_class = diffusion_bindings.BGPOConfig if way == "bgpo" else diffusion_bindings.VRPOOLConfig
    return config_class(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        per_device_train_batch_size=args.responses,
        num_generations=GROUP,
        num_iterations=2,
        max_completion_length=args.tokens,
        learning_rate=1e-5,
        optim="sgd",
        max_steps=2 * (args.steps + 1),
        seed=0,
        samples=samples,
        noise="count",
    )


def measure(way: str, samples: int, args: argparse.Namespace) -> dict[str, float]:
    """Numbers of the second update of a rollout, repeated for `args.steps` rollouts, and once more with counting."""
    import torch
    from datasets import Dataset

    from posttrain.rollout.masked.predictor import scratch_mask_model
    from posttrain.trainers.models.load import character_tokenizer

    torch.set_num_threads(1)
    tokenizer = character_tokenizer()
    model = scratch_mask_model(
        tokenizer, hidden_size=args.hidden, layers=args.layers, max_positions=args.prompt + args.tokens
    )
    model.resize_token_embeddings(args.vocabulary, mean_resizing=False)
    kept = Kept(model.parameters())
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    memory: dict[str, int] = {}

    class Measured(trainer_of(way)):
        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
            generator = torch.Generator().manual_seed(self.state.global_step)
            ids = torch.randint(5, 90, (len(prompt_ids), args.tokens), generator=generator)
            return ids.tolist(), None

        def training_step(self, *arguments: Any, **named: Any) -> Any:
            if not memory:
                forget_the_peak()
                memory["before"] = resident("VmRSS")
            if self._step % 2 == 0:  # the rollout's first update is on-policy
                return super().training_step(*arguments, **named)
            if self._step // 2 == args.steps:
                memory["peak"] = resident("VmHWM")
                with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
                    return super().training_step(*arguments, **named)
            begun, used = time.perf_counter(), time.process_time()
            loss = super().training_step(*arguments, **named)
            seconds.append(time.perf_counter() - begun)
            cpu_seconds.append(time.process_time() - used)
            return loss

    with tempfile.TemporaryDirectory() as folder:
        config = config_of(way, samples, folder, args)
        rows = Dataset.from_list([{"prompt": ("0123456789" * args.prompt)[: args.prompt]} for _ in range(16)])
        reward = lambda completions, **_: [float(i % 2) for i, _ in enumerate(completions)]  # noqa: E731
        trainer = Measured(model, reward, config, rows, processing_class=tokenizer)
        trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "kept_bytes": kept.peak,
        "peak_rss_bytes": memory["peak"] - memory["before"],
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),
        "grad_norm": norms[-1],
    }


# --------------------------------------------------------------------------------------------------------- all


def in_own_process(way: str, samples: int, arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, *arguments, "--one", way, str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{way}, n = {samples}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [
        "| way | n | kept for backward, MiB | against n = 1 | peak memory, MiB | CPU s an update | gradient norm |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, by_n in found.items():
        first = next(iter(by_n.values()))["kept_bytes"]
        for n, its in by_n.items():
            lines.append(
                f"| {way} | {n} | {its['kept_bytes'] / MIB:.1f} | {its['kept_bytes'] / first:.3f} "
                f"| {its['peak_rss_bytes'] / MIB:.0f} | {its['cpu_seconds']:.2f} | {its['grad_norm']:.5g} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, value in (
        *(("hidden", 256), ("layers", 4), ("vocabulary", 4000), ("responses", 4)),
        *(("prompt", 32), ("tokens", 96), ("steps", 3)),
    ):
        parser.add_argument(f"--{flag}", type=int, default=value)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--one", nargs=2, metavar=("WAY", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args)))
        return
    found: dict[str, dict[str, dict[str, float]]] = {way: {} for way in WAYS}
    for n in args.samples:  # ways side by side, so that a machine that slows down meets all of them
        for way in WAYS:
            found[way][str(n)] = in_own_process(way, n, sys.argv[1:])
    print(table(found))
    RESULTS.mkdir(exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key != "one"}
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python eval/speed/bgpo_memory.py " + " ".join(sys.argv[1:]),
        "hardware": f"{os.cpu_count()} shared CPU cores, one thread, load {os.getloadavg()[0]:.1f}",
        "settings": settings,
        "found": found,
    }
    out = RESULTS / f"bgpo_memory-hidden{args.hidden}-layers{args.layers}.json"
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
