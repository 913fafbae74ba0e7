"""`posttrain plan RECIPE`: what a run will do, what it needs, and everything that would stop it. No torch.

plan = make_plan(load_recipe("recipes/demo/bapo.yaml"), processes=2)
plan.refusals == []  or one line for each reason not to start
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from posttrain.data import Survey
from posttrain.data.known import TASKS
from posttrain.environments.adapter_checks import built_in_environment
from posttrain.evaluation.in_training import benchmark_faults, overlaps
from posttrain.planning import checks
from posttrain.planning.adapter import adapter_faults
from posttrain.planning.batch import (
    RolloutSize,
    logged_lines,
    order_warnings,
    plural,
    resample_lines,
    rollout_of,
    steps_of,
    texts_of,
)
from posttrain.planning.idle import beyond_the_run, idle_options
from posttrain.planning.image_checks import (
    flow_lines,
    flow_model_faults,
    flow_rollout_faults,
    sharding_faults,
)
from posttrain.planning.image_memory import estimate_images
from posttrain.planning.image_shapes import read_image_shape
from posttrain.planning.launcher import attention_fault, started
from posttrain.planning.machine import gpu_is_here, memory_of_machine
from posttrain.planning.masked_costs import diffusion_lines, model_code_faults, sampler_faults
from posttrain.planning.memory import GIB, Launch, Memory, estimate
from posttrain.planning.method_checks import method_faults, method_warnings, run_in_words
from posttrain.planning.optimizer import optimizer_faults
from posttrain.planning.quantization import quantization_faults
from posttrain.planning.rendered import chat_warnings, example_lines
from posttrain.planning.rewards import (
    machine_reports,
    reward_faults,
    reward_lines,
    reward_model_faults,
    reward_warnings,
)
from posttrain.planning.rollout_engine import engine_faults, logged_column_faults
from posttrain.planning.row_lengths import RowLengths, row_lengths
from posttrain.planning.row_needs import needs_of
from posttrain.planning.row_warnings import row_warnings
from posttrain.planning.shapes import config_faults, read_shape
from posttrain.planning.tokenizer import PlanTokenizer, plan_tokenizer
from posttrain.planning.tool_checks import template_faults, tool_faults, tool_lines
from posttrain.planning.trial import try_rewards
from posttrain.recipe import Recipe, RecipeError, load_recipe
from posttrain.run.hub import hub_warnings
from posttrain.run.run_folder import place_faults

SMALL_PART = 0.02
"""Share of the peak below which a part of the memory is only told in full."""


@dataclass
class Plan:
    """`refusals` are "section: message", each a reason not to start; the rest is for reading."""

    recipe: Recipe
    launch: Launch
    batch: list[str] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    example: list[str] = field(default_factory=list)
    rewards: list[str] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    memory: Memory | None = None
    memory_note: str = ""
    memory_here: float | None = (
        None  # of a process on this machine's CPU, where the plan is of a GPU and none is here
    )
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def require(self) -> None:
        """RecipeError with a line for each refusal, if there is any."""
        if self.refusals:
            raise RecipeError(*(f"{self.recipe.path}: {refusal}" for refusal in self.refusals))


def make_plan(
    recipe: Recipe,
    *,
    processes: int | None = None,
    zero: int = 0,
    device_gib: float | None = None,
    resume: bool = False,
    trial: bool = False,
) -> Plan:
    """All that can be known before anything is loaded; `processes` is by default what the launcher started. `trial`
    also runs each reward once; without it no code of the user's runs."""
    device: Literal["cuda", "cpu"] = "cpu" if recipe.train.use_cpu else "cuda"
    plan = Plan(recipe, Launch(processes or started(), zero, device_gib, device))
    rollout = rollout_of(recipe, plan.launch.processes)
    images = recipe.objective.makes_images
    plan.refusals += flow_model_faults(recipe) if images else _model_faults(recipe)
    plan.refusals += sharding_faults(recipe, zero) if images else []
    plan.refusals += [
        *method_faults(recipe, plan.launch.processes),
        *[*idle_options(recipe), *tool_faults(recipe)],
    ]
    _plan_tools(plan)
    plan.refusals += benchmark_faults(recipe.evaluation) if recipe.evaluation is not None else []
    plan.warnings += [*checks.precision_warnings(recipe), *checks.determinism_warnings(recipe)]
    plan.warnings += method_warnings(recipe, plan.launch.processes)
    plan.warnings += hub_warnings(recipe.output.hub)
    lacking = attention_fault(recipe.model)
    plan.warnings += [] if lacking is None else [lacking]
    plan.refusals += place_faults(recipe)
    if not resume:
        plan.warnings += checks.run_folder_warnings(recipe)
    faults = list(rollout.faults()) if rollout is not None else []
    faults += flow_rollout_faults(recipe) if images else sampler_faults(recipe)
    plan.refusals += [] if images else engine_faults(recipe, plan.launch.processes)
    plan.refusals += faults
    tokenizer = None
    if not plan.refusals and not images:
        try:
            tokenizer = plan_tokenizer(recipe.model)
        except ValueError as error:
            plan.refusals.append(f"model: {error}")
    found = _plan_data(plan, tokenizer, countable=not faults)
    rows = found.counts.used if found is not None and found.counts is not None and not faults else None
    plan.refusals += [
        *([] if images else adapter_faults(recipe)),
        *optimizer_faults(recipe, plan.launch.processes, rows),
        *beyond_the_run(recipe, steps_of(recipe, plan.launch.processes, rows)),
    ]
    plan.warnings += _benchmark_overlaps(recipe, found)
    columns = checks.visible_columns(recipe, found)
    reward_problems = reward_faults(recipe, columns)
    plan.refusals += [*reward_problems, *reward_model_faults(recipe), *logged_column_faults(recipe, columns)]
    plan.warnings += reward_warnings(recipe, columns)
    of_machine, warned, refused = machine_reports(recipe)
    plan.rewards = [*reward_lines(recipe), *of_machine]
    plan.warnings += warned
    plan.refusals += refused
    if trial and not reward_problems:
        tried = try_rewards(recipe, found.rows if found is not None else [])
        plan.rewards += tried.lines
        plan.refusals += tried.refusals
    if not faults:
        _plan_batch(plan, rollout, found)
    if images:
        _plan_image_memory(plan)
        return plan
    lengths = row_lengths(recipe, found.rows, tokenizer) if found is not None else None
    if lengths is not None:
        plan.refusals += checks.length_faults(recipe.data, lengths)
        plan.data += checks.length_lines(recipe, lengths)
    _plan_memory(plan, lengths)
    return plan


def _plan_tools(plan: Plan) -> None:
    lines, refused = built_in_environment(plan.recipe)
    plan.refusals += refused
    plan.tools = [*tool_lines(plan.recipe), *lines]


def _model_faults(recipe: Recipe) -> list[str]:
    """Of a language model."""
    return [
        *checks.model_faults(recipe),
        *quantization_faults(recipe),
        *config_faults(recipe.model),
        *model_code_faults(recipe),
    ]


def _benchmark_overlaps(recipe: Recipe, train: Survey | None) -> list[str]:
    """Warnings about benchmarks of the `evaluation` section that the training prompts contain."""
    if recipe.evaluation is None or train is None or train.counts is None or recipe.data.name in TASKS:
        return []
    return overlaps(recipe.evaluation, [checks.words_of(row["prompt"]) for row in train.rows])


def _plan_data(plan: Plan, tokenizer: PlanTokenizer | None, *, countable: bool) -> Survey | None:
    recipe = plan.recipe
    found, faults = checks.data_survey(recipe.data, "data", needs_of(recipe), tokenizer)
    plan.refusals += faults
    plan.refusals += template_faults(recipe, tokenizer, found.rows if found is not None else [])
    if found is not None:
        plan.data.append(f"training: {_rows_in_words(found)}")
        plan.data += found.notes
        plan.warnings += checks.echo_warnings(found)
        plan.warnings += row_warnings(recipe.data, found)
        if found.counts is not None and found.rows:
            plan.data += recipe.objective.row_facts(found.rows)
            plan.warnings += [f"data: {words}" for words in recipe.objective.row_warnings(found.rows)]
        if found.rows and tokenizer is not None:
            plan.example = example_lines(recipe, found.rows[0], tokenizer)
            plan.warnings += chat_warnings(recipe, found.rows[0], tokenizer)
        if found.rows:
            plan.refusals += checks.row_faults(recipe, found.rows[0])
        if found.counts is not None and countable:
            plan.refusals += checks.count_faults(recipe, found.counts.used, plan.launch.processes)
    if recipe.data.eval is None:
        return found
    held_out, faults = checks.data_survey(recipe.data.eval, "data.eval", needs_of(recipe), tokenizer)
    plan.refusals += faults
    if held_out is not None:
        plan.data.append(f"held out: {_rows_in_words(held_out)}")
        shared = checks.held_out_overlap(found, held_out, recipe.data) if found is not None else None
        if shared is not None and shared.hits:
            plan.warnings.append(
                f"{len(shared.hits)} of {shared.tests} held-out prompts share a run of 13 words with training prompts"
            )
    return found


def _rows_in_words(found: Survey) -> str:
    if found.counts is not None:
        return found.counts.in_words()
    if found.columns is not None:
        return f"a large file, not counted here; columns {', '.join(found.columns)}"
    return "from the hub: rows and columns are checked when training starts"


def _plan_batch(plan: Plan, rollout: RolloutSize | None, found: Survey | None) -> None:
    processes = plan.launch.processes
    rows = found.counts.used if found is not None and found.counts is not None else None
    texts = texts_of(plan.recipe, processes)
    plan.batch = rollout.in_words() if rollout is not None else texts.in_words()
    plan.batch += [*resample_lines(plan.recipe, rollout), *logged_lines(plan.recipe, rollout)]
    plan.batch += diffusion_lines(plan.recipe)
    plan.batch += flow_lines(plan.recipe, rollout)
    plan.batch.append(f"the run: {run_in_words(plan.recipe, processes, rows)}")
    plan.warnings += order_warnings(
        plan.recipe, processes, rollout, steps_of(plan.recipe, processes, rows), rows
    )
    trained = "the weights" if plan.recipe.model.peft is None else "the frozen weights and its adapter"
    shared = {
        0: ", gradients and optimizer states",
        1: " and gradients; optimizer states split",
        2: "; gradients and optimizer states split",
    }
    if processes > 1 and not plan.recipe.objective.makes_images:
        shared[0] += ", all whole (--zero 1, 2 or 3: what a launch that shards leaves of them)"
    plan.holds.append(
        f"{trained}{shared.get(plan.launch.zero, ', gradients and optimizer states, all split')}"
    )
    if rollout is not None:
        plan.holds.append(
            f"{rollout.completions_per_process} of the rollout's {rollout.completions} completions, "
            f"scored {rollout.micro_batch} at a time"
        )
    else:
        plan.holds.append(f"{texts.micro_batch} rows at a time")


def _plan_memory(plan: Plan, lengths: RowLengths | None) -> None:
    shape = read_shape(plan.recipe.model)
    if shape is None:
        plan.memory_note = (
            f"not known: {plan.recipe.model.path} is not on this machine; give a folder to estimate it"
        )
        return
    longest = lengths.longest if lengths is not None else None
    plan.memory_note = f"{_count(shape.parameters)} parameters, by {shape.source}"
    _compare_memory(plan, lambda launch: estimate(plan.recipe, shape, launch, longest))


def _plan_image_memory(plan: Plan) -> None:
    section: Any = plan.recipe.model
    shape = read_image_shape(section)
    if shape is None:
        plan.memory_note = f"not known: {section.path} is not on this machine; give a folder to estimate it"
        return
    frozen = f" and {_count(shape.frozen)} frozen" if shape.frozen else ""
    plan.memory_note = f"{_count(shape.parameters)} parameters{frozen}, by {shape.source}"
    _compare_memory(plan, lambda launch: estimate_images(plan.recipe, shape, launch))


def _compare_memory(plan: Plan, estimated: Callable[[Launch], Memory]) -> None:
    """Puts the estimate into the plan, and a warning where device or machine hold less."""
    plan.memory = estimated(plan.launch)
    limit = plan.launch.device_gib
    if plan.launch.device == "cuda" and limit is None and not gpu_is_here():
        plan.memory_here = estimated(replace(plan.launch, device="cpu")).peak
    if limit is not None and plan.memory.peak > 0.9 * limit * GIB:
        plan.warnings.append(
            f"about {plan.memory.peak / GIB:.0f} GiB per device are more than {limit:g} GiB hold with a tenth to "
            f"spare: "
            "more processes with --zero 3, model.peft, or a smaller per_device_train_batch_size"
        )
    whole = memory_of_machine()
    if plan.launch.device == "cpu" and whole is not None and limit is None:
        needed = plan.memory.peak * plan.launch.processes
        if needed > 0.9 * whole:
            plan.warnings.append(
                f"about {needed / GIB:.0f} GiB are more than this machine's {whole / GIB:.0f} GiB hold with a tenth to "
                "spare: model.peft, or a smaller per_device_train_batch_size"
            )


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e8 else f"{number:,}"


def print_plan(plan: Plan, console: Console | None = None, *, full: bool = False) -> None:
    """To the terminal, the verdict first; `full` adds what a screen has no room for, and the resolved recipe.

    The reasons of a verdict that is no go to stderr, where every refusal goes, in their place below the verdict.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    recipe = plan.recipe
    title = f"{recipe.path}: {recipe.method} ({recipe.spec.summary}), run folder {recipe.output.run_dir}"
    console.print(title, markup=False, style="bold")
    _print_verdict(plan, console)
    processes = plan.launch.processes
    holder = f"Each of {processes} processes holds" if processes > 1 else "The process holds"
    _print_lines(console, "Batch", plan.batch)
    if full or processes > 1:
        _print_lines(console, holder, plan.holds)
    _print_memory(plan, console, full)
    _print_lines(console, "Data", plan.data)
    _print_lines(console, "The first row, a bar between two tokens", plan.example)
    _print_lines(console, "Rewards", plan.rewards)
    _print_lines(console, "Tools", plan.tools)
    if full:
        console.print("[bold]Resolved recipe[/]")
        console.print(yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True), markup=False)
    if plan.warnings:
        _print_lines(console, f"[yellow]{'Warnings' if plan.warnings[1:] else 'Warning'}[/]", plan.warnings)


def _print_verdict(plan: Plan, console: Console) -> None:
    if not plan.refusals:
        also = f", with {plural(len(plan.warnings), 'warning')} below" if plan.warnings else ""
        console.print(f"[green]can start[/]{also}")
        return
    console.print(f"[red]cannot start[/], for {plural(len(plan.refusals), 'reason')}:")
    console.file.flush()
    for refusal in plan.refusals:
        print(f"{plan.recipe.path}: {refusal}", file=sys.stderr, flush=True)


def _print_lines(console: Console, title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    console.print(f"[bold]{title}[/]")
    for line in lines:
        console.print(f"  {line}", markup=False)


def _print_memory(plan: Plan, console: Console, full: bool) -> None:
    holder = "Memory of one process on a CPU" if plan.launch.device == "cpu" else "Memory of one GPU"
    if plan.memory is None:
        console.print(f"[bold]{holder}[/]: {escape(plan.memory_note)}")
        return
    peak = f"about {_bytes(plan.memory.peak)} at the peak"
    console.print(f"[bold]{holder}[/]: {peak} ({escape(plan.memory_note)})")
    rows = [(name, size) for name, size in plan.memory.rows() if name not in ("peak", "tensors")]
    if full:
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column()
        table.add_column(justify="right")
        for name, size in rows:
            table.add_row(name, _bytes(size))
        console.print(table)
    else:
        least = SMALL_PART * plan.memory.peak
        large = [(name, size) for name, size in rows if size >= least and not name.startswith("(")]
        console.print(f"  {', '.join(f'{name} {_bytes(size)}' for name, size in large)}", markup=False)
    if plan.memory_here is not None:
        console.print(
            f"  no GPU is here: on this machine's CPU a process would take about {_bytes(plan.memory_here)}"
        )
    for note in plan.memory.notes:
        console.print(f"  {note}", markup=False)


def _bytes(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def add_arguments(parser: ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--processes", type=int, help="processes of the run (default: as launched, so 1)")
    parser.add_argument(
        "--zero", type=int, default=0, choices=range(4), help="DeepSpeed stage; 3 for FSDP2 (default 0)"
    )
    parser.add_argument(
        "--try", dest="trial", action="store_true", help="also run each reward once, on a row of the data"
    )
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of one device, to compare with")
    parser.add_argument(
        "--full", action="store_true", help="also what each process holds, and the resolved recipe"
    )


def add_recipe_arguments(parser: ArgumentParser) -> None:
    """What every command that reads a recipe takes."""
    parser.add_argument("recipe", help="path of a recipe YAML")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=value", help="override a key; may be repeated"
    )


def main(args: Namespace) -> int:
    """`posttrain plan`: 0 when the run can start, 2 with a line for each reason when not."""
    try:
        plan = make_plan(
            load_recipe(args.recipe, args.set),
            processes=args.processes,
            zero=args.zero,
            device_gib=args.memory,
            trial=args.trial,
        )
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 2
    print_plan(plan, full=args.full)
    return 2 if plan.refusals else 0
