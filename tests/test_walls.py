"""Who may import whom: the rooms' walls, read from the source."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "posttrain"

METHOD = (
    "torch",
    "annotated_types",
    "pydantic",
    "posttrain.settings",
)  # what the file of a method may import
# room -> what may be imported beyond the standard library and the room itself: a prefix of dotted names
ROOMS = {
    "ops": ("torch",),
    "settings": ("pydantic", "annotated_types"),
    "objectives": (*METHOD, "posttrain.ops", "posttrain.recipe.methods"),
    "preferences": (*METHOD, "posttrain.ops"),
    "references": (*METHOD, "posttrain.ops"),
}
# imported by `posttrain plan` on machines without torch
WITHOUT_TORCH = ("recipe", "run.plan", "settings", "recipe.methods", "cli")
HEAVY = {"torch", "transformers", "trl", "accelerate", "peft", "datasets", "deepspeed", "vllm"}


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def module_level(tree: ast.Module) -> ast.Module:
    """What runs when the module is imported: no function bodies, no `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Strip().visit(tree)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(file: Path) -> str:
    return dotted(file) if file.name == "__init__.py" else dotted(file).rpartition(".")[0]


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def find(name: str) -> Path | None:
    """The file of the longest module of ours that `name` starts with."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:n])
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if file.is_file():
                return file
    return None


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files, f"posttrain/{room} is empty"
    allowed = (*ROOMS[room], f"posttrain.{room}")
    strays = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in files
        for line, name in imports(parse(file), package_of(file))
        if name.split(".")[0] not in sys.stdlib_module_names and not any(within(name, a) for a in allowed)
    ]
    assert not strays, "\n".join(strays)


def test_only_a_method_that_is_built_on_others_looks_at_the_list_of_methods():
    for file in (PACKAGE / "objectives").rglob("*.py"):
        names = [name for _, name in imports(parse(file), package_of(file))]
        built_on = "built_on: " in file.read_text(encoding="utf-8")
        assert (
            built_on
            or file == PACKAGE / "objectives" / "__init__.py"
            or not any(within(name, "posttrain.recipe.methods") for name in names)
        ), file


def test_rewards_know_nothing_of_ours_but_answers_and_judges_and_no_torch():
    rooms = ("rewards", "answers", "judges")
    for file in [path for room in ("rewards", "judges") for path in sorted((PACKAGE / room).rglob("*.py"))]:
        for line, name in imports(parse(file), package_of(file)):
            where = f"{file.relative_to(ROOT)}:{line}: {name}"
            assert name.split(".")[0] not in HEAVY, where
            ours = within(name, "posttrain")
            assert not ours or any(within(name, f"posttrain.{room}") for room in rooms), where


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_recipes_are_checked_without_torch(name):
    """Follows the imports made at import time through our own modules."""
    start = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
    if not start.is_file():
        start = PACKAGE / name / "__init__.py"
    assert start.is_file(), f"posttrain.{name} is gone"
    queue, seen = [(start, f"posttrain.{name}")], {start}
    while queue:
        file, trail = queue.pop()
        for _, imported in imports(module_level(parse(file)), package_of(file)):
            assert imported.split(".")[0] not in HEAVY, f"{trail} -> {imported}"
            parts = imported.split(".")
            # importing a.b.c runs a, a.b and a.b.c
            for n in range(1, len(parts) + 1):
                target = find(".".join(parts[:n])) if parts[0] == "posttrain" else None
                if target is not None and target not in seen:
                    seen.add(target)
                    queue.append((target, f"{trail} -> {'.'.join(parts[:n])}"))


def test_only_trainers_know_trl():
    """Ranks and engines stay behind one door; train.py and the SFT and preference trainers are behind it
    too."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.is_relative_to(PACKAGE / "trainers"):
            continue
        for line, name in imports(parse(file), package_of(file)):
            assert not within(name, "trl"), f"{file.relative_to(ROOT)}:{line}: {name}"


def test_the_walls_see_relative_and_hidden_imports():
    tree = ast.parse("from . import x\nfrom ..ops import y\ndef f():\n    import trl.models\n")
    assert [name for _, name in imports(tree, "posttrain.rewards")] == [
        "posttrain.rewards.x",
        "posttrain.ops.y",
        "trl.models",
    ]
    assert list(imports(module_level(tree), "posttrain.rewards"))[-1][1] == "posttrain.ops.y"


def floors() -> dict[str, int]:
    """Room -> floor, from the table of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return {room: int(floor) for floor, room in re.findall(r"^\| (\d) \| `(\w+)/`", text, re.MULTILINE)}


def room_of(name: str) -> str | None:
    """The room of a dotted name of ours; the package itself belongs to none."""
    parts = name.split(".")
    if parts[0] != "posttrain" or len(parts) == 1 or parts[1].startswith("__version"):
        return None
    return "commands" if parts[1] in ("cli", "__main__") else parts[1]


def test_every_room_has_a_floor() -> None:
    rooms = {folder.name for folder in PACKAGE.iterdir() if any(folder.glob("*.py"))}
    assert rooms == set(floors())


def test_a_room_imports_only_from_floors_below_its_own() -> None:
    floor = floors()
    strays = []
    for file in sorted(PACKAGE.rglob("*.py")):
        here = room_of(dotted(file))
        for line, name in imports(parse(file), package_of(file)):
            there = room_of(name)
            if here is not None and there is not None and there != here and floor[there] >= floor[here]:
                strays.append(f"{file.relative_to(ROOT)}:{line}: {name}")
    assert not strays, "\n".join(strays)


def wing_floors() -> dict[str, int]:
    """Wing of trainers/ -> its floor, from the second table of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return {wing: int(floor) for floor, wing in re.findall(r"^\| 4\.(\d) \| `(\w+)/`", text, re.MULTILINE)}


def wing_of(name: str) -> str | None:
    parts = name.split(".")
    inside = parts[:2] == ["posttrain", "trainers"] and len(parts) > 2
    return parts[2] if inside and (PACKAGE / "trainers" / parts[2]).is_dir() else None


def test_a_wing_imports_only_from_floors_below_its_own() -> None:
    floor = wing_floors()
    assert set(floor) == {path.name for path in (PACKAGE / "trainers").iterdir() if any(path.glob("*.py"))}
    strays = []
    for file in sorted((PACKAGE / "trainers").rglob("*.py")):
        here = wing_of(package_of(file) if file.name != "__init__.py" else dotted(file))
        for line, name in imports(parse(file), package_of(file)):
            there = wing_of(name)
            if here is not None and there is not None and there != here and floor[there] >= floor[here]:
                strays.append(f"{file.relative_to(ROOT)}:{line}: {name}")
    assert not strays, "\n".join(strays)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """At import time; a package's own __init__ is run by whoever imports a part of it and counts as the part."""
    graph = {}
    for file in PACKAGE.rglob("*.py"):
        names = (name for _, name in imports(module_level(parse(file)), package_of(file)))
        targets = {find(name) for name in names if within(name, "posttrain")}
        graph[file] = {target for target in targets if target is not None and target != file}
    done: set[Path] = set()

    def visit(file: Path, trail: list[Path]) -> None:
        if file in trail:
            circle = [*trail[trail.index(file) :], file]
            pytest.fail(" -> ".join(str(one.relative_to(ROOT)) for one in circle))
        if file not in done:
            for target in sorted(graph[file]):
                visit(target, [*trail, file])
            done.add(file)

    for file in sorted(graph):
        visit(file, [])


# Files whose name says their place in a room rather than what is inside it.
PLACES = {"__init__.py", "base.py", "bindings.py", "trainer.py"}


def test_no_name_stands_twice() -> None:
    """A method's name may stand in its own file and at its trainer, a command's at the command."""
    modules: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.name not in PLACES and file.parent.name != "commands":
            modules.setdefault(file.stem, []).append(dotted(file))
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(dotted(file))
    methods = {
        path.stem
        for room in ("objectives", "preferences", "references")
        for path in (PACKAGE / room).glob("*.py")
    }
    twice = {stem: places for stem, places in modules.items() if len(places) > 1 and stem not in methods}
    assert not twice
    assert not {name: places for name, places in classes.items() if len(places) > 1}


def names_of(module: str) -> set[str] | None:
    """What `from module import ...` finds: names bound at the top of the module's file, and modules beside it; None
    where there is no such module."""
    path = ROOT.joinpath(*module.split("."))
    beside = {one.stem for one in path.glob("*") if one.suffix == ".py" or one.is_dir()}
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.exists():
        return beside if path.is_dir() else None
    bound: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    return bound | beside | ({"__getattr__"} & bound)


def test_scripts_import_what_there_is() -> None:
    """Those of the labs and benchmarks run for hours and in no test: a name that has moved would show there alone."""
    missing = []
    for script in sorted(
        path for room in ("eval", "recipes", "docs", "launch") for path in (ROOT / room).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("posttrain."):
                continue
            names = names_of(str(node.module))
            missing += [
                f"{script.relative_to(ROOT)}:{node.lineno}: {node.module}.{alias.name}"
                for alias in node.names
                if names is None or not {alias.name, "__getattr__"} & names
            ]
    assert not missing


def test_a_name_that_has_moved_is_seen() -> None:
    assert "open_run_dir" not in (names_of("posttrain.run.train") or ())
    assert names_of("posttrain.run.nowhere") is None
    assert {"run", "run_opened"} <= (names_of("posttrain.run.train") or set())
