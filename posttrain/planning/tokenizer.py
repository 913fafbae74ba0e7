"""A model's tokenizer from the files in its folder, without torch or transformers (which imports torch).

It is called like transformers' as far as `posttrain.data.tokens` calls it; a test holds the two equal.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.scratch_tokenizer import ROLES, SPECIAL, by_characters
from posttrain.planning.shapes import local_file, read_mapping
from posttrain.recipe.sections import ModelSection

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


class PlanTokenizer:
    """`Tokenizer` of the tokenizers library with special tokens and a chat template beside it."""

    def __init__(
        self, backend: Tokenizer, special_tokens: dict[str, Any], chat_template: str | None = None
    ) -> None:
        self.backend = backend
        self.backend.no_truncation()
        self.backend.no_padding()
        self.special_tokens = special_tokens
        self.chat_template = chat_template
        self.eos_token: str = special_tokens.get("eos_token", "")
        self._compiled: Template | None = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """The conversation as text, or as tokens. jinja2.TemplateError where the template refuses it."""
        if self._compiled is None:
            self._compiled = _compile(self.chat_template or "")
        text = self._compiled.render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **{**self.special_tokens, **options},
        )
        return self(text, add_special_tokens=False) if tokenize else text


def plan_tokenizer(model: ModelSection) -> PlanTokenizer | None:
    """The recipe's tokenizer, where its files lie on this machine. ValueError says which of them cannot be read."""
    own = _text_of(model.chat_template) if model.chat_template is not None else None
    if model.scratch is not None:
        backend = by_characters(model.scratch.alphabet)
        backend.add_special_tokens(list(SPECIAL))  # as transformers does, or "<eos>" would be five characters
        return PlanTokenizer(backend, dict(ROLES), own)
    name = model.tokenizer or model.path
    assert name is not None
    revision = model.revision if model.tokenizer is None else None
    file = local_file(name, "tokenizer.json", revision)
    config_file = local_file(name, "tokenizer_config.json", revision)
    if file is None or config_file is None:
        return None
    config = read_mapping(config_file)
    template_file = local_file(name, "chat_template.jinja", revision)
    template = _template(config, template_file) if own is None else own
    return PlanTokenizer(backend_of(file), _special(config), template)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"chat_template: {path} cannot be read: {error}") from None


def backend_of(file: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. ValueError where it cannot be read."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None


def _special(config: dict[str, Any]) -> dict[str, str]:
    """bos_token and its like as text; older files hold mappings."""
    named = {key: value for key, value in config.items() if key.endswith("_token") and value}
    return {
        key: value["content"] if isinstance(value, dict) else value
        for key, value in named.items()
        if isinstance(value, str | dict)
    }


def _template(config: dict[str, Any], file: Path | None) -> str | None:
    """A file of its own wins; of several named templates the one called default."""
    if file is not None:
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        return next((one["template"] for one in found if one.get("name") == "default"), None)
    return found


def _compile(template: str) -> Template:
    """As transformers compiles it; the marks of what the assistant says change nothing in the text."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(
        _GENERATION.sub(
            lambda mark: f"{{%{mark[1]} {'endif' if mark[2] else 'if true'} {mark[3]}%}}", template
        )
    )
