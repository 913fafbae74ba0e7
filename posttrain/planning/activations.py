"""What a Llama-like layer and its head keep and need for a while, in bytes, by how the arithmetic is done.

Counted from what autograd saves (torch.autograd.graph.saved_tensors_hooks on transformers' Llama under TRL's fused
head; tests/planning/test_activations.py counts again), so no constant here is fitted. Letters: D hidden,
I intermediate, Hq and Hk the widths of all query and all key heads, V vocabulary, r the adapter's rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.planning.shapes import Shape

HEAD_POSITIONS = 4096
HEAD_WIDTH = 32768
"""Of the tiles in which TRL's fused head multiplies (trl.kernels.chunked_logprob, trl.trainer.utils)."""
FOLD_FORWARD = 3.0
FOLD_BACKWARD = 7.25
"""Float32 copies of a tile beside the tile itself where the head is folded by torch and not by Triton, so off CUDA:
in the forward the scaled logits, their distance to the maximum and its exponential; in the backward the scaled logits
twice, log p, p, the gradient, two terms of it, and a mask of a byte."""
BACKWARD_WIDTHS = 3
"""Gradients of the width I that a layer's backward holds beside what it saved: of the product and its two factors."""


@dataclass(frozen=True)
class Arithmetic:
    """How a run computes.

    weight    bytes of a weight: 4, or 2 for 16-bit checkpoints
    autocast  float32 weights, products in 16 bits (train.bf16, train.fp16)
    trained   None for all weights; else the adapter's target modules, by their last name
    rank      of the adapter
    padded    whether rows of unequal length are padded: the mask is kept for every layer, keys and values repeated
    eager     attention by plain products: the probabilities are kept
    cuda      the device
    """

    weight: int = 4
    autocast: bool = False
    trained: frozenset[str] | None = None
    rank: int = 0
    padded: bool = True
    eager: bool = False
    cuda: bool = False

    @property
    def compute(self) -> int:
        return 2 if self.autocast else self.weight


def layer_bytes(shape: Shape, how: Arithmetic, width: int) -> float:
    """What one layer keeps for its backward, a token; `width` is the tokens of a row."""
    D, I, c = shape.hidden, shape.intermediate, how.compute  # the field's letters
    query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    whole = how.trained is None
    kept = 2 * D * 4  # both norms' inputs, in float32 whatever comes in
    if whole:  # normalised, for the gradient of the norms' own weights; autocast leaves norms in float32
        kept += 2 * D * how.weight
    kept += 3 * I * c + 2 * query * c  # the feed-forward's factors; queries and attention's result
    expanded = how.padded or how.eager or (how.cuda and c == 4)
    kept += 2 * (query if expanded else key) * c
    kept += _inputs(shape, how, query)
    scales = 2 + (0 if how.eager else shape.heads)  # of two norms, and of each head's softmax
    return kept + _attention(shape, how, width) + scales * 4


def _inputs(shape: Shape, how: Arithmetic, query: int) -> float:
    """Inputs of the linear maps whose weights are trained, each cast on its own under autocast."""
    wide = {"q_proj": shape.hidden, "k_proj": shape.hidden, "v_proj": shape.hidden, "o_proj": query}
    wide |= {"gate_proj": shape.hidden, "up_proj": shape.hidden, "down_proj": shape.intermediate}
    if how.trained is not None:
        wide = {name: size for name, size in wide.items() if name in how.trained}
        inside = len(wide) * how.rank  # what lies between an adapter's two maps
        if how.weight == 2 and not how.autocast:
            return 4.0 * (sum(wide.values()) + inside)  # each cast to the adapter's float32
        if how.autocast:
            return 2.0 * (sum(wide.values()) + inside)
        return 4.0 * (_shared(wide, query) + inside)
    if how.autocast:
        return 2.0 * (sum(wide.values()) - query)  # attention's result is in 16 bits already, and kept
    return float(how.weight * _shared(wide, query))


def _shared(wide: dict[str, int], query: int) -> int:
    """Where nothing is cast, maps of one input share it, and o_proj's is attention's own result."""
    groups = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"down_proj"})
    return sum(max((wide[name] for name in group & wide.keys()), default=0) for group in groups)


def _attention(shape: Shape, how: Arithmetic, width: int) -> float:
    """Scores and masks, a token."""
    c = how.compute
    if how.eager:
        return (
            shape.heads * width * (4 if c == 4 else 6)
        )  # probabilities in float32, and as they are multiplied
    grouped = shape.kv_heads != shape.heads
    if how.cuda and c == 4 and grouped:
        # Float32 with fewer key heads and no padding has no fused kernel there: rows of one length come so too.
        return shape.heads * width * 4
    return width * c if how.padded else 0.0


def layer_weights(shape: Shape) -> int:
    return sum(i * o for _, i, o in shape.linears)


def head_forward(shape: Shape, how: Arithmetic, positions: int) -> float:
    """Beside the hidden states, while log-probs are made."""
    return _tile(shape, how, positions, FOLD_FORWARD)


def head_backward(shape: Shape, how: Arithmetic, positions: int) -> float:
    """The tile and what folds it, the hidden states' gradients, and the head's own where it is trained."""
    found = _tile(shape, how, positions, FOLD_BACKWARD) + positions * shape.hidden * (4 + how.compute)
    if how.trained is None:
        found += shape.vocabulary * shape.hidden * (4 + (how.weight if how.weight == 2 else 0))
    return found


def _tile(shape: Shape, how: Arithmetic, positions: int, copies: float) -> float:
    rows, columns = min(positions, HEAD_POSITIONS), min(shape.vocabulary, HEAD_WIDTH)
    if how.cuda:  # the buffer is of the full width, and Triton folds it in place
        cast = columns * shape.hidden * 2 if how.autocast else 0
        return rows * HEAD_WIDTH * how.compute + cast
    return rows * columns * (how.compute + copies * 4)
