"""The server as OpenAI's client sees it."""

from __future__ import annotations

import math
import threading

import pytest

openai = pytest.importorskip("openai")

QUESTION = [{"role": "user", "content": "Where?"}]
TEXT = {"model": "toy", "prompt": "Where?"}
CHAT = {"model": "toy", "messages": QUESTION}


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """The server is on this machine, whatever the environment says of proxies."""
    monkeypatch.setenv("NO_PROXY", "*")


def client_of(server, key="x", **options):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, **options)


@pytest.fixture
def client(serve):
    return client_of(serve())


def test_a_chat(client, serve):
    says = serve().says
    done = client.chat.completions.create(**CHAT)
    (choice,) = done.choices
    assert (done.object, done.model) == ("chat.completion", "toy")
    assert choice.message.role == "assistant" and choice.finish_reason == "stop"
    assert choice.message.content == says.lstrip()
    assert choice.logprobs is None
    prompt, new = len("u:Where?\n"), len(says.encode()) + 1
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (prompt, new)
    assert done.usage.total_tokens == prompt + new


def test_a_chat_that_streams(client, serve):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options=options))
    *parts, usage = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    texts = [part.choices[0].delta.content or "" for part in parts]
    assert "".join(texts) == serve().says.lstrip() and len(texts) > 20
    reasons = [part.choices[0].finish_reason for part in parts]
    assert reasons == [None] * (len(parts) - 1) + ["stop"]
    assert usage.choices == [] and usage.usage.completion_tokens == len(serve().says.encode()) + 1
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_completion_is_short_unless_more_is_asked_for(client, serve):
    says = serve().says
    done = client.completions.create(**TEXT)
    assert (done.choices[0].text, done.choices[0].finish_reason) == (says[:16], "length")
    assert done.usage.completion_tokens == 16
    assert client.completions.create(**TEXT, max_tokens=99).choices[0].text == says
    chunks = client.completions.create(**TEXT, max_tokens=99, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == says


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequences_are_obeyed(client, stream):
    done = client.completions.create(**TEXT, max_tokens=99, stop=["mat.", "sat on"], stream=stream)
    chunks = list(done) if stream else [done]
    assert "".join(chunk.choices[0].text for chunk in chunks) == " The cat "
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_several_prompts_and_answers_are_told_apart(client, serve):
    prompts = ["Where?", "endless"]
    done = client.completions.create(model="toy", prompt=prompts, n=2, max_tokens=5)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in done.choices] == [serve().says[:5]] * 2 + ["lalal"] * 2
    assert done.usage.prompt_tokens == len("Where?endless")
    texts = ["", "", "", ""]
    for chunk in client.completions.create(
        model="toy", prompt=[list(b"Where?"), list(b"endless")], n=2, max_tokens=5, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in done.choices]


def test_chances_of_a_chat(client):
    done = client.chat.completions.create(**CHAT, max_tokens=4, logprobs=True, top_logprobs=2)
    content = done.choices[0].logprobs.content
    assert [entry.token for entry in content] == [" ", "T", "h", "e"]
    total = math.log(math.exp(9) + math.exp(6) + 254)
    for entry in content:
        assert (
            entry.logprob == pytest.approx(9 - total) and bytes(entry.bytes).decode() == entry.token
        )
        assert [best.token for best in entry.top_logprobs] == [entry.token, "z"]
        assert entry.top_logprobs[1].logprob == pytest.approx(6 - total)
    stream = client.chat.completions.create(**CHAT, max_tokens=4, logprobs=True, stream=True)
    tokens = [e.token for c in stream if (p := c.choices[0].logprobs) for e in p.content]
    assert tokens == [" ", "T", "h", "e"]


def test_chances_of_a_completion(client):
    chances = client.completions.create(**TEXT, max_tokens=3, logprobs=1).choices[0].logprobs
    assert chances.tokens == [" ", "T", "h"] and chances.text_offset == [0, 1, 2]
    assert [list(best) for best in chances.top_logprobs] == [[" "], ["T"], ["h"]]
    assert chances.token_logprobs == [best[token] for best, token in zip(
        chances.top_logprobs, chances.tokens, strict=True
    )]  # fmt: skip


def test_settings_reach_the_generation(client):
    """The other byte is drawn where the temperature is high, and a seed repeats the draws."""
    hot = {"temperature": 2.0, "seed": 5, "max_tokens": 40, "extra_body": {"top_k": 2}}
    drawn = client.completions.create(**TEXT, **hot).choices[0].text
    assert "z" in drawn and drawn == client.completions.create(**TEXT, **hot).choices[0].text
    others = {
        client.completions.create(**TEXT, **{**hot, "seed": s}).choices[0].text for s in (6, 7)
    }
    assert drawn not in others
    cold = client.completions.create(**TEXT, temperature=0, max_tokens=40).choices[0].text
    assert "z" not in cold
    assert client.completions.create(**TEXT, **{**hot, "top_p": 0.0}).choices[0].text == cold
    harder = client.completions.create(
        **TEXT, max_tokens=40, extra_body={"repetition_penalty": 4.0}
    )
    assert "z" in harder.choices[0].text


def test_models(client):
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").max_model_len == 120
    with pytest.raises(openai.NotFoundError, match="'big' is not here; must be 'toy'"):
        client.models.retrieve("big")
    with pytest.raises(openai.NotFoundError) as error:
        client.completions.create(model="big", prompt="x")
    assert error.value.code == "model_not_found"


REFUSED = [
    (TEXT, {"temprature": 1}, "temprature: unknown key; did you mean temperature?"),
    (TEXT, {"temperature": "1"}, "temperature: is .* must be a number >= 0 and <= 2"),
    (TEXT, {"temperature": 2.5}, "temperature: is 2.5"),
    (TEXT, {"n": 0}, "n: is 0; must be a whole number >= 1"),
    (TEXT, {"n": 9}, "n: makes 9 answers; must be at most 8"),
    (TEXT, {"max_tokens": 0}, "max_tokens: is 0"),
    (TEXT, {"presence_penalty": 0.5}, "presence_penalty: is 0.5; .* use repetition_penalty"),
    (TEXT, {"echo": True}, "echo: is True; must be False"),
    (TEXT, {"best_of": 3}, "best_of: is 3"),
    (TEXT, {"prompt": ["a", 1]}, "prompt: .* must be a text, a list of texts, a list of token ids"),
    (TEXT, {"prompt": []}, "prompt: is an empty list"),
    (TEXT, {"prompt": [1, 999]}, "has id 999 at position 1; must be from 0 to 255"),
    (TEXT, {"prompt": ["a"] * 9, "n": 8}, "make 72 answers; must be at most 64"),
    (TEXT, {"prompt": "a" * 120}, r"prompt\[0\]: has 120 tokens; must have at most 119"),
    (TEXT, {"stop": ["a"] * 5}, "stop: .* a text or a list of up to 4 texts"),
    (TEXT, {"stop": ""}, r"stop\[0\]: has 0 characters"),
    (TEXT, {"stream_options": {"include_usage": True}}, "stream_options: is given without stream"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools: is .* must be \\[\\]"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs: is given without logprobs"),
    (CHAT, {"messages": []}, "messages: .* must be a list of messages"),
    (CHAT, {"messages": [{"role": "robot", "content": ""}]}, r"messages\[0\].role: .* of system"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content: is"),
    (CHAT, {"messages": [{"role": "user", "content": "#"}]}, "messages: hold #; must not"),
    (CHAT, {"messages": QUESTION * 20}, "messages: has 180 tokens; must have at most 119"),
]  # fmt: skip


def test_what_cannot_be_met_is_refused(client):
    for base, change, match in REFUSED:
        create = client.completions.create if "prompt" in base else client.chat.completions.create
        with pytest.raises(openai.BadRequestError, match=match) as error:
            create(model="toy", **{k: v for k, v in base.items() if k not in ("model", *change)},
                   extra_body=change, **({"prompt": ""} if "prompt" in change else {}),
                   **({"messages": []} if "messages" in change else {}))  # fmt: skip
        assert error.value.type == "invalid_request_error", change
        assert error.value.body["param"], change


def test_what_asks_for_nothing_may_be_sent(client):
    neutral = {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "user": "me"}
    client.completions.create(**TEXT, **neutral, echo=False, suffix=None, best_of=1)
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "ere?"}]
    done = client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": parts}], **neutral, tools=[],
        tool_choice="none", response_format={"type": "text"}, max_completion_tokens=3, n=1,
    )  # fmt: skip
    assert done.usage.prompt_tokens == len("u:Where?\n")
    assert (done.usage.completion_tokens, done.choices[0].finish_reason) == (3, "length")


def test_most_tokens_of_an_answer(serve):
    client = client_of(serve(new_tokens=8))
    assert client.chat.completions.create(**CHAT).usage.completion_tokens == 8
    assert client.completions.create(**TEXT).usage.completion_tokens == 8
    with pytest.raises(openai.BadRequestError, match="max_tokens: is 9; must be at most 8"):
        client.completions.create(**TEXT, max_tokens=9)


def test_a_key(serve):
    server = serve(api_key=b"right")
    for key in ("wrong", "right ", "righ", "x" * 5000):
        with pytest.raises(openai.AuthenticationError) as error:
            client_of(server, key.strip() + "!").completions.create(**TEXT)
        assert error.value.code == "invalid_api_key"
    assert client_of(server, "right").completions.create(**TEXT).choices[0].text


def test_a_model_that_cannot_chat(serve):
    client = client_of(serve(chats=False))
    with pytest.raises(openai.NotFoundError, match="has no chat format; .* use /v1/completions"):
        client.chat.completions.create(**CHAT)
    assert client.completions.create(**TEXT).choices[0].text


def test_a_full_queue_and_an_answer_that_takes_too_long(serve):
    server = serve(rows=1, pause=0.02, max_queue=1, seconds=1.0)
    errors = []

    def ask():
        try:
            client_of(server).completions.create(model="toy", prompt="endless", max_tokens=110)
        except openai.APIStatusError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(error.status_code for error in errors)
    assert codes == [429] * 4 + [504] * 2
    full = next(error for error in errors if error.status_code == 429)
    assert full.code == "queue_full" and full.response.headers["retry-after"] == "1"
    assert server.idle()


def test_a_stream_that_takes_too_long_says_so(serve):
    server = serve(pause=0.05, seconds=0.5)
    stream = client_of(server).completions.create(
        model="toy", prompt="endless", max_tokens=110, stream=True
    )
    text = ""
    with pytest.raises(openai.APIError, match="took too long"):
        for chunk in stream:
            text += chunk.choices[0].text
    assert text.startswith("la") and server.idle()
