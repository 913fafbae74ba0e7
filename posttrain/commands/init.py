"""`posttrain init METHOD`: a recipe to start from, for a model and a data file. No torch."""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

from posttrain.data import DataError
from posttrain.planning.first_data import find_data
from posttrain.planning.first_image_recipe import find_image_data, first_image_recipe
from posttrain.planning.first_recipe import default_model, first_recipe, look_at_model
from posttrain.planning.saved_model import model_of
from posttrain.planning.shapes import is_folder_name
from posttrain.recipe import RecipeError, load_recipe
from posttrain.recipe.errors import suggest
from posttrain.recipe.methods import METHODS, Method, not_here
from posttrain.run.plan import make_plan


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("method", help="one of `posttrain methods`")
    parser.add_argument("--model", help="model folder, run folder or hub name (default: a small public one)")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="file or folder of rows, a built-in task or a hub name; its columns are looked at (default: a public set)",
    )
    parser.add_argument("--out", metavar="FILE", help="where the recipe goes (default: METHOD.yaml)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file where it exists")


def main(args: Namespace) -> int:
    """Write a commented recipe to start from, and check it as `posttrain plan` does."""
    if args.method not in METHODS:
        reason = not_here(args.method) or f"no method '{args.method}'{suggest(args.method, METHODS)}"
        return _refused(reason)
    out = Path(args.out or f"{args.method}.yaml")
    if out.suffix not in (".yaml", ".yml"):
        return _refused(f"--out {out}: a recipe's name ends in .yaml")
    if out.exists() and not args.overwrite:
        return _refused(f"{out} exists already; name another with --out, or replace it with --overwrite")
    method = METHODS[args.method]
    written = _image_recipe if method.load_settings().makes_images else _text_recipe
    try:
        text, notes = written(method, args, out)
        refusals = _plan_says(text, out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        return _refused(str(error))
    print(f"written: {out}")
    for key, note in notes.items():
        print(f"  {key}: {note}")
    if refusals:
        print(f"posttrain init: {out} cannot start yet:", *refusals, sep="\n", file=sys.stderr)
        return 2
    print(f"next: posttrain plan {out}, then posttrain train {out}")
    return 0


def _text_recipe(method: Method, args: Namespace, out: Path) -> tuple[str, Mapping[str, str]]:
    model = model_of(args.model or default_model(method))
    _check_folder(args.model, model)
    facts = look_at_model(model)
    data = find_data(method, args.data, chat=facts.speaks)
    return first_recipe(method, facts, data, out, gpu=has_gpu()), data.notes


def _image_recipe(method: Method, args: Namespace, out: Path) -> tuple[str, Mapping[str, str]]:
    model = None if args.model is None else _images_model(args.model)
    data = find_image_data(method, args.data)
    if model is None and args.data not in (None, "digits"):
        raise DataError("--model: name the pipeline that makes the images, a folder or hub name")
    return first_image_recipe(method, model, data, out, gpu=has_gpu()), data.notes


def _images_model(given: str) -> str:
    inner = Path(given) / "model"
    model = str(inner) if inner.is_dir() and not (Path(given) / "model_index.json").is_file() else given
    _check_folder(given, model)
    return model


def _check_folder(given: str | None, model: str) -> None:
    if given is not None and is_folder_name(model, "runs") and not Path(model).is_dir():
        raise DataError(f"--model: there is no folder {model}")


def has_gpu() -> bool:
    """Whether this machine drives an NVIDIA or AMD GPU, as its device files say."""
    return any(Path(place).exists() for place in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd"))


def _plan_says(text: str, out: Path) -> list[str]:
    """What would keep the recipe from starting, before it lies where it will."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / out.name
        path.write_text(text, encoding="utf-8")
        try:
            return make_plan(load_recipe(path)).refusals
        except RecipeError as error:
            return str(error).replace(str(path), str(out)).splitlines()


def _refused(reason: str) -> int:
    print(f"posttrain init: {reason}", file=sys.stderr)
    return 2
