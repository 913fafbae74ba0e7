"""Doubles of checkpoints that bring their own code, in the shape of LLaDA's and Dream's releases for transformers 4."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

REMOTE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class DoubleConfig(PretrainedConfig):
    model_type = "MODEL_TYPE"

    def __init__(self, vocab_size=20, **kwargs):
        self.vocab_size = vocab_size
        super().__init__(**kwargs)


class DoubleModel(PreTrainedModel):
    config_class = DoubleConfig
    TIED

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, config.vocab_size)
        POST_INIT

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        x = self.embed(input_ids)
        if attention_mask is None or IGNORES:
            weights = torch.ones(x.shape[0], x.shape[1], x.shape[1])
        elif attention_mask.dim() == 4:
            assert attention_mask.dtype == torch.bool
            weights = attention_mask[:, 0].float()
        else:
            weights = attention_mask[:, None, :].float().expand(-1, x.shape[1], -1)
        x = x + weights @ self.mix(x) / weights.sum(-1, keepdim=True)
        return MaskedLMOutput(logits=self.head(x))

    def get_input_embeddings(self):
        return self.embed

    def tie_weights(self):
        pass
"""


def remote_checkpoint(
    folder: Path,
    model_type: str,
    *,
    vocabulary: int = 20,
    ignores: bool = False,
    list_of_tied: bool = False,
    post_init: bool = False,
) -> dict[str, torch.Tensor]:
    """Writes code, config and random weights into `folder`; returns the weights.

    ignores       the forward does not look at the padding mask
    list_of_tied  `_tied_weights_keys` is a list, as under transformers 4
    post_init     its constructor calls post_init
    """
    code = REMOTE.replace("MODEL_TYPE", model_type).replace("IGNORES", str(ignores))
    code = code.replace("TIED", '_tied_weights_keys = ["head.weight"]' if list_of_tied else "")
    code = code.replace("POST_INIT", "self.post_init()" if post_init else "")
    name = f"modeling_{folder.name}"
    (folder / f"{name}.py").write_text(code)
    auto = {"AutoConfig": f"{name}.DoubleConfig", "AutoModel": f"{name}.DoubleModel"}
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": model_type,
                "vocab_size": vocabulary,
                "auto_map": auto,
                "architectures": ["DoubleModel"],
            }
        )
    )
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "embed.weight": (vocabulary, 8),
        "mix.weight": (8, 8),
        "mix.bias": (8,),
        "head.weight": (vocabulary, 8),
        "head.bias": (vocabulary,),
    }
    weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return weights
