"""A push to a hub on loopback: what is sent, and every way it may fail, none of which raises."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from pydantic import ValidationError

from posttrain.recipe.sections import HubSection
from posttrain.run.hub import hub_warnings, push


@contextmanager
def hub(status=200):
    """(endpoint, requests): the four calls of an upload, small files inline."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.path, body, self.headers.get("Authorization")))
            reply = {"url": f"http://127.0.0.1:{self.server.server_address[1]}/anna/mine"}
            if "/preupload/" in self.path:
                files = json.loads(body)["files"]
                reply = {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            elif "/commit/" in self.path:
                reply = {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"{reply['url']}/commit/{'0' * 40}",
                }
            elif self.path.endswith("/validate-yaml"):
                reply = {"errors": [], "warnings": []}
            self.answer(reply)

        def do_GET(self):
            asked.append((self.path, b"", self.headers.get("Authorization")))
            self.answer({"id": "anna/mine", "sha": "0" * 40, "siblings": []})

        def answer(self, reply):
            data = json.dumps(reply if status == 200 else {"error": "no such\nright"}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("# card")
    return folder


def test_the_folder_arrives_with_its_card(model, monkeypatch):
    (model / "training_args.bin").write_text("a pickle with this machine's paths")
    with hub() as (endpoint, asked):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        said = push(model, HubSection(repo="anna/mine"))
    assert said == f"hub: pushed to {endpoint}/anna/mine"
    paths = [path for path, *_ in asked]
    created = json.loads(next(body for path, body, _ in asked if path.endswith("/repos/create")))
    assert created.get("private") is True or created.get("visibility") == "private"
    assert any(path.endswith("/commit/main") for path in paths)
    sent = next(body for path, body, _ in asked if "/commit/" in path).decode()
    assert '"path": "README.md"' in sent or '"path":"README.md"' in sent
    assert "training_args.bin" not in sent
    # a library's thread may meanwhile look up something of its own, at what it takes for the hub
    ours = [(path, token) for path, _, token in asked if "anna/mine" in path or path.endswith("/create")]
    assert len(ours) >= 3
    assert {token for _, token in ours} == {"Bearer hf_secret"}, ours


def test_a_branch_is_made_and_an_adapter_of_a_local_base_is_warned_of(model, monkeypatch):
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    with hub() as (endpoint, asked):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        said = push(model, HubSection(repo="anna/mine", private=False, revision="v2"))
    assert "posttrain merge" in said
    paths = [path for path, *_ in asked]
    assert any(path.endswith("/branch/v2") for path in paths)
    assert any(path.endswith("/commit/v2") for path in paths)


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_push_that_fails_is_one_line_with_the_command_to_repeat_it(status, model, monkeypatch):
    with hub(status) as (endpoint, _):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        said = push(model, HubSection(repo="anna/mine"))
    assert said.startswith("hub: not pushed to anna/mine (")
    assert f"hf upload anna/mine {model} --private" in said
    assert "\n" not in said
    assert "hf_secret" not in said


def test_nobody_there_offline_and_no_folder(model, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "not pushed" in push(model, HubSection(repo="anna/mine"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not pushed" in push(model, HubSection(repo="anna/mine"))
    assert "no " in push(model / "absent", HubSection(repo="anna/mine"))


def test_plan_says_a_missing_token_and_offline(model, monkeypatch):
    assert list(hub_warnings(None)) == []
    assert list(hub_warnings(HubSection(repo="anna/mine"))) == []
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token" in next(hub_warnings(HubSection(repo="anna/mine")))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in next(hub_warnings(HubSection(repo="anna/mine")))


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "a b", "/a", "a/", "anna/mine.git", "a..b", "-x", "ü/x", "x" * 97]
)
def test_names_the_hub_would_refuse_are_refused_now(name):
    with pytest.raises(ValidationError, match="is no name the hub takes"):
        HubSection(repo=name)
