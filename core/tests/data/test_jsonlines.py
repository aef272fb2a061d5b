"""Files of JSON lines."""

from __future__ import annotations

import gzip

import pytest

from lm_core.data import jsonlines
from lm_core.errors import DataError


def test_plain_and_compressed_files_read_alike(tmp_path):
    text = '\ufeff{"a": "\u00e9", "n": 1}\n\n{"a": "line\\u2028break"}'
    (tmp_path / "x").write_text(text, encoding="utf-8")
    (tmp_path / "x.gz").write_bytes(gzip.compress(text.encode()))
    wanted = [{"a": "\u00e9", "n": 1}, {"a": "line\u2028break"}]
    assert jsonlines.read(tmp_path / "x", ["a"]) == wanted
    assert jsonlines.read(tmp_path / "x.gz", ["a"]) == wanted


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1}\n', "line 1: has no text a; must have a; add it"),
        (b'{"a": ""}\n[]\n', "line 2: is list; must be an object with a"),
        (b"{\n", "line 1: is not JSON"),
        (b"\xff\n", "is not UTF-8 at byte 0"),
        (gzip.compress(b"{}", mtime=0)[:-4], "is a damaged archive"),
    ],
)
def test_wrong_files_name_the_line(tmp_path, raw, message):
    path = tmp_path / "x"
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        jsonlines.read(path, ["a"])
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_torn_line_is_dropped_before_more_is_written(tmp_path):
    path = tmp_path / "folder" / "x"
    with jsonlines.Writer(path) as file:
        file.write([{"a": "1"}, {"a": "\n"}])
    whole = path.read_bytes()
    for cut in range(1, 12):
        path.write_bytes(whole[:-cut])
        assert len(jsonlines.read(path, ["a"], torn=True)) == 1
        with jsonlines.Writer(path) as file:
            file.write([{"a": "\n"}])
        assert path.read_bytes() == whole


def test_lines_are_there_before_the_file_is_closed(tmp_path):
    with jsonlines.Writer(tmp_path / "x") as file:
        file.write([{"a": "1"}])
        assert (tmp_path / "x").read_text() == '{"a": "1"}\n'


def test_text_is_written_as_it_reads_and_may_be_torn_inside_a_character(tmp_path):
    path = tmp_path / "x.jsonl"
    records = [{"a": "上衣 \u2028 é"}, {"a": "half \ud83d of a pair"}]
    with jsonlines.Writer(path) as file:
        file.write(records)
    assert "上衣" in path.read_text(encoding="utf-8")
    assert jsonlines.read(path, ["a"]) == records
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: whole.index("衣".encode()) + 1])
    assert jsonlines.read(path, ["a"], torn=True) == records
    with pytest.raises(DataError, match="is not UTF-8"):
        jsonlines.read(path, ["a"])
    with jsonlines.Writer(path):
        pass
    assert path.read_bytes() == whole
