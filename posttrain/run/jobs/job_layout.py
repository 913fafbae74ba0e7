"""What runs where: machines, trainer's processes, rollout servers, and what each process holds of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from posttrain.planning.memory import GIB, Launch, estimate
from posttrain.planning.shapes import read_shape
from posttrain.recipe import Recipe, RecipeError
from posttrain.run.plan import Plan, make_plan

Engine = Literal["ddp", "zero2", "zero3", "fsdp2"]
ENGINES: dict[Engine, int] = {"ddp": 0, "zero2": 2, "zero3": 3, "fsdp2": 3}
"""name -> DeepSpeed's stage that holds as much; each has its file launch/accelerate/NAME.yaml."""
CHOSEN_FROM: tuple[Engine, ...] = ("ddp", "zero2", "zero3")
"""The less is shared out, the less is sent: the first that fits is taken."""
CONFIGS = Path("launch/accelerate")
SPARE = 0.9
"""Share of a device's memory that an estimate may reach, as in `plan`."""
FIRST_PORT = 8000
LOOPBACK = ("127.", "localhost", "[::1]", "::1")


@dataclass(frozen=True)
class JobServer:
    """A rollout server: the machine it runs on (0 is the head), its port, and the GPUs it sees (none on a CPU)."""

    machine: int
    port: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """A recipe on `machines` machines.

    trainers   machines that train, the first ones; each starts `per_machine` processes on its first GPUs
    engine     how the model is shared out; None: one process, or processes without a GPU
    reason     why that engine, a sentence
    """

    recipe: Recipe
    plan: Plan
    machines: int
    gpus: int
    trainers: int
    per_machine: int
    servers: tuple[JobServer, ...]
    engine: Engine | None
    reason: str

    @property
    def processes(self) -> int:
        return self.trainers * self.per_machine

    @property
    def own_server_machines(self) -> int:
        return self.machines - self.trainers

    def in_words(self) -> str:
        """One line: what is started."""
        device = "process" if self.recipe.train.use_cpu else "GPU"
        trains = f"{_count(self.trainers, 'machine')} x {_count(self.per_machine, device)} to train"
        if not self.servers:
            return trains
        serves = _count(len(self.servers), "rollout server")
        gpus = sum(len(server.gpus) for server in self.servers)
        on = f" on {_count(gpus, 'GPU')}" if gpus else ""
        where = f" of {_count(self.own_server_machines, 'more machine')}" if self.own_server_machines else ""
        return f"{trains}, {serves}{on}{where}"


def lay_out(
    recipe: Recipe,
    *,
    machines: int | None = None,
    gpus: int = 8,
    per_server: int = 1,
    engine: Engine | None = None,
    memory_gib: float = 80.0,
) -> Job:
    """The job of a recipe; RecipeError says what does not fit, as `plan` would and for the machines asked for.

    machines    of the whole job; None: one, and what servers with addresses of other machines need
    gpus        of one machine; of a recipe for the CPU, processes of one machine
    per_server  GPUs of one rollout server (vLLM's tensor parallelism)
    memory_gib  of one GPU, for the choice of the engine
    """
    on_cpu = recipe.train.use_cpu
    wanted = _servers_of(recipe)
    size = 0 if on_cpu else per_server
    if size > gpus:
        raise RecipeError(f"{recipe.path}: a server of {size} GPUs does not fit a machine of {gpus}")
    each = max(1, gpus // size) if size else len(wanted)
    own = -(-len(wanted) // each) if wanted else 0
    if machines is None:
        machines = 1 + own if any(not _is_loopback(url) for url in wanted) else 1
    if machines == 1:
        trainers, left = 1, gpus - size * len(wanted)
        places = [(0, left + size * i) for i in range(len(wanted))]
    else:
        trainers, left = machines - own, gpus
        places = [(trainers + i // each, size * (i % each)) for i in range(len(wanted))]
    if trainers < 1 or left < 1:
        short = f"{_count(machines, 'machine')} of {_count(gpus, 'GPU')}"
        raise RecipeError(
            f"{recipe.path}: {short} are taken by {_count(len(wanted), 'rollout server')} of {_count(size, 'GPU')}; "
            "nothing is left to train on: more --machines, more --gpus, or fewer rollout.vllm.servers"
        )
    servers = tuple(
        JobServer(machine, port, tuple(range(first, first + size)))
        for (machine, first), port in zip(
            places, _ports(wanted, [machine for machine, _ in places]), strict=True
        )
    )
    processes = trainers * left
    chosen, reason = _engine_of(recipe, processes, engine, memory_gib)
    plan = make_plan(
        recipe, processes=processes, zero=ENGINES[chosen] if chosen else 0, device_gib=memory_gib, resume=True
    )
    plan.require()
    return Job(recipe, plan, machines, gpus, trainers, left, servers, chosen, reason)


def _servers_of(recipe: Recipe) -> list[str]:
    rollout = recipe.rollout
    if rollout is None or rollout.engine != "vllm_server":
        return []
    return list(rollout.vllm.servers) if rollout.vllm is not None else ["http://127.0.0.1:8000"]


def _ports(urls: list[str], machines: list[int]) -> Iterator[int]:
    """The recipe's own ports; where two servers of a machine would have one, the next that is free there."""
    taken: set[tuple[int, int]] = set()
    for url, machine in zip(urls, machines, strict=True):
        port = urlsplit(url).port or FIRST_PORT
        while (machine, port) in taken:
            port += 1
        taken.add((machine, port))
        yield port


def _is_loopback(url: str) -> bool:
    return (urlsplit(url).hostname or "").startswith(LOOPBACK)


def _engine_of(
    recipe: Recipe, processes: int, asked: Engine | None, memory_gib: float
) -> tuple[Engine | None, str]:
    if recipe.train.use_cpu:
        return None, "train.use_cpu: torchrun, every process holds the whole model"
    if processes == 1:
        return None, "one process"
    if asked is not None:
        return asked, "as asked for with --engine"
    peaks = dict(peaks_of(recipe, processes))
    if not peaks:
        return "zero3", (
            f"the memory is not known, because {recipe.model.path} is not on this machine; zero3 holds the most, "
            "--engine takes another"
        )
    fits: Engine | None = next(
        (name for name, peak in peaks.items() if peak <= SPARE * memory_gib * GIB), None
    )
    words = ", ".join(f"{name} {peak / GIB:.0f} GiB" for name, peak in peaks.items())
    if fits is None:
        raise RecipeError(
            f"{recipe.path}: does not fit {memory_gib:g} GiB with a tenth to spare ({words} per GPU of {processes}): "
            "more machines, model.peft, a smaller per_device_train_batch_size, or --engine to try all the same"
        )
    return fits, f"the first to fit {memory_gib:g} GiB with a tenth to spare: {words}"


def peaks_of(recipe: Recipe, processes: int) -> Iterator[tuple[Engine, float]]:
    """(engine, estimated bytes of one GPU at the peak); nothing where the model's shape is not known."""
    shape = read_shape(recipe.model)
    for name in CHOSEN_FROM if shape is not None else ():
        assert shape is not None
        yield name, estimate(recipe, shape, Launch(processes, ENGINES[name])).peak


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("ss") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
