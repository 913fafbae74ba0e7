"""A job as a file: a Slurm batch file, a SkyPilot task, or a script to start by hand on each machine."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from posttrain.recipe.sections import VLLMSection
from posttrain.run.jobs.job_layout import CONFIGS, Job, JobServer

Kind = Literal["slurm", "skypilot", "torchrun"]
TEMPLATES: dict[Kind, str] = {
    "slurm": "slurm.sh.j2",
    "skypilot": "skypilot.yaml.j2",
    "torchrun": "machines.sh.j2",
}
ENDINGS: dict[Kind, str] = {"slurm": "slurm.sh", "skypilot": "sky.yaml", "torchrun": "sh"}


@dataclass(frozen=True)
class JobOptions:
    """What a cluster wants to know beside the recipe.

    command     what was typed, for the file's first line
    time        Slurm's limit of one start, e.g. 24:00:00; `notice_s` seconds before it the run is asked to save and end
    restarts    how often a job that lost a server or a process is queued again
    gpu_type    SkyPilot's name of the GPU, e.g. H100
    setup       shell lines before everything else; "": the environment that wrote the file
    """

    command: str
    time: str = "24:00:00"
    notice_s: int = 300
    partition: str | None = None
    account: str | None = None
    restarts: int = 3
    gpu_type: str = "H100"
    setup: str = ""


def job_file(job: Job, kind: Kind, options: JobOptions) -> str:
    """The text of the file."""
    recipe = job.recipe
    vllm = _vllm(job)
    served = {machine: [s for s in job.servers if s.machine == machine] for machine in range(job.machines)}
    values: dict[str, Any] = {
        "job": job,
        "options": options,
        "on_cpu": recipe.train.use_cpu,
        "name": _name(job),
        "setup": options.setup or _environment_here(),
        "install": options.setup or _installs(job),
        "folder": shlex.quote(os.getcwd()),
        "key_env": vllm.api_key_env,
        "urls": [f'"http://{_host(job, server.machine)}:{server.port}"' for server in job.servers],
        "served": {
            machine: [_folded(_serve(job, server)) for server in servers]
            for machine, servers in served.items()
            if servers
        },
        "train": _folded(_train(job)),
    }
    return _templates().get_template(TEMPLATES[kind]).render(values)


def file_name(job: Job, kind: Kind) -> Path:
    """Where the file goes if nothing else is said: beside the runs, as the run's folder is taken by the run."""
    return Path(job.recipe.output.dir) / f"{job.recipe.output.name}.{ENDINGS[kind]}"


# ---- the two commands, in lines


def _serve(job: Job, server: JobServer) -> list[str]:
    recipe, vllm = job.recipe, _vllm(job)
    seen = [f"CUDA_VISIBLE_DEVICES={','.join(map(str, server.gpus))}"] if server.gpus else []
    computes = vllm.dtype or {"bf16": "bfloat16", "fp16": "float16", "no": "float32"}[_precision(job)]
    sync = vllm.sync or ("gloo" if recipe.train.use_cpu else "nccl")
    where = [
        f'HOST="{_host(job, server.machine)}"',
        f"PORT={server.port}",
        f"DTYPE={computes}",
        f"SYNC={sync}",
    ]
    command = ["launch/serve_vllm.sh", shlex.quote(recipe.model.path or "")]
    if (longest := _longest(job)) is not None:
        command += ["--max-model-len", str(longest)]
    if len(server.gpus) > 1:
        command += ["--tensor-parallel-size", str(len(server.gpus))]
    log = f"{_name(job)}-server-{job.servers.index(server)}.log"
    return [" ".join([*seen, *where]), " ".join(command), f">> {log} 2>&1 &"]


def _train(job: Job) -> list[str]:
    recipe, shares = job.recipe, job.servers and job.machines == 1 and not job.recipe.train.use_cpu
    lines = [f"CUDA_VISIBLE_DEVICES={','.join(map(str, range(job.per_machine)))}"] if shares else []
    if job.engine is not None:
        lines += [
            f"posttrain launch accelerate launch --config_file {CONFIGS}/{job.engine}.yaml "
            f"--mixed_precision {_precision(job)}",
            f'--num_machines {job.trainers} --num_processes {job.processes} --machine_rank "$NODE"',
            '--main_process_ip "${hosts[0]}" --main_process_port "$PORT"',
        ]
        if job.engine in ("zero2", "zero3") and job.trainers > 1:  # not pdsh: each machine starts its own
            lines.append("--deepspeed_multinode_launcher standard")
        lines.append("-m posttrain")
    elif job.processes > 1:
        lines += [
            f'posttrain launch torchrun --nnodes {job.trainers} --nproc_per_node {job.per_machine} --node_rank "$NODE"',
            '--master_addr "${hosts[0]}" --master_port "$PORT" -m posttrain',
        ]
    else:
        lines.append("posttrain")
    given = [word for override in recipe.overrides for word in ("--set", override)]
    lines[-1] += f" {shlex.join(['train', recipe.path, *given])}"
    if job.servers:
        lines.append("""--set "rollout.vllm.servers=[$(IFS=,; echo "${servers[*]}")]\"""")
    if job.servers and job.machines > 1 and _vllm(job).sync != "disk":
        lines.append('--set "rollout.vllm.sync_host=${hosts[0]}"')
    lines.append("--resume auto &")
    return lines


def _folded(lines: list[str]) -> str:
    return " \\\n            ".join(lines)


def _host(job: Job, machine: int) -> str:
    return f"${{hosts[{machine}]}}" if job.machines > 1 else "127.0.0.1"


def _name(job: Job) -> str:
    return job.recipe.output.name.replace("/", "-")


def _vllm(job: Job) -> VLLMSection:
    rollout = job.recipe.rollout
    return (rollout.vllm if rollout is not None else None) or VLLMSection()


def _precision(job: Job) -> str:
    return "bf16" if job.recipe.train.bf16 else "fp16" if job.recipe.train.fp16 else "no"


def _longest(job: Job) -> int | None:
    """Tokens of the longest sequence a server is asked for, where the recipe says both of its parts."""
    prompt, rollout = job.recipe.data.max_prompt_tokens, job.recipe.rollout
    return prompt + rollout.max_new_tokens if prompt and rollout is not None else None


def _installs(job: Job) -> str:
    rollout = job.recipe.rollout
    extras = ["vllm"] if rollout is not None and rollout.engine.startswith("vllm") else []
    extras += ["deepspeed"] if (job.engine or "").startswith("zero") else []
    return f"pip install -e '.[{','.join(extras)}]'" if extras else "pip install -e ."


def _environment_here() -> str:
    """The virtual environment this runs in; a comment where there is none."""
    if sys.prefix == sys.base_prefix:
        return "# here the environment is activated, if the machines need it"
    return f"source {shlex.quote(str(Path(sys.prefix) / 'bin' / 'activate'))}"


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("posttrain.run.jobs", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell and YAML, not HTML; what comes from outside is quoted above
    )
