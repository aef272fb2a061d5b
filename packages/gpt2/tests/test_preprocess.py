"""`python -m lm_gpt2.preprocess`: the command of the model card, whole."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from outside import DATA

from lm_core.data.pipeline import RecordDataset
from lm_core.data.wikitext import clean
from lm_core.tokenizer.bpe import train_bpe
from lm_gpt2.tokenizer import Gpt2Tokenizer, load

WIKITEXT = DATA / "wikitext2" / "wiki.valid.tokens"
needs_data = pytest.mark.skipif(not WIKITEXT.is_file(), reason=f"{WIKITEXT} is not here")
PARAGRAPH = " The lobster , of course , lives in 12 @,@ 000 ponds ; isn 't it cold ? \n"


def command(*words):
    return [sys.executable, "-m", "lm_gpt2.preprocess", *map(str, words)]


def preprocess(*words):
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=120)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    Gpt2Tokenizer(*train_bpe([PARAGRAPH * 5], 320)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wiki(tmp_path_factory):
    """2 MB, so that there are many items of work; every article is different."""
    path = tmp_path_factory.mktemp("wiki") / "wiki.tokens"
    parts = (f" = Pond {k} = \n \n{PARAGRAPH * 4} {k} ponds {k}\n" for k in range(6000))
    path.write_text("".join(parts) + " the end , at last", encoding="utf-8")
    return path


def flags(wiki, output, vocabulary, *more):
    return (
        *("wikitext2", "--input_file", wiki, "--output_file", output, "--max_length", 129),
        *("--tokenizer", vocabulary, *more),
    )


def test_help_is_quick_and_lists_the_data_sets():
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command("--help")[1:]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    seconds = time.perf_counter() - start
    assert done.returncode == 0
    assert {"wikitext2", "text"} <= set(re.findall(r"^ {4}(\w+)", done.stdout, re.M))
    assert "mindspore" not in done.stderr
    assert seconds < 5
    assert "--num_splits" in preprocess("wikitext2", "--help").stdout


@pytest.mark.slow
def test_all_process_counts_write_the_same(wiki, vocabulary, tmp_path):
    written = []
    for number in (1, 2, 3):
        output = tmp_path / str(number) / "x.mindrecord"
        done = preprocess(*flags(wiki, output, vocabulary, "--num_process", number))
        assert done.returncode == 0, done.stderr
        assert f"processes: {number}" in done.stdout
        written.append(contents(output.parent))
    assert written[0] == written[1] == written[2]
    assert sorted(written[0]) == ["x.mindrecord", "x.mindrecord.db"]


def test_the_report_adds_up_and_nothing_is_lost(wiki, vocabulary, tmp_path):
    output = tmp_path / "x.mindrecord"
    done = preprocess(
        *flags(wiki, output, vocabulary, "--num_splits", 2, "--data_columns"),
        *(
            "input_ids",
            "attention_mask",
            "labels",
        ),
    )
    assert done.returncode == 0, done.stderr
    count = {
        name: int(n.replace(",", ""))
        for name, n in re.findall(r"^  (.*): ([\d,]+)$", done.stdout, re.M)
    }
    lines = wiki.read_text().splitlines()
    assert count["lines read"] == len(lines)
    assert count["headings left out"] == count["passages"] == 6000
    assert count["lines read"] == 6000 * 7 + 1
    tokenizer = load(vocabulary)
    text = "\n".join(
        " ".join(map(clean, [*([PARAGRAPH.strip()] * 4), f"{k} ponds {k}"])) for k in range(6000)
    )
    text += " " + clean("the end , at last")
    ids = tokenizer.encode(text)
    assert (count["characters"], count["tokens"]) == (len(text), len(ids))
    dataset = RecordDataset(output)
    assert dataset.columns == ("input_ids", "attention_mask", "labels")
    assert len(dataset) == count["records"] == -(-len(ids) // 129)
    rows = dataset.read(range(len(dataset)))
    blocks = {tuple(ids[k : k + 129]) for k in range(0, len(ids), 129)}
    got = {
        tuple(row[mask == 1])
        for row, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True)
    }
    assert got == blocks
    assert rows["attention_mask"].sum() == len(ids)
    assert (rows["labels"] == -100).sum() == (rows["attention_mask"] == 0).sum()


@needs_data
@pytest.mark.parity
def test_wikitext2_with_the_published_vocabulary(tmp_path):
    """The blocks are those of MindFormers' script, then what that script leaves out."""
    output = tmp_path / "wikitext-2.valid.mindrecord"
    done = preprocess(
        *("wikitext2", "--input_file", WIKITEXT, "--output_file", output, "--max_length", 1025),
        *("--tokenizer_type", DATA / "gpt2"),
    )
    assert done.returncode == 0, done.stderr
    passages, passage = [], []
    for line in WIKITEXT.read_text(encoding="utf-8").split("\n"):
        line = line.strip()
        if line.startswith("=") and line.endswith("="):
            if passage:
                passages.append(" ".join(passage))
            passage = []
        elif line:
            passage.append(clean(line))
    theirs = load(DATA / "gpt2").encode("\n".join(passages))
    rows = RecordDataset(output).read(range(len(RecordDataset(output))))
    ours = rows["input_ids"][rows["attention_mask"] == 1].tolist()
    assert ours[: len(theirs)] == theirs
    full = len(theirs) // 1025
    assert rows["input_ids"][:full].ravel().tolist() == theirs[: full * 1025]


def test_text_folders(vocabulary, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    texts = {"b.md": "second ponds", "a.txt": "first pond", "sub/c.py": "def third():\n    pass\n"}
    for name, text in texts.items():
        (tmp_path / "in" / name).write_text(text)
    done = preprocess(
        *("text", "--input_file", tmp_path / "in", "--output_file", tmp_path / "x.mindrecord"),
        *("--tokenizer", vocabulary, "--max_length", 9),
    )
    assert done.returncode == 0, done.stderr
    assert "files: 3" in done.stdout
    rows = RecordDataset(tmp_path / "x.mindrecord")
    got = rows.read(range(len(rows)))
    ids = got["input_ids"][got["attention_mask"] == 1]
    end = "<|endoftext|>"
    expected = end.join([texts["a.txt"], texts["b.md"], texts["sub/c.py"], ""])
    assert load(vocabulary).decode(ids) == expected


def test_a_vocabulary_is_needed(wiki, tmp_path):
    done = preprocess("wikitext2", "--input_file", wiki, "--output_file", tmp_path / "x.mindrecord")
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: tokenizer: .*--tokenizer FOLDER.*\n", done.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--tokenizer", "/nowhere"), "/nowhere: is no folder"),
        (("--max_length", "1"), "max_length: 1 leaves no id"),
        (("--num_process", "0"), "num_process: is 0; must be at least 1"),
        (("--num_splits", "0"), "num_splits: is 0; must be from 1"),
        (("--input_file", "/nowhere.txt"), "input_file: /nowhere.txt does not exist"),
        (("--output_file", "/nowhere/x.txt"), "must end in mindrecord"),
        (("--max_lenght", "5"), "--max_lenght: unknown argument"),
    ],
)
def test_wrong_flags(wiki, vocabulary, tmp_path, change, message):
    done = preprocess(*flags(wiki, tmp_path / "x.mindrecord", vocabulary, *change))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_input_without_text_changes_nothing(vocabulary, tmp_path):
    (tmp_path / "wiki.tokens").write_text("= A =\n\n= B =\n")
    done = preprocess(*flags(tmp_path / "wiki.tokens", tmp_path / "x.mindrecord", vocabulary))
    assert done.returncode == 2
    assert "no row to write" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["wiki.tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("processes", [1, 2])
def test_stopped_half_way_it_leaves_the_old_output(wiki, vocabulary, tmp_path, number, processes):
    output = tmp_path / "x.mindrecord"
    small = tmp_path / "small.tokens"
    small.write_text("some text in a pond\n" * 20)
    assert preprocess(*flags(small, output, vocabulary)).returncode == 0
    small.unlink()
    before = contents(tmp_path)
    inputs = [wiki] * 20
    own = ("--overwrite", "--num_process", processes)
    words = list(flags(wiki, output, vocabulary, *own))
    words[2:3] = inputs
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.time() + 60
    while not [path for path in tmp_path.glob(".*/x.mindrecord") if path.stat().st_size]:
        assert process.poll() is None, process.stderr.read()
        assert time.time() < deadline
        time.sleep(0.01)
    # Ctrl-C goes to all processes of a terminal, SIGTERM to the one.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), errors
    assert b"Traceback" not in errors
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_ids_that_the_model_beside_the_vocabulary_lacks(vocabulary, wiki, tmp_path):
    """Found by the ids that occur: a vocabulary may have more than a model, which never occur."""
    folder, output = tmp_path / "model", tmp_path / "x.mindrecord"
    shutil.copytree(vocabulary, folder)
    for size, status in ((300, 2), (320, 0)):
        (folder / "config.json").write_text(f'{{"model_type": "gpt2", "vocab_size": {size}}}')
        done = preprocess(*flags(wiki, output, folder, "--num_process", 1))
        assert done.returncode == status, done.stderr
        assert output.exists() == (status == 0)
        if status:
            (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
            assert re.search(
                r"tokenizer: gives the id 3\d\d; .*config.json says vocab_size 300", line
            )
