"""The reward of the sharded runs, alone in a file that imports little, so that its processes start at once."""

import zlib


def partly_right(completions, *, prompts, **_):
    """1.0 for some responses, so that groups differ; never looks at other responses."""
    return [
        float(zlib.crc32(f"{p}|{c}".encode()) % 5 < 2 + int(p[0]) % 3)
        for p, c in zip(prompts, completions, strict=True)
    ]
