"""What a layer keeps for its backward, counted by the planner and by autograd's own hooks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from posttrain.planning.activations import Arithmetic, head_backward, head_forward, layer_bytes, layer_weights
from posttrain.planning.shapes import Shape

ROWS, WIDTH = 2, 32
SHAPE = Shape(64, 32, 2, 4, 2, 8, 80, tied=True, source="test")
ALL = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})


def kept_bytes(layers: int, how: Arithmetic) -> int:
    """Distinct storages that autograd holds after a forward, parameters left out."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=SHAPE.vocabulary,
        hidden_size=SHAPE.hidden,
        intermediate_size=SHAPE.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        attn_implementation="eager" if how.eager else "sdpa",
    )
    model: Any = LlamaForCausalLM(config).to(torch.bfloat16 if how.weight == 2 else torch.float32)  # type: ignore[arg-type]
    if how.trained is not None:
        model = get_peft_model(model, LoraConfig(r=how.rank, target_modules=sorted(how.trained)))
    model.train()
    ids = torch.randint(0, SHAPE.vocabulary, (ROWS, WIDTH))
    mask = torch.ones_like(ids)
    if how.padded:
        mask[0, : WIDTH // 4] = 0
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    arithmetic = torch.autocast("cpu", torch.bfloat16) if how.autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), arithmetic:
        model(input_ids=ids, attention_mask=mask)
    return sum(held.values())


def in_words(how: Arithmetic) -> str:
    """The same in every process, as pytest-xdist needs: a set is written in another order each time."""
    trained = "all" if how.trained is None else "+".join(sorted(how.trained))
    numbers = f"rank={how.rank},weight={how.weight}"
    return f"{trained},{numbers},autocast={how.autocast},padded={how.padded},eager={how.eager}"


@pytest.mark.parametrize(
    "how",
    [
        Arithmetic(padded=False),
        Arithmetic(),
        Arithmetic(padded=False, eager=True),
        Arithmetic(autocast=True, padded=False),
        Arithmetic(weight=2, padded=False),
        Arithmetic(weight=2),
        Arithmetic(trained=ALL, rank=4, padded=False),
        Arithmetic(trained=ALL, rank=4),
        Arithmetic(trained=frozenset({"q_proj", "v_proj"}), rank=4, padded=False),
        Arithmetic(trained=frozenset({"o_proj", "down_proj"}), rank=4, padded=False),
        Arithmetic(trained=ALL, rank=4, autocast=True, padded=False),
        Arithmetic(trained=ALL, rank=4, weight=2, padded=False),
        Arithmetic(trained=frozenset({"up_proj"}), rank=4, weight=2, padded=False),
    ],
    ids=in_words,
)
def test_a_layer_keeps_what_is_said(how: Arithmetic) -> None:
    layer = kept_bytes(3, how) - kept_bytes(2, how)  # the rest of the model is the same
    if how.autocast:
        layer -= 2 * layer_weights(SHAPE)  # the weights in 16 bits, counted apart
        layer -= 2 * SHAPE.lora_parameters(how.rank, sorted(how.trained or ())) // SHAPE.layers
    assert layer == ROWS * WIDTH * layer_bytes(SHAPE, how, WIDTH)


def test_the_head_by_hand() -> None:
    # 10 positions, 64 words, 32 wide, float32: a tile of 640 numbers; its fold takes 3 more of them, then 7.25
    cpu = Arithmetic()
    assert head_forward(SHAPE, cpu, 10) == 640 * 4 * 4
    weights = 64 * 32 * 4
    assert head_backward(SHAPE, cpu, 10) == 640 * (4 + 29) + 10 * 32 * 8 + weights
    adapter = Arithmetic(trained=ALL, rank=1)
    assert head_backward(SHAPE, adapter, 10) == 640 * 33 + 10 * 32 * 8
    # on a GPU the tile's buffer is of the full width whatever the vocabulary, and folded in place
    assert head_forward(SHAPE, Arithmetic(cuda=True), 10) == 10 * 32768 * 4
    assert head_forward(SHAPE, Arithmetic(cuda=True, autocast=True), 10) == 10 * 32768 * 2 + 64 * 32 * 2
    # no more positions and words at once than a tile has
    large = Shape(100_000, 32, 2, 4, 2, 8, 80, tied=True, source="test")
    assert head_forward(large, cpu, 5000) == 4096 * 32768 * 16
    # 16-bit weights: the gradient is summed in float32 and then cast
    half = head_backward(SHAPE, Arithmetic(weight=2, cuda=True), 10)
    assert half == 10 * 32768 * 2 + 10 * 32 * 6 + 64 * 32 * 6


def test_upstreams_tile_is_as_large() -> None:
    from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    from posttrain.planning.activations import HEAD_POSITIONS, HEAD_WIDTH

    assert (HEAD_POSITIONS, HEAD_WIDTH) == (TOKEN_CHUNK_SIZE, _CHUNKED_LOGPROB_CHUNK_SIZE)


def test_what_a_gpu_keeps_otherwise() -> None:
    plain, gpu = Arithmetic(padded=False), Arithmetic(padded=False, cuda=True)
    query, key = 32, 16
    # float32 with fewer key heads: probabilities of every head, and keys and values repeated
    more = 4 * WIDTH * 4 + 2 * (query - key) * 4
    assert layer_bytes(SHAPE, gpu, WIDTH) - layer_bytes(SHAPE, plain, WIDTH) == more
    for same in ({"autocast": True}, {"weight": 2}):  # fused kernels
        assert layer_bytes(SHAPE, Arithmetic(padded=False, cuda=True, **same), WIDTH) == layer_bytes(
            SHAPE, Arithmetic(padded=False, **same), WIDTH
        )
