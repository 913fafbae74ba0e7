"""AlpacaEval through the real package, with a judge on loopback; outputs, instructions and gamed rows are
made here."""

from __future__ import annotations

import csv
import gzip
import json
import math
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from posttrain.evaluation import alpaca, judge, store, tasks
from posttrain.evaluation.tasks import Problem
from posttrain.judges.judge_server import JudgeServer

pytest.importorskip("alpaca_eval")
pytest.importorskip("openai")
pytestmark = pytest.mark.evaluation


def answer(logprob_m, logprob_M):
    """What an OpenAI-compatible server answers when it is asked for one token with its log-probs."""
    token = "m" if logprob_m > logprob_M else "M"
    top = [
        {"token": "m", "logprob": logprob_m, "bytes": None},
        {"token": "M", "logprob": logprob_M, "bytes": None},
    ]
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "fake",
        "choices": [
            {
                "index": 0,
                "finish_reason": "length",
                "message": {"role": "assistant", "content": token},
                "logprobs": {
                    "content": [{"token": token, "logprob": 0.0, "bytes": None, "top_logprobs": top}]
                },
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def outputs_shown(text):
    """The two outputs in the order the prompt shows them."""
    first = text.split('"output": """')[1].split('"""')[0]
    second = text.split('"output": """')[2].split('"""')[0]
    return first, second


def honest(text):
    """Prefers the output that says GOOD; does not care about order."""
    first, second = outputs_shown(text)
    better = ("GOOD" in first) - ("GOOD" in second)
    return answer(*{1: (-0.001, -7.0), -1: (-7.0, -0.001), 0: (-0.6931, -0.6931)}[better])


def position_biased(text):
    return answer(-0.001, -7.0)


@contextmanager
def server(behave):
    """`behave(n, text)` -> (status, headers, body) or a dict; n counts requests."""
    count = [0]
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                count[0] += 1
                number = count[0]
            reply = behave(number, "\n".join(m["content"] for m in body["messages"]))
            status, headers, text = reply if isinstance(reply, tuple) else (200, {}, json.dumps(reply))
            data = text.encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", headers.pop("Content-Type", "application/json"))
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, *args):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/v1", count
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def at(url, **settings):
    defaults = {"timeout_s": 5.0, "retries": 2, "first_wait_s": 0.01, "workers": 4}
    return JudgeServer("fake", url, **(defaults | settings))


def complete(decide):
    """A transport without a network."""

    def fn_completions(prompts, **_):
        choices = [decide(prompt)["choices"][0] for prompt in prompts]
        return {"completions": ["x"] * len(prompts), "completions_all": choices}

    return fn_completions


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    return [
        alpaca.OutputPair(
            f"instruction {i}",
            "ref " + "r" * int(rng.integers(10, 400)),
            ("GOOD " if i % 3 else "bad ") + "o" * int(rng.integers(10, 400)),
        )
        for i in range(alpaca.COUNT)
    ]


@pytest.fixture(scope="module")
def gamed(tmp_path_factory):
    """A stand-in for the hub's df_gamed.csv: two baselines, 805 rows each."""
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("hub") / "df_gamed.csv"
    difficulty = rng.normal(size=alpaca.COUNT)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(
            ["model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
        )
        for name, shift in (("concise", 1.4), ("verbose", -0.7)):
            for i, d in enumerate(difficulty):
                delta = rng.normal(shift)
                preference = 1 / (1 + math.exp(0.9 * math.tanh(delta) + 0.3 * d))
                out.writerow([name, preference, i, delta, d, False])
    return path


@pytest.fixture
def benchmark_and_problems(pairs):
    made = tasks.load("alpaca_eval")
    problems = [
        Problem(
            str(i),
            p.instruction,
            {
                "instruction": p.instruction,
                "reference": p.reference,
                "reference_generator": "gpt",
                "dataset": "d",
            },
            "d",
        )
        for i, p in enumerate(pairs)
    ]
    return made, problems


def outputs_file(path, pairs, order=None):
    rows = [{"instruction": p.instruction, "output": p.output, "generator": "mine"} for p in pairs]
    path.write_text(json.dumps([rows[i] for i in order] if order is not None else rows))
    return path


def package_files():
    folder = Path(alpaca.import_package().constants.CURRENT_DIR)
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in (".csv", ".json", ".yaml")}


# ---- the join


def test_join_is_by_instruction_and_in_canonical_order(pairs):
    references = [{"instruction": p.instruction, "output": p.reference} for p in pairs]
    outputs = [{"instruction": p.instruction, "output": p.output} for p in reversed(pairs)]
    assert alpaca.join(references, outputs) == pairs


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[:-1], "1 have no output"),
        (
            lambda rows: [*rows[:-1], {"instruction": "new", "output": "x"}],
            "1 outputs have no such instruction",
        ),
        (lambda rows: [*rows, rows[0]], "two outputs for the instruction 'instruction 0'"),
    ],
)
def test_anything_but_the_805_is_refused(pairs, spoil, message):
    references = [{"instruction": p.instruction, "output": p.reference} for p in pairs]
    outputs = [{"instruction": p.instruction, "output": p.output} for p in pairs]
    with pytest.raises(ValueError, match=message):
        alpaca.join(references, spoil(outputs))
    with pytest.raises(ValueError, match="805"):
        alpaca.join(references[:10], outputs[:10])


# ---- judging


def test_an_honest_judge_agrees_with_itself(pairs):
    panel = alpaca.Annotator(alpaca.ANNOTATOR, complete(honest))
    preferences, first = panel.judge(pairs)
    for i, preference in enumerate(preferences):
        assert preference == pytest.approx(1.999 if i % 3 else 1.5, abs=2e-3)
    swapped, _ = panel.judge(pairs, swapped=True)
    np.testing.assert_allclose(swapped, preferences, atol=1e-9)
    assert 0.4 < first < 0.6
    assert judge.swap_agreement(preferences, dict(enumerate(swapped)))["value"] == 1.0


def test_a_position_biased_judge_is_exposed(pairs):
    panel = alpaca.Annotator(alpaca.ANNOTATOR, complete(position_biased))
    preferences, first = panel.judge(pairs)
    swapped, _ = panel.judge(pairs, swapped=True)
    assert np.mean(preferences) - 1 == pytest.approx(0.5, abs=0.06)  # alone, this looks like an honest draw
    agreement = judge.swap_agreement(preferences, dict(enumerate(swapped)))
    assert agreement["value"] == 0.0
    assert first == 1.0
    assert agreement["win_rate_of_both_orders"] == pytest.approx(50)


def test_equal_outputs_are_a_tie_and_nobody_is_asked(pairs):
    same = [alpaca.OutputPair(p.instruction, p.reference, p.reference) for p in pairs[:5]]

    def refuse(prompts, **_):
        raise AssertionError("asked")

    preferences, _ = alpaca.Annotator(alpaca.ANNOTATOR, refuse).judge(same)
    assert preferences == [1.5] * 5


def test_what_the_parser_cannot_read_is_a_failed_judgement(pairs):
    def broken(prompts, **_):
        answers = [None, {"logprobs": None}, {"logprobs": {"content": []}}, answer(-0.1, -2.0)["choices"][0]]
        neither = answer(-0.1, -2.0)["choices"][0]
        for top in neither["logprobs"]["content"][0]["top_logprobs"]:
            top["token"] = "both"
        return {"completions": [""] * 5, "completions_all": [*answers, neither]}

    panel = alpaca.Annotator(alpaca.ANNOTATOR, broken)
    preferences, _ = panel.judge(pairs[:5])
    assert sum(map(math.isnan, preferences)) == 4
    assert panel.failures == {
        "no answer from the judge": 1,
        "answer without what the parser reads": 2,
        "answer names neither output": 1,
    }


# ---- rates


def rates(pairs, preferences, gamed, resamples=0):
    return alpaca.rates(
        pairs, preferences, model="mine", reference="gpt", judge="fake", gamed=gamed, resamples=resamples
    )


def test_the_error_of_the_length_controlled_rate_is_that_of_other_instructions(pairs, gamed):
    rng = np.random.default_rng(4)
    preferences = (1 + (rng.random(alpaca.COUNT) < 0.4)).tolist()
    found = rates(pairs, preferences, gamed, resamples=6)
    # coin flips have nothing to do with length: both errors are about sqrt(0.24 / 805) = 1.7 points
    assert found.standard_error == pytest.approx(1.73, abs=0.1)
    assert 0.5 < found.lc_standard_error < 4


def test_equal_length_differences_leave_nothing_to_control_for(pairs, gamed):
    same = [alpaca.OutputPair(p.instruction, p.reference, p.reference[:-1] + "??") for p in pairs]
    found = rates(same, [2.0, *[1.0] * 804], gamed)
    assert found.length_controlled is None
    assert "no length to control for" in found.lc_missing
    tied = rates(
        [alpaca.OutputPair(p.instruction, p.reference, p.reference) for p in pairs], [1.5] * 805, gamed
    )
    assert tied.length_controlled == 50.0


def test_win_rate_by_hand_and_failures_leave_it(pairs, gamed):
    preferences = [2.0] * 400 + [1.0] * 400 + [1.5] * 4 + [math.nan]
    found = rates(pairs, preferences, gamed)
    assert found.win_rate == pytest.approx(100 * 402 / 804)
    assert found.judged == 804


def test_length_controlled_rate_of_equal_files_is_equal_and_nothing_is_written(pairs, gamed, tmp_path):
    before = package_files()
    preferences = [1 + 0.9 * (len(p.output) > len(p.reference)) for p in pairs]
    found = rates(pairs, preferences, gamed)
    assert found.length_controlled is not None
    assert found.length_controlled != pytest.approx(
        found.win_rate, abs=1
    )  # lengths explain these preferences
    compressed = tmp_path / "df_gamed.csv.gz"
    compressed.write_bytes(gzip.compress(gamed.read_bytes()))
    assert rates(pairs, preferences, compressed) == found
    assert package_files() == before


def test_rates_are_the_packages_own(pairs, gamed, monkeypatch):
    """Against a direct call of the package on the same annotations, failed judgements among them."""
    import pandas as pd

    rng = np.random.default_rng(7)
    preferences = (1 + rng.random(alpaca.COUNT)).tolist()
    preferences[5] = preferences[700] = math.nan
    package = alpaca.import_package()
    monkeypatch.setattr(package.glm, "hf_hub_download", lambda **_: str(gamed))
    frame = pd.DataFrame(
        {
            "instruction": [p.instruction for p in pairs],
            "output_1": [p.reference for p in pairs],
            "output_2": [p.output for p in pairs],
            "generator_1": "gpt",
            "generator_2": "mine",
            "annotator": "fake",
            "preference": preferences,
        }
    )
    with alpaca.quiet():
        direct = package.metrics.get_length_controlled_winrate(frame, save_weights_dir=None)
    found = rates(pairs, preferences, gamed)
    assert found.length_controlled == pytest.approx(direct["length_controlled_winrate"], abs=1e-9)
    assert (found.win_rate, found.standard_error) == (direct["win_rate"], direct["standard_error"])
    assert found.judged == direct["n_total"] == 803


def test_without_the_hub_file_the_message_says_where_to_put_it(pairs, monkeypatch):
    package = alpaca.import_package()

    def offline(**_):
        raise OSError("offline")

    monkeypatch.setattr(package.glm, "hf_hub_download", offline)
    found = rates(pairs, [1.5, *[2.0] * 804], None)
    assert found.length_controlled is None
    assert "df_gamed.csv" in found.lc_missing
    assert "alpaca_eval/df_gamed.csv" in found.lc_missing
    assert found.win_rate == pytest.approx(100 * 804.5 / 805)
    assert package.glm.hf_hub_download is offline


# ---- the whole stage over HTTP


def test_stage_resumes_reports_and_shuffled_outputs_give_the_same_rates(
    tmp_path, pairs, gamed, benchmark_and_problems
):
    made, problems = benchmark_and_problems
    order = np.random.default_rng(3).permutation(alpaca.COUNT).tolist()
    found = []
    with server(lambda n, text: honest(text)) as (url, count):
        for name, shuffle in (("plain", None), ("again", None), ("shuffled", order)):
            out = tmp_path / name
            out.mkdir()
            if name != "plain":  # judgements on disk are found by what was asked, in whatever order
                (out / store.JUDGEMENTS).write_bytes((tmp_path / "plain" / store.JUDGEMENTS).read_bytes())
            given = outputs_file(out / "outputs.json", pairs, shuffle)
            sides = judge.sides_of_outputs(given, made, problems, out)
            found.append(judge.judge(out, sides, at(url), swapped=40, gamed=gamed, resamples=0))
            assert count[0] == 805 + 40
    plain, again, shuffled = found
    assert plain["metrics"] == shuffled["metrics"] == again["metrics"]
    assert list(plain["metrics"]) == [
        "win_rate [fake (weighted_alpaca_eval_gpt4_turbo)]",
        "lc_win_rate [fake (weighted_alpaca_eval_gpt4_turbo)]",
    ]
    shown = plain["preference"]
    assert (shown["wins"], shown["ties"], shown["failed"]) == (536, 269, 0)
    assert shown["swap_agreement"]["value"] == 1.0
    assert shown["swap_agreement"]["pairs"] == 40
    assert shown["mean_length"] == pytest.approx(np.mean([len(p.output) for p in pairs]))
    grades = store.read_lines(tmp_path / "plain" / store.GRADES)
    assert grades[1]["outcome"] == "win"
    assert 100 * np.mean([g["score"] for g in grades]) == pytest.approx(
        plain["metrics"]["win_rate [fake (weighted_alpaca_eval_gpt4_turbo)]"]["value"]
    )


def test_one_judgement_of_805_makes_files_without_nan_and_is_shown(
    tmp_path, pairs, gamed, benchmark_and_problems, capsys
):
    from rich.console import Console

    from posttrain.evaluation import grades_page, terminal
    from posttrain.evaluation.results import collect

    made, problems = benchmark_and_problems
    too_long = (400, {}, '{"error": {"message": "context length"}}')
    out = tmp_path / "out"
    with server(lambda n, text: honest(text) if n == 1 else too_long) as (url, _):
        sides = judge.sides_of_outputs(outputs_file(tmp_path / "mine.json", pairs), made, problems, out)
        found = judge.judge(out, sides, at(url, workers=1), swapped=5, gamed=gamed, resamples=0)
    win_rate, controlled = found["metrics"].values()
    assert (win_rate["problems"], win_rate["standard_error"]) == (1, None)
    assert controlled["value"] is None
    assert "1 of 805 judgements" in controlled["method"]
    for name in (store.METRICS, store.GRADES, store.JUDGEMENTS):
        assert "NaN" not in (out / name).read_text()
    terminal.show(collect([out]), Console(width=200))
    grades_page.write([out], tmp_path / "page.html")
    assert "nan" not in capsys.readouterr().out


def test_the_first_few_have_a_win_rate_and_say_that_they_are_few(tmp_path, pairs, gamed, capsys):
    from rich.console import Console

    from posttrain.evaluation import terminal
    from posttrain.evaluation.results import collect

    task = {"hash": "h", "problems": 12, "of": alpaca.COUNT, "definition": {"title": "AlpacaEval 2"}}
    run = {"format": 1, "benchmark": "alpaca_eval", "model": {"path": "mine", "weights": None}, "task": task}
    store.write_json(tmp_path / store.RUN, {**run, "sampling": {"max_new_tokens": 64}, "versions": {}})
    rows = [
        {
            "id": str(i),
            "sample": 0,
            "group": "d",
            "gold": {"instruction": p.instruction, "reference": p.reference, "reference_generator": "gpt"},
            "text": p.output,
            "finish": "stop",
        }
        for i, p in enumerate(pairs[:12])
    ]
    store.write_lines(tmp_path / store.GENERATIONS, rows[:-1])
    with pytest.raises(ValueError, match="11 of 12 instructions have a response"):
        judge.sides_of_generations(tmp_path)
    store.write_lines(tmp_path / store.GENERATIONS, rows)
    with server(lambda n, text: honest(text)) as (url, count):
        sides = judge.sides_of_generations(tmp_path)
        found = judge.judge(tmp_path, sides, at(url), swapped=20, gamed=gamed, resamples=0)
    assert count[0] == 24
    win_rate, controlled = found["metrics"].values()
    # eight of twelve say GOOD, of which the judge is sure to .999; four are ties
    assert win_rate["value"] == pytest.approx(100 * (8 * 0.999 + 4 * 0.5) / 12, abs=0.01)
    assert controlled["value"] is None
    assert "needs all 805 instructions; these are the first 12" in controlled["method"]
    terminal.show(collect([tmp_path]), Console(width=200))
    assert "first 12 of 805" in capsys.readouterr().out


def test_outputs_do_not_go_into_a_folder_of_generations(tmp_path, pairs, benchmark_and_problems):
    (tmp_path / store.GENERATIONS).write_text("")
    given = outputs_file(tmp_path / "mine.json", pairs)
    with pytest.raises(ValueError, match="a folder of its own"):
        judge.sides_of_outputs(given, *benchmark_and_problems, tmp_path)
    assert not (tmp_path / store.RUN).exists()


# ---- stored annotations


def annotations_file(path, pairs, preferences, model="stored"):
    rows = [
        {
            "instruction": p.instruction,
            "output_1": p.reference,
            "generator_1": "gpt",
            "output_2": p.output,
            "generator_2": model,
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": preference,
        }
        for p, preference in zip(pairs, preferences, strict=True)
    ]
    path.write_text(json.dumps(rows[::-1]))
    return path


def test_stored_annotations_give_the_rates_of_judging(tmp_path, pairs, gamed, benchmark_and_problems):
    made, problems = benchmark_and_problems
    preferences = [2.0 if i % 3 else 1.25 for i in range(alpaca.COUNT)]
    given = annotations_file(tmp_path / "annotations.json", pairs, preferences)
    found = judge.judge_stored(given, made, problems, tmp_path / "out", gamed=gamed, resamples=0)
    expected = rates(pairs, preferences, gamed)
    values = [m["value"] for m in found["metrics"].values()]
    assert values == [expected.win_rate, expected.length_controlled]
    assert found["preference"]["swap_agreement"] is None
    assert "weighted_alpaca_eval_gpt4_turbo" in next(iter(found["metrics"]))
