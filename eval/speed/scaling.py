"""Step time and peak memory of each rank, for engines that share a model out and numbers of processes.

    python eval/speed/scaling.py [--recipe recipes/demo/sft.yaml] [--engines ddp zero2 zero3 fsdp2] [--processes 1 2]
                                 [--steps 8] [--set KEY=VALUE ...]

Each case is `posttrain train` in processes of its own, with the user's file in launch/accelerate and in float32. A
rank's batch stays as the recipe says, so that two processes train on twice the rows per step. The first two steps
are not counted. On a CPU accelerate shards only with the doors that tests use (tests/support/sharded_cpu.py), and peak
memory is what the operating system counted for the process; of it, what the process held when training began is
beside it. Figures are printed, and nothing is asserted: they say what this machine did, not what a GPU would.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
ENGINES = ("ddp", "zero2", "zero3", "fsdp2")
UNCOUNTED = 2
MIB = 2**20


def rank(kind: str, folder: Path, words: list[str]) -> int:
    """One process of a case: trains, and leaves its step times and memory in `folder`."""
    import sharded_cpu
    from transformers import TrainerCallback

    from posttrain.cli import main
    from posttrain.run.session import Session

    if kind != "ddp":
        sharded_cpu.enable("fsdp" if kind == "fsdp2" else "deepspeed")

    class StepClock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.before, self.at, self.seconds = resident(), time.perf_counter(), []

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            self.seconds.append(now - self.at)
            self.at = now

        def on_train_end(self, *_: Any, **named: Any) -> None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux: KiB
            found = {"seconds": self.seconds, "peak": peak, "before": self.before}
            (folder / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))

    begin = Session.begin

    def begun(self: Session, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        self.trainer.add_callback(StepClock())
        (folder / "engine").write_text(str(self.trainer.accelerator.distributed_type.value))

    Session.begin = begun  # type: ignore[method-assign]  # for this process only
    return main(words)


def resident() -> int:
    """Bytes this process holds now (Linux)."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def case(kind: str, processes: int, args: argparse.Namespace) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        train = ["train", args.recipe, "--set", f"output={{name: run, dir: {folder}, report_to: []}}"]
        changes = {"train.max_steps": args.steps, "train.use_cpu": str(kind == "ddp").lower()}
        changes["train.warmup_steps"] = 0  # a recipe's own may be more than these steps
        for change in [*(f"{key}={value}" for key, value in changes.items()), *args.set]:
            train += ["--set", change]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        if kind == "ddp":
            env["ACCELERATE_USE_CPU"] = "true"
            launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        else:
            env |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
            config = ROOT / "launch" / "accelerate" / f"{kind}.yaml"
            launcher = ["accelerate.commands.launch", "--config_file", str(config)]
            launcher += ["--num_processes", str(processes), "--mixed_precision", "no"]
        command = [sys.executable, "-m", *launcher, __file__, "--rank", kind, str(folder), *train]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
        if done.returncode or len(found) != processes:
            said = [line.strip() for line in done.stderr.splitlines()]
            why = [line for line in said if line.startswith((args.recipe, "--set"))]  # a refusal
            why += [line for line in said if "Error" in line]
            return f"| {kind} | {processes} | did not run: {why[0][:160] if why else done.returncode} | | |"
        seconds = [statistics.median(one["seconds"][UNCOUNTED:]) for one in found]
        peak = [f"{one['peak'] / MIB:.0f}" for one in found]
        more = [f"{(one['peak'] - one['before']) / MIB:.0f}" for one in found]
        engine = (folder / "engine").read_text()
        return (
            f"| {kind} ({engine}) | {processes} | {', '.join(f'{s:.3f}' for s in seconds)} | {', '.join(peak)} | "
            f"{', '.join(more)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="recipes/demo/sft.yaml")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as of posttrain train"
    )
    args = parser.parse_args()
    if args.steps <= UNCOUNTED:
        parser.error(f"--steps: {args.steps} leaves none to count; the first {UNCOUNTED} are left out")
    print(
        "| engine | processes | s per step, each rank (median) | peak MiB, each rank | MiB above training's start |"
    )
    print("|---|---|---|---|---|")
    for kind in args.engines:
        for processes in args.processes:
            print(case(kind, processes, args), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        sys.exit(rank(sys.argv[2], Path(sys.argv[3]), sys.argv[4:]))
    main()
