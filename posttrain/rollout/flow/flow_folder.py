"""A folder to a flow model and what stands around it: one that a run here has saved, or a pipeline of diffusers.

No torch until one is loaded: `posttrain plan` asks what a folder holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.rollout.adapter_base import ModelFault, base_of, holds_adapter

if TYPE_CHECKING:
    from posttrain.rollout.flow.image_frame import ImageFrame

PIPELINE = "model_index.json"
SAVED = "flow_pipeline.json"
"""Beside the weights of a transformer that a run has trained: which pipeline the rest comes from."""
OWN = "posttrain_flow_mlp"


def kind_of_folder(path: str | Path) -> str:
    """ "small", "pipeline" (diffusers), "trained" (of one) or "adapter". ModelFault where it is no flow model."""
    folder = Path(path)
    if holds_adapter(folder):
        return "adapter"
    if (folder / SAVED).is_file():
        return "trained"
    if (folder / PIPELINE).is_file():
        fault = pipeline_fault(folder)
        if fault is not None:
            raise ModelFault(fault)
        return "pipeline"
    kind = _json(folder / "config.json").get("model_type")
    if kind == OWN:
        return "small"
    if kind is not None:
        raise ModelFault(
            f"{folder} holds a {kind}, and a flow model is needed: a folder that method flow_sft has saved, or a "
            "pipeline of diffusers"
        )
    raise ModelFault(
        f"{folder} holds neither a flow model's config.json nor a {PIPELINE}; write a folder that method flow_sft has "
        "saved, or a pipeline of diffusers"
    )


def pipeline_fault(folder: Path) -> str | None:
    """Why a pipeline's folder cannot be trained by flow methods, or None."""
    index = _json(folder / PIPELINE)
    scheduler = index.get("scheduler")
    name = scheduler[1] if isinstance(scheduler, list) and len(scheduler) == 2 else None
    if name is None or not str(name).startswith("FlowMatch"):
        return (
            f"{folder}: its scheduler is {name or 'not named'}, which is no flow scheduler "
            "(FlowMatchEulerDiscreteScheduler): the steps of a rectified flow are trained; take a model such as SD3"
        )
    if index.get("_class_name") != "StableDiffusion3Pipeline":
        return (
            f"{folder}: {index.get('_class_name')} is a pipeline whose prompts and latents are not read here; "
            "StableDiffusion3Pipeline is"
        )
    return None


def load_flow(
    path: str, *, dtype: Any = None, revision: str | None = None, image_size: int | None = None
) -> tuple[Any, ImageFrame]:
    """Model and frame. Raises ModelFault where the folder holds none, or diffusers is asked for and missing.

    A path that is no folder is a name of the hub, of a pipeline.
    """
    kind = kind_of_folder(path) if Path(path).exists() else "pipeline"
    if image_size is not None and kind != "pipeline":
        raise ModelFault(f"{path}: its images have a size already; leave image_size out")
    if kind == "adapter":
        from peft import PeftModel

        saved = _json(Path(path) / SAVED)
        base, frame = load_flow(base_of(path), dtype=dtype, image_size=saved.get("image_size"))
        return PeftModel.from_pretrained(base, path).merge_and_unload(), frame
    if kind == "pipeline":
        from posttrain.rollout.flow.diffusers_flow import load_pipeline

        return load_pipeline(path, dtype=dtype, revision=revision, image_size=image_size)
    if kind == "trained":
        from posttrain.rollout.flow.diffusers_flow import load_trained

        return load_trained(Path(path), dtype=dtype)
    from posttrain.rollout.flow.small_flow import ClassFrame, FlowMLP

    try:
        model: Any = (
            FlowMLP.from_pretrained(path, dtype=dtype) if dtype is not None else FlowMLP.from_pretrained(path)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelFault(
            f"{path} cannot be read as a flow model: {str(error).strip().splitlines()[0]}"
        ) from None
    return model, ClassFrame(model.config)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
