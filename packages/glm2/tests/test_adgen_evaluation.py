"""Evaluation on ADGEN: what the model answers, its scores, stopping and going on."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from jobs import Jobs
from sources import ROOT

from lm_core import cli
from lm_core import spec as registry
from lm_core.data.answers import prompt_ids
from lm_core.errors import LmError
from lm_core.metrics.adgen import NAMES, score
from lm_core.nn.decoder import CausalLM
from lm_core.testing import tiny
from lm_core.trainer import Trainer
from lm_glm2 import SPEC

CARD = (Path(__file__).parent / "card" / "adgen.yaml").read_text(encoding="utf-8")
RUN = """\
trainer: {type: CausalLanguageModelingTrainer, model_name: glm2_tiny}
model:
  model_config:
    {preset: glm2_tiny, num_layers: 1, hidden_size: 32, num_attention_heads: 2, vocab_size: 470}
runner_config: {batch_size: 1}
metric: {type: ADGENMetric}
load_checkpoint: {folder}/weights
"""
NEW = 5
WORDS = ("wide", "small", "red", "long", "old", "wide", "wide")  # three equal prompts
ROWS = [
    {"content": f"shape#{word}", "summary": f"{word} things, {n}."} for n, word in enumerate(WORDS)
]
SHAPE = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "vocab_size": 470}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocabulary, dev.json, run.yaml, and a model with weights beside them."""
    found = tmp_path_factory.mktemp("adgen")
    (found / "tokenizer.model").write_bytes(tiny.sentencepiece_model())
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (found / "dev.json").write_text(lines, encoding="utf-8")
    (found / "run.yaml").write_text((RUN + CARD).replace("{folder}", str(found)), encoding="utf-8")
    tiny.model(SPEC, **SHAPE).save_pretrained(found / "weights")
    return found


def evaluate(folder, out, *words):
    line = ["evaluate", "glm2", "--config", str(folder / "run.yaml"), "--output_dir", str(out)]
    return cli.main([*line, f"model.model_config.max_new_tokens={NEW}", *map(str, words)])


def printed(capsys, name="ADGENMetric"):
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: ") and out.count("\n") == 1
    return ast.literal_eval(out.removeprefix(f"{name}: "))


def predictions(out):
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda record: record["number"])


def test_the_likeliest_answers_are_compared_with_the_summaries(folder, tmp_path, capsys):
    words = ("--batch_size", 3, "eval_dataset.data_loader.num_samples=3")
    assert evaluate(folder, tmp_path, *words) == 0
    found = printed(capsys)
    model, tokenizer = tiny.model(SPEC, **SHAPE), SPEC.tokenizer(folder)
    rows = predictions(tmp_path)
    wanted = {name: 0.0 for name in NAMES}
    for number, (row, record) in enumerate(zip(ROWS[:3], rows, strict=True)):
        prompt = tokenizer.encode(tokenizer.build_prompt(row["content"]))
        answer = tiny.greedy(model, prompt, NEW)[len(prompt) :]
        answer = answer[: answer.index(2)] if 2 in answer else answer
        text = tokenizer.decode(answer, skip_special_tokens=True)
        assert record == {
            "number": number, "content": row["content"], "prediction": text,
            "reference": row["summary"],
        }  # fmt: skip
        for name, value in score(text, row["summary"]).items():
            wanted[name] += value / 3
    assert found == pytest.approx(wanted)
    assert found["bleu-4"] > 0  # some letters are the same


DRAWN = ("model.model_config.do_sample=True", "model.model_config.top_k=0", "--seed", "3")


@pytest.fixture(scope="module")
def whole(folder):
    """Drawn answers of an evaluation that was never stopped."""
    assert evaluate(folder, folder / "whole", *DRAWN) == 0
    return folder / "whole"


def test_equal_prompts_are_answered_by_draws_of_their_own(whole):
    texts = [row["prediction"] for row in predictions(whole) if row["content"] == "shape#wide"]
    assert len(texts) == 3 and len(set(texts)) > 1


@pytest.mark.parametrize(("calls", "torn", "size"), [(0, 0, 2), (4, 7, 1)])
def test_stopped_and_resumed_equals_never_stopped(
    folder, whole, tmp_path, capsys, monkeypatch, calls, torn, size
):
    assert evaluate(folder, whole, *DRAWN) == 0  # nothing is left to generate
    never = printed(capsys)
    generate, made = CausalLM.generate, []

    def counted(self, ids, *words, **options):
        if len(made) == limit:
            raise KeyboardInterrupt
        made.append(len(ids))
        return generate(self, ids, *words, **options)

    monkeypatch.setattr(CausalLM, "generate", counted)
    limit = calls
    assert evaluate(folder, tmp_path, *DRAWN) == 130
    capsys.readouterr()
    file = tmp_path / "predictions.jsonl"
    if torn:
        file.write_bytes(file.read_bytes()[:-torn])
    before, limit = sum(made), None
    made.clear()
    assert evaluate(folder, tmp_path, *DRAWN, "--batch_size", size) == 0
    assert sum(made) == len(ROWS) - before + bool(torn) and max(made) <= size
    assert printed(capsys) == never
    assert predictions(tmp_path) == predictions(whole)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_answer_as_one_and_go_on(folder, tmp_path, capsys):
    assert evaluate(folder, tmp_path / "one") == 0
    one = printed(capsys)
    line = ["evaluate", "--config", folder / "run.yaml", "--output_dir", tmp_path / "two"]
    line += [f"model.model_config.max_new_tokens={NEW}", "--use_parallel", "True"]
    line += ["parallel_config.model_parallel=2", "--auto_trans_ckpt", "True"]
    jobs = Jobs(tmp_path, ROOT / "packages" / "glm2" / "launch.sh")
    file = tmp_path / "two" / "predictions.jsonl"
    try:
        for _ in range(2):
            ended = jobs.run(*line, NPROC=2)
            assert ended.status == 0, ended
            assert f"ADGENMetric: {one}" in ended.out.splitlines()
            assert predictions(tmp_path / "two") == predictions(tmp_path / "one")
            file.write_text("".join(file.open(encoding="utf-8").readlines()[:3]), encoding="utf-8")
    finally:
        jobs.close()


def test_answers_of_another_run_are_refused(folder, whole, tmp_path, capfd):
    other = tmp_path / "weights"
    tiny.model(SPEC, seed=2, **SHAPE).save_pretrained(other)
    for words, message in (
        ((*DRAWN[:3], "4"), "seed was 3 and is 4"),
        ((*DRAWN, "model.model_config.top_p=0.5"), "top_p was 1.0 and is 0.5"),
        ((*DRAWN, "--load_checkpoint", other), "weights was "),
        ((*DRAWN, "eval_dataset.data_loader.num_samples=3"), "data was "),
    ):
        assert evaluate(folder, whole, *words) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
        assert len(lines) == 1 and message in lines[0]
        assert f"output_dir: {whole} holds predictions of another run" in lines[0]
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "predictions.jsonl").write_bytes((whole / "predictions.jsonl").read_bytes())
    assert evaluate(folder, moved, *DRAWN) == 2
    assert "(predictions.settings.json is missing)" in capfd.readouterr().err


def test_perplexity_of_the_same_rows(folder, tmp_path, capsys):
    assert evaluate(folder, tmp_path, "metric.type=PerplexityMetric") == 0
    found = printed(capsys, "PerplexityMetric")["PerplexityMetric"]
    native = ("metric.type=PerplexityMetric", "model.model_config.seq_length=600")
    assert evaluate(folder, tmp_path, *native) == 0
    assert printed(capsys, "PerplexityMetric")["PerplexityMetric"] == pytest.approx(found)
    short = (*native[:1], "eval_dataset.max_source_length=50", "eval_dataset.max_target_length=50")
    assert evaluate(folder, tmp_path, *short) == 0
    assert printed(capsys, "PerplexityMetric")["PerplexityMetric"] == pytest.approx(found)
    assert not (tmp_path / "predictions.jsonl").exists()


def test_a_trainer_gives_both_and_keeps_its_model(folder, tmp_path):
    changes = {"output_dir": str(tmp_path), "model.model_config.max_new_tokens": NEW}
    run = registry.read_run(folder / "run.yaml", changes)
    run.metric = [*run.metric, type(run.metric[0])(type="perplexity")]
    trainer = Trainer(run, eval_dataset=folder)
    scores = trainer.evaluate()
    assert scores.keys() == {"ADGENMetric", "PerplexityMetric"}
    assert tuple(scores["ADGENMetric"]) == NAMES and scores["PerplexityMetric"]["PPL"] > 1
    assert trainer.network.config.seq_length == trainer.run.model.config.seq_length == 193
    assert trainer.evaluate() == scores  # of the weights in memory


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval_dataset.data_loader.type=MindDataset"], "ADGENMetric compares texts, and eval_"),
        (["eval_dataset.data_loader.version=1"], "eval_dataset.data_loader.version: is 1"),
        (["--eval_dataset_dir", "/nowhere"], "/nowhere does not exist"),
        (["model.model_config.max_decode_length=20", "model.model_config.max_new_tokens=null"],
         "model.model_config.max_decode_length: is 20; must be more than the "),
        (["load_checkpoint="], "load_checkpoint: is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_before_anything_is_generated(
    folder, tmp_path, capfd, words, message
):
    assert evaluate(folder, tmp_path, *words) == 2
    errors = capfd.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_lines_that_are_none_of_ours(folder, whole, tmp_path, capfd):
    for name in ("predictions.jsonl", "predictions.settings.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write('{"number": 99, "content": "", "prediction": "", "reference": ""}\n')
    assert evaluate(folder, tmp_path, *DRAWN) == 2
    assert "has lines without the number of a row" in capfd.readouterr().err


def test_prompts_have_the_length_of_the_section(folder, tmp_path):
    tokenizer = SPEC.tokenizer(folder)
    most = len(tokenizer.encode(tokenizer.build_prompt("shape#small"))) - 2
    words = (f"eval_dataset.max_source_length={most}", "eval_dataset.data_loader.num_samples=2")
    assert evaluate(folder, tmp_path, *words) == 0
    prompt = prompt_ids(tokenizer, "shape#small", most)
    assert len(prompt) <= most
    answer = tiny.greedy(tiny.model(SPEC, **SHAPE), prompt, NEW)[len(prompt) :]
    answer = answer[: answer.index(2)] if 2 in answer else answer
    assert predictions(tmp_path)[1]["prediction"] == tokenizer.decode(
        answer, skip_special_tokens=True
    )


def test_room_is_made_only_where_no_weight_fixes_the_length():
    config = SPEC.presets["glm2_tiny"]
    wide = config.widened(500)
    assert (wide.seq_length, wide.trained_positions) == (500, 193)
    assert config.widened(193) is config.widened(10) is config
    fixed = registry.installed()["gpt2"].presets["gpt2_tiny"]
    assert fixed.widened(500) is fixed
    llama = registry.installed()["llama"].presets["llama_tiny"].widened(5000)
    assert (llama.seq_length, llama.trained_positions) == (5000, 128)
    with pytest.raises(LmError, match="dynamic"):
        config.copy(rope_scaling={"type": "dynamic", "factor": 2.0}).widened(500)
