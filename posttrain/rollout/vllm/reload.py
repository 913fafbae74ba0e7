"""What vLLM's layerwise reload leaves undone on a CPU."""

from __future__ import annotations

from typing import Any


def renew_tied_heads(model: Any) -> None:
    """Packs an output head anew whose weight is the embedding's.

    A CPU worker multiplies with a packed copy of the head. The reload packs the layers that were loaded; a tied head
    is never loaded by itself, so it would go on with the embedding's old values. Seen with vLLM 0.31 and Llama.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    embeddings = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    places = {layer.weight.data_ptr() for layer in embeddings if not isinstance(layer, ParallelLMHead)}
    for layer in embeddings:
        if isinstance(layer, ParallelLMHead) and layer.weight.data_ptr() in places:
            layer.quant_method.process_weights_after_loading(layer)
