"""Whether something on another machine is there: a job's training, or its rollout servers. For the scripts of a job.

    python -m posttrain.process.presence hold PORT                 be there, until ended
    python -m posttrain.process.presence watch HOST PORT           until what was there is gone
    python -m posttrain.process.presence healthy URL ... [--seconds S]   until all servers answer; 1 where one does not

The standard library alone, so that it starts at once.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

LOOK_S = 2.0
GONE_AFTER = 3
"""Looks in a row that find nobody before it counts as gone: a machine under load may miss one."""
CONNECT_S = 5.0


def hold(port: int) -> None:
    """Accepts whoever connects, for ever."""
    with socket.create_server(("", port), backlog=128) as server:
        while True:
            server.accept()[0].close()


def watch(host: str, port: int, *, look_s: float = LOOK_S, first_s: float = 3600.0) -> bool:
    """Returns once what was at the port is gone; False where it was never there within `first_s` seconds."""
    end = time.monotonic() + first_s
    while not is_there(host, port):
        if time.monotonic() > end:
            return False
        time.sleep(look_s)
    misses = 0
    while misses < GONE_AFTER:
        time.sleep(look_s)
        misses = 0 if is_there(host, port) else misses + 1
    return True


def is_there(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def healthy(urls: Sequence[str], *, seconds: float, look_s: float = LOOK_S) -> list[str]:
    """Waits until the servers answer; those that did not within `seconds`."""
    end, silent = time.monotonic() + seconds, list(urls)
    while True:
        silent = [url for url in silent if not _answers(url)]
        if not silent or time.monotonic() > end:
            return silent
        time.sleep(look_s)


def _answers(url: str) -> bool:
    request = urllib.request.Request(
        f"{url.rstrip('/')}/health", headers={"Authorization": f"Bearer {os.environ.get('VLLM_API_KEY', '')}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_S) as reply:
            return reply.status == 200
    except (OSError, urllib.error.URLError):
        return False


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m posttrain.process.presence", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    held = parts.add_parser("hold")
    held.add_argument("port", type=int)
    watched = parts.add_parser("watch")
    watched.add_argument("host")
    watched.add_argument("port", type=int)
    waited = parts.add_parser("healthy")
    waited.add_argument("urls", nargs="+")
    waited.add_argument("--seconds", type=float, default=1800.0)
    args = parser.parse_args(argv)
    if args.part == "hold":
        hold(args.port)
    if args.part == "watch":
        return 0 if watch(args.host, args.port) else 1
    silent = healthy(args.urls, seconds=args.seconds)
    for url in silent:
        print(f"{url} did not answer within {args.seconds:g} s; see its log", file=sys.stderr)
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
