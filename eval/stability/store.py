"""The lab's stored runs: one compressed file per regime, eval/stability/results/REGIME.jsonl.gz, a run per line.

    python eval/stability/store.py [REGIME]          what is stored: cell, seed, steps, date, t5
    python eval/stability/store.py REGIME --out DIR  each run as a JSON file of its own, to look into
    python eval/stability/store.py --merge DIR       stores the runs found in DIR: such files, or files of regimes

A run's name is CELL--seedN, with -Ssteps behind it where it is not of its regime's length; a run that is stored again
takes the place of the old one. The same runs give the same bytes.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
ENDING = ".jsonl.gz"
Run = dict[str, Any]


def read(regime: str, folder: Path = RESULTS) -> dict[str, Run]:
    """Runs of a regime by name, in order; {} where there are none."""
    path = folder / f"{regime}{ENDING}"
    if not path.exists():
        return {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return {run["name"]: run for run in map(json.loads, file)}


def read_all(folder: Path = RESULTS) -> Iterator[Run]:
    """Every run, regime by regime."""
    for path in sorted(folder.glob(f"*{ENDING}")):
        yield from read(path.name.removesuffix(ENDING), folder).values()


def add(runs: list[Run], folder: Path = RESULTS) -> None:
    """Stores runs, each with its `regime` and `name`. Several processes may do so at once."""
    folder.mkdir(parents=True, exist_ok=True)
    for regime in sorted({run["regime"] for run in runs}):
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = read(regime, folder) | {run["name"]: run for run in runs if run["regime"] == regime}
            _write(folder / f"{regime}{ENDING}", [known[name] for name in sorted(known)])


def found_in(folder: Path) -> list[Run]:
    """Runs that lie in a folder, in files of regimes or one by one as JSON."""
    single = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [*read_all(folder), *(run for run in single if {"regime", "name", "curves"} <= run.keys())]


def _write(path: Path, runs: list[Run]) -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as file:
        for run in runs:
            file.write((json.dumps(run) + "\n").encode())
    aside = path.with_suffix(".tmp")
    aside.write_bytes(packed.getvalue())
    os.replace(aside, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stored = sorted(path.name.removesuffix(ENDING) for path in RESULTS.glob(f"*{ENDING}"))
    parser.add_argument("regime", nargs="?", choices=stored)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--merge", type=Path, metavar="DIR")
    args = parser.parse_args()
    if args.merge is not None:
        runs = found_in(args.merge)
        if not runs:
            parser.error(
                f"{args.merge} holds no runs: neither *{ENDING} nor *.json as run.py and --out write them"
            )
        add(runs)
        print(f"{len(runs)} runs stored in {RESULTS}")
        return
    for regime in [args.regime] if args.regime else stored:
        for name, run in read(regime).items():
            if args.out is not None:
                args.out.mkdir(parents=True, exist_ok=True)
                (args.out / f"{regime}--{name}.json").write_text(json.dumps(run, indent=1) + "\n")
            print(f"{regime:24} {name:32} {run['steps']:4} steps  {run['date']}  t5 {run['summary']['t5']}")


if __name__ == "__main__":
    main()
