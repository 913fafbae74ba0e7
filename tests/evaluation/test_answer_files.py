"""AlpacaEval's files as other tools write them: every kind of file, and every fault by its index."""

from __future__ import annotations

import gzip
import json

import pytest

from posttrain.evaluation.answer_files import bare_name, read_annotations, read_outputs

GOOD = [{"instruction": f"i{n}", "output": f"o{n}", "generator": "mine"} for n in range(4)]


def written(path, rows, encoding="utf-8"):
    text = rows if isinstance(rows, str) else json.dumps(rows, ensure_ascii=False)
    if path.suffix == ".jsonl":
        text = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl"])
def test_kinds_of_files_give_the_same_rows(name, tmp_path):
    path = tmp_path / name
    assert read_outputs(written(path, GOOD)) == GOOD
    assert bare_name(path) == "a"


def test_a_byte_order_mark_is_read(tmp_path):
    assert read_outputs(written(tmp_path / "a.json", GOOD, "utf-8-sig")) == GOOD


@pytest.mark.parametrize("generator", [None, "", "absent"])
def test_without_a_generator_the_file_names_it(generator, tmp_path):
    rows = [{k: v for k, v in row.items() if k != "generator"} for row in GOOD]
    if generator != "absent":
        rows = [row | {"generator": generator} for row in rows]
    found = read_outputs(written(tmp_path / "my-model.json.gz", rows))
    assert {row["generator"] for row in found} == {"my-model"}


def test_an_empty_answer_is_an_answer(tmp_path):
    assert read_outputs(written(tmp_path / "a.json", [GOOD[0] | {"output": ""}]))[0]["output"] == ""


def changed(index, **values):
    return [row | values if i == index else row for i, row in enumerate(GOOD)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (changed(2, output=None), "row 2 has a null 'output'"),
        ([row | {"output": None} for row in GOOD], r"4 rows .0, 1, 2, 3, counted from 0. have a null"),
        ([{"instruction": "x"}], "row 0 has no 'output'"),
        (changed(1, output=["a"]), "row 1 has an 'output' that is no text"),
        (changed(3, output=7), "row 3 has an 'output' that is no text"),
        (changed(0, instruction=None), "row 0 has no 'instruction'"),
        ([{"output": "x"}], "row 0 has no 'instruction'"),
        ([*GOOD, GOOD[1]], "rows 1 and 4 hold the same instruction 'i1'"),
        ([], "no rows"),
        ({"a": 1}, "expected a list of rows"),
        ([1], "row 1 is not a mapping"),
        ("[{", "is not JSON"),
        ("null", "expected a list of rows"),
    ],
)
def test_what_is_no_row_of_outputs_is_refused_by_index(rows, words, tmp_path):
    with pytest.raises(ValueError, match=words) as error:
        read_outputs(written(tmp_path / "a.json", rows))
    assert "a.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("encoding", "words"), [("utf-16", "UTF-16"), ("gbk", "not UTF-8")])
def test_other_encodings_are_named(encoding, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read_outputs(written(tmp_path / "a.json", [GOOD[0] | {"output": "你好"}], encoding))


def test_a_file_that_is_not_there_or_of_no_kind(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        read_outputs(tmp_path / "nowhere.json")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="unknown kind of file"):
        read_outputs(tmp_path / "a.txt")


JUDGED = {
    **{"instruction": "i", "output_1": "a", "output_2": "b", "generator_1": "gpt", "generator_2": "mine"},
    **{"annotator": "judge", "preference": 1.5},
}


@pytest.mark.parametrize("preference", [None, 0, -1, 1, 1.25, 2.0, float("nan")])
def test_preferences_as_the_package_writes_them(preference, tmp_path):
    rows = [JUDGED | {"preference": preference}]
    assert len(read_annotations(written(tmp_path / "a.json", rows))) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"preference": "win"}, "row 0 has a 'preference' that is none"),
        ({"preference": 3}, "row 0 has a 'preference' that is none"),
        ({"output_2": None}, "row 0 has no 'output_2'"),
        ({"annotator": None}, "row 0 has no 'annotator'"),
    ],
)
def test_faults_of_annotations(values, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read_annotations(written(tmp_path / "a.json", [JUDGED | values]))
    absent = {k: v for k, v in JUDGED.items() if k != "preference"}
    with pytest.raises(ValueError, match="row 0 has no 'preference'"):
        read_annotations(written(tmp_path / "b.json", [absent]))
