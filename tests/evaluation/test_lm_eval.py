"""What the lm-eval package does for us: our YAML tasks, and IFEval's checkers."""

from __future__ import annotations

import importlib.machinery

import pytest

pytest.importorskip("lm_eval")
nltk = pytest.importorskip("nltk")
pytestmark = pytest.mark.evaluation


@pytest.fixture
def punkt(tmp_path, monkeypatch):
    """An empty sentence model for NLTK: it splits at full stops, which is enough for counting here."""
    folder = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])


def gold(instructions):
    return {
        "key": 1,
        "prompt": "Write.",
        "instruction_id_list": [name for name, _ in instructions],
        "kwargs": [arguments for _, arguments in instructions],
    }


def test_ifeval_strict_loose_and_by_instruction(punkt):
    from posttrain.evaluation.graders import Attempt, make_grader

    grader = make_grader("ifeval", {})
    task = gold(
        [
            ("punctuation:no_comma", {}),
            ("length_constraints:number_words", {"relation": "at least", "num_words": 5}),
            (
                "length_constraints:number_sentences",
                {"relation": "at least", "num_sentences": 2, "num_words": None},
            ),
        ]
    )
    texts = [
        "One two three. Four five six.",
        "One two, three. Four five six.",
        "Sure, here you go:\nOne two three. Four five six.",  # loose: without its first line it follows
        "",
    ]
    found = grader([Attempt(task, text) for text in texts])
    assert [v["score"] for v in found] == [1, 0, 0, 0]
    assert [v["prompt_loose"] for v in found] == [1, 0, 1, 0]
    assert [v["instructions"] for v in found] == [[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 0]]


def test_ifeval_without_nltks_data_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(
        "posttrain.answers.punkt.find_spec", lambda name: None
    )  # nor brought by another package
    from posttrain.evaluation.graders import make_grader

    with pytest.raises(LookupError, match="punkt_tab"):
        make_grader("ifeval", {})
    from posttrain.evaluation.graders import missing_for

    assert "nltk.downloader punkt_tab" in missing_for("ifeval")
    assert missing_for("math") is None


def test_punkt_is_found_where_another_package_brings_it(tmp_path, monkeypatch):
    from posttrain.answers import punkt

    folder = tmp_path / "core" / "_static" / "nltk_cache"
    (folder / punkt.RESOURCE).mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [])
    spec = importlib.machinery.ModuleSpec("llama_index", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(punkt, "find_spec", lambda name: spec)
    punkt.find_punkt()
    assert nltk.data.path == [str(folder)]


def test_ifeval_shared_data_uses_only_instructions_the_checkers_know(shared_data, punkt):
    from posttrain.evaluation import tasks
    from posttrain.evaluation.graders import Attempt, make_grader

    problems = tasks.problems(tasks.load("ifeval"), shared_data)
    found = make_grader("ifeval", {})([Attempt(p.gold, "no, thank you") for p in problems])
    assert len(found) == 541
    assert sum(len(v["instructions"]) for v in found) == 834  # as published


def test_our_tasks_give_right_answers_full_marks(root, shared_data, monkeypatch):
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("POSTTRAIN_DATA", str(shared_data))

    class Oracle(LM):
        """Right, but for every third problem; says the answer as its task wants it."""

        def generate_until(self, requests):
            return [self.answer(r.doc["gold"], i, "####" in r.args[0]) for i, r in enumerate(requests)]

        def answer(self, correct, i, hashes):
            if i % 3 == 0:
                return f"it is {correct}"
            return f"so\n#### {correct}" if hashes else rf"so \boxed{{{correct}}}"

        def loglikelihood(self, requests):
            raise AssertionError("these tasks generate")

        loglikelihood_rolling = loglikelihood

    found = lm_eval.simple_evaluate(
        model=Oracle(),
        tasks=["posttrain_gsm8k", "posttrain_math500"],
        task_manager=TaskManager(include_path=str(root / "eval" / "lm_eval"), include_defaults=False),
        limit=12,
        bootstrap_iters=0,
    )["results"]
    assert found["posttrain_gsm8k"]["exact_match,strict-match"] == pytest.approx(8 / 12)
    assert found["posttrain_gsm8k"]["exact_match,flexible-extract"] == 1.0
    assert found["posttrain_math500"]["exact_match,none"] == pytest.approx(8 / 12)
