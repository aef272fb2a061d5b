"""`preprocess` in the spelling of model cards, whole: flags, files, reports, errors."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from outside import DATA

from lm_core.cli import run_verb
from lm_core.data.alpaca import ALPACA, alpaca_prompt
from lm_core.data.paragraphs import PARAGRAPHS
from lm_core.data.pipeline import RecordDataset
from lm_core.data.vicuna import QA
from lm_core.tokenizer.bpe import ByteLevelBpe, train_bpe

TEXT = "USER: Who are you? ASSISTANT: I am a lobster, a language model of the cold water.\n"


class Vocabulary(ByteLevelBpe):
    """Can be sent to another process, as every tokenizer can."""


def load(folder):
    if not (folder / "vocab.json").is_file():
        raise AssertionError(folder)
    vocab = json.loads((folder / "vocab.json").read_text())
    special = {"<s>": 500, "</s>": 501}
    return Vocabulary(
        vocab["vocab"], [tuple(merge) for merge in vocab["merges"]], special=special,
        bos_token="<s>", eos_token="</s>",
    )  # fmt: skip


SPEC = SimpleNamespace(
    name="fake", tokenizer=load, preprocessors={"wiki": PARAGRAPHS, "qa": QA, "alpaca": ALPACA}
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    vocab, merges = train_bpe([TEXT * 5], 300)
    (folder / "vocab.json").write_text(json.dumps({"vocab": vocab, "merges": merges}))
    return folder


def preprocess(capsys, *words):
    """Exit status, output, errors."""
    status = run_verb("preprocess", SPEC, list(map(str, words)))
    return status, *capsys.readouterr()


def counted(output):
    return {
        name: int(number.replace(",", ""))
        for name, number in re.findall(r"^  (.*): ([\d,]+)$", output, re.M)
    }


def test_wiki_as_the_card_says_it(capsys, vocabulary, tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.tokens").write_text(f" = T = \n \n {name} lobster \n \n cold \n" * 30)
    common = "--input_glob", tmp_path / "*.tokens", "--model_file", vocabulary / "vocab.json"
    common += "--seq_length", 16
    found = []
    for start in (["--dataset_type", "wiki"], ["wiki"]):
        output = tmp_path / f"wiki{len(found)}.mindrecord"
        status, out, err = preprocess(capsys, *start, *common, "--output_file", output)
        assert status == 0, err
        found.append((RecordDataset(output), counted(out)))
    rows = [records.read(range(len(records)))["input_ids"] for records, _ in found]
    assert found[0][0].columns == ("input_ids",)
    assert np.array_equal(*rows)
    tokenizer = load(vocabulary)
    one = {name: tokenizer.encode(f"{name} lobster") for name in "ab"}
    cold = tokenizer.encode("cold")
    ids = [i for name in "ab" for _ in range(30) for i in (500, *one[name], 501, 500, *cold, 501)]
    assert rows[0].ravel().tolist() == ids[: len(ids) // 17 * 17]
    counts = found[0][1]
    assert counts["tokens left out at the end"] == len(ids) % 17
    assert (counts["paragraphs"], counts["tokens"]) == (120, len(ids))


def test_flags_of_wiki_have_effect(capsys, vocabulary, tmp_path):
    (tmp_path / "x.tokens").write_text("a lobster\n\n" * 30)
    words = ("wiki", "--input_glob", tmp_path / "x.tokens", "--model_file", vocabulary)
    words += ("--seq_length", 8, "--repeat", 3, "--file_partition", 2, "--packing", "True")
    status, out, err = preprocess(capsys, *words, "--output_file", tmp_path / "x.mindrecord")
    assert status == 0, err
    assert sorted(path.name for path in tmp_path.glob("*.mindrecord?")) == [
        "x.mindrecord0",
        "x.mindrecord1",
    ]
    records = RecordDataset(tmp_path / "x.mindrecord")
    assert records.columns == ("input_ids", "segment_ids")
    size = len(load(vocabulary).encode("a lobster")) + 2
    assert len(records) == counted(out)["records"] == 90 * size // 9


def conversations(count):
    return [
        {
            "id": str(k),
            "conversations": [
                {"from": "human", "value": f"Who are you {k}?"},
                {"from": "gpt", "value": "a lobster " * (k % 7)},
            ],
        }
        for k in range(count)
    ]


@pytest.mark.parametrize("packing", [False, True])
def test_dialogues(capsys, vocabulary, tmp_path, packing):
    source, output = tmp_path / "x.json", tmp_path / "x.mindrecord"
    records = [*conversations(40), {"conversations": []}, *conversations(1)]
    records[3]["conversations"][0]["value"] = "long " * 900
    source.write_text(json.dumps(records))
    words = ("--dataset_type", "qa", "--input_glob", source, "--model_file", vocabulary)
    words += ("--seq_length", 599, "--output_file", output, "--packing", packing)
    status, out, err = preprocess(capsys, *words)
    assert status == 0, err
    counts = counted(out)
    assert counts["dialogues read"] == 42
    assert counts["dialogues written"] == 40
    assert counts["dialogues left out, no question with an answer"] == 1
    assert counts["dialogues left out, the first question does not fit"] == 1
    assert "x.json record 41: dialogues left out" in err
    found = RecordDataset(output)
    assert found.columns == ("input_ids", "labels", *(("segment_ids",) if packing else ()))
    rows = found.read(range(len(found)))
    assert rows["labels"].shape == (counts["records"], 600)
    assert (len(found) < 40) == packing
    assert (rows["labels"] != -100).sum() == counts["trained tokens"]
    trained = rows["labels"][rows["labels"] != -100].tolist()
    text = load(vocabulary).decode(trained)
    assert text.count("</s>") == 40
    assert sorted(text.split("</s>")) == sorted(
        ["", *(f" {'a lobster ' * (k % 7)}" if k % 7 else "" for k in [*range(40), 0] if k != 3)]
    )


@pytest.mark.slow
def test_several_processes_write_the_same(vocabulary, tmp_path):
    """In a process of its own: the workers import this module by name."""
    import subprocess

    source = tmp_path / "x.jsonl"
    source.write_text("\n".join(map(json.dumps, conversations(3000))))
    written = []
    for number in (1, 2):
        output = tmp_path / str(number) / "x.mindrecord"
        code = (
            f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
            "from test_preprocess import SPEC\n"
            "from lm_core.cli import run_verb\n"
            "if __name__ == '__main__':\n"
            "    sys.exit(run_verb('preprocess', SPEC, sys.argv[1:]))\n"
        )
        (tmp_path / "main.py").write_text(code)
        words = ("qa", "--input_file", source, "--output_file", output, "--seq_length", 399)
        words += ("--tokenizer", vocabulary, "--num_process", number, "--packing")
        done = subprocess.run(
            [sys.executable, tmp_path / "main.py", *map(str, words)],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"processes: {number}" in done.stdout
        written.append({path.name: path.read_bytes() for path in output.parent.iterdir()})
    assert written[0] == written[1]


def test_alpaca_then_dialogues(capsys, vocabulary, tmp_path):
    source, middle = tmp_path / "alpaca.json", tmp_path / "new" / "conversation.json"
    source.write_text(json.dumps([{"instruction": "q", "output": "\u4f60\ud83d"}, {}]))
    words = ("alpaca", "--data_path", source, "--output_path", middle)
    status, out, err = preprocess(capsys, *words)
    assert status == 0, err
    assert out.startswith(f"{middle}: 1 dialogues from {source}\n")
    assert counted(out)["records left out, no instruction and no output"] == 1
    (record,) = json.loads(middle.read_text())
    assert record["conversations"][1]["value"] == "\u4f60\ud83d"
    assert '\n  {\n    "id": "1",\n' in middle.read_text()
    words = ("qa", "--input_file", middle, "--tokenizer", vocabulary, "--seq_length", 400)
    status, out, err = preprocess(capsys, *words, "--output_file", tmp_path / "x.mindrecord")
    assert status == 0, err
    (ids,) = RecordDataset(tmp_path / "x.mindrecord").read([0])["input_ids"]
    assert alpaca_prompt("q") in load(vocabulary).decode(ids)


@pytest.mark.parametrize(
    "name", ["code_alpaca/code_alpaca_2k.json", "alpaca/alpaca_en_demo.json"] + [
        "alpaca/alpaca_zh_demo.json"
    ],
)  # fmt: skip
def test_published_instructions(capsys, tmp_path, name):
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is not here")
    given, output = json.loads((DATA / name).read_text(encoding="utf-8")), tmp_path / "x.json"
    status, out, err = preprocess(
        capsys, "alpaca", "--data_path", DATA / name, "--output_path", output
    )
    assert status == 0, err
    found = json.loads(output.read_text())
    assert [one["id"] for one in found] == [str(k) for k in range(1, len(given) + 1)]
    assert [one["conversations"][1]["value"] for one in found] == [one["output"] for one in given]
    for one, source in zip(found, given, strict=True):
        text = one["conversations"][0]["value"]
        assert source["instruction"] in text
        assert text.endswith("\n\n### Response:")
        assert (f"\n\n### Input:\n{source['input']}\n\n" in text) == (source["input"] != "")
    assert counted(out) == {"records read": len(given), "dialogues": len(given)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("wiki --input_glob /no/*.tokens", "input_file: /no/*.tokens matches no file"),
        ("wiki --input_glob /no/x.tokens", "input_file: /no/x.tokens does not exist"),
        ("wiki --seq_length 0", "seq_length: 0 holds no token"),
        ("wiki --seq_length 100000", "the text has 5 tokens, a record needs 100,001"),
        ("wiki --repeat 0", "repeat: 0 writes nothing"),
        ("wiki --output_file /no/x.txt", "must end in mindrecord"),
        ("qa", "x.tokens line 1: is no JSON"),
        ("qa --packing maybe", None),
        ("--dataset_type nothing", None),
        ("--dataset_type", None),
        ("alpaca", "x.tokens line 1: is no JSON"),
    ],
)
def test_wrong_flags_and_inputs(capsys, vocabulary, tmp_path, words, message):
    (tmp_path / "x.tokens").write_text("lobster")
    command, *rest = words.split(" --")
    given = ["--input_file", tmp_path / "x.tokens", "--output_file", tmp_path / "x.mindrecord"]
    given += ["--tokenizer", vocabulary] if command != "alpaca" else []
    own = [part for word in rest for part in f"--{word}".split()]
    if words.startswith("--"):
        command, own = "", words.split()
    line = [*command.split(), *own[: 2 if not command else 0], *given, *(own if command else [])]
    status, _, err = preprocess(capsys, *line)
    assert status == 2
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (message or "error: command line: ") in error
    assert [path.name for path in tmp_path.iterdir()] == ["x.tokens"]


def test_the_input_is_not_written_over(capsys, tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"instruction": "q", "output": "a"}]')
    before = path.read_bytes()
    status, _, err = preprocess(capsys, "alpaca", "--data_path", path, "--output_path", path)
    assert status == 2
    assert "is the input too" in err
    assert path.read_bytes() == before
    path.write_text("[{}]")
    words = ("alpaca", "--data_path", path, "--output_path", tmp_path / "y.json")
    status, _, err = preprocess(capsys, *words)
    assert (status, list(tmp_path.iterdir())) == (2, [path])
    assert "records left out, no instruction and no output: 1" in err


def test_what_is_there_is_replaced_only_if_asked(capsys, vocabulary, tmp_path):
    (tmp_path / "x.tokens").write_text("cold water \n" * 20)
    words = ["wiki", "--input_file", tmp_path / "x.tokens", "--seq_length", 8, "--num_process", 1]
    words += ["--tokenizer", vocabulary, "--output_file", tmp_path / "x.mindrecord"]
    assert preprocess(capsys, *words)[0] == 0
    for more, name in (([], "x.mindrecord"), (["--num_splits", 2], "x.mindrecord")):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        status, _, err = preprocess(capsys, *words, *more)
        assert status == 2 and f"{name} is there already" in err and "--overwrite" in err
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert preprocess(capsys, *words, "--overwrite")[0] == 0
    split = [*words[:-1], tmp_path / "y.mindrecord", "--num_splits", 2]
    assert preprocess(capsys, *split)[0] == 0
    status, _, err = preprocess(capsys, *split)
    assert status == 2 and "y.mindrecord0 is there already" in err
