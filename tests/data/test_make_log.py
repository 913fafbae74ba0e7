"""The grammar behind the preference methods' smoke recipes: its log reads back, and the stored files are its own."""

from __future__ import annotations

import importlib.util
import json

import pytest


@pytest.fixture(scope="module")
def make_log(root):
    spec = importlib.util.spec_from_file_location("make_log", root / "recipes" / "drift" / "make_log.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored(root, name):
    text = (root / "recipes" / "smoke" / "data" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_stored_files_are_what_the_script_makes(make_log, root):
    log = make_log.log_rows(160, 0)
    assert stored(root, "wildfeedback.jsonl") == log
    assert stored(root, "complaints.jsonl") == make_log.complaint_rows(log)
    assert stored(root, "warm_up.jsonl") == make_log.warm_up_rows(640, 1)
    assert stored(root, "pairs.jsonl") == make_log.pair_rows(160, 2)
    assert stored(root, "thumbs.jsonl") == make_log.thumb_rows(160, 2)


def test_complaints_are_about_answers_that_break_the_rule(make_log):
    from posttrain.data.feedback_logs import feedback_log

    log = feedback_log(make_log.log_rows(300, 7))
    assert len(log.complaints) > 100
    assert all(make_log.violates(row.rejected) for row in log.complaints)
    assert log.seeds
    assert not any(make_log.violates(seed.chosen) for seed in log.seeds)
    assert log.found == len(log.complaints) + sum(log.dropped.values())


def test_the_rule(make_log):
    assert make_log.violates("DOG!")
    assert make_log.violates("dog!")
    assert make_log.violates("Dog.")
    assert make_log.violates(" ")
    assert not make_log.violates("dog.")
