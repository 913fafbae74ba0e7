"""What a network of images keeps for its backward pass, block by block, from its config. No torch.

Numbers a position (token or pixel) of each block of SD3's and Flux's transformers and of Stable Diffusion's UNet, as
autograd saves them: read off the blocks' formulas, and held to autograd's hooks by tests/planning/test_image_memory.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["sd3", "flux", "unet"]
SD3_TOKENS, FLUX_TOKENS, CLIP_TOKENS = 333, 512, 77
"""Tokens of a prompt as the pipelines pad it: of SD3 CLIP's 77 and T5's 256."""


@dataclass(frozen=True)
class Kept:
    """`numbers` a position that a block keeps.

    wide   in float32 under autocast: the residual stream and what norms read
    whole  only where the block's own weights are trained, not an adapter's
    of     names of the linear maps that read them, in an adapter's case kept where one is its target; none: kept always
    """

    numbers: float
    wide: bool = False
    whole: bool = False
    of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """`entry`: numbers a position of what comes in, all that checkpointing keeps of a block that it recomputes."""

    positions: int
    kept: tuple[Kept, ...]
    linears: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    entry: float = 0.0

    def bytes_kept(self, targets: frozenset[str] | None, weight: float, compute: float) -> float:
        """Of one row. targets None: all weights are trained."""
        return self.positions * sum(
            one.numbers * (weight if one.wide else compute) for one in self.kept if _is_kept(one, targets)
        )

    def adapter_parameters(self, rank: int, targets: frozenset[str]) -> int:
        return sum(rank * sum(shape) for name, shape in self.linears.items() if is_target(name, targets))


def is_target(name: str, targets: frozenset[str]) -> bool:
    """As peft reads target_modules: the whole name, or its end after a dot."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _is_kept(one: Kept, targets: frozenset[str] | None) -> bool:
    if targets is None or not (one.of or one.whole):
        return True
    return any(is_target(name, targets) for name in one.of)


def blocks_of(kind: Kind, config: Mapping[str, Any], side: int) -> list[Block]:
    """Of a network with this config.json on latents of `side` x `side`; `side` of Flux before packing."""
    if kind == "sd3":
        return list(_sd3(config, (side // config["patch_size"]) ** 2))
    if kind == "flux":
        return list(_flux(config, (side // 2) ** 2))
    return list(_unet(config, side))


# ---- transformers


def _stream(d: int, prefix: tuple[str, str, str, str], *, ends: bool, norms: bool) -> list[Kept]:
    """One stream of a joint block. prefix: names of its query, key, value and output maps."""
    kept = [
        Kept(d, wide=True),  # into the norm
        Kept(d, wide=True, whole=True),  # out of it, times a learned scale
        Kept(d, of=prefix[:3]),
        Kept(3 * d),  # query, key, value of the attention
        Kept(d),  # and what comes out of it
    ]
    kept += [Kept(2 * d), Kept(2 * d, whole=True)] if norms else []
    if ends:
        return kept
    feed = "ff_context" if prefix[0].endswith("add_q_proj") else "ff"
    return [
        *kept,
        Kept(d, of=prefix[3:]),
        Kept(d, whole=True),  # times a learned gate
        Kept(d, wide=True),
        Kept(d, wide=True, whole=True),
        Kept(d, of=(f"{feed}.net.0.proj",)),
        Kept(4 * d),
        Kept(4 * d, of=(f"{feed}.net.2",)),
        Kept(d, whole=True),
    ]


IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
SECOND = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


def _joint_linears(d: int, names: tuple[str, ...], feed: str | None) -> dict[str, tuple[int, int]]:
    found = dict.fromkeys(names, (d, d))
    if feed is not None:
        found |= {f"{feed}.net.0.proj": (d, 4 * d), f"{feed}.net.2": (4 * d, d)}
    return found


def _sd3(config: Mapping[str, Any], tokens: int) -> Iterator[Block]:
    d = config["num_attention_heads"] * config["attention_head_dim"]
    layers, norms = config["num_layers"], config.get("qk_norm") is not None
    twice = set(config.get("dual_attention_layers") or ())
    for number in range(layers):
        ends = number == layers - 1
        image = _stream(d, IMAGE, ends=False, norms=norms)
        linears = _joint_linears(d, IMAGE, "ff")
        if number in twice:
            again = [
                Kept(d, of=SECOND[:3]),
                Kept(3 * d),
                Kept(d),
                Kept(d, of=SECOND[3:]),
                Kept(d, whole=True),
            ]
            image += again + ([Kept(2 * d), Kept(2 * d, whole=True)] if norms else [])
            linears |= _joint_linears(d, SECOND, None)
        yield Block(tokens, tuple(image), linears, d)
        words = TEXT[:3] if ends else TEXT
        yield Block(
            SD3_TOKENS,
            tuple(_stream(d, TEXT, ends=ends, norms=norms)),
            _joint_linears(d, words, None if ends else "ff_context"),
            d,
        )


def _flux(config: Mapping[str, Any], tokens: int) -> Iterator[Block]:
    d = config["num_attention_heads"] * config["attention_head_dim"]
    for _ in range(config["num_layers"]):
        yield Block(
            tokens, tuple(_stream(d, IMAGE, ends=False, norms=True)), _joint_linears(d, IMAGE, "ff"), d
        )
        text = tuple(_stream(d, TEXT, ends=False, norms=True))
        yield Block(FLUX_TOKENS, text, _joint_linears(d, TEXT, "ff_context"), d)
    single = (
        Kept(d, wide=True),
        Kept(d, wide=True, whole=True),
        Kept(d, of=("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
        *(Kept(4 * d), Kept(2 * d), Kept(2 * d, whole=True), Kept(3 * d), Kept(d)),
        Kept(5 * d, of=("proj_out",)),
        Kept(d, whole=True),
    )
    linears = {**dict.fromkeys(IMAGE[:3], (d, d)), "proj_mlp": (d, 4 * d), "proj_out": (5 * d, d)}
    for _ in range(config["num_single_layers"]):
        yield Block(tokens + FLUX_TOKENS, single, linears, d)


# ---- the UNet


def _unet(config: Mapping[str, Any], side: int) -> Iterator[Block]:
    """Down, middle and up, as UNet2DConditionModel nests them."""
    widths, layers, cross = (
        config["block_out_channels"],
        config["layers_per_block"],
        config["cross_attention_dim"],
    )
    linear = bool(config.get("use_linear_projection"))
    sides = [side >> level for level in range(len(widths))]
    attends = ["CrossAttn" in name for name in config["down_block_types"]]
    before = widths[0]
    for level, width in enumerate(widths):
        for number in range(layers):
            yield _resnet(sides[level], before if number == 0 else width, width)
            if attends[level]:
                yield _attention(sides[level], width, cross, linear)
        if level < len(widths) - 1:
            yield _convolved(sides[level], width)
        before = width
    yield _resnet(sides[-1], widths[-1], widths[-1])
    yield _attention(sides[-1], widths[-1], cross, linear)
    yield _resnet(sides[-1], widths[-1], widths[-1])
    attends = ["CrossAttn" in name for name in config["up_block_types"]]
    for place, level in enumerate(reversed(range(len(widths)))):
        width, skipped = widths[level], widths[max(level - 1, 0)]
        for number in range(layers + 1):
            beside = skipped if number == layers else width
            yield _resnet(sides[level], (before if number == 0 else width) + beside, width)
            if attends[place]:
                yield _attention(sides[level], width, cross, linear)
        if level:
            yield _convolved(sides[level - 1], width)
        before = width
    first = widths[0]
    yield Block(side**2, (Kept(2 * first, wide=True), Kept(first)))


def _resnet(side: int, entering: int, leaving: int) -> Block:
    kept = (
        Kept(2 * entering, wide=True),  # into the norm, and between it and the activation
        Kept(entering),  # a convolution keeps its input even where its weights are frozen
        Kept(2 * leaving, wide=True),
        Kept(leaving),
    )
    return Block(side**2, kept, entry=entering)


def _convolved(side: int, width: int) -> Block:
    """The convolution that halves or doubles the sides: its input, at the larger size."""
    return Block(side**2, (Kept(width),), entry=0.0)


def _attention(side: int, width: int, cross: int, linear: bool) -> Block:
    c, inner = width, "transformer_blocks.0"
    one, two = (
        tuple(f"{inner}.{attn}.{m}" for m in ("to_q", "to_k", "to_v", "to_out.0"))
        for attn in ("attn1", "attn2")
    )
    kept = (
        Kept(c, wide=True),
        Kept(c, of=("proj_in",) if linear else ()),
        Kept(c, wide=True),
        Kept(c, of=one[:3]),
        Kept(4 * c),
        Kept(c, wide=True),
        Kept(c, of=two[:1]),
        Kept(2 * c),
        Kept(2 * c * CLIP_TOKENS / side**2),
        Kept(c, wide=True),
        Kept(c, of=(f"{inner}.ff.net.0.proj",)),
        Kept(12 * c),
        Kept(4 * c, of=(f"{inner}.ff.net.2",)),
        Kept(c, of=("proj_out",) if linear else ()),
    )
    linears = {
        "proj_in": (c, c),
        **dict.fromkeys((*one, two[0], two[3]), (c, c)),
        **dict.fromkeys(two[1:3], (cross, c)),
        f"{inner}.ff.net.0.proj": (c, 8 * c),
        f"{inner}.ff.net.2": (4 * c, c),
        "proj_out": (c, c),
    }
    return Block(side**2, kept, linears, c)
