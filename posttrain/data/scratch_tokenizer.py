"""The tokenizer of models from scratch: one token a character. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
ROLES = {f"{token[1:-1]}_token": token for token in SPECIAL}
"""transformers' name of each special token -> the token."""


def by_characters(alphabet: str) -> Tokenizer:
    """One token a character of `alphabet`, behind the special ones."""
    from tokenizers import Regex, Tokenizer, decoders
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer
