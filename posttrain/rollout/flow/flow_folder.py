"""A folder to a flow model and what stands around it: one that a run here has saved, or a pipeline of diffusers.

No torch until one is loaded: `posttrain plan` asks what a folder holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.rollout.adapter_base import ModelFault, base_of, holds_adapter

if TYPE_CHECKING:
    from posttrain.rollout.flow.image_frame import ImageFrame

PIPELINE = "model_index.json"
SAVED = "flow_pipeline.json"
"""Beside the weights of a transformer that a run has trained: which pipeline the rest comes from."""
OWN = "posttrain_flow_mlp"


FLOWS = ("StableDiffusion3Pipeline", "FluxPipeline")
NOISE_MODELS = ("StableDiffusionPipeline",)
"""Classes of pipelines whose networks are trained here: flow models, and UNets that say the noise."""
PREDICTIONS = ("epsilon", "v_prediction")


def kind_of_folder(path: str | Path, *, noise_models: bool = True) -> str:
    """ "small", "pipeline" (diffusers), "trained" (of one) or "adapter". ModelFault where it is no model of images, or,
    without `noise_models`, no flow model."""
    folder = Path(path)
    kind = _kind(folder)
    pipeline = pipeline_of(folder)
    if pipeline is not None and (pipeline / PIPELINE).is_file():
        fault = pipeline_fault(pipeline, noise_models=noise_models)
        if fault is not None:
            raise ModelFault(fault)
    return kind


def _kind(folder: Path) -> str:
    if holds_adapter(folder):
        return "adapter"
    if (folder / SAVED).is_file():
        return "trained"
    if (folder / PIPELINE).is_file():
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


def pipeline_of(folder: Path) -> Path | None:
    """The folder itself where it holds a pipeline, or that of the pipeline which a saved model or adapter names."""
    if (folder / PIPELINE).is_file():
        return folder
    named = _json(folder / SAVED).get("pipeline")
    return Path(named) if isinstance(named, str) else None


def is_noise_model(path: str | Path) -> bool:
    """Whether a folder's network says noise (a UNet with a DDPM's scheduler), as far as it lies here."""
    pipeline = pipeline_of(Path(path))
    return pipeline is not None and _json(pipeline / PIPELINE).get("_class_name") in NOISE_MODELS


def pipeline_fault(folder: Path, *, noise_models: bool = True) -> str | None:
    """Why a pipeline's folder cannot be trained, or None."""
    fault = index_fault(str(folder), _json(folder / PIPELINE), noise_models=noise_models)
    if fault is None and is_noise_model(folder):
        said = _json(folder / "scheduler" / "scheduler_config.json").get("prediction_type", "epsilon")
        if said not in PREDICTIONS:
            return f"{folder}: its network says {said!r}; one that says {' or '.join(PREDICTIONS)} is trained here"
    return fault


def index_fault(path: str, index: Mapping[str, Any], *, noise_models: bool) -> str | None:
    """Why a pipeline with this model_index.json cannot be trained, or None.

    noise_models  whether UNets with a DDPM's scheduler may be
    """
    scheduler, kind = index.get("scheduler"), index.get("_class_name")
    name = scheduler[1] if isinstance(scheduler, (list, tuple)) and len(scheduler) == 2 else None
    flows = name is not None and str(name).startswith("FlowMatch")
    if kind in NOISE_MODELS and noise_models and name is not None and not flows:
        return None
    if not flows:
        return (
            f"{path}: its scheduler is {name or 'not named'}, which is no flow scheduler "
            "(FlowMatchEulerDiscreteScheduler): the steps of a rectified flow are trained; take a model such as SD3, "
            "or for Stable Diffusion 1 and 2 method diffusion_dpo or seppo_diffusion"
        )
    if kind not in FLOWS:
        return (
            f"{path}: {kind} is a pipeline whose prompts and latents are not read here; "
            f"{' and '.join((*FLOWS, *NOISE_MODELS))} are"
        )
    return None


def load_flow(
    path: str,
    *,
    dtype: Any = None,
    revision: str | None = None,
    image_size: int | None = None,
    embedded_guidance: float | None = None,
) -> tuple[Any, ImageFrame]:
    """Model and frame. Raises ModelFault where the folder holds none, or diffusers is asked for and missing.

    A path that is no folder is a name of the hub, of a pipeline.
    """
    kind = kind_of_folder(path) if Path(path).exists() else "pipeline"
    if kind != "pipeline":
        for name, value in (("image_size", image_size), ("embedded_guidance", embedded_guidance)):
            if value is not None:
                raise ModelFault(f"{path}: a saved model has its {name} already; leave {name} out")
    if kind == "adapter":
        from peft import PeftModel

        named, saved = base_of(path), {}
        if not Path(named).exists() or _kind(Path(named)) == "pipeline":
            saved = {name: value for name, value in _json(Path(path) / SAVED).items() if name != "pipeline"}
        base, frame = load_flow(named, dtype=dtype, **saved)
        merged: Any = PeftModel.from_pretrained(base, path).merge_and_unload()
        vars(merged)["name_or_path"] = path  # what an adapter on it is an adapter of
        return merged, frame
    if kind == "pipeline":
        from posttrain.rollout.flow.diffusers_flow import load_pipeline

        asked = {"image_size": image_size, "embedded_guidance": embedded_guidance}
        return load_pipeline(path, dtype=dtype, revision=revision, **asked)
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
