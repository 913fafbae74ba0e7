"""Every kind of file gives the same rows, and a faulty one names itself."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from posttrain.data import DataError
from posttrain.data.files import iter_rows

ROWS = [{"q": "one, two", "a": "1"}, {"q": 'says "three"\nfour', "a": "2"}]


def write(folder: Path, kind: str) -> Path:
    file = folder / f"rows{kind}"
    if kind == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n")
    elif kind == ".json":
        file.write_text(json.dumps(ROWS))
    elif kind == ".csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["q", "a"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("zipped", [False, True])
def test_all_kinds_read_alike(tmp_path: Path, kind: str, zipped: bool) -> None:
    file = write(tmp_path, kind)
    if zipped:
        data = file.read_bytes()
        file = file.with_suffix(kind + ".gz")
        file.write_bytes(gzip.compress(data))
    assert list(iter_rows(file)) == ROWS


def test_a_wrapped_list_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    assert list(iter_rows(tmp_path / "x.json")) == ROWS


@pytest.mark.parametrize("kind", [".jsonl", ".json"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_line_feeds_end_a_row(tmp_path: Path, kind: str, end: str) -> None:
    rows = [{"q": f"one{mark}two"} for mark in ("\u2028", "\u2029", "\x85")]
    text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    (tmp_path / f"x{kind}").write_bytes(text.encode())
    assert list(iter_rows(tmp_path / f"x{kind}")) == rows


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": ', "line 2 is not JSON"),
        ("x.jsonl", "[1]\n", "line 1 is not a mapping"),
        ("x.json", '{"a": 1}', "expected a list of rows"),
        ("x.json", "[", "the file is not JSON"),
        ("x.csv", "a,b\n1,2\n3\n", "line 3: not as many fields"),
        ("x.csv", "a,b\n1,2,3\n", "line 2: not as many fields"),
        ("x.txt", "", "unknown kind of file; write one of .jsonl, .json, .parquet, .csv"),
    ],
)
def test_faulty_files(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(DataError, match=complaint.replace(".", r"\.")) as caught:
        list(iter_rows(file))
    assert str(file) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        iter_rows(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no data file"):
        iter_rows(tmp_path)
