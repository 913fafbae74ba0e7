"""A reward that a model gives: what a recipe says of it. No torch: it is loaded and asked where the trainer is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ModelReward:
    """A sequence classifier of one label, as `method: reward_model` makes them.

    model       its folder or hub name
    weight      of its score in the sum
    label       the name it is logged under; None: the folder's, or for runs/NAME/model the run's
    batch_size  rows of one forward
    max_length  tokens beyond which a text loses its start; None: the model's own limit
    device      None: the trainer's
    server      http://host:port of a server that runs it, in place of this process; `model` names its tokenizer
    api         whose server it is: "vllm", "sglang" or "tei" (text-embeddings-inference); None: it is asked
    timeout_s, retries, api_key_env  of a call to that server
    """

    model: str
    weight: float = 1.0
    label: str | None = None
    batch_size: int = 16
    max_length: int | None = None
    device: str | None = None
    server: str | None = None
    api: Literal["vllm", "sglang", "tei"] | None = None
    timeout_s: float = 30.0
    retries: int = 4
    api_key_env: str = "VLLM_API_KEY"

    @property
    def title(self) -> str:
        """The name under which it is logged."""
        if self.label is not None:
            return self.label
        path = Path(self.model)
        return path.parent.name if path.name == "model" and path.parent.name else path.name
