"""Work that the processes of a launcher share out without speaking to each other: each is alone, and knows its place.

What measures rows has nothing to add up over ranks, and is the same whatever the number of processes where each of
them takes no part in a group. So a process reads its place from what the launcher has set, and then takes that away:
torch and accelerate see one process, on the GPU of that place.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass

_RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
_LOCAL = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK")
_WORLD = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_OTHERS = ("LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SHARDED = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")


@dataclass(frozen=True)
class Place:
    """Of a process among those of its launcher, from 0; `local` among those of its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    def takes(self, number: int) -> bool:
        """Whether a piece of work is this process's; pieces are dealt in turn."""
        return number % self.world == self.rank


ALONE = Place()


def place_alone(environment: MutableMapping[str, str] | None = None) -> Place:
    """This process's place, with the launcher's variables taken away. To be called before a GPU is used.

    Raises ValueError where the launcher shares a model out, or a process has no GPU of its own.
    """
    environment = os.environ if environment is None else environment
    place = Place(
        _number(environment, _RANK, 0), _number(environment, _WORLD, 1), _number(environment, _LOCAL, 0)
    )
    if place.world == 1:
        return place
    for name in _SHARDED:
        if environment.get(name, "false").lower() in ("true", "1"):
            raise ValueError(
                f"the launcher shares a model out over its processes ({name}), and here each has the whole of it; "
                "start them with torchrun, or measure with rollout.engine: vllm_server"
            )
    _own_gpu(place, environment)
    for name in (*_RANK, *_LOCAL, *_WORLD, *_OTHERS):
        environment.pop(name, None)
    return place


def _own_gpu(place: Place, environment: MutableMapping[str, str]) -> None:
    import torch

    count = torch.cuda.device_count()
    if not count:
        return
    if place.local >= count:
        raise ValueError(
            f"{place.local + 1} processes or more on this machine, and {count} GPUs: one each is needed"
        )
    named = [one for one in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    environment["CUDA_VISIBLE_DEVICES"] = named[place.local] if named else str(place.local)


def _number(environment: MutableMapping[str, str], names: tuple[str, ...], otherwise: int) -> int:
    return next((int(environment[name]) for name in names if name in environment), otherwise)
