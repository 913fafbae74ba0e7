"""A run's weights as a plain transformers folder, or peft's of an adapter, from any engine's checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.observe.model_card import write_card
from posttrain.observe.writer import RECIPE
from posttrain.process.storage import storage_fault
from posttrain.recipe.methods import METHODS
from posttrain.recipe.sections import ModelSection
from posttrain.rollout.adapter_base import CONFIG, adapter_config, base_of, holds_adapter
from posttrain.rollout.masked.predictor import load_mask_model
from posttrain.rollout.model_folder import load_dense, save_merged
from posttrain.run.exporting_images import write_images_model
from posttrain.run.run_folder import CHECKPOINTS, MODEL
from posttrain.run.saved_weights import FSDP_SHARDS, ExportFault, SavedWeights, saved_weights
from posttrain.settings.beta_family import CONFIG_KEY, BetaFamily
from posttrain.trainers.masked.mask_ingredients import mask_model_and_tokenizer
from posttrain.trainers.models.folder_copy import copy_code, copy_model, copy_tokenizer, precision_of
from posttrain.trainers.models.ingredients import lora, model_and_tokenizer, torch_dtype
from posttrain.trainers.models.shards import fsdp_weights, write_gathered, zero_weights
from posttrain.trainers.seam.resume import publish


@dataclass(frozen=True)
class Exported:
    """What was written: from which folder and step, whether shards were gathered, in which precision, and what reads
    it where it is no folder of transformers or peft."""

    folder: Path
    taken: SavedWeights
    gathered_here: bool
    merged_into: str | None
    precision: str
    masked: bool
    read_by: str = ""

    def in_words(self) -> str:
        step = "its last step" if self.taken.step is None else f"step {self.taken.step}"
        how = f"shards of {'ZeRO' if self.taken.sharding == 'zero' else 'FSDP'}, gathered"
        merged = "" if self.merged_into is None else f", merged into {self.merged_into}"
        kind = "adapter, " if holds_adapter(self.folder) else ""
        source = self.taken.shards if self.gathered_here else self.taken.folder
        return f"{step}, from {source}{f' ({how})' if self.gathered_here else ''}{merged}; {kind}{self.precision}"


@dataclass(frozen=True)
class _Described:
    """What the run's recipe says of its model; nothing where a run from Python has no recipe."""

    section: ModelSection | None
    masked: bool
    family: BetaFamily | None = None
    images: bool = False

    @classmethod
    def of(cls, run_dir: Path) -> _Described:
        path = run_dir / RECIPE
        if not path.is_file():
            return cls(None, False)
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        method = METHODS.get(str(recipe.get("method")))
        if method is not None and method.load_settings().makes_images:
            return cls(None, False, images=True)
        section = ModelSection.model_validate(recipe.get("model") or {})
        if section.path is not None and not Path(section.path).is_dir():
            # as an adapter's base: from the current folder, then from each above the run
            near = (parent / section.path for parent in run_dir.resolve().parents)
            found = next((place for place in near if place.is_dir()), None)
            section = section if found is None else section.model_copy(update={"path": str(found)})
        train = recipe.get("train") or {}
        values, prefixes = train.get("beta_family"), train.get("beta_prefixes")
        family = None if values is None else BetaFamily.of(values, prefixes)
        return cls(section, method is not None and method.load_settings().masked_diffusion, family)

    @property
    def trusted(self) -> dict[str, bool]:
        return {"trust_remote_code": self.section is not None and self.section.trust_remote_code}

    def load(self, run_dir: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model as the run began with it: on the shards' side only names and config are needed of it."""
        if self.section is None:
            raise ExportFault(
                f"{run_dir} has no {RECIPE}, so nothing says which model its shards are of; export it with the code "
                "that trained it"
            )
        # in full precision under an adapter in 4 bits: the base is not written
        section = self.section.model_copy(update={"quantization": None, "dtype": "auto"})
        model, tokenizer = (mask_model_and_tokenizer if self.masked else model_and_tokenizer)(section)
        if self.family is not None:  # as the trainer wrote it into the config of the whole model
            setattr(model.config, CONFIG_KEY, self.family.for_config())
        return model, tokenizer


def export_run(
    run_dir: Path, out: Path, *, which: str = "last", merge: bool = False, dtype: str = "auto"
) -> Exported:
    """Writes `out` whole or not at all. ExportFault or ModelFault, both ValueErrors, say what stands against it.

    which  an optimizer step that has a checkpoint, or "last"; of a run in stages, how many are behind it
    merge  an adapter is merged into its base, so that the folder is a whole model
    dtype  of the written weights; "auto": as saved, of shards float32
    """
    check_free(out)
    taken, described = saved_weights(run_dir, which), _Described.of(run_dir)
    if described.images:
        return _export_images(run_dir, out, taken, merge, dtype)
    with written_aside(out) as work:
        gather = _must_gather(taken, dtype)
        source = _gathered(run_dir, taken, described, work, merge, dtype) if gather else taken.folder
        if merge and not holds_adapter(source):
            raise ExportFault(f"--merge: {run_dir} trained the whole model and has no adapter; leave it out")
        model = work / MODEL
        base = base_of(source) if merge else None
        if merge:
            _merge(source, taken, described, model, dtype)
        elif source != model:
            copy_model(source, model, None if dtype == "auto" else torch_dtype(dtype))
        _complete(run_dir, taken, described, model)
        made = Exported(out, taken, gather, base, precision_of(model), described.masked)
        write_card(model, run_dir, step=taken.step, exported=_for_the_card(made))
        if holds_adapter(model) and not merge:
            _name_base(source, model, out)
    return made


def _export_images(run_dir: Path, out: Path, taken: SavedWeights, merge: bool, dtype: str) -> Exported:
    with written_aside(out) as work:
        model = work / MODEL
        read_by = write_images_model(taken.folder, model, merge=merge, dtype=dtype)
        base = base_of(taken.folder) if merge else None
        made = Exported(out, taken, False, base, precision_of(_weights_in(model)), False, read_by)
        write_card(model, run_dir, step=taken.step, exported=_for_the_card(made))
    return made


def _weights_in(model: Path) -> Path:
    """The folder of the written weights: of a pipeline its network's."""
    return next((model / part for part in ("transformer", "unet") if (model / part).is_dir()), model)


def check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportFault(f"--out: {out} is not empty; name another folder")


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A folder beside `out` to work in, whose model/ becomes `out` at the end; after a fault nothing is left."""
    work = out.absolute().with_name(f".{out.name}.exporting")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
        publish(str(work / MODEL), str(out))
    except OSError as error:
        fault = storage_fault(error, writing=True)
        if fault is None:
            raise
        raise ExportFault(
            f"--out: {out} cannot be written: {fault}; make room, or name another folder"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _must_gather(taken: SavedWeights, dtype: str) -> bool:
    """Where only shards are there, or they say more: ZeRO gathers weights in the precision of training."""
    if not taken.gathered:
        return True
    wider = dtype == "float32" and precision_of(taken.folder) != "float32"
    return wider and taken.sharding == "zero"


def _gathered(
    run_dir: Path, taken: SavedWeights, described: _Described, work: Path, merge: bool, dtype: str
) -> Path:
    """Gathers shards into a folder in `work`: the model's own, where nothing is merged."""
    shards = taken.shards
    assert shards is not None  # _must_gather has looked
    begun, tokenizer = described.load(run_dir)
    section = described.section
    peft = None if section is None or section.peft is None else lora(section.peft, section.revision)
    weights = zero_weights(shards) if taken.sharding == "zero" else fsdp_weights(shards / FSDP_SHARDS, work)
    folder = work / ("adapter" if merge and peft is not None else MODEL)
    wanted = None if merge or dtype == "auto" else torch_dtype(dtype)
    write_gathered(begun, peft, weights, folder, dtype=wanted)
    if not any(copy_tokenizer(place, folder) for place in (shards, run_dir / MODEL)):
        tokenizer.save_pretrained(str(folder))
    return folder


def _merge(source: Path, taken: SavedWeights, described: _Described, model: Path, dtype: str) -> None:
    load: Any = load_dense if taken.base is None else partial(load_dense, base=taken.base)
    if described.masked:
        load = load_mask_model
    save_merged(source, model, dtype=dtype, load=load, **described.trusted)


def _complete(run_dir: Path, taken: SavedWeights, described: _Described, model: Path) -> None:
    """What the weights' own folder may lack: tokenizer, code of its own."""
    has_tokenizer = any((model / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    if not has_tokenizer and not any(
        copy_tokenizer(place, model) for place in (taken.folder, run_dir / MODEL)
    ):
        raise ExportFault(f"{taken.folder} has no tokenizer, nor has {run_dir / MODEL}; export another step")
    section = described.section
    origin = Path(section.path) if section is not None and section.path is not None else model
    if holds_adapter(origin):
        origin = Path(base_of(origin))
    lacking = copy_code(origin, model)
    if lacking:
        raise ExportFault(
            f"{taken.folder}: its config.json names code, {', '.join(lacking)}, that is neither there nor in {origin}; "
            f"bring it back into {origin}"
        )


def _name_base(source: Path, model: Path, out: Path) -> None:
    """A base that config names by a relative folder is not found from elsewhere."""
    base = base_of(source)
    if not Path(base).is_dir():
        return
    named = adapter_config(model)
    home = out.absolute()
    seen = (parent / str(named["base_model_name_or_path"]) for parent in (home, *home.parents))
    if not any(place.is_dir() and place.samefile(base) for place in seen):
        named["base_model_name_or_path"] = os.path.abspath(base)
        (model / CONFIG).write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")


def _for_the_card(made: Exported) -> str:
    checkpoint = made.taken.shards if made.gathered_here else made.taken.folder
    assert checkpoint is not None  # shards were gathered only where there are some
    where = f"{CHECKPOINTS}/{checkpoint.name}" if checkpoint.name != MODEL else MODEL
    gathered = ", gathered from shards" if made.gathered_here else ""
    merged = ", the adapter merged into its base" if made.merged_into else ""
    return f"`posttrain export`, from {where}{gathered}{merged}, weights in {made.precision}"
