"""Fault drills: a small run is hurt in one way after another, and the table says what came of it.

    python eval/faults/run.py [--only kill] [--table eval/faults/table.md]

For each: seconds from the fault to the end of the process, its exit code, its last line, and whether the run,
continued, ends with the weights of the uninterrupted one, bit for bit. On a CPU; 10 to 40 minutes by the machine.
A disk that is full or read-only is a small tmpfs, which needs root; without, a limit on the size of files stands for
the full disk and the read-only folder is left out. Exit code 1 when a drill did not end as it should.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import LIMIT_S, Drill, Outcome, below, words_of

from posttrain.process import exit_codes


def signalled(*numbers: int, step: int = 3) -> Callable[[Drill, Path], Outcome]:
    def drill(d: Drill, whole: Path) -> Outcome:
        process = d.start()
        d.reach(step, process)
        since = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.02)
        outcome = d.end(process, since)
        outcome.equal = d.equals(whole)
        return outcome

    return drill


def killed_while(folder: str) -> Callable[[Drill, Path], Outcome]:
    """kill -9 as soon as `folder` of the run is seen, with files in it."""

    def drill(d: Drill, whole: Path) -> Outcome:
        process = d.start()
        d.reach(2, process)
        place = d.run / folder
        d.wait_for(lambda: any(place.rglob("*.*")), process, pause_s=0.0005)
        since = time.monotonic()
        process.kill()
        outcome = d.end(process, since)
        outcome.note = "half written" if place.exists() else "missed: it was renamed by then"
        outcome.equal = d.equals(whole)
        return outcome

    return drill


def killed_rank(d: Drill, whole: Path) -> Outcome:
    process = d.start()
    d.reach(3, process)
    ranks = [pid for pid in below(process.pid) if "train" in words_of(pid) and "launch" not in words_of(pid)]
    ranks = [pid for pid in ranks if "torch.distributed.run" not in words_of(pid)]
    since = time.monotonic()
    os.kill(max(ranks), signal.SIGKILL)
    outcome = d.end(process, since)
    outcome.equal = d.equals(whole)
    return outcome


def killed_reward_worker(d: Drill, whole: Path) -> Outcome:
    process = d.start()
    d.reach(3, process)
    workers = [pid for pid in below(process.pid) if "posttrain.rewards.worker" in words_of(pid)]
    since = time.monotonic()
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    outcome = d.end(process, since)
    outcome.equal = d.equals(whole)
    return outcome


def closed_pipe(d: Drill, whole: Path) -> Outcome:
    process = d.start(stdout=subprocess.PIPE)
    d.reach(3, process)
    since = time.monotonic()
    assert process.stdout is not None
    process.stdout.close()
    outcome = d.end(process, since)
    outcome.equal = d.equals(whole)
    return outcome


def reward_that(fault: str) -> Callable[[Drill, Path], Outcome]:
    def drill(d: Drill, whole: Path) -> Outcome:
        process = d.start()
        d.reach(3, process)
        since = time.monotonic()
        (d.folder / "fault").write_text(fault)
        outcome = d.end(process, since)
        (d.folder / "fault").unlink()
        outcome.equal = d.equals(whole)
        return outcome

    return drill


@contextlib.contextmanager
def small_disk(d: Drill) -> Iterator[Path]:
    """The run's folders on a disk of 6 MiB of their own."""
    disk = d.folder / "runs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        d.close()
        subprocess.run(["umount", str(disk)], check=True)


def full_disk(d: Drill, whole: Path) -> Outcome:
    if os.geteuid() != 0:
        process = d.start()
        d.reach(3, process)
        since = time.monotonic()
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        outcome = d.end(process, since)
        outcome.note = "by a limit on the size of files"
        outcome.equal = d.equals(whole)
        return outcome
    with small_disk(d) as disk:
        process = d.start()
        d.reach(3, process)
        since = time.monotonic()
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(b"0" * 4096)
        outcome = d.end(process, since)
        (disk / "filler").unlink()
        outcome.equal = d.equals(whole)
    return outcome


def read_only(d: Drill, whole: Path) -> Outcome:
    process = d.start()
    d.reach(3, process)
    place = str(d.run / "checkpoints")
    process.send_signal(signal.SIGSTOP)  # with a file of it open for writing it could not be made read-only
    since = time.monotonic()
    # Of the same place, mounted over itself: a disk of its own could not change while the lock is open for writing.
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        process.send_signal(signal.SIGCONT)
        outcome = d.end(process, since)
    finally:
        d.close()
        subprocess.run(["umount", place], check=True)
    outcome.equal = d.equals(whole)
    return outcome


def read_only_start(d: Drill, _: Path) -> Outcome:
    with small_disk(d) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        since = time.monotonic()
        return d.end(d.start(), since)


def started_with(*changes: str) -> Callable[[Drill, Path], Outcome]:
    def drill(d: Drill, _: Path) -> Outcome:
        since = time.monotonic()
        return d.end(d.start(*(word for change in changes for word in ("--set", change))), since)

    return drill


def nan_weight(d: Drill, whole: Path) -> Outcome:
    from safetensors.torch import load_file, save_file

    shutil.copytree(whole / "model", d.folder / "spoilt")
    file = d.folder / "spoilt" / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    since = time.monotonic()
    return d.end(d.start("--set", "model={path: spoilt}"), since)


def beside(*words: str) -> Callable[[Drill, Path], Outcome]:
    """A second start beside a live run; the first one must go on, and end with the weights of the uninterrupted."""

    def drill(d: Drill, whole: Path) -> Outcome:
        first = d.start()
        d.reach(2, first)
        os.kill(first.pid, signal.SIGSTOP)  # or a small run might end before the second start has looked
        try:
            since = time.monotonic()
            outcome = d.end(d.start(*words), since)
        finally:
            os.kill(first.pid, signal.SIGCONT)
        outcome.note = f"the first run ends with {first.wait(LIMIT_S)}"
        outcome.equal = (d.run / "model").is_dir() and d.equals(whole)
        return outcome

    return drill


DRILLS: dict[str, tuple[Callable[[Drill, Path], Outcome], int]] = {
    "kill -9 in mid-run": (signalled(signal.SIGKILL), -9),
    "kill -9 while a checkpoint is written": (killed_while("checkpoints/.saving"), -9),
    "kill -9 while the model is written": (killed_while(".model.saving"), -9),
    "kill -9 of one of two ranks": (killed_rank, exit_codes.PROCESS_LOST),
    "kill -9 of the reward's workers": (killed_reward_worker, exit_codes.REWARD_FAILED),
    "SIGTERM": (signalled(signal.SIGTERM), exit_codes.STOPPED),
    "SIGHUP": (signalled(signal.SIGHUP), exit_codes.STOPPED),
    "SIGUSR1": (signalled(signal.SIGUSR1), exit_codes.STOPPED),
    "SIGUSR1, two ranks": (signalled(signal.SIGUSR1), exit_codes.STOPPED),
    "Ctrl-C": (signalled(signal.SIGINT), exit_codes.STOPPED),
    "Ctrl-C twice": (signalled(signal.SIGINT, signal.SIGINT), exit_codes.STOPPED),
    "closed pipe": (closed_pipe, exit_codes.STOPPED),
    "disk full while saving": (full_disk, exit_codes.NOT_WRITTEN),
    "folder becomes read-only": (read_only, exit_codes.NOT_WRITTEN),
    "start in a read-only folder": (read_only_start, exit_codes.REFUSED),
    "reward hangs": (reward_that("hang"), exit_codes.REWARD_FAILED),
    "reward exits": (reward_that("exit"), exit_codes.REWARD_FAILED),
    "reward segfaults": (reward_that("segfault"), exit_codes.REWARD_FAILED),
    "reward floods its outputs": (reward_that("flood"), exit_codes.DONE),
    "learning rate 1e30": (started_with("train.learning_rate=1.0e+30"), exit_codes.REFUSED),
    "NaN in a weight": (nan_weight, exit_codes.NOT_FINITE),
    "reward weight 1e38": (started_with("rewards.0.weight=1.0e+38"), exit_codes.REFUSED),
    "rewards of 1e39": (reward_that("huge"), exit_codes.REWARD_FAILED),
    "two starts of one name": (beside(), exit_codes.REFUSED),
    "overwrite of a live run": (beside("--set", "output.overwrite=true"), exit_codes.REFUSED),
    "resume of a live run": (beside("--resume"), exit_codes.REFUSED),
}
"""name -> (drill, the exit code it must end with)."""
TWO_RANKS = ("kill -9 of one of two ranks", "SIGUSR1, two ranks")
NEED_ROOT = ("folder becomes read-only", "start in a read-only folder")
EQUAL = {True: "equal", False: "DIFFERS", None: ""}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="drills whose name holds this")
    parser.add_argument("--table", type=Path, help="also write the table here")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, or a mount would stay
    names = [name for name in DRILLS if args.only in name]
    lines = [
        "| fault | seconds | exit code | last line | continued against uninterrupted |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    bad = False
    with tempfile.TemporaryDirectory(prefix="posttrain-faults-") as top:
        whole = {
            ranks: uninterrupted(Path(top), ranks) for ranks in {2 if n in TWO_RANKS else 1 for n in names}
        }
        for number, name in enumerate(names):
            if name in NEED_ROOT and os.geteuid() != 0:
                line, fine = f"| {name} | | | not tried: needs root | |", True
            else:
                line, fine = drilled(name, Path(top) / str(number), whole[2 if name in TWO_RANKS else 1])
            bad = bad or not fine
            lines.append(line)
            print(line, flush=True)
    if args.table is not None:
        args.table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if bad else 0


def drilled(name: str, folder: Path, whole: Path) -> tuple[str, bool]:
    """A line of the table, and whether all was as it should be."""
    act, expected = DRILLS[name]
    d = Drill(folder, ranks=2 if name in TWO_RANKS else 1)
    try:
        found = act(d, whole)
    except (RuntimeError, subprocess.SubprocessError, OSError) as error:
        return f"| {name} | | | **drill failed**: {error} | |", False
    finally:
        d.close()
    fine = found.code == expected and found.equal is not False
    code = str(found.code) if found.code == expected else f"**{found.code}**, not {expected}"
    equal = "; ".join(part for part in (EQUAL[found.equal], found.note) if part)
    said = found.last_line.replace("|", "\\|").replace(str(folder), "...")
    if len(said) > 240:
        said = said[:237] + "..."
    return f"| {name} | {found.seconds:.1f} | {code} | {said} | {equal} |", fine


def uninterrupted(top: Path, ranks: int) -> Path:
    d = Drill(top / f"whole-{ranks}", ranks=ranks)
    process = d.start()
    if process.wait(LIMIT_S) != 0:
        raise SystemExit(f"the uninterrupted run ends with {process.returncode}: {d.last_line()}")
    return d.run


if __name__ == "__main__":
    sys.exit(main())
