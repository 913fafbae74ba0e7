"""The runner: whole groups, processes of their own, deadlines, and every way in which a reward can fail."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from posttrain.rewards.hooks import judges_each, yields_answers
from posttrain.rewards.resolve import RewardSpec
from posttrain.rewards.runner import RewardError, RewardRunner
from posttrain.rewards.signature import RewardSpecError

GROUPS = ["a", "b", "c", "d"]


def write(folder: Path, source: str, name: str = "rewards.py") -> str:
    file = folder / name
    file.write_text(textwrap.dedent(source))
    return str(file)


def score(spec, completions=GROUPS, group_size=2, columns=None, **options):
    with RewardRunner([spec], workers=1, **options) as runner:
        return runner.score(completions, columns=columns, group_size=group_size)


def column(scores, k=0):
    return [row[k] for row in scores.values]


# ---- what arrives and what comes back


def test_a_reward_sees_whole_groups_in_order_and_its_own_columns():
    def seen(completions, *, answer):
        return [10 * len(completions) + position + (a == "x") / 2 for position, a in enumerate(answer)]

    columns = {"answer": ["x", "y", "y", "x"], "unwanted": [object] * 4}
    assert column(score(seen, columns=columns)) == [20.5, 21.0, 20.0, 21.5]


def test_no_group_is_split_over_workers():
    def group(completions):
        return [float(len(set(completions)) * 10 + len(completions))] * len(completions)

    completions = [f"{g}" for g in range(7) for _ in range(3)]
    with RewardRunner([group], workers=2) as runner:
        assert column(runner.score(completions, group_size=3)) == [13.0] * 21


def test_several_rewards_make_columns_with_names_and_weights():
    specs = [
        {"name": "exact_match", "weight": 2.0},
        {"name": "format_regex", "args": {"pattern": "[ab]"}, "label": "letters"},
    ]
    with RewardRunner(specs, workers=1) as runner:
        scores = runner.score(GROUPS, columns={"answer": ["a", "x", None, "d"]}, group_size=2)
    assert runner.names == ["exact_match", "letters"]
    assert runner.weights == [2.0, 1.0]
    assert scores.values == [[1.0, 1.0], [0.0, 1.0], [None, 0.0], [1.0, 0.0]]
    assert scores.answers == GROUPS
    assert scores.counts["exact_match"] == {"none": 1, "error": 0, "timeout": 0, "nan": 0, "inf": 0}


def test_numbers_of_many_kinds_are_taken():
    def kinds(completions):
        import numpy as np

        return [True, 3, np.float32(0.5), np.int64(2)]

    scores = score(kinds, group_size=4)
    assert column(scores) == [1.0, 3.0, 0.5, 2.0]
    assert all(type(value) is float for value in column(scores))


def test_prompts_and_token_counts_are_provided():
    def lengths(completions, *, prompts, completion_tokens):
        return [len(prompt) + 100 * tokens for prompt, tokens in zip(prompts, completion_tokens, strict=True)]

    scores = score(
        lengths, columns={"prompts": ["p", "pp", "p", "p"], "completion_ids": [[1], [1, 2], [], [3]]}
    )
    assert column(scores) == [101.0, 202.0, 1.0, 101.0]


def test_an_async_reward():
    async def slow(completions):
        import asyncio

        results = await asyncio.gather(*(asyncio.sleep(0.01, result=len(c)) for c in completions))
        return list(results)

    assert column(score(slow)) == [1.0] * 4


def test_nothing_to_score():
    assert score("exact_match", [], columns={"answer": []}).values == []


def test_answers_come_from_the_reward_that_yields_them():
    @yields_answers(lambda completions, *, upper=False: [c.upper() if upper else c for c in completions])
    def mine(completions, *, upper=False):
        return [0.0] * len(completions)

    assert score(RewardSpec("mine", {"upper": True}, function=mine)).answers == ["A", "B", "C", "D"]
    assert score(lambda completions: [0.0] * len(completions)).answers is None


# ---- values that are none


def test_none_nan_and_infinity_are_unjudged_and_counted():
    def odd(completions):
        return [None, float("nan"), float("inf"), float("-inf")]

    scores = score(odd, group_size=4, on_error="skip")
    assert column(scores) == [None] * 4
    assert scores.counts == {"odd": {"none": 1, "error": 0, "timeout": 0, "nan": 1, "inf": 2}}


@pytest.mark.parametrize("value", ["1e39", "-float('inf')", "10**400", "3.5e38"])
def test_a_value_that_float32_does_not_hold_is_a_failure_with_name_row_and_value(tmp_path, value):
    path = write(tmp_path, f"def big(completions):\n    return [3.4e38, {value}]\n")
    with pytest.raises(
        RewardError, match=r"reward 'big' gave -?(1e\+39|inf|3.5e\+38) for completion 1, "
    ) as caught:
        score(f"{path}:big")
    assert "on_error: skip" in str(caught.value)
    scores = score(f"{path}:big", on_error="skip")
    assert column(scores) == [3.4e38, None, 3.4e38, None]
    assert scores.counts["big"]["inf"] == 2


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("[1.0]", "1 values for 2 completions"),
        ("['1.0', 2.0]", "str '1.0' at position 0"),
        ("None", "NoneType None"),
        ("'ab'", "str 'ab'"),
    ],
)
def test_a_wrong_return_is_an_error_that_says_what_came(tmp_path, returned, words):
    path = write(tmp_path, f"def bad(completions):\n    return {returned}\n")
    with pytest.raises(RewardError, match="bad") as caught:
        score(f"{path}:bad")
    assert words in str(caught.value)


# ---- failures

FAILING = """
    import ctypes, os, time

    def raises(completions):
        if "b" in completions:
            raise KeyError("a broken grader")
        return [1.0] * len(completions)

    def exits(completions):
        if "b" in completions:
            os._exit(3)
        return [1.0] * len(completions)

    def crashes(completions):
        if "b" in completions:
            os.kill(os.getpid(), 11)
        return [1.0] * len(completions)

    def hangs(completions):
        if "b" in completions:
            time.sleep(60)
        return [1.0] * len(completions)
"""


@pytest.mark.parametrize("name", ["raises", "exits", "crashes"])
def test_skip_counts_the_group_and_goes_on(tmp_path, name):
    scores = score(f"{write(tmp_path, FAILING)}:{name}", on_error="skip")
    assert column(scores) == [None, None, 1.0, 1.0]
    assert scores.counts[name]["error"] == 2


def test_a_hang_is_killed_at_its_deadline(tmp_path):
    began = time.monotonic()
    scores = score(f"{write(tmp_path, FAILING)}:hangs", on_error="skip", timeout_s=0.5)
    assert column(scores) == [None, None, 1.0, 1.0]
    assert scores.counts["hangs"] == {"none": 0, "error": 0, "timeout": 2, "nan": 0, "inf": 0}
    assert 0.5 <= scores.seconds["hangs"] < 30
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", 'raise KeyError("a broken grader")'),
        ("exits", "exited with code 3"),
        ("crashes", "SIGSEGV"),
        ("hangs", "no result within 0.5 s"),
    ],
)
def test_raise_stops_with_the_name_and_the_cause(tmp_path, name, words):
    with pytest.raises(RewardError, match=f"reward '{name}' failed on completions 0 to 1") as caught:
        score(f"{write(tmp_path, FAILING)}:{name}", timeout_s=0.5)
    assert str(caught.value).count(words) == 1


def test_a_failure_leaves_the_runner_usable(tmp_path):
    with RewardRunner([f"{write(tmp_path, FAILING)}:exits"], workers=1) as runner:
        with pytest.raises(RewardError):
            runner.score(["a", "b"], group_size=2)
        assert column(runner.score(["a", "c"], group_size=2)) == [1.0, 1.0]


def test_only_the_guilty_completion_is_lost_where_each_is_judged_alone():
    @judges_each
    def picky(completions):
        return [1.0 / (c != "b") for c in completions]

    scores = score(picky, on_error="skip")
    assert column(scores) == [1.0, None, 1.0, 1.0]
    assert scores.counts["picky"]["error"] == 1


def test_a_reward_has_its_own_limit_and_policy(tmp_path):
    path = write(tmp_path, FAILING)
    specs = [
        {"name": f"{path}:hangs", "timeout_s": 0.3, "on_error": "skip"},
        {"name": f"{path}:raises", "on_error": "skip"},
    ]
    with RewardRunner(specs, workers=1) as runner:
        scores = runner.score(GROUPS, group_size=2)
    assert scores.values == [[None, None], [None, None], [1.0, 1.0], [1.0, 1.0]]


def test_a_reward_that_cannot_be_imported_is_named_at_the_start(tmp_path):
    path = write(tmp_path, "import no_such_package\n\ndef mine(completions):\n    return []\n")
    runner = RewardRunner([f"{path}:mine"], on_error="skip")  # the recipe is wrong: nothing to skip
    with pytest.raises(RewardError, match="'mine' could not be loaded") as caught:
        runner.start()
    assert "no_such_package" in str(caught.value)


def test_a_missing_column_is_named_before_any_call():
    with pytest.raises(ValueError, match="'exact_match' needs the column 'answer'; the batch has gold"):
        score("exact_match", columns={"gold": ["a"] * 4})


def test_batches_that_are_not_whole_groups_are_refused():
    with pytest.raises(ValueError, match="3 completions are not whole groups of 2"):
        score("exact_match", ["a", "b", "c"], columns={"answer": ["a"] * 3})
    with pytest.raises(ValueError, match="column 'answer' has 3 values for 4 completions"):
        score("exact_match", columns={"answer": ["a"] * 3})


# ---- processes


def test_rewards_run_elsewhere_without_torch():
    def where(completions):
        import os
        import sys

        return [os.getpid(), "torch" in sys.modules]

    pid, torch = column(score(where, ["a", "b"]))
    assert pid != os.getpid()
    assert torch == 0.0


def test_what_a_reward_prints_goes_to_stderr_and_disturbs_nothing(tmp_path, capfd):
    path = write(
        tmp_path,
        """
        import os, sys

        def loud(completions):
            print("printed")
            os.write(1, b"written\\n")
            sys.stdout.flush()
            return [1.0] * len(completions)
        """,
    )
    assert column(score(f"{path}:loud")) == [1.0] * 4
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "printed" in captured.err
    assert "written" in captured.err


def test_a_callable_that_cannot_be_pickled_runs_here_and_says_so(caplog):
    lock = threading.Lock()

    def locked(completions):
        with lock:
            return [float(os.getpid())] * len(completions)

    unpicklable = locked
    unpicklable.generator = (i for i in range(3))
    with caplog.at_level(logging.WARNING), RewardRunner([unpicklable]) as runner:
        first = runner.score(GROUPS, group_size=2)
        runner.score(GROUPS, group_size=2)
    assert column(first) == [float(os.getpid())] * 4
    assert len([r for r in caplog.records if "runs in this process" in r.message]) == 1


def test_large_batches_pass_both_ways():
    def echo(completions):
        return [float(len(c)) for c in completions]

    completions = ["x" * 3_000_000, "y" * 200_000]
    assert column(score(echo, completions)) == [3_000_000.0, 200_000.0]


def test_closing_ends_the_workers():
    runner = RewardRunner([lambda completions: [__import__("os").getpid()] * len(completions)], workers=1)
    pid = int(column(runner.score(["a"], group_size=1))[0])
    runner.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


SCRIPT = """
    import os, signal, sys, threading, time
    from posttrain.rewards.runner import RewardRunner

    print("script begins", flush=True)

    def mine(completions):
        if "hang" in completions:
            time.sleep(60)
        return [float(os.getpid())] * len(completions)

    runner = RewardRunner([mine], workers=1)
    print("pid", int(runner.score(["a"], group_size=1).values[0][0]), flush=True)
    if "interrupt" in sys.argv:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        runner.score(["hang"], group_size=1)
    if "vanish" in sys.argv:  # in the middle of a call
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
        runner.score(["hang"], group_size=1)
"""


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_killed_worker_takes_its_own_children_along(tmp_path):
    path = write(
        tmp_path,
        f"""
        import subprocess, time

        def starts(completions):
            child = subprocess.Popen(["sleep", "60"])
            open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
            time.sleep(60)
        """,
    )
    score(f"{path}:starts", on_error="skip", timeout_s=1.0, completions=["a"], group_size=1)
    assert gone(int((tmp_path / "pid").read_text()))


LEAVES = {
    "session": "subprocess.Popen(['sleep', '60'], start_new_session=True).pid",
    "no environment": "subprocess.Popen(['sleep', '60'], start_new_session=True, env={}).pid",
    "fork twice": """twice({})""",
    "fork twice, no environment": """twice({"env": {}})""",
}
LEAVING = """
    import os, subprocess, time

    def twice(options):
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            child = subprocess.Popen(["sleep", "60"], start_new_session=True, **options)
            os.write(write, str(child.pid).encode())
            os._exit(0)
        os.wait()
        return int(os.read(read, 32))

    def starts(completions):
        pid = HOW
        open(FILE, "w").write(str(pid))
        AFTER
        return [1.0] * len(completions)
"""


@pytest.mark.parametrize("how", LEAVES)
@pytest.mark.parametrize("after", ["time.sleep(60)", "os._exit(3)", "pass"])
def test_what_left_the_workers_session_ends_with_it(tmp_path, how, after):
    source = LEAVING.replace("HOW", LEAVES[how]).replace("AFTER", after)
    path = write(tmp_path, source.replace("FILE", repr(str(tmp_path / "pid"))))
    scores = score(f"{path}:starts", on_error="skip", timeout_s=2.0, completions=["a"], group_size=1)
    reason = {"time.sleep(60)": "timeout", "os._exit(3)": "error", "pass": "none"}[after]
    assert scores.counts["starts"][reason] == (after != "pass")
    assert gone(int((tmp_path / "pid").read_text()))


def test_the_dead_are_buried_and_own_children_keep_their_exit_codes(tmp_path):
    path = write(
        tmp_path,
        """
        import os, subprocess, time

        def orphans(completions):
            for _ in range(5):
                subprocess.run(["sh", "-c", "sleep 0.05 &"])
            children = [subprocess.Popen(["sh", "-c", f"exit {code}"]) for code in range(1, 4)]
            time.sleep(0.5)
            codes = sum(child.wait() for child in children)
            keeper = os.getppid()
            with open(f"/proc/{keeper}/task/{keeper}/children") as file:
                return [codes, len(file.read().split())]
        """,
    )
    assert column(score(f"{path}:orphans", ["a", "b"])) == [6.0, 1.0]


@pytest.mark.parametrize("how", ["normally", "interrupt", "vanish"])
def test_a_script_without_main_guard_ends_with_its_workers(tmp_path, how):
    script = write(tmp_path, SCRIPT, "script.py")
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, script, how], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stdout.count("script begins") == 1  # no worker ran the script again
    assert (done.returncode == 0) == (how == "normally")
    assert ("KeyboardInterrupt" in done.stderr) == (how == "interrupt")
    assert gone(int(done.stdout.split("pid")[1]))


# ---- settings


def test_settings_are_checked_before_any_process_starts():
    with pytest.raises(RewardSpecError, match="no setting 'patern'; did you mean 'pattern'"):
        RewardRunner([{"name": "format_regex", "args": {"patern": "a"}}])
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        RewardRunner(["exact_match"], on_error="ignore")  # type: ignore[arg-type]  # the point of the test


# ---- the run's own columns, and what TRL hands over beside them


def test_the_run_s_own_columns_win_over_the_data_s_and_that_is_said_once(caplog):
    def seen(completions, *, prompts, completion_tokens, completion_ids):
        return [len(p) + 10 * n + 100 * len(i) for p, n, i in zip(prompts, completion_tokens, completion_ids)]  # noqa: B905

    data = {
        name: ["wrong"] * 4
        for name in ("prompts", "completion_tokens", "completion_ids", "completions", "log_extra")
    }
    given = {
        "columns": data,
        "prompts": ["p", "pp", "p", "p"],
        "completion_ids": [[1], [1, 2], [], [3]],
        "group_size": 2,
    }
    with caplog.at_level(logging.WARNING), RewardRunner([seen], workers=1) as runner:
        assert column(runner.score(GROUPS, **given)) == [111.0, 222.0, 1.0, 111.0]
        runner.score(GROUPS, **given)
    (said,) = [r.getMessage() for r in caplog.records]
    assert said.startswith(
        "the data's 'completion_ids', 'completion_tokens', 'completions', 'log_extra', 'prompts' does not reach"
    )


def test_length_penalty_counts_the_tokens_of_the_run():
    spec = {"name": "length_penalty", "args": {"max_tokens": 500, "buffer": 10}}
    with RewardRunner([spec], workers=1) as runner:
        scores = runner.score(
            ["a", "b"],
            columns={"completion_tokens": [4000, 4000]},
            completion_ids=[[1] * 5, [1] * 495],
            group_size=2,
        )
    assert column(scores) == [0.0, -0.5]


def test_logs_of_all_groups_and_rewards_come_together():
    def first(completions, log_extra, log_metric, trainer_state):
        log_extra("letter", completions)
        log_metric("size", len(completions))
        return [trainer_state.global_step] * len(completions)

    def second(completions, log_extra, log_metric):
        if "a" in completions:
            log_extra("letter", [c.upper() for c in completions])
            log_extra("own", [1, 2])
        log_metric("size", 10)
        return [0.0] * len(completions)

    with RewardRunner([first, second], workers=1) as runner:
        scores = runner.score(GROUPS, group_size=2, trainer_state={"global_step": 7})
    assert column(scores) == [7.0] * 4
    assert scores.extra == {
        "letter": GROUPS,
        "second/letter": ["A", "B", None, None],
        "own": [1, 2, None, None],
    }
    assert scores.metrics == {"size": [2.0, 2.0, 10.0, 10.0]}


def test_a_reward_that_wants_none_of_it_gets_none():
    def strict(completions, **_):
        return [len(_)] * len(completions)

    with RewardRunner([strict], workers=1) as runner:
        scores = runner.score(
            ["a"], columns={"x": [1]}, group_size=1, trainer_state={"global_step": 1}, prompts=["p"]
        )
    assert column(scores) == [0.0]


# ---- how many processes, and which limit is for what


def test_as_many_workers_as_there_are_groups_and_no_more_than_allowed():
    def where(completions):
        import os
        import time

        time.sleep(0.3)
        return [os.getpid()] * len(completions)

    with RewardRunner([where], workers=3) as runner:
        assert len(set(column(runner.score(["a"], group_size=1)))) == 1
        (pool,) = runner._pools()
        assert [worker.state for worker in pool._workers] == ["idle", "off", "off"]
        assert len(set(column(runner.score(["a"] * 8, group_size=1)))) == 3


def test_loading_has_a_limit_of_its_own(tmp_path):
    path = write(
        tmp_path,
        "import time\ntime.sleep(1.0)\ndef slow(completions):\n    return [1.0] * len(completions)\n",
    )
    assert column(score(f"{path}:slow", timeout_s=0.5)) == [1.0] * 4
    with pytest.raises(RewardError, match="could not be loaded:\nwhile starting: no result within 0.5 s"):
        score(f"{path}:slow", startup_timeout_s=0.5)


def test_an_async_reward_keeps_its_loop():
    async def loops(completions):
        import asyncio

        return [id(asyncio.get_running_loop()) % 2**40] * len(completions)

    assert len(set(column(score(loops)))) == 1


def test_a_failure_ends_calls_of_others_that_are_under_way(tmp_path):
    path = write(tmp_path, FAILING)
    with RewardRunner([f"{path}:hangs", f"{path}:raises"], workers=1, timeout_s=30.0) as runner:
        runner.start()
        began = time.monotonic()
        with pytest.raises(RewardError, match="'raises' failed"):
            runner.score(["a", "b"], group_size=2)
        assert time.monotonic() - began < 20
        assert [worker.state for worker in runner._pools()[0]._workers] == ["off"]


def test_signals_that_every_process_of_a_job_is_sent_leave_a_reward_at_its_work():
    """The run finishes its step before it ends, and needs the reward for it."""

    def signalled(completions):
        import os
        import signal
        import subprocess

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)
            os.kill(os.getppid(), number)  # its keeper
        child = subprocess.Popen(["sleep", "60"])
        child.terminate()  # what it starts hears them
        return [float(child.wait() == -signal.SIGTERM)] * len(completions)

    assert column(score(signalled)) == [1.0] * 4
