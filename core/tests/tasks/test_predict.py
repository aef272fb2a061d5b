"""`predict` with a model and a tokenizer that stand in for real ones."""

from __future__ import annotations

import ast
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from lm_core import AutoTokenizer, cli, job
from lm_core.config.model import ModelConfig
from lm_core.errors import GenerationError
from lm_core.parallel.context import ParallelContext
from lm_core.spec import ModelSpec
from lm_core.tasks.predict import prompts


class Letters:
    """A character is its code; 0 is special."""

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(character) for character in text] for text in texts]}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(token) for token in ids if token or not skip_special_tokens)


class Echo:
    """Says "!" and ends; remembers how it was asked."""

    def __init__(self, config):
        self.config, self.context = config, ParallelContext.local()
        self.calls = []

    def generate(self, ids, settings, streamer=None, **options):
        self.calls.append(SimpleNamespace(ids=ids, settings=settings, **options))
        for row in ids if streamer else []:
            streamer.put(np.array(row))
            streamer.put(np.array([33]))
            streamer.end()
        return [np.array([*row, 33, 0], np.int32) for row in ids]


@pytest.fixture
def auto(monkeypatch):
    """Stands in for loading; `auto.models` are those that were loaded."""
    fake = SimpleNamespace(models=[], paths=[])

    def load_model(run, path, context, adapter=None):
        fake.paths.append(("model", str(path)))
        fake.models.append(Echo(run.model.config.copy(checkpoint_name_or_path=path)))
        return fake.models[-1]

    def load_tokenizer(path, *, family):
        fake.paths.append(("tokenizer", str(path)))
        return Letters()

    monkeypatch.setattr(job, "join", lambda run: ParallelContext.local())
    monkeypatch.setattr(job, "load", load_model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load_tokenizer)
    return fake


RUN = """\
model: {model_config: {preset: toy}}
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "toy.yaml").write_text(RUN)
    sizes = {"vocab_size": 128, "hidden_size": 8, "num_layers": 1, "num_heads": 1}
    return ModelSpec(
        name="toy",
        config_class=ModelConfig,
        presets={"toy": ModelConfig(**sizes, seq_length=1024)},
        build=lambda config, context: None,
        hf_types=(),
        tables={},
        tokenizer=lambda folder: Letters(),
        configs=tmp_path,
    )


@pytest.fixture
def predict(spec):
    def run(*words: str) -> int:
        words = ("--config", "toy", "--load_checkpoint", "weights", *words)
        return cli.run_verb("predict", spec, words)

    return run


def said(capsys) -> list:
    return [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_per_prompt_in_the_shape_of_the_card(auto, capsys, predict):
    assert predict("--predict_data", "An increasing sequence: one,", "it's") == 0
    assert said(capsys) == [
        [{"text_generation_text": ["An increasing sequence: one,!"]}],
        [{"text_generation_text": ["it's!"]}],
    ]
    assert auto.paths == [("tokenizer", "weights"), ("model", "weights")] or auto.paths == [
        ("model", "weights"),
        ("tokenizer", "weights"),
    ]


def test_tokens_per_second_in_the_log(auto, caplog, predict):
    logging.getLogger("lm_core").addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, "lm_core"):
            predict("--predict_data", "a", "bc")
    finally:
        logging.getLogger("lm_core").removeHandler(caplog.handler)
    assert "2 prompt(s), 4 new tokens in" in caplog.text
    assert "tokens/s" in caplog.text


def test_flags_reach_the_generation(auto, predict):
    flags = "--max_length 20 --do_sample True --top_k 3 --top_p 0.5 --temperature 2 --seed 0"
    assert predict("--predict_data", "ab", *flags.split(), "--predict_batch_size", "2") == 0
    (call,) = auto.models[0].calls
    settings = call.settings
    assert (settings.max_length, settings.do_sample, settings.top_k) == (20, True, 3)
    assert (settings.top_p, settings.temperature, settings.seed) == (0.5, 2.0, 0)
    assert call.ids == [[97, 98]] and call.attention_mask == [[1, 1]] and call.batch_size == 2


def test_without_flags_the_run_decides(auto, predict):
    overrides = ["model.model_config.do_sample=True", "model.model_config.top_k=7"]
    assert predict("--predict_data", "ab", *overrides) == 0
    settings = auto.models[0].calls[0].settings
    assert (settings.do_sample, settings.top_k, settings.seed) == (True, 7, None)


def test_stream_shows_the_text_once(auto, capsys, predict):
    assert predict("--predict_data", "ab", "cd", "--stream") == 0
    assert capsys.readouterr().out == "ab!\ncd!\n"
    assert [call.ids for call in auto.models[0].calls] == [[[97, 98]], [[99, 100]]]


def test_a_tokenizer_from_elsewhere(auto, predict):
    assert predict("--predict_data", "a", "--tokenizer", "words") == 0
    assert sorted(auto.paths) == [("model", "weights"), ("tokenizer", "words")]


def test_a_result_file(auto, tmp_path, capsys, predict):
    target = tmp_path / "result.txt"
    assert predict("--predict_data", "a", "b", "--save_file", str(target)) == 0
    assert target.read_text() == capsys.readouterr().out


def test_a_file_of_prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\\ntwo\r\n\n \ncaf\u00e9\n".encode())
    assert prompts([str(path)]) == ["one\ntwo", "caf\u00e9"]
    assert prompts([str(path), "x"]) == [str(path), "x"]


def test_prompts():
    assert prompts(["a\\nb", "c"]) == ["a\nb", "c"]
    assert prompts(["x" * 5000]) == ["x" * 5000]
    assert prompts(["a\0b"]) == ["a\0b"]
    with pytest.raises(GenerationError, match="predict_data: holds no prompt"):
        prompts([])


def test_files_that_hold_no_prompts(tmp_path):
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n \n")
    binary.write_bytes(b"abc\xff\xfe")
    with pytest.raises(GenerationError, match="holds no prompt"):
        prompts([str(empty)])
    with pytest.raises(GenerationError, match="is not UTF-8 at byte 3"):
        prompts([str(binary)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--predict_data", "a", "--top_p", "5"], "top_p: 5.0; must be a number from 0 to 1"),
        (["--predict_data", "a", "--top_pp", "5"], "top_pp"),
        ([], "predict_data: holds no prompt"),
        (["--predict_data", "a" * 2000, "--max_new_tokens", "1"], "prompt 0 has 2000 tokens"),
    ],
)
def test_refused(auto, capsys, words, message, predict):
    assert predict(*words) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert captured.out == ""
    assert not any(model.calls for model in auto.models)


def test_truncation(auto, capsys, predict):
    assert (
        predict("--predict_data", "a" * 2000 + "b", "--max_new_tokens", "4", "--truncation", "left")
        == 0
    )
    assert auto.models[0].calls[0].ids == [[97] * 1019 + [98]]


def test_without_weights_it_says_so(auto, spec, capsys):
    assert cli.run_verb("predict", spec, ["--config", "toy", "--predict_data", "a"]) == 2
    assert "load_checkpoint: is missing" in capsys.readouterr().err


class Filling(Letters):
    """Shows "(prefix|suffix)"; 2 ends what is filled in."""

    infill_end_id = 2

    def build_infill_prompt(self, prefix, suffix, suffix_first=False):
        return [ord(character) for character in f"({prefix}|{suffix})"]

    def decode_infill(self, ids):
        return "".join(chr(token) for token in ids if token)


@pytest.fixture
def filling(auto, monkeypatch):
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: Filling())
    return auto


def test_infill_prints_the_whole_text(filling, capsys, predict):
    data = ["--predict_data", "ab<FILL_ME>c", r"<FILL_ME>\n"]
    assert predict("--infill", *data) == 0
    whole = [[{"text_generation_text": ["ab!c"]}], [{"text_generation_text": ["!\n"]}]]
    assert said(capsys) == whole
    (call,) = filling.models[0].calls
    assert [bytes(row) for row in call.ids] == [b"(ab|c)", b"(|\n)"]
    assert 2 in call.settings.eos_ids


def test_the_end_of_infilling_is_one_more_end(filling, predict):
    assert (
        predict("--infill", "--predict_data", "a<FILL_ME>", "model.model_config.eos_token_id=7")
        == 0
    )
    assert filling.models[0].calls[0].settings.eos_ids == (7, 2)
    assert predict("--predict_data", "a", "model.model_config.eos_token_id=7") == 0
    assert filling.models[1].calls[0].settings.eos_token_id is None


def test_infill_is_streamed(filling, capsys, predict):
    assert predict("--infill", "--stream", "--predict_data", "a<FILL_ME>b", "<FILL_ME>c") == 0
    assert capsys.readouterr().out == "a!b\n!c\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ab"], "predict_data[0]: has no <FILL_ME>; must have one"),
        (["a<FILL_ME>", "<FILL_ME><FILL_ME>"], "predict_data[1]: has 2 <FILL_ME>; must have one"),
        (["a<FILL_ME>", "--truncation", "left"], "truncation: would cut what tells the model"),
    ],
)
def test_infill_that_cannot_be(filling, capsys, predict, words, message):
    assert predict("--infill", "--predict_data", *words) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert not shown.out
    assert not filling.models


def test_infill_with_the_tokenizer_of_another_model(filling, capsys, monkeypatch, predict):
    monkeypatch.setattr(Filling, "infill_end_id", 128)
    assert predict("--infill", "--predict_data", "a<FILL_ME>") == 2
    assert "infill: the tokenizer's token that ends it is 128; must be within the model's " in (
        capsys.readouterr().err
    )
    assert not filling.models[0].calls
