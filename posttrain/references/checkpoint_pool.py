"""A pool of past checkpoints, and which of them the next round is compared with.

The pool is a folder of numbered subfolders and one `pool.json`. It does not know what a checkpoint holds
(a whole model or an adapter): whoever adds one passes a function that writes it. The drawing generator is
the pool's own, so that the index is the same on every rank and after a resume, however much randomness
training has used.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Reference = Literal["initial", "latest", "random"]

_STATE = "pool.json"


class ReferencePool:
    """Checkpoints 0, 1, ... in `folder`; index 0 is the model before training.

    Opened again on the same folder it continues where it stood. In a run of several ranks all ranks read, and only
    the main one may `add`.
    """

    def __init__(self, folder: str | os.PathLike[str], seed: int = 0) -> None:
        self.folder = Path(folder)
        self.seed = seed
        self.draws: list[int] = []
        if (self.folder / _STATE).exists():
            self._load()

    def __len__(self) -> int:
        """Finished checkpoints, counted on disk."""
        count = 0
        while self.path(count).is_dir():
            count += 1
        return count

    def path(self, index: int) -> Path:
        return self.folder / f"{index:03d}"

    def add(self, write: Callable[[Path], None]) -> Path:
        """Writes the next checkpoint with `write(folder)`, aside first: a kill leaves no half of one."""
        staging = self.staging()
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        write(staging)
        return self.publish()

    def staging(self) -> Path:
        """Where the next checkpoint is written, for writers that several ranks take part in."""
        return self.folder / f".writing-{self.path(len(self)).name}"

    def publish(self) -> Path:
        """Makes what lies in `staging` the next checkpoint; for one rank, after all have written."""
        final = self.path(len(self))
        os.replace(self.staging(), final)
        return final

    def draw(self, round_number: int, reference: Reference) -> int:
        """The index the round compares with: 0, the newest, or uniform over all before the round.

        round_number counts from 1, and round k sees checkpoints 0 ... k-1 (SePPO, Alg. 1). Drawing for a round that
        was drawn before gives the same answer, whatever was drawn since.
        """
        if round_number < 1:
            raise ValueError(f"ReferencePool: rounds count from 1, got {round_number}")
        if reference == "initial":
            return 0
        if reference == "latest":
            return round_number - 1
        generator = random.Random(self.seed)
        indices = [generator.randrange(k) for k in range(1, round_number + 1)]
        return indices[-1]

    def record(self, round_number: int, index: int) -> None:
        """Notes on disk which checkpoint a round used."""
        self.draws = [*self.draws[: round_number - 1], index]
        self.folder.mkdir(parents=True, exist_ok=True)
        staging = self.folder / f".{_STATE}"
        staging.write_text(
            json.dumps({"seed": self.seed, "draws": self.draws}, indent=1) + "\n", encoding="utf-8"
        )
        os.replace(staging, self.folder / _STATE)

    def _load(self) -> None:
        state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
        if state["seed"] != self.seed:
            raise ValueError(
                f"{self.folder}: the pool was drawn from with seed {state['seed']}, not {self.seed}; "
                "resume with the same seed or start in another folder"
            )
        self.draws = list(state["draws"])
