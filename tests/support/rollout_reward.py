"""Rewards of the rollout tests, alone in a file that imports nothing, so that their processes start at once."""


def judged(completions, **_):
    """Any fixed function of the text: the rewards of a group must differ."""
    return [float(len(set(text)) % 5) for text in completions]


def judged_by_row(completions, *, prompts, number, **_):
    """Raises when a response has come to another row's columns."""
    assert all(prompt == f"{n}+{n % 7}=" for prompt, n in zip(prompts, number, strict=True))
    return [float(len(set(text)) % 5) for text in completions]
