"""A family of policies in one model: each prompt says, by a prefix, which KL coefficient its policy was trained with.

The coefficient as an input of the policy: the universal model of Wang et al. 2023, https://arxiv.org/abs/2310.17966,
where it is a number beside the state. Here it is a text before the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIG_KEY = "beta_family"
"""Where a trained model's config.json keeps its family."""
METRICS = "beta_family/"
"""Prefix of the metrics; per value: beta_family/VALUE/NAME."""


@dataclass(frozen=True)
class BetaFamily:
    """
    values    KL coefficients, each once
    prefixes  what a prompt of each begins with
    """

    values: tuple[float, ...]
    prefixes: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[float], prefixes: Sequence[str] | None = None) -> BetaFamily:
        """With "[beta 0.1] " and the like where no prefixes are given. Raises ValueError as `family_fault` says."""
        if (fault := family_fault(values, prefixes)) is not None:
            raise ValueError(fault)
        named = prefixes if prefixes is not None else [f"[beta {value:g}] " for value in values]
        return cls(tuple(map(float, values)), tuple(named))

    @classmethod
    def of_config(cls, config: Any) -> BetaFamily | None:
        """The family of a model's config (an object, or the mapping of its file); None where it has none."""
        found = config.get(CONFIG_KEY) if isinstance(config, Mapping) else getattr(config, CONFIG_KEY, None)
        return None if not found else cls.of(found["values"], found["prefixes"])

    def for_config(self) -> dict[str, list[Any]]:
        return {"values": list(self.values), "prefixes": list(self.prefixes)}

    def name(self, value: float) -> str:
        """As a metric and a column call it."""
        return f"{value:g}"

    def place(self, value: float) -> int:
        """Which value it is; ValueError, with those there are, where it is none."""
        for at, one in enumerate(self.values):
            if abs(one - value) <= 1e-6 * abs(one):  # 0 is met by 0 alone
                return at
        known = ", ".join(map(self.name, self.values))
        raise ValueError(f"{value:g} is no coefficient of this family; it has {known}")

    def prefixed(self, prompt: Any, value: float) -> Any:
        """The prompt as the policy of `value` is asked it: a text, or messages, whose last of the user gets it."""
        prefix = self.prefixes[self.place(value)]
        if isinstance(prompt, str):
            return prefix + prompt
        at = _last_of_user(prompt)
        return [
            {**one, "content": prefix + one["content"]} if i == at else one for i, one in enumerate(prompt)
        ]

    def plain(self, prompt: Any, value: float) -> Any:
        """The prompt without its prefix: the inverse of `prefixed`."""
        prefix = self.prefixes[self.place(value)]
        if isinstance(prompt, str):
            return prompt.removeprefix(prefix)
        at = _last_of_user(prompt)
        return [
            {**one, "content": one["content"].removeprefix(prefix)} if i == at else one
            for i, one in enumerate(prompt)
        ]


def _last_of_user(messages: Sequence[Mapping[str, Any]]) -> int:
    for at in range(len(messages) - 1, -1, -1):
        if messages[at]["role"] == "user" and isinstance(messages[at]["content"], str):
            return at
    raise ValueError(
        f"beta_family: no message of the user with a text in {messages!r}, so the prefix has no place; give prompts "
        "that end with one"
    )


def family_fault(values: Sequence[float], prefixes: Sequence[str] | None = None) -> str | None:
    """Why these can be no family; None where they can."""
    names = [f"{value:g}" for value in values]
    if len(values) < 2 or len(set(names)) < len(names):
        return f"beta_family: {list(values)}: two coefficients or more, each once"
    if min(values) < 0:
        return f"beta_family: {min(values):g}: a KL coefficient is 0 or more"
    if prefixes is None:
        return None
    if len(prefixes) != len(values):
        return (
            f"beta_prefixes: {len(prefixes)} for {len(values)} coefficients of beta_family; give one for each"
        )
    if not all(prefixes) or len(set(prefixes)) < len(prefixes):
        return f"beta_prefixes: {list(prefixes)}: a text for each coefficient, no two alike, none empty"
    return None


def family_beta(
    beta: float, values: Sequence[float] | None, prefixes: Sequence[str] | None, by: str | None
) -> float:
    """The `beta` of a run with these settings: the family's largest, where there is one. Raises ValueError where they
    do not go together."""
    if values is None:
        if prefixes is not None:
            raise ValueError("'beta_prefixes' does nothing without beta_family; add that, or remove it")
        return beta
    family = BetaFamily.of(values, prefixes)
    if by is not None:
        raise ValueError("beta_family and beta_by both say the coefficient of a prompt; leave one out")
    largest = max(family.values)
    if beta not in (0.0, largest):
        raise ValueError(
            f"beta {beta:g}: with beta_family the coefficients are its own, and beta is the largest of them, "
            f"{largest:g}; leave it out"
        )
    return largest
