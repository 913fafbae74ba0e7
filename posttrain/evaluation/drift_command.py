"""`posttrain eval drift`: how far answers drift from a reference over a conversation, and what reminders do."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from posttrain.evaluation import store
from posttrain.evaluation.bar import bar
from posttrain.evaluation.drift_task import TurnSampling, load_drift_task
from posttrain.evaluation.results import model_name
from posttrain.observe.job import JobView
from posttrain.planning.saved_model import DTYPES, model_of

if TYPE_CHECKING:
    from posttrain.evaluation.drift_models import ChatModel
    from posttrain.evaluation.drift_run import DriftSetup

TASK = "three_bullets"
TURNS = 8
REMIND = (3, 6)
_SAMPLING = ("max_new_tokens", "temperature", "top_p")
# what may differ between two attempts at one run, and what the conversations do not depend on
_FREE = ("versions",)
_MEASURE = ("reference", "restate_goal")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", help="model folder, run folder (its model), or hub name; with a chat template"
    )
    parser.add_argument(
        "--reference", required=True, metavar="MODEL", help="what it is compared with; same tokenizer"
    )
    parser.add_argument(
        "--restate-goal", action="store_true",
        help="the reference reads the goal once more before each answer; it may then be MODEL itself",
    )  # fmt: skip
    parser.add_argument("--task", default=TASK, help="a name, or a YAML of your own (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=TURNS, help="of a conversation (default: %(default)s)")
    parser.add_argument(
        "--remind", type=_turns, default=None, metavar="3,6",
        help="turns with a reminder, in a second set of conversations with the same seeds; none: no second set "
        "(default: 3 and 6, where there are so many turns)",
    )  # fmt: skip
    parser.add_argument("--conversations", type=int, default=16, help="of each set (default: %(default)s)")
    parser.add_argument(
        "--user", metavar="MODEL", help="a model that plays the user (default: the task's requests)"
    )
    parser.add_argument("--max-new-tokens", type=int, help="of an answer, instead of the task's")
    parser.add_argument("--temperature", type=float, help="instead of the task's")
    parser.add_argument("--top-p", type=float, help="instead of the task's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batch-size", type=int, default=16, help="conversations at a time (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument(
        "--out", help="folder of the results (default: runs/eval/NAME of the model/drift-TASK)"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew where OUT holds another run")
    parser.add_argument(
        "--remeasure", action="store_true", help="keep the conversations of OUT, measure them anew"
    )


def _turns(text: str) -> tuple[int, ...]:
    if text.strip().lower() == "none":
        return ()
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ArgumentTypeError(f"turns with commas between them, or none; not {text}") from None


def run_drift(args: Namespace, console: Console) -> int:
    """Plays, measures, reports. ValueError for what cannot be done, before anything is generated."""
    from posttrain.evaluation.drift_page import write_drift_page
    from posttrain.evaluation.drift_results import results_of
    from posttrain.evaluation.drift_run import PAGE, RESULTS, measure, play
    from posttrain.evaluation.drift_tables import shape_line, show

    setup = setup_of(args)
    for name in ("model", "reference", "user"):
        given = vars(args)[name]
        if given is not None:
            setattr(args, name, model_of(given))
    out = Path(args.out or Path("runs") / "eval" / model_name(args.model) / f"drift-{setup.task.name}")
    tested, reference, user, notes = _models(args, setup)
    _open(out, _description(args, setup, tested, reference, user), args)
    total = len(setup.arms) * setup.conversations * setup.turns
    with bar(f"{setup.task.name}: conversing", total) as progress:
        rows = play(setup, tested, user, out, progress)
    with bar(f"{setup.task.name}: measuring", total) as progress:
        measured = measure(setup, tested, reference, rows, out, progress)
    silent = sum(not row["user"].strip() for row in rows.values())
    if silent:
        notes.append(f"the model that plays the user said nothing in {silent} of {len(rows)} turns")
    result = results_of(setup, rows, measured, notes)
    store.write_json(out / RESULTS, result.for_json())
    heading = shape_line(
        setup,
        [
            model_name(args.model),
            model_name(args.reference),
            model_name(args.user) if args.user else "scripted",
        ],
    )
    write_drift_page(setup, result, rows, measured, heading, out / PAGE)
    console.print(heading, highlight=False, soft_wrap=True, markup=False)
    show(setup, result, console)
    console.print(f"report: {out / PAGE}", highlight=False, soft_wrap=True, markup=False)
    return 0


def setup_of(args: Namespace) -> DriftSetup:
    """What the arguments ask for; ValueError where that makes no sense."""
    from posttrain.evaluation.drift_run import DriftSetup

    task = load_drift_task(args.task)
    for name in ("turns", "conversations", "batch_size"):
        if vars(args)[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} {vars(args)[name]}: at least 1")
    remind = args.remind if args.remind is not None else tuple(t for t in REMIND if t <= args.turns)
    beyond = [turn for turn in remind if not 2 <= turn <= args.turns]
    if beyond:
        raise ValueError(f"--remind {beyond[0]}: a turn from 2 (the goal is new in turn 1) to {args.turns}")
    fault = task.fault(args.turns) if args.user is None else None
    if fault is not None:
        raise ValueError(fault)
    if args.user is not None and task.user_brief is None:
        raise ValueError(
            f"task {task.name} has no user_brief, which a model that plays the user is told; add one"
        )
    changed = {name: vars(args)[name] for name in _SAMPLING if vars(args)[name] is not None}
    sampling = TurnSampling.model_validate(task.sampling.model_dump() | changed)
    if sampling.temperature == 0 and args.conversations > len(task.topics):
        raise ValueError(
            f"at temperature 0 the conversations after the {len(task.topics)} topics of task {task.name} would be "
            f"copies; set --conversations {len(task.topics)} or less, or a temperature"
        )
    return DriftSetup(
        task=task, turns=args.turns, remind=remind, conversations=args.conversations, sampling=sampling, seed=args.seed,
        batch_size=args.batch_size, restate_goal=args.restate_goal,
    )  # fmt: skip


def _models(args: Namespace, setup: DriftSetup) -> tuple[ChatModel, ChatModel, ChatModel | None, list[str]]:
    """The model, the reference, the user, and what a reader must know of them. Equal paths are loaded once."""
    import torch
    import transformers.utils.logging

    from posttrain.evaluation.drift_models import chat_tokenizer, head_fault, load_chat_model, tokenizer_fault
    from posttrain.evaluation.drift_run import room_fault
    from posttrain.evaluation.engine_bridge import weights_hash

    transformers.utils.logging.disable_progress_bar()  # the stages have bars of their own
    roles = {"model": args.model, "reference": args.reference, "user": args.user}
    tokenizers = {role: chat_tokenizer(path, role) for role, path in roles.items() if path is not None}
    fault = tokenizer_fault(tokenizers["model"], tokenizers["reference"])
    if fault is not None:
        raise ValueError(fault)
    itself = args.reference == args.model or (
        weights_hash(args.model) is not None and weights_hash(args.model) == weights_hash(args.reference)
    )
    if itself and not setup.restate_goal:
        raise ValueError(
            "the reference is the model itself, so every divergence is 0; add --restate-goal, or name another "
            "--reference"
        )
    cuda = torch.cuda.is_available()
    dtype = args.dtype or ("bfloat16" if cuda else "float32")
    device = args.device or ("cuda" if cuda else "cpu")
    loaded: dict[str, ChatModel] = {}
    for role, tokenizer in tokenizers.items():
        path = args.model if role == "reference" and itself else roles[role]
        if path not in loaded:
            with JobView(f"loading {path}", Console(stderr=True)):
                loaded[path] = load_chat_model(path, tokenizer, dtype=dtype, device=device)
    tested = loaded[args.model]
    reference = tested if itself else loaded[args.reference]
    user = None if args.user is None else loaded[args.user]
    models = [tested, reference, *([] if user is None else [user])]
    fault = head_fault(tested, reference) or room_fault(setup, tested, models, user is not None)
    if fault is not None:
        raise ValueError(fault)
    notes = []
    if tokenizers["model"].chat_template != tokenizers["reference"].chat_template:
        notes.append(
            "the two models have different chat templates; both read the conversations by the model's own"
        )
    return tested, reference, user, notes


def _description(
    args: Namespace, setup: DriftSetup, tested: ChatModel, reference: ChatModel, user: ChatModel | None
) -> dict[str, Any]:
    from posttrain.evaluation.engine_bridge import tokenizer_hash

    definition = setup.task.model_dump(mode="json", exclude={"sampling"})
    return {
        "format": 1,
        "model": tested.named,
        "reference": {"path": args.reference, "weights": reference.weights},
        "restate_goal": setup.restate_goal,
        "user": None if user is None else user.named,
        "tokenizer": {
            "hash": tokenizer_hash(tested.tokenizer),
            "chat_template": store.digest(tested.tokenizer.chat_template),
        },
        "task": {
            "hash": setup.task.fingerprint(),
            "definition": definition,
        },
        "turns": setup.turns,
        "remind": list(setup.remind),
        "conversations": setup.conversations,
        "sampling": setup.sampling.model_dump(),
        "seed": setup.seed,
        "engine": tested.generator.describe() | {"batch_size": setup.batch_size},
        "versions": store.versions(),
    }


def _open(out: Path, run: dict[str, Any], args: Namespace) -> None:
    """Leaves in `out` what this run goes on from; ValueError where that is another run's."""
    from posttrain.evaluation.drift_run import CONVERSATIONS, DIVERGENCES, PAGE, RESULTS, RUN

    path = out / RUN
    before = store.read_json(path) if path.exists() and not args.overwrite else None
    if before is None:
        if not args.overwrite and (out / CONVERSATIONS).exists():
            raise ValueError(f"{out} has {CONVERSATIONS} but no {RUN}; give another --out, or --overwrite")
        for name in (CONVERSATIONS, DIVERGENCES, RESULTS, PAGE):
            (out / name).unlink(missing_ok=True)
        store.write_json(path, run)
        return
    different = sorted(key for key in run if key not in _FREE and run[key] != before.get(key))
    others = [key for key in different if key not in _MEASURE]
    if others:
        raise ValueError(
            f"{out} holds another run: {', '.join(different)} differ; give another --out, or --overwrite"
        )
    if different and not args.remeasure:
        raise ValueError(
            f"{out} is measured otherwise: {', '.join(different)} differ; --remeasure keeps the conversations, or give "
            "another --out"
        )
    if args.remeasure:
        for name in (DIVERGENCES, RESULTS, PAGE):
            (out / name).unlink(missing_ok=True)
        store.write_json(path, run)
