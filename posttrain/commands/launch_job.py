"""`posttrain launch RECIPE --slurm`: one file that starts servers and trainer on every machine, written and started."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from posttrain.process import exit_codes
from posttrain.process.storage import storage_fault
from posttrain.recipe import RecipeError, load_recipe
from posttrain.run.jobs.job_file import JobOptions, Kind, file_name, job_file
from posttrain.run.jobs.job_layout import CONFIGS, ENGINES, Job, lay_out
from posttrain.run.plan import add_recipe_arguments

STARTED_BY: dict[Kind, list[str]] = {
    "slurm": ["sbatch"],
    "skypilot": ["sky", "launch"],
    "torchrun": ["bash"],
}


def is_recipe(words: Sequence[str]) -> bool:
    """Whether the words begin with a recipe, not with a launcher's command."""
    return words[0].endswith((".yaml", ".yml"))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="posttrain launch",
        description="Write one file that starts a recipe's rollout servers and trainer on every machine; start it.",
    )
    add_recipe_arguments(made)
    kind = made.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--slurm", dest="kind", action="store_const", const="slurm", help="a batch file, for sbatch"
    )
    kind.add_argument(
        "--skypilot", dest="kind", action="store_const", const="skypilot", help="a task, for sky launch"
    )
    kind.add_argument(
        "--torchrun",
        dest="kind",
        action="store_const",
        const="torchrun",
        help="a script for this machine, or for each",
    )
    made.add_argument("--dry-run", action="store_true", help="print the file; write and start nothing")
    made.add_argument("--out", metavar="FILE", help="where to write it (default: beside the run's folder)")
    made.add_argument(
        "--machines", type=_count, help="machines of the whole job (default: as few as the recipe needs)"
    )
    made.add_argument(
        "--gpus",
        type=_count,
        default=8,
        help="GPUs of a machine (default 8); with train.use_cpu: its processes",
    )
    made.add_argument("--gpus-per-server", type=_count, default=1, help="of one rollout server (default 1)")
    made.add_argument("--engine", choices=list(ENGINES), help="default: the first whose estimate fits")
    made.add_argument("--memory", type=float, default=80.0, metavar="GIB", help="of one GPU (default 80)")
    made.add_argument("--time", default="24:00:00", help="Slurm: limit of one start (default 24:00:00)")
    made.add_argument(
        "--notice", type=_count, default=300, help="Slurm: seconds before it to save (default 300)"
    )
    made.add_argument("--partition", help="Slurm")
    made.add_argument("--account", help="Slurm")
    made.add_argument("--gpu-type", default="H100", help="SkyPilot's name of the GPU (default H100)")
    made.add_argument(
        "--setup", default="", help="shell line to run first (default: activate this environment)"
    )
    return made


def main(words: Sequence[str]) -> int:
    """Write the file of a job and start it; with --dry-run, print it."""
    args = parser().parse_args(list(words))
    kind: Kind = args.kind
    try:
        job = lay_out(
            load_recipe(args.recipe, args.set),
            machines=args.machines,
            gpus=args.gpus,
            per_server=args.gpus_per_server,
            engine=args.engine,
            memory_gib=args.memory,
        )
    except RecipeError as error:
        print(error, file=sys.stderr)
        return exit_codes.REFUSED
    options = JobOptions(
        command=shlex.join(["posttrain", "launch", *words]),
        time=args.time,
        notice_s=args.notice,
        partition=args.partition,
        account=args.account,
        gpu_type=args.gpu_type,
        setup=args.setup,
    )
    text = job_file(job, kind, options)
    if args.dry_run:
        print(text, end="")
        return exit_codes.DONE
    lacking = [name for name in _needed(job) if not Path(name).exists()]
    if lacking:
        return _refused(f"{', '.join(lacking)} is not in {os.getcwd()}; start from the repository's folder")
    return _start(text, Path(args.out) if args.out else file_name(job, kind), kind, job)


def _start(text: str, file: Path, kind: Kind, job: Job) -> int:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as error:
        return _refused(f"{file} cannot be written: {storage_fault(error) or error.strerror}")
    print(f"{file}: {job.in_words()}", file=sys.stderr)
    if kind == "torchrun" and job.machines > 1:
        print(f"start it on each of the {job.machines} machines, as its first lines say", file=sys.stderr)
        return exit_codes.DONE
    command = [*STARTED_BY[kind], str(file)]
    if shutil.which(command[0]) is None:
        return _refused(
            f"{file} is written, but there is no {command[0]} here; start it with: {shlex.join(command)}"
        )
    sys.stderr.flush()
    if kind == "torchrun":  # in this process's place: signals and the exit code are the script's
        os.execvp(command[0], command)
    return subprocess.run(command).returncode


def _needed(job: Job) -> list[str]:
    config = [f"{CONFIGS}/{job.engine}.yaml"] if job.engine is not None else []
    return [*config, *(["launch/serve_vllm.sh"] if job.servers else [])]


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def _refused(message: str) -> int:
    print(f"posttrain launch: {message}", file=sys.stderr)
    return exit_codes.REFUSED
