"""How quickly real Chinese files become records, with one process and with two.

The files are those of TNEWS and CMRC2018, below the folder that LM_TEST_DATA names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from driver import ContenderError, environment

_TIMES = 6
"""How often the headlines are there: starting MindSpore and processes takes seconds."""
LOOP = "jieba and sentencepiece"
"""A loop over both libraries, as the scripts of the model card are, without writing anything."""
_PROGRAM = """
import json, sys, time, jieba, sentencepiece
jieba.initialize()
processor = sentencepiece.SentencePieceProcessor(model_file=sys.argv[1])
spelt = str.maketrans({" ": "\\u2582", "\\n": "\\u2583"})
texts = json.load(open(sys.argv[2], encoding="utf-8"))
start, tokens = time.perf_counter(), 0
for text in texts:
    words = jieba.cut(text, cut_all=False)
    tokens += len(processor.encode(" ".join(word.translate(spelt) for word in words)))
print(tokens / (time.perf_counter() - start))
"""


FOLDER = Path(os.environ.get("LM_TEST_DATA", "nowhere"))


def here() -> bool:
    """Whether the files are on this machine."""
    return (FOLDER / "tnews" / "train.json").is_file()


def turns(scratch: Path, dataset: str) -> dict[str, Callable[[], float]]:
    """What each contender does: tokens per second."""
    if not here():
        raise ContenderError("LM_TEST_DATA: must name a folder that holds tnews/train.json; set it")
    scratch.mkdir(exist_ok=True)
    words = _words(scratch, dataset)
    found = {
        "lm": lambda: _preprocess(scratch, [*words, "--num_process", "1"]),
        "lm, two processes": lambda: _preprocess(scratch, [*words, "--num_process", "2"]),
    }
    return {**found, LOOP: lambda: _loop(scratch)} if dataset == "pretrain" else found


def _words(scratch: Path, dataset: str) -> list[str]:
    folder = FOLDER
    vocabulary = ["--model_file", str(folder / "pangu_alpha" / "vocab.model")]
    if dataset == "tnews":
        news = folder / "tnews"
        files = ["--input_file", str(news / "train.json"), "--max_length", "128"]
        return [dataset, *files, "--label_file", str(news / "labels.json"), *vocabulary]
    if dataset == "cmrc2018":
        return [dataset, "--dev_file", str(folder / "cmrc2018" / "cmrc2018_dev.json"), *vocabulary]
    return [dataset, "--input_glob", *map(str, _texts(scratch, folder)), *vocabulary]


def _texts(scratch: Path, folder: Path) -> list[Path]:
    """The headlines of TNEWS, several times over, in eight files; all of them for the loop."""
    lines = (folder / "tnews" / "train.json").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["sentence"] for line in lines] * _TIMES
    (scratch / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    files = [scratch / f"{number}.txt" for number in range(8)]
    for number, file in enumerate(files):
        file.write_text("\n\n".join(texts[number::8]), encoding="utf-8")
    return files


def _preprocess(scratch: Path, words: list[str]) -> float:
    """Tokens per second by the command's own report: starting Python is left out."""
    target = scratch / "out.mindrecord"
    for file in scratch.glob("out.mindrecord*"):
        file.unlink()
    command = ["-m", "lm_core.cli", "preprocess", "pangualpha", *words]
    shown = _run([*command, "--output_file", str(target)])
    match = re.search(r"([\d,]+) tokens/s", shown)
    if match is None:
        raise ContenderError(f"preprocess says nothing of its speed: {shown}")
    return float(match[1].replace(",", ""))


def _loop(scratch: Path) -> float:
    model = str(FOLDER / "pangu_alpha" / "vocab.model")
    return float(_run(["-c", _PROGRAM, model, str(scratch / "texts.json")]))


def _run(words: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=environment(), capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise ContenderError(done.stderr.strip().splitlines()[-1])
    return done.stdout
