"""`posttrain chat MODEL`: talk to a model in the terminal, or ask it one thing with --prompt."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.evaluation import masked_diffusion
from posttrain.planning.saved_model import DTYPES, model_of
from posttrain.process import exit_codes

if TYPE_CHECKING:
    from posttrain.evaluation.speaker import Message, Speaker, Wishes

ANEW = "/new"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="model folder, run folder (its model), adapter folder, or hub name")
    parser.add_argument("--prompt", help="ask this alone, and end")
    parser.add_argument("--system", help="system message, for models with a chat template")
    parser.add_argument("--temperature", type=float, help="0: greedy (default: as the model says)")
    parser.add_argument("--top-p", type=float, help="default: as the model says")
    parser.add_argument(
        "--max-new-tokens", type=int, help="the longest answer (default: 512; of a canvas 128)"
    )
    parser.add_argument("--seed", type=int, help="the same answer every time")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--device", help="default: cuda where there is one")
    masked_diffusion.add_arguments(parser, title="masked-diffusion models")


def main(args: Namespace) -> int:
    """Talk to a model: Ctrl-C ends an answer, Ctrl-D the chat, /new begins anew. Answers are shown as they are made."""
    fault = _fault(args)
    if fault is not None:
        return _refused(fault)
    try:
        args.model = model_of(args.model)
        speaker = _load(args)
    except (
        ValueError,
        OSError,
        ImportError,
        RuntimeError,
    ) as error:  # torch's own: no such device, no room on it
        absent = isinstance(error, OSError) and not Path(args.model).exists()
        where = f"there is no folder {args.model}, and from the hub: " if absent else ""
        return _refused(where + str(error).strip().partition("\n")[0])
    except KeyboardInterrupt:
        return exit_codes.STOPPED
    if args.system is not None and not speaker.speaks:
        return _refused("the model has no chat template, so it knows no system message; leave out --system")
    from posttrain.evaluation.speaker import Wishes

    wishes = Wishes(args.temperature, args.top_p, args.max_new_tokens, args.seed)
    start = [] if args.system is None else [{"role": "system", "content": args.system}]
    try:
        if args.prompt is not None:
            return _ask_once(speaker, [*start, {"role": "user", "content": args.prompt}], wishes)
        return _talk(speaker, start, wishes)
    except KeyboardInterrupt:
        return exit_codes.STOPPED
    except BrokenPipeError:  # nobody reads any more
        sys.stdout = None  # type: ignore[assignment]  # nor is anything flushed at exit
        return exit_codes.DONE


def _fault(args: Namespace) -> str | None:
    for name in ("prompt", "system"):
        value = vars(args)[name]
        if value is not None and not value.strip():
            return f"--{name} is empty"
    if args.temperature is not None and not 0 <= args.temperature < float("inf"):
        return f"--temperature {args.temperature}: a number from 0 on"
    if args.top_p is not None and not 0 < args.top_p <= 1:
        return f"--top-p {args.top_p}: a share above 0, at most 1"
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        return f"--max-new-tokens {args.max_new_tokens}: at least 1"
    return None


def _load(args: Namespace) -> Speaker:
    import torch
    import transformers.utils.logging

    from posttrain.evaluation.speaker import load_speaker

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    cuda = torch.cuda.is_available()
    device = args.device or ("cuda" if cuda else "cpu")
    return load_speaker(args, dtype=args.dtype or ("bfloat16" if cuda else "float32"), device=device)


def _ask_once(speaker: Speaker, messages: list[Message], wishes: Wishes) -> int:
    try:
        speaker.answer(messages, wishes, _show)
    except KeyboardInterrupt:
        print(flush=True)
        return exit_codes.STOPPED
    except ValueError as error:
        return _refused(str(error))
    print(flush=True)
    return exit_codes.DONE


def _talk(speaker: Speaker, start: list[Message], wishes: Wishes) -> int:
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        kind = "" if speaker.speaks else " No chat template: each line is a text that the model goes on with."
        print(f"Ctrl-C ends an answer, Ctrl-D the chat, {ANEW} begins anew.{kind}", flush=True)
    messages = list(start)
    while True:
        try:
            text = input("\n> " if at_terminal else "")
        except EOFError:
            if at_terminal:
                print()
            return exit_codes.DONE
        except KeyboardInterrupt:
            print("  (Ctrl-D ends the chat)", flush=True)
            continue
        if text.strip() == ANEW:
            messages = list(start)
            continue
        try:
            if text.strip():
                messages = _turn(speaker, messages, text, wishes)
        except KeyboardInterrupt:  # pressed again while the first one was dealt with
            print(flush=True)


def _turn(speaker: Speaker, messages: list[Message], text: str, wishes: Wishes) -> list[Message]:
    """The conversation with this question and its answer, as far as it was made; without both where there was none."""
    said: list[str] = []

    def show(piece: str) -> None:
        said.append(piece)
        _show(piece)

    asked = [*messages, {"role": "user", "content": text}]
    try:
        speaker.answer(asked, wishes, show)
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    except ValueError as error:
        print(f"({error})", flush=True)
        return messages
    print(flush=True)
    if speaker.forgotten:
        print(f"({speaker.forgotten} turns at the beginning no longer fit and were not read)", flush=True)
    return [*asked, {"role": "assistant", "content": "".join(said)}]


def _show(piece: str) -> None:
    print(piece, end="", flush=True)


def _refused(message: str) -> int:
    print(f"posttrain chat: {message}", file=sys.stderr)
    return exit_codes.REFUSED
