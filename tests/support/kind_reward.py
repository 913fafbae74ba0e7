"""A scripted reward: what a group earns stands in its row, alone in a file that imports nothing."""

BY_PLACE = {
    "right": [1.0, 1.0, 1.0, 1.0],
    "wrong": [0.0, 0.0, 0.0, 0.0],
    "half": [0.5, 0.5, 0.5, 0.5],
    "none": [None, None, None, None],
    "one": [None, 1.0, None, None],
    "some": [None, 1.0, 0.0, 1.0],
    "mixed": [1.0, 0.0, 0.0, 1.0],
    "rare": [1.0, 0.0, 0.0, 0.0],
}


def by_kind(completions, *, kind, log_extra, log_metric, **_):
    """The reward of a response by its row's kind and its place in the group of four."""
    log_extra("kind", list(kind))
    log_metric("calls", 1.0)
    return [BY_PLACE[one][place % 4] for place, one in enumerate(kind)]


def by_kind_and_row(completions, *, prompts, number, kind, **_):
    """Raises when a response has come to another row's columns."""
    assert all(prompt == f"{n}+{n % 7}=" for prompt, n in zip(prompts, number, strict=True))
    return [BY_PLACE[one][place % 4] for place, one in enumerate(kind)]


def of_text(completions, **_):
    """Some groups are equal, most are not."""
    return [float(len(text) % 2) for text in completions]


def rare_of_text(completions, *, number, **_):
    """Every third prompt can be learned from, the others never."""
    return [
        float(n % 3 == 0 and len(set(text)) % 2 == 0) for n, text in zip(number, completions, strict=True)
    ]
