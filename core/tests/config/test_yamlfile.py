"""YAML as people write it, and YAML as attackers do."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import yaml

from lm_core.config.yamlfile import parse, read, scalar
from lm_core.errors import ConfigError


def problem(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.yaml")
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.e-5", 1e-5),
        ("5.e-6", 5e-6),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),
        ("0x10", 16),
        ("0o17", 15),
        ("1_000", 1000),
        ("4294967296", 4294967296),
        ("True", True),
        ("no", False),
        ("on", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("None", "None"),
        ("'1e-5'", "1e-5"),
        ("1.2.3", "1.2.3"),
        ("12:30", "12:30"),
        ("2024-01-02", "2024-01-02"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("path/to/*.ckpt", "path/to/*.ckpt"),
    ],
)
def test_scalars(text, value):
    found = parse(f"key: {text}").values["key"]
    assert found == value and type(found) is type(value)
    assert scalar(text) == value


def test_infinities_and_not_a_number():
    assert parse("a: -.inf").values["a"] == -math.inf
    assert math.isnan(parse("a: .nan").values["a"])


def test_every_float_python_writes_is_that_float():
    random_ = random.Random(0)
    for _ in range(500):
        value = random_.choice([-1, 1]) * random_.random() * 10.0 ** random_.randint(-300, 300)
        for text in (repr(value), f"{value:e}", f"{value:.17g}"):
            found = scalar(text)
            assert isinstance(found, float | int) and float(found) == float(text), text


@pytest.mark.parametrize("text", ["a: b: c", "*.ckpt", "@x", "%", "[1", "{", "a\x00b", "`", "!x y"])
def test_command_line_text_that_is_not_yaml_stays_text(text):
    assert scalar(text) == text


def test_lines_of_nested_keys():
    parsed = parse("a: 1\nb:\n  c:\n    - x: 1\n    - y: 2\n      z: {w: 3}\n")
    assert parsed.lines == {
        ("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", 0, "x"): 4, ("b", "c", 1, "y"): 5,
        ("b", "c", 1, "z"): 6, ("b", "c", 1, "z", "w"): 6,
    }  # fmt: skip


def test_anchors_aliases_and_merges():
    parsed = parse("a: &a {x: 1, y: 2}\nb: *a\nc:\n  <<: *a\n  y: 3\nd:\n  <<: [*a]\n")
    assert parsed.values["b"] == {"x": 1, "y": 2}
    assert parsed.values["c"] == {"x": 1, "y": 3}
    assert parsed.values["d"] == {"x": 1, "y": 2}
    assert parsed.lines["c", "y"] == 5


def test_repeated_keys_are_all_listed_with_their_lines():
    found = problem("a: 1\nb: {c: 1, d: {e: 1, e: 2}}\na: 2\na: 3\n")
    assert found == [
        "f.yaml:2: b.d.e: is written twice (first on line 2); keep one",
        "f.yaml:3: a: is written twice (first on line 1); keep one",
        "f.yaml:4: a: is written twice (first on line 1); keep one",
    ]


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system [touch x]",
        "!!python/name:os.system",
        "!!python/tuple [1]",
        "!own 1",
    ],
)
def test_no_tag_runs_code(tag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = problem(f"ok: 1\nbad: {tag}\n")
    assert line.startswith("f.yaml:2: ") and "tag" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("a: [1", "f.yaml:", "not YAML"),
        ("a: b: c", "f.yaml:1:", "column"),
        ("a:\n\tb: 1", "f.yaml:2:", "tab"),
        ("- 1", "f.yaml:", "not a mapping"),
        ("just text", "f.yaml:", "not a mapping"),
        ("1: 2", "f.yaml:1:", "key that is not text"),
        ("x: 1\non: 2", "f.yaml:2:", "key that is not text"),
        ("? [a]\n: 1", "f.yaml:1:", "key that is not text"),
        ("a: &a [*a]", "f.yaml:1:", "contains itself"),
        ("a: *nowhere", "f.yaml:1:", "alias"),
        ("a: 1\n---\nb: 2", "f.yaml:2:", "another document"),
        ("<<: 3", "f.yaml:1:", "merging"),
        ("a: \x01", "f.yaml:", "not YAML"),
        ("a: " + "9" * 5000, "f.yaml:", "digits"),
        ("a: " + "[" * 20000, "f.yaml:", "YAML"),
    ],
)
def test_broken_files_say_where_in_one_line(text, where, said):
    (line,) = problem(text)
    assert line.startswith(where) and "\n" not in line
    assert said in line or said == "tab" and "cannot start any token" in line


def test_aliases_of_aliases_do_not_fill_the_memory():
    lines = ["a0: &a0 {x: 1}"]
    lines += [
        f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(10))}}}" for i in range(1, 12)
    ]
    (line,) = problem("\n".join(lines))
    assert "aliases" in line


def test_empty_files_hold_nothing():
    assert parse("").values == {} and parse("# only a comment\n").values == {}


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8.*byte 3"):
        read(tmp_path / "latin.yaml")


def test_utf8_with_and_without_a_byte_order_mark(tmp_path: Path):
    for start in (b"", b"\xef\xbb\xbf"):
        path = tmp_path / "x.yaml"
        path.write_bytes(start + "prompt: 你好\n".encode())
        assert read(path).values == {"prompt": "你好"}


def test_what_pyyaml_writes_is_read_back():
    random_ = random.Random(1)

    def value(depth: int):
        kind = random_.choice(
            ["int", "float", "bool", "none", "text", "list", "dict"][: 7 if depth else 5]
        )
        return {
            "int": lambda: random_.randint(-(10**12), 10**12),
            "float": lambda: random_.uniform(-1, 1) * 10.0 ** random_.randint(-20, 20),
            "bool": lambda: random_.random() < 0.5,
            "none": lambda: None,
            "text": lambda: "".join(
                random_.choices("ab1e-_.:#'\"{}[]!&* \n你", k=random_.randint(0, 8))
            ),
            "list": lambda: [value(depth - 1) for _ in range(random_.randint(0, 3))],
            "dict": lambda: {f"k{i}": value(depth - 1) for i in range(random_.randint(0, 3))},
        }[kind]()

    for _ in range(300):
        written = {"top": value(3)}
        assert parse(yaml.safe_dump(written, allow_unicode=True)).values == written
