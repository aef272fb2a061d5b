"""The model card's ways to generate text, on a small model with a real tokenizer."""

from __future__ import annotations

import ast
import io
import shutil
import subprocess
import sys
from threading import Thread

import numpy as np
import pytest
from mindspore.train import Model

from lm_core import AutoConfig, AutoModel, AutoTokenizer, TextGenerationPipeline, pipeline
from lm_core.generation.streamer import TextIteratorStreamer, TextStreamer
from lm_core.testing import tiny
from lm_core.tokenizer.bpe_train import train_bpe
from lm_gpt2 import SPEC
from lm_gpt2.tokenizer import Gpt2Tokenizer

TEXTS = ["I love Beijing, because", "An increasing sequence: one,"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `save_pretrained` writes: a model and its tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    vocabulary = train_bpe([tiny.text(60), *TEXTS], 300)
    tokenizer = Gpt2Tokenizer(*vocabulary)
    end = tokenizer.eos_token_id
    ids = {f"{name}_token_id": end for name in ("bos", "eos", "pad", "unk")}
    model = tiny.model(SPEC, vocab_size=tokenizer.vocab_size, max_decode_length=30, **ids)
    model.save_pretrained(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def answers(loaded):
    """Greedy answers of up to 30 tokens, each prompt alone and without a cache."""
    model, tokenizer = loaded
    rows = [
        model.generate(tokenizer.encode(text), do_sample=False, max_length=30, use_past=False)[0]
        for text in TEXTS
    ]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def shaped(texts) -> list:
    return [{"text_generation_text": [text]} for text in texts]


def test_auto_class_snippet(folder, answers):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    model.set_train(False)
    inputs = tokenizer(TEXTS[1])
    outputs = model.generate(inputs["input_ids"], max_length=30, do_sample=False)
    response = tokenizer.decode(outputs)[0]
    assert response.replace("<|endoftext|>", "") == answers[1]
    sampled = model.generate(inputs["input_ids"], max_length=30, do_sample=20)
    assert tokenizer.decode(sampled)[0].startswith(TEXTS[1])


def test_pipeline_snippets(folder, loaded, answers):
    pipeline_task = pipeline("text_generation", model=folder, max_length=30)
    assert pipeline_task(TEXTS[0], do_sample=False) == shaped(answers[:1])
    assert pipeline(task="text_generation", model=str(folder))(TEXTS, max_length=30) == shaped(
        answers
    )
    model, tokenizer = loaded
    assert TextGenerationPipeline(model, tokenizer, batch_size=1)(TEXTS) == shaped(answers)
    assert TextGenerationPipeline(Model(model), tokenizer)(TEXTS) == shaped(answers)
    assert TextGenerationPipeline(model)(TEXTS) == shaped(answers)


@pytest.mark.parametrize("use_past", [True, False])
def test_predict_custom_snippet(folder, answers, use_past):
    """Rows that the tokenizer padded to `max_decode_length`; the pad is the end-of-text token."""
    model_config = AutoConfig.from_pretrained(folder)
    model_config.parallel_config.data_parallel = 1
    model_config.batch_size = len(TEXTS)
    model_config.use_past = use_past
    model_config.do_sample = False
    model_config.max_decode_length = 30
    model_config.checkpoint_name_or_path = str(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModel.from_config(model_config)
    inputs_ids = tokenizer(TEXTS, max_length=model_config.max_decode_length, padding="max_length")[
        "input_ids"
    ]
    outputs = network.generate(inputs_ids, max_length=model_config.max_decode_length)
    texts = [tokenizer.decode(output).replace("<|endoftext|>", "") for output in outputs]
    assert texts == answers


@pytest.mark.parametrize("kind", [None, "np", "ms"])
@pytest.mark.parametrize("padding", [True, "max_length"])
def test_whatever_the_tokenizer_returns(loaded, answers, kind, padding):
    model, tokenizer = loaded
    encoded = tokenizer(TEXTS, max_length=29, padding=padding, return_tensors=kind)
    for given in (encoded, {"input_ids": encoded["input_ids"]}):
        rows = model.generate(**given, max_length=30)
        assert [tokenizer.decode(row, skip_special_tokens=True) for row in rows] == answers


def test_an_empty_text(loaded):
    model, tokenizer = loaded
    (result,) = TextGenerationPipeline(model, tokenizer, max_new_tokens=3)("")
    (row,) = model.generate([tokenizer.bos_token_id], max_new_tokens=3)
    assert result["text_generation_text"] == [tokenizer.decode(row, skip_special_tokens=True)]


def test_streamers(loaded, answers):
    model, tokenizer = loaded
    file = io.StringIO()
    ids = tokenizer(TEXTS[0])["input_ids"]
    model.generate(ids, max_length=30, streamer=TextStreamer(tokenizer, stream=file))
    assert file.getvalue() == answers[0] + "\n"
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    options = {"max_length": 30, "streamer": streamer}
    thread = Thread(target=model.generate, args=(ids,), kwargs=options)
    thread.start()
    assert TEXTS[0] + "".join(streamer) == answers[0]
    thread.join()


def predict(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lm_gpt2.predict", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_command(folder, answers, tmp_path):
    """Several prompts, without --config: the directory says what it is."""
    done = predict("--load_checkpoint", folder, "--predict_data", *TEXTS)
    assert done.returncode == 0, done.stderr
    lines = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert lines == [shaped([answer]) for answer in answers]
    assert "tokens/s" in done.stderr


def test_command_with_all_its_flags(folder, loaded, tmp_path):
    model, tokenizer = loaded
    weights, words = tmp_path / "weights", tmp_path / "words"
    shutil.copytree(folder, weights)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        words.mkdir(exist_ok=True)
        shutil.copy(folder / name, words)
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(TEXTS) + "\n")
    done = predict(
        *("--config", "gpt2_tiny", "--load_checkpoint", weights, "--tokenizer", words),
        *("--predict_data", file, "--do_sample", "True", "--max_new_tokens", 9, "--top_k", 0),
        *("--temperature", 1.5, "--seed", 3, "--stream"),
        f"model.model_config.vocab_size={tokenizer.vocab_size}",
    )
    assert done.returncode == 0, done.stderr
    options = {"do_sample": True, "top_k": 0, "temperature": 1.5, "seed": 3}
    rows = [
        model.generate(tokenizer.encode(text), max_new_tokens=9, **options)[0] for text in TEXTS
    ]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    assert done.stdout == "".join(f"{text}\n" for text in texts)


def test_command_without_a_tokenizer(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bare")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    (tmp_path / "bare" / "manifest.json").unlink(missing_ok=True)
    done = predict("--load_checkpoint", tmp_path / "bare", "--predict_data", "a")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "has no vocabulary; must be a folder with one; add --tokenizer DIR" in done.stderr


def test_rows_are_what_was_promised(loaded):
    model, tokenizer = loaded
    rows = model.generate(tokenizer(TEXTS)["input_ids"], max_new_tokens=2)
    assert isinstance(rows, list)
    assert all(isinstance(row, np.ndarray) and row.dtype == np.int32 for row in rows)
