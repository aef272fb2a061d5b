"""CMRC2018 from raw files to scores: records, answers, stopping and going on."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from outside import DATA

from lm_core import cli
from lm_core import spec as registry
from lm_core.data.cmrc2018 import ROOM, answers_of, prompt_of
from lm_core.data.mindrecord import RecordWriter
from lm_core.data.pipeline import RecordDataset
from lm_core.errors import ConfigError, DataError
from lm_core.metrics.em_f1 import score
from lm_core.nn.decoder import CausalLM
from lm_core.testing import tiny
from lm_core.trainer import Trainer
from lm_pangualpha import SPEC
from lm_pangualpha.tokenizer import PanguAlphaTokenizer

RUN = """\
base: pangualpha_2_6b_em_f1
trainer: {model_name: pangualpha_tiny}
model:
  model_config:
    {preset: pangualpha_tiny, num_layers: 2, hidden_size: 32, num_heads: 2, vocab_size: 320,
     max_new_tokens: 4, max_decode_length: 128}
load_checkpoint: {folder}/weights
eval_dataset: {data_loader: {dataset_dir: "{folder}/cmrc.mindrecord"}}
"""
SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "vocab_size": 320}
THINGS = [(thing, colour) for thing in "狗猫船" for colour in "红黑"]
PAD, END = 6, 9


def article(thing, colour):
    """A text and a question about it; of dogs there are two, always the same ones."""
    dog = thing == "狗"
    colour = "红" if dog else colour
    qas = [(f"{thing}是什么颜色？", [f"{colour}色", f"{colour}色。", f"{colour}色"])]
    qas += [("房子呢？", ["红色", "是红色"])] if dog else []
    asked = [{"question": q, "answers": [{"text": a} for a in answers]} for q, answers in qas]
    context = "狗和房子是红色的。" if dog else f"{thing}是{colour}色的。房子也是。"
    return {"paragraphs": [{"context": context, "qas": asked}]}


def vocabulary():
    """The marks stand where the published vocabulary has them."""
    words = "阅读 文章 ： 狗 猫 船 是 红 黑 色 的 。 房子 也 呢 和 ▃ 问 什么 颜色 ？ ▃ 答"
    parts = words.split(" ")
    marks = ["<a>", "<b>", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]
    lines = [" ".join([*parts[k:], *parts[:k]]) for k in range(len(parts))]
    return tiny.sentencepiece_model(
        SHAPE["vocab_size"], sentence_iterator=iter(lines * 3), user_defined_symbols=marks
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocabulary, raw files, records, run.yaml, and a model with weights."""
    found = tmp_path_factory.mktemp("cmrc")
    (found / "vocab.model").write_bytes(vocabulary())
    value = {"data": [article(*one) for one in THINGS]}
    (found / "dev.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    words = ("--dev_file", found / "dev.json", "--max_length", 128, "--tokenizer", found)
    assert preprocess(*words, "--output_file", found / "cmrc.mindrecord") == 0
    (found / "run.yaml").write_text(RUN.replace("{folder}", str(found)), encoding="utf-8")
    tiny.model(SPEC, **SHAPE).save_pretrained(found / "weights")
    (found / "weights" / "vocab.model").write_bytes((found / "vocab.model").read_bytes())
    return found


def preprocess(*words):
    return cli.main(["preprocess", "pangualpha", "cmrc2018", *map(str, words)])


def evaluate(folder, out, *words):
    line = ["evaluate", "pangualpha", "--config", folder / "run.yaml", "--output_dir", out]
    return cli.main([str(word) for word in (*line, *words)])


def printed(capsys):
    out = capsys.readouterr().out
    assert out.startswith("EmF1Metric: {'Em': ") and out.count("\n") == 1
    return ast.literal_eval(out.removeprefix("EmF1Metric: "))


def predictions(out):
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda line: line["number"])


def answering(answer, seen=None):
    """A network that knows by itself what to say: `answer(prompt ids)` gives ids."""

    def generate(self, ids, *words, **options):
        if seen is not None:
            seen.append(len(ids))
        return [np.array([*row, *answer([*row])], np.int32) for row in ids]

    return generate


def told(records, tokenizer, which):
    """The answers of the records by prompt: the `which`th, as ids."""
    rows = list(records.stream(range(len(records))))
    return {tuple(prompt_of(row, tokenizer)): answers_of(row, tokenizer)[which] for row in rows}


def test_the_packaged_run_leaves_the_room_that_records_leave():
    run = registry.read_run("pangualpha_2_6b_em_f1")
    assert run.model.config.max_new_tokens == ROOM
    assert not run.eval_dataset.eod_reset
    assert [metric.type for metric in run.metric] == ["em_f1"]


def test_the_likeliest_answers_are_compared_with_all_references(folder, tmp_path, capsys):
    words = ("model.model_config.repetition_penalty=1", "eval_dataset.data_loader.num_samples=3")
    assert evaluate(folder, tmp_path, *words, "--batch_size", 3) == 0
    found = printed(capsys)
    model, tokenizer = tiny.model(SPEC, **SHAPE), SPEC.tokenizer(folder)
    wanted = {"Em": 0.0, "F1": 0.0}
    for number, line in enumerate(predictions(tmp_path)):
        (asked,) = article(*THINGS[number // 2])["paragraphs"]
        question = asked["qas"][number % 2]
        prompt = tokenizer.encode(f"阅读文章：{asked['context']}\n问：{question['question']}\n答：")
        answer = tiny.greedy(model, prompt, 4)[len(prompt) :]
        answer = answer[: answer.index(END)] if END in answer else answer
        text = tokenizer.decode(answer, skip_special_tokens=True)
        references = [*dict.fromkeys(answer["text"] for answer in question["answers"])]
        assert line == {
            "number": number, "question": question["question"], "prediction": text,
            "references": references,
        }  # fmt: skip
        wanted = {name: wanted[name] + v / 3 for name, v in score(text, references).items()}
    assert found == {**{name: pytest.approx(v) for name, v in wanted.items()}, "total_count": 3}


def test_one_that_is_told_the_answers_scores_100(folder, tmp_path, capsys, monkeypatch):
    tokenizer = SPEC.tokenizer(folder)
    records = RecordDataset(folder / "cmrc.mindrecord")
    for which, end in ((0, [END]), (-1, []), (0, tokenizer.encode("\n问：狗"))):
        known = told(records, tokenizer, which)
        monkeypatch.setattr(CausalLM, "generate", answering(lambda row: [*known[tuple(row)], *end]))  # noqa: B023
        assert evaluate(folder, tmp_path / str(which) / str(len(end)), "--batch_size", 3) == 0
        assert printed(capsys) == {"Em": 100.0, "F1": 100.0, "total_count": 8}
    monkeypatch.setattr(CausalLM, "generate", answering(lambda row: [END]))
    assert evaluate(folder, tmp_path / "silent") == 0
    assert printed(capsys) == {"Em": 0.0, "F1": 0.0, "total_count": 8}


def sometimes(row):
    """Right or wrong, from the prompt alone."""
    return [row[k] for k in (len(row) // 3, len(row) // 2)] if sum(row) % 2 else row[5:8]


@pytest.mark.parametrize(("calls", "torn", "size"), [(0, 0, 3), (3, 9, 1), (4, 0, 5)])
def test_stopped_and_resumed_equals_never_stopped(
    folder, tmp_path, capsys, monkeypatch, calls, torn, size
):
    seen: list[int] = []
    monkeypatch.setattr(CausalLM, "generate", answering(sometimes, seen))
    assert evaluate(folder, tmp_path / "whole", "--batch_size", 2) == 0
    never = printed(capsys)
    assert 0 < never["F1"] < 100
    assert sum(seen) == 8

    def stopped(self, *words, **options):
        if len(seen) == calls:
            raise KeyboardInterrupt
        return answering(sometimes, seen)(self, *words, **options)

    seen.clear()
    monkeypatch.setattr(CausalLM, "generate", stopped)
    assert evaluate(folder, tmp_path / "cut", "--batch_size", 1) == 130
    file = tmp_path / "cut" / "predictions.jsonl"
    file.write_bytes(file.read_bytes()[: -torn or None])
    capsys.readouterr()
    seen.clear()
    monkeypatch.setattr(CausalLM, "generate", answering(sometimes, seen))
    assert evaluate(folder, tmp_path / "cut", "--batch_size", size) == 0
    assert sum(seen) == 8 - calls + bool(torn) and max(seen) <= size
    assert printed(capsys) == never
    assert predictions(tmp_path / "cut") == predictions(tmp_path / "whole")
    seen.clear()
    assert evaluate(folder, tmp_path / "cut") == 0
    assert not seen and printed(capsys) == never


def test_answers_to_other_questions_are_refused(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(CausalLM, "generate", answering(sometimes))
    assert evaluate(folder, tmp_path) == 0
    for words, message in (
        (["eval_dataset.data_loader.num_samples=3"], "data was "),
        (["model.model_config.repetition_penalty=1.2"], "repetition_penalty was 1.5 and is 1.2"),
    ):
        assert evaluate(folder, tmp_path, *words) == 2
        assert message in capfd.readouterr().err


def test_a_trainer_gives_the_scores(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(CausalLM, "generate", answering(sometimes))
    run = registry.read_run(folder / "run.yaml", {"output_dir": str(tmp_path)})
    scores = Trainer(run, eval_dataset=folder / "cmrc.mindrecord").evaluate()
    assert scores.keys() == {"EmF1Metric"} and scores["EmF1Metric"]["total_count"] == 8
    assert list(scores["EmF1Metric"]) == ["Em", "F1", "total_count"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["metric=[{type: EmF1Metric}, {type: PerplexityMetric}]"],
         "metric: EmF1Metric is one of several; must be the only one"),
        (["eval_dataset.data_loader.type=ADGenDataLoader"],
         "metric.type: EmF1Metric reads records, and eval_dataset.data_loader.type is ADGenData"),
        (["eval_dataset.input_columns=[input_ids]"], "column labels is not read; EmF1Metric needs"),
        (["--eval_dataset_dir", "/nowhere"], "/nowhere: no such file or folder"),
        (["--tokenizer", "/nowhere"], "/nowhere"),
        (["load_checkpoint="], "load_checkpoint: is missing"),
        (["model.model_config.max_decode_length=20", "model.model_config.max_new_tokens=null"],
         "is 20; must be more than the "),
        (["metric.type=PerplexityMetric"], "record 0: labels holds "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_line_before_anything_is_generated(
    folder, tmp_path, capfd, words, message
):
    assert evaluate(folder, tmp_path, *words) == 2
    errors = capfd.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_records_without_answers_are_refused(folder, tmp_path, capfd):
    with RecordWriter(tmp_path / "x.mindrecord", ("input_ids", "labels")) as writer:
        for labels in ([5, END], [END, PAD]):
            ids = np.array([7, 8, PAD], np.int32)
            writer.write({"input_ids": ids, "labels": np.array(labels, np.int32)})
    assert evaluate(folder, tmp_path, "--eval_dataset_dir", tmp_path / "x.mindrecord") == 2
    assert f"{tmp_path}/x.mindrecord record 1: holds no answer;" in capfd.readouterr().err


def test_wrong_flags_of_preprocess_write_nothing(folder, tmp_path, capfd):
    dev, out = ("--dev_file", folder / "dev.json"), ("--output_file", tmp_path / "x.mindrecord")
    common = (*out, "--tokenizer", folder)
    for words, message in (
        ((*dev, "--train_file", folder / "dev.json"), "train_file: "),
        ((*dev, "--n_shot", "five_shot"), "train_file: is missing; must be the file"),
        (("--dev_file", "/nowhere.json"), "dev_file: /nowhere.json does not exist"),
        (("--dev_file", tmp_path), "dev_file: "),
    ):
        assert preprocess(*words, *common) == 2
        errors = capfd.readouterr().err
        assert message in errors and "Traceback" not in errors
        assert not list(tmp_path.iterdir())
    assert preprocess("--input_file", folder / "dev.json", *common) == 2
    assert "--dev_file" in capfd.readouterr().err


@pytest.fixture(scope="module")
def published():
    """The published vocabulary and data."""
    files = [DATA / "pangu_alpha" / "vocab.model", DATA / "cmrc2018" / "cmrc2018_dev.json"]
    for file in files:
        if not file.is_file():
            pytest.skip(f"{file} is not here")
    return files


def test_published_records_decode_to_their_prompts(published, tmp_path, capsys, monkeypatch):
    (model, dev), out = published, tmp_path / "x.mindrecord"
    words = ("--dev_file", dev, "--n_content", 25, "--n_q", 3, "--num_splits", 2)
    trial = dev.with_name("cmrc2018_trial.json")
    words += ("--train_file", trial, "--n_shot", "five_shot") if trial.is_file() else ()
    assert preprocess(*words, "--output_file", out, "--tokenizer", model.parent) == 0
    assert "records: " in capsys.readouterr().out
    tokenizer, records = PanguAlphaTokenizer.from_pretrained(model.parent), RecordDataset(out)
    data = json.loads(Path(dev).read_text(encoding="utf-8"))["data"][:25]
    asked = [(p["context"], qa) for a in data for p in a["paragraphs"] for qa in p["qas"][:3]]
    assert len(records) == len(asked) and records.row_length == 1024

    def spelt(text):
        return tokenizer.decode(tokenizer.encode(text))

    rows, parts = list(records.stream(range(len(records)))), set()
    for row, (context, qa) in zip(rows, asked, strict=True):
        prompt = tokenizer.decode(prompt_of(row, tokenizer))
        assert prompt.endswith(spelt(f"阅读文章：{context}\n问：{qa['question']}\n答："))
        parts.add(prompt.count(spelt("阅读文章：")))
        texts = dict.fromkeys(answer["text"] for answer in qa["answers"])
        found = [tokenizer.decode(ids) for ids in answers_of(row, tokenizer)]
        assert found == [spelt(text) for text in texts]
    # Five demonstrations, or as many as there is room for.
    assert (max(parts) == 6 and len(parts) > 1) if trial.is_file() else parts == {1}
    _check_told(records, tokenizer, model.parent, tmp_path, capsys, monkeypatch)


def _check_told(records, tokenizer, vocabulary, folder, capsys, monkeypatch):
    """What is told the answers scores 100, whichever of them it says."""
    large = {**SHAPE, "hidden_size": 8, "vocab_size": 40000, "seq_length": 1024}
    tiny.model(SPEC, **large).save_pretrained(folder / "weights")
    run = RUN.replace("{folder}/cmrc.mindrecord", str(records.path))
    run = run.replace("{folder}", str(folder)).replace("128", "1024")
    run = run.replace("hidden_size: 32", "seq_length: 1024, hidden_size: 8")
    (folder / "run.yaml").write_text(run.replace("320", "40000"), encoding="utf-8")
    for which in (0, -1):
        known = told(records, tokenizer, which)
        monkeypatch.setattr(CausalLM, "generate", answering(lambda row: known[tuple(row)]))  # noqa: B023
        words = ("--tokenizer", vocabulary, "--batch_size", 16)
        assert evaluate(folder, folder / str(which), *words) == 0
        found = printed(capsys)
        assert found == {"Em": 100.0, "F1": pytest.approx(100), "total_count": len(records)}


def test_training_knows_no_such_records(folder, tmp_path):
    run = registry.read_run(folder / "run.yaml", {"output_dir": str(tmp_path), "do_eval": True})
    run.train_dataset = run.eval_dataset
    with pytest.raises(DataError, match="records hold 128 ids; seq_length 128 needs 129"):
        Trainer(run).finetune(True)
    with RecordWriter(tmp_path / "x.mindrecord", ("input_ids",)) as writer:
        for _ in range(4):
            writer.write({"input_ids": np.arange(129, dtype=np.int32)})
    run.train_dataset = type(run.train_dataset)()
    run.runner_config.batch_size = 2
    with pytest.raises(ConfigError, match="do_eval: is True with EmF1Metric"):
        Trainer(run, train_dataset=tmp_path / "x.mindrecord").finetune(True)
