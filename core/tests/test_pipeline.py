"""The pipeline hands exact prompts to `generate` and gives text in the shape of the model cards."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import lm_core
from lm_core.errors import GenerationError
from lm_core.pipeline import TextGenerationPipeline, pipeline

END = 0


class Letters:
    """a = 1, b = 2, ...; END is special; "^" is put in front if special tokens are wanted."""

    def __call__(self, texts, add_special_tokens=True):
        before = [30] if add_special_tokens else []
        rows = [before + [END if c == "$" else ord(c) - 96 for c in text] for text in texts]
        return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}

    def decode(self, row, skip_special_tokens=False):
        assert isinstance(row, np.ndarray) and skip_special_tokens
        return "".join("^" if token == 30 else chr(token + 96) for token in row if token != END)


class Chatty(Letters):
    def apply_chat_template(self, messages):
        return self(["".join(message["content"] for message in messages)])["input_ids"][0]


class Echo:
    """Appends "x" to every prompt and remembers how it was called."""

    def __init__(self, **settings):
        defaults = {"do_sample": True, "top_k": 5, "top_p": 1.0, "temperature": 1.0}
        more = {"repetition_penalty": 1.0, "num_beams": 1, "use_past": True}
        self.config = SimpleNamespace(**{**defaults, **more, **settings})
        self.calls = []

    def generate(self, ids, settings=None, streamer=None, **options):
        self.calls.append(SimpleNamespace(ids=ids, settings=settings, streamer=streamer, **options))
        return [np.array([*row, 24, END], np.int32) for row in ids]


@pytest.fixture
def echo():
    return Echo()


def test_shapes_of_the_cards(echo):
    run = pipeline("text_generation", model=echo, tokenizer=Letters(), add_special_tokens=False)
    assert run("ab") == [{"text_generation_text": ["abx"]}]
    assert run(["ab", "c"]) == [
        {"text_generation_text": ["abx"]},
        {"text_generation_text": ["cx"]},
    ]
    assert run(("ab",)) == [{"text_generation_text": ["abx"]}]
    assert run([]) == []
    assert len(echo.calls) == 3


def test_messages_get_an_answer(echo):
    """The answer alone; a list of lists would be several texts."""
    run = TextGenerationPipeline(echo, Chatty())
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert run(messages, max_new_tokens=3) == [{"text_generation_text": ["x"]}]
    assert echo.calls[0].ids == [[30, 1, 2]]
    assert echo.calls[0].settings.max_new_tokens == 3


def test_special_tokens(echo):
    run = TextGenerationPipeline(echo, Letters())
    assert run("a") == [{"text_generation_text": ["^ax"]}]
    assert run("a", add_special_tokens=False) == [{"text_generation_text": ["ax"]}]


def test_no_token_of_a_prompt_is_taken_for_padding(echo):
    TextGenerationPipeline(echo, Letters())(["ab$$", "abcd"])
    assert echo.calls[0].attention_mask == [[1] * 5, [1] * 5]
    assert echo.calls[0].ids == [[30, 1, 2, END, END], [30, 1, 2, 3, 4]]


def test_call_over_pipeline_over_model(echo):
    run = pipeline("text_generation", model=echo, tokenizer=Letters(), max_length=20, top_p=0.9)
    run("a", do_sample=False)
    settings = echo.calls[0].settings
    assert (settings.do_sample, settings.top_k, settings.top_p) == (False, 5, 0.9)
    assert (settings.max_length, settings.max_new_tokens) == (20, None)
    run("a", max_new_tokens=3, top_k=1)
    settings = echo.calls[1].settings
    assert (settings.do_sample, settings.top_k, settings.max_length) == (True, 1, None)
    run("a")
    assert (echo.calls[2].settings.top_k, echo.calls[2].settings.max_length) == (5, 20)


def test_later_changes_of_the_config_count(echo):
    run = TextGenerationPipeline(echo, Letters())
    echo.config.do_sample = False
    run("a")
    assert echo.calls[0].settings.do_sample is False


def test_batch_size_and_streamer(echo):
    run = TextGenerationPipeline(echo, Letters(), batch_size=3)
    run("a")
    run("a", batch_size=1, streamer="a streamer")
    assert [(call.batch_size, call.streamer) for call in echo.calls] == [
        (3, None),
        (1, "a streamer"),
    ]


def test_a_mindspore_model_is_unwrapped(echo):
    run = pipeline(
        "text_generation", model=SimpleNamespace(predict_network=echo), tokenizer=Letters()
    )
    assert run.model is echo


@pytest.fixture
def auto(monkeypatch, echo):
    """Stands in for lm_core.auto and remembers what is loaded."""
    loaded = []

    def loader(kind, value):
        return SimpleNamespace(
            from_pretrained=lambda name, **_: loaded.append((kind, name)) or value
        )

    fake = SimpleNamespace(
        AutoModel=loader("model", echo), AutoTokenizer=loader("tokenizer", Letters()), loaded=loaded
    )
    monkeypatch.setitem(__import__("sys").modules, "lm_core.auto", fake)
    monkeypatch.setattr(lm_core, "auto", fake, raising=False)
    return fake


def test_names_are_loaded(auto, tmp_path):
    assert pipeline("text_generation", model="gpt2")("a") == [{"text_generation_text": ["^ax"]}]
    assert sorted(auto.loaded) == [("model", "gpt2"), ("tokenizer", "gpt2")]
    auto.loaded.clear()
    pipeline("text_generation", model=tmp_path, tokenizer="other")
    assert sorted(auto.loaded, key=str) == [("model", tmp_path), ("tokenizer", "other")]


def test_the_tokenizer_beside_the_checkpoint(auto):
    pipeline("text_generation", model=Echo(checkpoint_name_or_path="somewhere"))
    assert auto.loaded == [("tokenizer", "somewhere")]


def test_a_wrong_setting_is_found_before_anything_is_loaded(auto):
    with pytest.raises(GenerationError, match=r"max_lenght: .* did you mean max_length\?"):
        pipeline("text_generation", model="gpt2", max_lenght=3)
    assert auto.loaded == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"task": "text_clasification"},
            "task: 'text_clasification' has no pipeline.*did you mean",
        ),
        ({"task": "text_classification"}, "model: is missing"),
        ({"task": "text_generation"}, "model: is missing"),
        ({"task": "text_generation", "model": Echo()}, "tokenizer: is missing"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(GenerationError, match=message):
        pipeline(**arguments)


def test_refused_at_the_call(echo):
    run = TextGenerationPipeline(echo, Letters())
    with pytest.raises(GenerationError, match="top_p: 3; must be"):
        run("a", top_p=3)
    with pytest.raises(GenerationError, match=r"inputs\[1\]: is int; must be text"):
        run(["a", 5])
    assert echo.calls == []


def test_public_names():
    assert lm_core.pipeline is pipeline
    assert lm_core.TextGenerationPipeline is TextGenerationPipeline
