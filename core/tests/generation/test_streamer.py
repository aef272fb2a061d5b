"""Streamed text is the decoded text, in whole characters."""

from __future__ import annotations

import io
from threading import Thread

import numpy as np
import pytest

from lm_core.errors import GenerationError
from lm_core.generation.generate import generate
from lm_core.generation.streamer import (
    CONTEXT,
    WINDOW,
    TextIteratorStreamer,
    TextPieces,
    TextStreamer,
)

SPECIAL = 256


class Bytes:
    """Token = byte; 256 is special."""

    def decode(self, ids, skip_special_tokens=False):
        self.longest = max(getattr(self, "longest", 0), len(ids))
        parts = [
            bytes([token]) if token < 256 else b"" if skip_special_tokens else b"<end>"
            for token in ids
        ]
        return b"".join(parts).decode("utf-8", "replace")


class Words:
    """As sentencepiece does: a leading space is dropped at the beginning of what is decoded."""

    def decode(self, ids, skip_special_tokens=False):
        return "".join(f" w{token}" for token in ids).removeprefix(" ")


class ByteFallback(Bytes):
    """One U+FFFD per byte of a broken character, as sentencepiece's byte tokens decode."""

    def decode(self, ids, skip_special_tokens=False):
        data, text = bytes(ids), ""
        while data:
            for size in (4, 3, 2, 1):
                try:
                    text += data[:size].decode()
                except UnicodeDecodeError:
                    continue
                break
            else:
                text, size = text + "\ufffd", 1
            data = data[max(size, 1) :] if len(data) >= size else b""
        return text


TEXTS = [
    "plain",
    "caf\u00e9 \u4f60\u597d",
    "\U0001f600\U0001f468\u200d\U0001f469",
    "a\n\nb\tc",
    "\ufffd\ufffd\ufffd\ufffd",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [Bytes, ByteFallback])
def test_pieces_are_whole_characters(text, tokenizer):
    pieces = TextPieces(tokenizer())
    found = [pieces.push([byte]) for byte in text.encode()] + [pieces.flush()]
    assert "".join(found) == text
    assert all(piece in text for piece in found)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


def test_characters_come_as_soon_as_they_are_whole():
    pieces = TextPieces(Bytes())
    assert [pieces.push([byte]) for byte in "a\u4f60b".encode()] == ["a", "", "", "\u4f60", "b"]
    assert pieces.flush() == ""


def test_random_bytes_give_the_decoded_whole():
    rng = np.random.default_rng(0)
    for _ in range(200):
        high = rng.random() < 0.5
        tokens = rng.integers(120 if high else 0, 257, rng.integers(1, 300)).tolist()
        for skip in (True, False):
            tokenizer = Bytes()
            pieces = TextPieces(tokenizer, skip)
            found, place = "", 0
            while place < len(tokens):
                size = int(rng.integers(1, 4))
                found += pieces.push(tokens[place : place + size])
                place += size
            assert found + pieces.flush() == Bytes().decode(tokens, skip)


def test_a_token_costs_the_same_after_a_long_text():
    tokenizer = Bytes()
    pieces = TextPieces(tokenizer)
    for token in b"x" * 1000 + b"\x80" * 1000:
        pieces.push([token])
    assert tokenizer.longest <= WINDOW + 1
    assert CONTEXT < WINDOW


def test_spaces_between_words_survive():
    pieces = TextPieces(Words())
    tokens = list(range(300))
    assert "".join(pieces.push([token]) for token in tokens) + pieces.flush() == Words().decode(
        tokens
    )


def stream(tokenizer, prompt, answer, **options) -> str:
    file = io.StringIO()
    streamer = TextStreamer(tokenizer, stream=file, **options)
    streamer.put(np.array([*prompt], int))
    for token in answer:
        streamer.put(np.array([token]))
    streamer.end()
    return file.getvalue()


def test_text_streamer():
    assert stream(Bytes(), b"Q:", b"A!") == "Q:A!\n"
    assert stream(Bytes(), b"Q:", b"A!", skip_prompt=True) == "A!\n"
    assert stream(Bytes(), b"Q", [*b"A", SPECIAL]) == "QA\n"
    assert stream(Bytes(), b"Q", [*b"A", SPECIAL], skip_special_tokens=False) == "QA<end>\n"
    assert stream(Words(), [1, 2], [3, 4], skip_prompt=True) == " w3 w4\n"
    assert stream(Bytes(), b"", b"\xe4\xbd") == "\ufffd\n"


def test_a_streamer_serves_several_answers():
    file = io.StringIO()
    streamer = TextStreamer(Bytes(), skip_prompt=True, stream=file)
    for answer in (b"one", b"two"):
        streamer.put(np.array([*b"prompt"]))
        streamer.put(np.array([[*answer]]))
        streamer.end()
    assert file.getvalue() == "one\ntwo\n"


def test_writes_to_the_standard_output_of_the_moment(capsys):
    streamer = TextStreamer(Bytes())
    streamer.put(np.array([*b"hi"]))
    assert capsys.readouterr().out == "hi"  # flushed at once
    streamer.end()
    assert capsys.readouterr().out == "\n"


def test_one_row_only():
    with pytest.raises(GenerationError, match="got 2 rows; must be one"):
        TextStreamer(Bytes()).put(np.zeros((2, 3), int))


def test_iterator_in_another_thread(fake):
    model = fake(vocab=200, positions=64)
    streamer = TextIteratorStreamer(Bytes(), timeout=10)
    options = {"streamer": streamer, "max_length": 60, "eos_token_id": []}
    thread = Thread(target=generate, args=(model, [72, 105]), kwargs=options)
    thread.start()
    pieces = list(streamer)
    thread.join()
    (row,) = generate(model, [72, 105], max_length=60, eos_token_id=[])
    assert "".join(pieces) == Bytes().decode(row.tolist())
    assert len(pieces) > 10 and pieces[0] == "Hi"


def test_iterator_ends_when_generate_fails(fake):
    streamer = TextIteratorStreamer(Bytes(), timeout=10)
    with pytest.raises(GenerationError):
        generate(fake(), [1], streamer=streamer, top_p=7)
    assert list(streamer) == []


def test_iterator_timeout():
    with pytest.raises(TimeoutError, match="no text for 0.01 s"):
        next(TextIteratorStreamer(Bytes(), timeout=0.01))
