"""Models from disk, whole or not at all: a tensor that a folder lacks is named, an adapter is merged into its base.

transformers fills a missing tensor with random numbers and warns ("newly initialized"); a run would train on them.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from posttrain.rollout.adapter_base import ModelFault, adapter_config, base_of, holds_adapter, scores_texts

_SHOWN = 3
"""Tensors a message names; a missing shard lacks hundreds."""


def load_whole(path: str | Path, model_class: Any = AutoModelForCausalLM, **options: Any) -> PreTrainedModel:
    """`model_class.from_pretrained`. Raises ModelFault where a tensor is missing, of another shape, or not readable;
    weights that are tied to another tensor, and those the model's class says are made anew, are not missing."""
    writes = model_class.__name__ == AutoModelForCausalLM.__name__
    if writes and (scorer := scores_texts(path)) is not None:
        raise ModelFault(
            f"{path} is a {scorer}: it scores texts and writes none; name it in a recipe's rewards as {{model: ...}}, "
            "and a language model here"
        )
    try:
        with _quietly():
            # Another shape is listed instead of raised with a page of advice.
            model, found = model_class.from_pretrained(
                str(path), output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except FileNotFoundError as error:
        raise ModelFault(f"{path}: a weights file is missing: {_first_line(error)}") from None
    except SafetensorError as error:
        raise ModelFault(
            f"{path}: a weights file cannot be read ({error}); it was not copied or saved whole"
        ) from None
    except ImportError as error:  # an attention kernel, a quantisation: transformers names the package
        raise ModelFault(f"{path}: {_first_line(error)}") from None
    mismatched = [(name, *shapes) for name, *shapes in found.get("mismatched_keys", ())]
    if mismatched:
        name, saved, wanted = mismatched[0][:3]
        raise ModelFault(
            f"{path}: {name} is {tuple(saved)} in the folder, but {tuple(wanted)} by its config.json"
            f"{_and_more(len(mismatched) - 1)}"
        )
    missing = sorted(found.get("missing_keys", ()))
    if missing:
        raise ModelFault(
            f"{path}: the folder lacks {', '.join(missing[:_SHOWN])}{_and_more(len(missing) - _SHOWN)}; it is not a "
            f"whole {type(model).__name__}"
        )
    without_router_logits(model)
    return model


def without_router_logits(model: Any) -> None:
    """Mixture-of-experts models whose config asks for router logits in every forward cannot generate: the balancing
    loss wants the prompt's mask. Trainers ask for them by argument, where they want them."""
    config = model.config.get_text_config()
    if vars(config).get("output_router_logits"):
        config.output_router_logits = False


def load_adapter(model: PreTrainedModel, folder: str | Path, **options: Any) -> PeftModel:
    """The model with the folder's adapter on it. Raises ModelFault where the folder lacks a tensor of it."""
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), **options)
    except (RuntimeError, SafetensorError, KeyError) as error:  # another shape, half a file
        raise ModelFault(f"{folder}: the adapter does not fit its base model: {_reason(error)}") from None
    check_adapter_file(adapted, folder)
    return adapted


def check_adapter_file(adapted: PeftModel, folder: str | Path, name: str = "default") -> None:
    """Raises ModelFault where a folder's adapter lacks a tensor that the model's adapter of that name has."""
    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        return  # a hub name, or torch's own format
    try:
        with safe_open(file, framework="pt") as saved:
            here = set(saved.keys())
    except SafetensorError as error:
        raise ModelFault(f"{file} cannot be read ({error}); it was not copied or saved whole") from None
    wanted = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    missing = sorted(wanted.keys() - here)
    if missing:
        raise ModelFault(
            f"{folder}: the adapter lacks {', '.join(missing[:_SHOWN])}{_and_more(len(missing) - _SHOWN)}"
        )


def load_dense(
    path: str | Path, *, base: str | Path | None = None, dtype: str | torch.dtype = "auto", **options: Any
) -> PreTrainedModel:
    """The model in a folder (or of a hub name); of an adapter, its base with the adapter merged in.

    base  where an adapter's base lies; None: where its config says. It may be an adapter itself
    """
    if not holds_adapter(path):
        return load_whole(path, dtype=dtype, **options)
    source = str(base) if base is not None else base_of(path)
    revision = adapter_config(path).get("revision")
    if revision is not None and not Path(source).is_dir():
        options = {**options, "revision": revision}
    elif Path(source).is_dir():
        options = {name: value for name, value in options.items() if name != "revision"}
    try:
        model = load_dense(source, dtype=dtype, **options)
    except OSError as error:
        raise ModelFault(
            f"{path} is an adapter of {source}, which cannot be loaded: {_first_line(error)}"
        ) from None
    return merged(model, path)


def merged(model: PreTrainedModel, adapter: str | Path) -> Any:
    """The model with the folder's adapter merged in. Raises ModelFault where that changes more than was trained."""
    tied = tied_embedding_adapter(model, adapter_config(adapter))
    if tied is not None:
        raise ModelFault(f"{adapter}: {tied}")
    adapted: Any = load_adapter(model, adapter)
    whole = adapted.merge_and_unload(safe_merge=True)
    for weight in whole.parameters():  # which the adapter had frozen
        weight.requires_grad_(weight.is_floating_point())
    # what a further adapter, trained on this model, notes as its base
    whole.name_or_path = whole.config._name_or_path = str(adapter)
    return whole


def tied_embedding_adapter(model: Any, config: dict[str, Any]) -> str | None:
    """Why an adapter may not be on the embeddings of this model, where it is."""
    targets = config.get("target_modules")
    names = [*_named(targets), *_named(config.get("modules_to_save"))]
    if not is_tied(model) or config.get("ensure_weight_tying"):
        return None
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = [name for name, one in model.named_modules() if one is ends[0] or one is ends[1]]
    for place in tied:
        by_pattern = (
            isinstance(targets, str) and re.fullmatch(targets, place) is not None
        )  # as peft reads a text
        if by_pattern or any(place == name or place.endswith(f".{name}") for name in names):
            return (
                f"an adapter on {place} of a model whose head is tied to its embeddings (tie_word_embeddings) would be "
                "merged into both, and was not trained so; leave it out, or untie the model first"
            )
    return None


def is_tied(model: Any) -> bool:
    """Whether input embedding and output head are one tensor."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and embedding is not None and head.weight is embedding.weight


def tokenizer_of(path: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """The folder's tokenizer; of an adapter without one, its base's."""
    place = Path(path)
    if holds_adapter(path) and not any(
        (place / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    ):
        return tokenizer_of(base_of(path), **options)
    return AutoTokenizer.from_pretrained(str(path), **options)


@contextmanager
def dense_folder(path: str, *, dtype: str | torch.dtype = "auto", **options: Any) -> Iterator[str]:
    """`path`, or of an adapter a folder with the merged model, which is taken away again: for engines that read one."""
    if not holds_adapter(path):
        yield path
        return
    folder = tempfile.mkdtemp(prefix="merged-")
    try:
        save_merged(path, folder, dtype=dtype, **options)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_merged(
    path: str | Path,
    out: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    load: Callable[..., PreTrainedModel] = load_dense,
    **options: Any,
) -> PreTrainedModel:
    """Writes an adapter merged into its base as a whole model folder: weights, generation config, tokenizer, chat
    template. Merged in the wider of the saved precision and `dtype`, rounded once.

    load  what makes the merged model of `path`, where it is no decoder
    """
    tokenizer = tokenizer_of(path)
    wide = torch.float32 if dtype in ("float32", torch.float32) else "auto"
    model = load(str(path), dtype=wide, **options)
    if dtype != "auto":
        model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)  # type: ignore[arg-type]  # as torch
    for name, tensor in model.named_parameters():
        if not bool(tensor.isfinite().all()):
            raise ModelFault(f"{path}: {name} is not finite once merged; nothing was written")
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    return model


@contextmanager
def _quietly() -> Iterator[None]:
    """transformers' table of what a folder lacks, which is raised here."""
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def _named(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _reason(error: Exception) -> str:
    """The first particular of torch's list of mismatches, which begins with a headline."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 and "Error(s) in loading" in lines[0] else lines[0]
