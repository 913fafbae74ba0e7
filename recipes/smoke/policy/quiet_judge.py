"""A scripted judge behind an OpenAI-compatible address: tries the reward and the commands of a policy without a model.

    python recipes/smoke/policy/quiet_judge.py -- COMMAND ...      # serves while COMMAND runs, ends with its code

It is no model. Left to the policy, it takes an exclamation mark for shouting and nothing else; told by a critique, or
by a precedent that speaks of capitals, it looks for these too: that it agrees more with precedents than without is so
by construction.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def answer(question: str) -> str:
    response = (
        question.rpartition("\n<exchange>")[2].partition("\n</exchange>")[0].rpartition("RESPONSE: ")[2]
    )
    if "Name the mistake" in question:
        if shouts(response):
            return "It looked for exclamation marks alone: a word in capitals is a raised voice."
        return "It found shouting where there is none."
    taught = "in capitals" in question
    loud = "!" in response or (taught and shouts(response))
    why = "an exclamation mark" if "!" in response else "a word in capitals" if loud else ""
    if loud:
        return f"The policy is about the voice. The response has {why}: it shouts.\nVERDICT: violates"
    looked = "no exclamation mark and no word in capitals" if taught else "no exclamation mark"
    return f"The policy is about the voice. The response has {looked}.\nVERDICT: complies"


def shouts(text: str) -> bool:
    return any(len(word.strip(".!")) > 1 and word.strip(".!").isupper() for word in text.split())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": answer(asked["messages"][-1]["content"])}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        reply = {
            "id": "scripted",
            "object": "chat.completion",
            "created": 0,
            "model": "scripted",
            "choices": [choice],
        }
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8731)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        return subprocess.run(args.command).returncode
    finally:
        server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
