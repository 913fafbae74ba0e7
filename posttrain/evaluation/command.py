"""`posttrain eval tasks|generate|grade|judge|report|drift|guard`: thin, each over one function of this room."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from posttrain.evaluation import drift_command, guard_command, masked_diffusion, store, tasks
from posttrain.evaluation.bar import bar
from posttrain.evaluation.graders import missing_for
from posttrain.evaluation.results import model_name
from posttrain.observe.job import JobView
from posttrain.planning.saved_model import DTYPES, model_of, prefix_of
from posttrain.process import exit_codes

SAMPLING = ("samples", "max_new_tokens", "temperature", "top_p", "top_k", "min_p")
_DATA_HELP = "folder of the benchmark files (default: $POSTTRAIN_DATA, else the hub)"
_DIR_HELP = "evaluation folders, or folders above them"


def add_arguments(parser: ArgumentParser) -> None:
    stages = parser.add_subparsers(
        dest="stage", required=True, metavar="tasks|generate|grade|judge|report|drift|guard"
    )
    _add_tasks(stages.add_parser("tasks", help="list the benchmarks; --check verifies their files"))
    _add_generate(
        stages.add_parser("generate", help="let a model answer; interrupted, the same command goes on")
    )
    grade = stages.add_parser("grade", help="grade what was generated; no model needed")
    grade.add_argument("dirs", nargs="+", metavar="DIR", help=_DIR_HELP)
    grade.add_argument(
        "--workers", type=_whole(1), default=_cores(), help="worker processes (default: %(default)s)"
    )
    grade.add_argument(
        "--timeout", type=_seconds, default=10.0, help="seconds per response (default: %(default)s)"
    )
    _add_judge(stages.add_parser("judge", help="let a judge compare AlpacaEval's responses"))
    pages = stages.add_parser("report", help="one page and the same in the terminal")
    pages.add_argument(
        "dirs",
        nargs="+",
        metavar="DIR",
        help=_DIR_HELP + "; the first model is what others are compared with",
    )
    pages.add_argument("--out", default=None, help="the page (default: report.html in the first DIR)")
    pages.add_argument(
        "--failed", type=int, default=8, help="responses to read of each result (default: %(default)s)"
    )
    drift_command.add_arguments(
        stages.add_parser("drift", help="how far answers drift from a goal over a conversation")
    )
    guard_command.add_arguments(
        stages.add_parser(
            "guard", help="let a judge hold responses against a written policy, with precedents"
        )
    )


def _add_tasks(parser: ArgumentParser) -> None:
    parser.add_argument("benchmarks", nargs="*", help="names, or YAMLs of your own (default: all built in)")
    parser.add_argument("--check", metavar="DIR", help="verify hash, rows and golds of the files below DIR")


def _add_generate(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="model folder, run folder (its model), or hub name")
    parser.add_argument("benchmarks", nargs="+", help="names (`posttrain eval tasks`), or YAMLs of your own")
    parser.add_argument(
        "--out", help="results go to OUT/BENCHMARK (default: runs/eval/NAME of the model or its run)"
    )
    parser.add_argument("--data", help=_DATA_HELP)
    parser.add_argument(
        "--beta-value",
        type=float,
        metavar="B",
        help="of a model trained with beta_family: the coefficient it is asked with",
    )
    parser.add_argument("--adapter", help="LoRA adapter to merge in")
    parser.add_argument(
        "--limit", type=_whole(1), help="the first so many problems only; not comparable with the whole"
    )
    for name in ("samples", "max_new_tokens", "top_k"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="instead of the benchmark's")
    for name in ("temperature", "top_p", "min_p"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help="instead of the benchmark's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--engine", choices=("transformers", "vllm", masked_diffusion.ENGINE), default="transformers"
    )
    parser.add_argument("--batch-size", type=_whole(1), help="responses at a time (default: 16, vllm 512)")
    parser.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=0.85,
        help="share vllm may take (default: %(default)s)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--device", help="default: cuda where there is one; not with vllm")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where OUT holds another run")
    masked_diffusion.add_arguments(parser)


def _add_judge(parser: ArgumentParser) -> None:
    parser.add_argument(
        "dir",
        metavar="DIR",
        help="the alpaca_eval folder, or one above it; made with --outputs or --annotations",
    )
    parser.add_argument("--judge", metavar="MODEL", help="the judge's name at its server")
    parser.add_argument("--base-url", help="of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    parser.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", help="variable that holds the key (default: %(default)s)"
    )
    parser.add_argument(
        "--annotator",
        default="weighted_alpaca_eval_gpt4_turbo",
        help="a configuration of alpaca_eval (default: %(default)s)",
    )
    parser.add_argument(
        "--swapped",
        type=_whole(0),
        default=200,
        help="pairs judged in the other order too (default: %(default)s of 805)",
    )
    parser.add_argument("--outputs", type=Path, help="judge this file of outputs, in alpaca_eval's format")
    parser.add_argument(
        "--annotations", type=Path, help="rates of this stored annotation file; no judge is asked"
    )
    parser.add_argument(
        "--df-gamed", type=Path, help="the hub's df_gamed.csv, for the length-controlled rate"
    )
    parser.add_argument("--data", help=_DATA_HELP)
    parser.add_argument(
        "--workers", type=_whole(1), default=5, help="requests under way at once (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, help="seconds a request (default: %(default)s)"
    )
    parser.add_argument(
        "--retries", type=_whole(0), default=5, help="after a time-out, 429 or 5xx (default: %(default)s)"
    )


def _whole(lowest: int) -> Callable[[str], int]:
    """A whole number of the command line, not below `lowest`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = lowest - 1
        if number < lowest:
            raise ArgumentTypeError(f"must be a whole number >= {lowest}, not {text}")
        return number

    return parse


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"must be a number of seconds above 0, not {text}")
    return number


def main(args: Namespace) -> int:
    """Evaluate models on benchmarks: tasks, generate, grade, judge, report; conversations: drift; policies: guard."""
    from posttrain.judges.judge_server import JudgeLost

    stage: Callable[[Namespace], int] = {
        "tasks": _tasks, "generate": _generate, "grade": _grade, "judge": _judge, "report": _report,
        "drift": _drift, "guard": _guard,
    }[args.stage]  # fmt: skip
    try:
        return stage(args)
    except JudgeLost as error:
        print(f"posttrain eval {args.stage}: {error}", file=sys.stderr)
        return exit_codes.ENGINE_LOST
    except (ValueError, ImportError, LookupError, OSError, RuntimeError) as error:
        print(f"posttrain eval {args.stage}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"posttrain eval {args.stage}: stopped; the same command goes on where it stopped",
            file=sys.stderr,
        )
        return 130


def _tasks(args: Namespace) -> int:
    chosen = [tasks.load(name) for name in args.benchmarks or tasks.names()]
    folder = Path(args.check) if args.check else None
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("name", "benchmark", "problems", "samples", "new tokens", "grader", "licence"):
        table.add_column(name, justify="right" if name in ("problems", "samples", "new tokens") else "left")
    if folder is not None:
        table.add_column("file")
    bad = 0
    for b in chosen:
        cells = [
            b.name,
            b.title,
            f"{b.data.rows:,}",
            str(b.sampling.samples),
            f"{b.sampling.max_new_tokens:,}",
        ]
        cells += [b.answer.grader, b.licence]
        if folder is not None:
            wrong = tasks.check(b, folder)
            # a benchmark nobody named may be absent; a file that is there has to be right
            bad += wrong is not None and (bool(args.benchmarks) or not wrong.startswith("absent"))
            cells.append("[green]as defined[/]" if wrong is None else f"[red]{escape(wrong)}[/]")
        table.add_row(*cells)
    _console().print(table)
    return 1 if bad else 0


def _generate(args: Namespace) -> int:
    benchmarks = [tasks.load(name) for name in args.benchmarks]
    samplings = [_sampling(args, benchmark) for benchmark in benchmarks]
    folder = tasks.data_folder(args.data)
    # everything that can be wrong with the data is said before a model is loaded
    problems = [tasks.problems(benchmark, folder, args.limit) for benchmark in benchmarks]
    missing = [
        fault for b in benchmarks if (fault := missing_for(b.answer.grader, b.answer.args)) is not None
    ]
    if missing:
        raise ValueError(missing[0])
    args.model = model_of(args.model)
    out = Path(args.out or Path("runs") / "eval" / model_name(args.model))

    from posttrain.evaluation import engine_bridge
    from posttrain.evaluation.generate import generate

    wanted = (
        f"cannot load {args.model!r}: give a folder with config.json (an adapter: adapter_config.json), weights and "
        "tokenizer, or a hub name"
    )
    try:
        with JobView(f"loading {args.model}", Console(stderr=True)):
            generator, tokenizer = _load(args, engine_bridge)
    except OSError as error:  # transformers: neither a folder nor a name of the hub
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{wanted} ({reason})") from None
    weights = engine_bridge.weights_hash(args.model)
    named: dict[str, Any] = {"path": args.model, "weights": weights}
    if args.adapter:
        named |= {"adapter": args.adapter, "adapter_weights": engine_bridge.weights_hash(args.adapter)}
    prefix, note = prefix_of(args.model, args.beta_value)
    if args.beta_value is not None:
        named["beta_value"] = args.beta_value
    if note:
        _console().print(note, highlight=False, soft_wrap=True, markup=False)
    batch_size = args.batch_size or (512 if args.engine == "vllm" else 16)
    for benchmark, rows, sampling in zip(benchmarks, problems, samplings, strict=True):
        with bar(f"{benchmark.name}: generating", len(rows) * sampling.samples) as progress:
            generate(
                benchmark, rows, generator, tokenizer, out / benchmark.name, model=named, sampling=sampling,
                seed=args.seed, batch_size=batch_size, overwrite=args.overwrite, progress=progress,
                prefix=prefix,
            )  # fmt: skip
    judged = {b.answer.grader == "judge" for b in benchmarks}
    steps = [f"posttrain eval {'judge' if kind else 'grade'} {out}" for kind in sorted(judged)]
    _console().print(f"next: {' and '.join(steps)}", highlight=False, soft_wrap=True)
    return 0


def _load(args: Namespace, engines: Any) -> Any:
    import torch
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()  # the stage has a bar of its own
    cuda = torch.cuda.is_available()
    dtype = args.dtype or ("bfloat16" if cuda else "float32")
    device = args.device or ("cuda" if cuda else "cpu")
    if args.engine == masked_diffusion.ENGINE:
        if args.adapter:
            raise ValueError("--adapter goes with --engine transformers; merge the adapter first")
        return masked_diffusion.load(args, dtype=dtype, device=device)
    if masked_diffusion.given(args):
        raise ValueError(
            f"{', '.join(masked_diffusion.given(args))}: only with --engine {masked_diffusion.ENGINE}"
        )
    if args.engine == "transformers":
        return engines.load_generator(args.model, dtype=dtype, device=device, adapter=args.adapter)
    if args.adapter or args.device:
        raise ValueError("--adapter and --device go with --engine transformers; merge the adapter for vllm")
    return engines.load_vllm(args.model, dtype=dtype, gpu_memory_utilization=args.gpu_memory_utilization)


def _sampling(args: Namespace, benchmark: tasks.Benchmark) -> tasks.BenchmarkSampling:
    given = vars(args)
    changed = {name: given[name] for name in SAMPLING if given[name] is not None}
    return tasks.BenchmarkSampling.model_validate(benchmark.sampling.model_dump() | changed)


def _grade(args: Namespace) -> int:
    from posttrain.evaluation import grade, terminal
    from posttrain.evaluation.results import collect

    graded = []
    for folder in store.folders(args.dirs):
        run = store.read_json(folder / store.RUN)
        if run["benchmark"] == "alpaca_eval":
            _console().print(f"{folder}: is for a judge, left to `posttrain eval judge`", highlight=False)
            continue
        total = run["task"]["problems"] * run["sampling"]["samples"]
        with bar(f"{run['benchmark']}: grading", total) as progress:
            grade.grade(folder, workers=args.workers, timeout_s=args.timeout, progress=progress)
        graded.append(folder)
    if graded:
        terminal.show(collect(graded), _console())
    return 0


def _judge(args: Namespace) -> int:
    from posttrain.evaluation import judge, terminal
    from posttrain.evaluation.results import collect

    folder = tasks.data_folder(args.data)
    gamed = args.df_gamed or _gamed_file(folder)
    out = Path(args.dir)
    if args.annotations:
        benchmark = tasks.load("alpaca_eval")
        judge.judge_stored(args.annotations, benchmark, tasks.problems(benchmark, folder), out, gamed=gamed)
        terminal.show(collect([out]), _console())
        return 0
    if not args.outputs:
        found = [
            f for f in store.folders([out]) if store.read_json(f / store.RUN)["benchmark"] == "alpaca_eval"
        ]
        if len(found) != 1:
            raise ValueError(f"{out}: {len(found)} alpaca_eval folders here; name one")
        out = found[0]
    server = _server(args)
    if args.outputs:
        benchmark = tasks.load("alpaca_eval")
        sides = judge.sides_of_outputs(args.outputs, benchmark, tasks.problems(benchmark, folder), out)
    else:
        sides = judge.sides_of_generations(out)
    with bar("alpaca_eval: judging", len(sides.pairs) + min(args.swapped, len(sides.pairs))) as progress:
        metrics = judge.judge(
            out, sides, server, annotator=args.annotator, swapped=args.swapped, gamed=gamed, progress=progress,
            trouble=lambda text: print(f"posttrain eval judge: {text}", file=sys.stderr, flush=True),
        )  # fmt: skip
    terminal.show(collect([out]), _console())
    failed = metrics["judge"]["failed_judgements"]
    if failed:
        _console().print(
            f"failed judgements: {failed}; the same command asks again where there was no answer"
        )
    return 0


def _server(args: Namespace) -> Any:
    from posttrain.judges.judge_server import JudgeServer

    if not args.judge:
        raise ValueError("name the judge with --judge, and where it is with --base-url")
    key = os.environ.get(args.api_key_env, "").strip() or None
    server = JudgeServer(
        args.judge, args.base_url, key, timeout_s=args.timeout, retries=args.retries, workers=args.workers
    )
    fault = server.fault()
    if fault is not None:
        raise ValueError(fault)
    return server


def _gamed_file(folder: Path | None) -> Path | None:
    for name in ("df_gamed.csv", "df_gamed.csv.gz"):
        if folder is not None and (folder / "alpaca_eval" / name).is_file():
            return folder / "alpaca_eval" / name
    return None


def _report(args: Namespace) -> int:
    from posttrain.evaluation import grades_page, terminal

    out = Path(args.out) if args.out else Path(args.dirs[0]) / "report.html"
    results = grades_page.write(args.dirs, out, responses=args.failed)
    terminal.show(results, _console())
    _console().print(f"report: {out}", highlight=False, soft_wrap=True)
    return 0


def _drift(args: Namespace) -> int:
    return drift_command.run_drift(args, _console())


def _guard(args: Namespace) -> int:
    return guard_command.run_guard(args, _console())


def _console() -> Console:
    # a pipe has no width: tables must not be squeezed into 80 columns there
    return Console() if sys.stdout.isatty() else Console(width=180)


def _cores() -> int:
    return max(1, (os.cpu_count() or 1) - 1)
