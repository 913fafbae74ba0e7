"""Files as they come: packed, in shards, with a byte order mark; and faulty ones, each refused with file and line."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from posttrain.data import DataError, survey
from posttrain.data.files import iter_rows, size_of
from posttrain.recipe.data_sections import DataSection

ROWS = [{"prompt": "ä", "answer": "1"}, {"prompt": "b", "answer": "2"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = "prompt,answer\nä,1\nb,2\n"


def packed(file: Path, data: bytes) -> Path:
    if file.suffix == ".zst":
        with pyarrow.output_stream(str(file), compression="zstd") as stream:
            stream.write(data)
    else:
        file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("kind", "text"), [(".jsonl", LINES), (".json", json.dumps(ROWS)), (".csv", TABLE)])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_all_kinds_packed_and_with_a_byte_order_mark(tmp_path: Path, kind, text, packing, mark) -> None:
    file = packed(tmp_path / f"x{kind}{packing}", mark + text.encode())
    assert list(iter_rows(file)) == ROWS


def test_packed_parquet_and_several_zstd_frames(tmp_path: Path) -> None:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    assert list(iter_rows(packed(tmp_path / "x.parquet.zst", sink.getvalue().to_pybytes()))) == ROWS
    frame = packed(tmp_path / "x.jsonl.zst", LINES.encode()).read_bytes()
    (tmp_path / "x.jsonl.zst").write_bytes(frame * 2)
    assert list(iter_rows(tmp_path / "x.jsonl.zst")) == ROWS * 2


def test_json_lines_called_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(LINES, encoding="utf-8")
    assert list(iter_rows(tmp_path / "x.json")) == ROWS


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        table = pyarrow.Table.from_pylist([row])
        pyarrow.parquet.write_table(table, tmp_path / f"train-{number:05d}-of-00002.parquet")
    (tmp_path / "README.md").write_text("words")
    (tmp_path / ".hidden.parquet").write_text("")
    assert list(iter_rows(tmp_path)) == ROWS
    assert list(iter_rows(tmp_path / "train-*.parquet")) == ROWS
    assert size_of(tmp_path) == sum(file.stat().st_size for file in tmp_path.glob("train*"))
    found = survey(DataSection(path=str(tmp_path)))
    assert found.counts is not None
    assert found.counts.used == 2


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["train-00000-of-00001.jsonl", "test-0.jsonl"], r"several splits \(test, train\).*train\*\.jsonl"),
        (["a.jsonl", "b.csv"], r"several kinds \(\.csv, \.jsonl\)"),
        (["README.md"], "holds no data file"),
        (["data/train.jsonl"], "holds no data file.*there are some in .*data"),
    ],
)  # fmt: skip
def test_folders_that_are_not_one_data_set(tmp_path: Path, names, complaint) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINES)
    with pytest.raises(DataError, match=complaint):
        iter_rows(tmp_path)
    with pytest.raises(DataError, match="no file matches"):
        iter_rows(tmp_path / "none-*.jsonl")


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("x.jsonl", b'{"a": "b"}\n' + '{"a": "你好"}\n'.encode("gbk"), "line 2 is not UTF-8 (byte 0xc4)"),
        ("x.json", '[{"a": "b"},\n\n{"a": "é"}]'.encode("latin-1"), "line 3 is not UTF-8 (byte 0xe9)"),
        ("x.csv", "a\nb\né\n".encode("latin-1"), "line 3 is not UTF-8"),
        ("x.jsonl", '{"a": 1}\n'.encode("utf-16"), "is UTF-16"),
        ("x.csv", "a,b\n1,2\n".encode("utf-16-le"), "is UTF-16"),
        ("x.jsonl", b'{"a": "b"}\n{"a": {"c": ["\\ud83d"]}}\n', "line 2 holds \\ud83d, half of a character"),
        ("x.jsonl", b'{"a": "b"}\n{"a": %s}\n' % (b"1" * 5000), "line 2 holds a number of too many digits"),
        ("x.json", b'[{"a": %s}]' % (b"1" * 5000), "the file holds a number of too many digits"),
        ("x.jsonl", b'{"a": %s1%s}\n' % (b"[" * 100_000, b"]" * 100_000), "line 1 is nested too deeply"),
        ("x.csv", b"a,b\n1,2\n" + b"x" * 200_000 + b",2\n", "line 3: a field of more than 131,072 characters"),
        ("x.csv", b'a,b\n1,"2\n', "not CSV: unexpected end of data"),
        ("x.jsonl", b'{"a": "' + b"x" * (17 * 2**20), "line 1 is longer than 16 MiB"),
        ("x.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("x.jsonl.gz", b"no gzip", "cannot be read as .gz: Not a gzipped file"),
        ("x.jsonl.gz", gzip.compress(LINES.encode())[:-9], "cannot be read as .gz"),
        ("x.jsonl.zst", b"no zstd", "cannot be read as .zst"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_faults_name_the_file_and_the_line(tmp_path: Path, name: str, data: bytes, complaint: str) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(iter_rows(file))
    assert str(file) in str(caught.value)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": "\\ud83d\\ude00"}\n')
    assert list(iter_rows(tmp_path / "x.jsonl")) == [{"a": "😀"}]


def test_an_endless_line_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    with file.open("wb") as stream:
        stream.truncate(2**31)  # two sparse gigabytes
        stream.seek(0)
        stream.write(b'{"a": "')
    before = time.monotonic()
    with pytest.raises(DataError, match="longer than 16 MiB"):
        next(iter_rows(file))
    assert time.monotonic() - before < 10


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(LINES)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        list(iter_rows(file))


def test_two_columns_of_one_name_are_refused(tmp_path) -> None:
    path = tmp_path / "twice.csv"
    path.write_text("prompt,answer,answer\n1+1,2,3\n")
    with pytest.raises(DataError, match="two columns are called 'answer'"):
        list(iter_rows(path))
