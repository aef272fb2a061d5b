"""The loop of `generate` on a fake model; the oracle is a plain loop over one prompt."""

from __future__ import annotations

import numpy as np
import pytest

from lm_core.errors import GenerationError
from lm_core.generation import sampling
from lm_core.generation.config import GenerationConfig
from lm_core.generation.generate import generate


def oracle(model, prompt, limit, eos=(), penalty=1.0, draw=None) -> list[int]:
    """One prompt, one token at a time, by the definition."""
    tokens = list(prompt)
    while len(tokens) < limit:
        scores = model.logits(np.array(tokens)).astype(np.float64)
        for token in set(tokens):
            scores[token] = (
                scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
            )
        tokens.append(int(np.argmax(scores)) if draw is None else draw(scores))
        if tokens[-1] in eos:
            break
    return tokens


def lists(rows) -> list[list[int]]:
    assert isinstance(rows, list)
    assert all(
        isinstance(row, np.ndarray) and row.dtype == np.int32 and row.ndim == 1 for row in rows
    )
    return [row.tolist() for row in rows]


def random_prompts(rng, vocab=31, longest=9) -> list[list[int]]:
    return [
        rng.integers(0, vocab, rng.integers(1, longest)).tolist() for _ in range(rng.integers(1, 6))
    ]


@pytest.fixture(params=["logits", "greedy"])
def decoder(request, greedy_decoder):
    return {"greedy": {"decoder": greedy_decoder}, "logits": {}}[request.param]


def test_greedy_batches_equal_the_oracle(fake, decoder):
    rng = np.random.default_rng(0)
    for seed in range(40):
        model = fake(seed=seed, **decoder)
        prompts = random_prompts(rng)
        eos = rng.choice(31, rng.integers(0, 12), replace=False).tolist()
        new = int(rng.integers(1, 15))
        found = lists(generate(model, prompts, max_new_tokens=new, eos_token_id=eos))
        limits = [min(len(prompt) + new, model.positions) for prompt in prompts]
        assert found == [oracle(model, *pair, eos) for pair in zip(prompts, limits, strict=True)]
        assert [
            lists(generate(model, row, max_new_tokens=new, eos_token_id=eos))[0] for row in prompts
        ] == found


def test_the_decoder_finds_the_greedy_token_itself(fake, greedy_decoder):
    model = fake(decoder=greedy_decoder)
    generate(model, [1, 2], max_new_tokens=5)
    assert model.greedy_steps == 4  # the first token comes from the prefill
    generate(model, [1, 2], max_new_tokens=5, repetition_penalty=1.2)
    generate(model, [1, 2], max_new_tokens=5, do_sample=True)
    assert model.greedy_steps == 4  # these need the logits


def test_penalty_covers_real_tokens_of_the_own_row_only(fake):
    rng = np.random.default_rng(1)
    for seed in range(25):
        model = fake(seed=seed, pad_token_id=0)
        prompts = random_prompts(rng)
        penalty = float(rng.choice([0.5, 1.3, 5.0]))
        found = lists(
            generate(model, prompts, max_length=18, repetition_penalty=penalty, eos_token_id=3)
        )
        assert found == [oracle(model, prompt, 18, (3,), penalty) for prompt in prompts]


def test_sampled_batches_equal_each_prompt_alone(fake):
    rng = np.random.default_rng(2)
    options = {"do_sample": True, "temperature": 1.3, "max_new_tokens": 12, "eos_token_id": [1, 2]}
    for seed in range(25):
        model = fake(seed=seed)
        prompts = [[*prompt, 3 + number] for number, prompt in enumerate(random_prompts(rng))]
        more = {
            "top_k": int(rng.choice([0, 3, 50])),
            "top_p": float(rng.choice([0.6, 1.0])),
            "seed": seed,
        }
        batch = lists(generate(model, prompts, **options, **more))
        assert batch == [lists(generate(model, prompt, **options, **more))[0] for prompt in prompts]
        assert batch == lists(generate(model, prompts, batch_size=2, **options, **more))


def test_each_token_is_an_exponential_race(fake):
    """What is drawn is what the prompt's stream and the exact distribution say."""
    model, prompt = fake(), [4, 9, 9]
    (stream,) = sampling.streams([np.array(prompt, np.int32)], 6)

    def draw(scores):
        weights = np.exp((scores - scores.max()) / 0.8)
        return int(np.argmax(weights / stream.standard_exponential(31)))

    options = {"do_sample": True, "temperature": 0.8, "top_k": 0, "seed": 6, "max_length": 24}
    assert lists(generate(model, prompt, **options)) == [oracle(model, prompt, 24, draw=draw)]


def test_one_prompt_many_times_gives_the_distribution(fake):
    model = fake(vocab=12)
    rows = lists(generate(model, [[5]] * 8000, do_sample=True, top_k=0, seed=3, max_new_tokens=1))
    logits = model.logits(np.array([5])).astype(np.float64)
    exact = np.exp(logits) / np.exp(logits).sum()
    expected = 8000 * exact
    counts = np.bincount([row[-1] for row in rows], minlength=12)
    wide = expected > 5
    assert (((counts - expected) ** 2 / expected)[wide].sum() - wide.sum() + 1) / np.sqrt(
        2 * wide.sum()
    ) < 4


def test_no_seed_is_fresh_and_a_seed_repeats(fake):
    model = fake()
    options = {"do_sample": True, "max_length": 24, "top_k": 0, "temperature": 2.0}
    assert lists(generate(model, [1], **options)) != lists(generate(model, [1], **options))
    assert lists(generate(model, [1], seed=0, **options)) == lists(
        generate(model, [1], seed=0, **options)
    )
    assert lists(generate(model, [1], seed=0, **options)) != lists(
        generate(model, [1], seed=1, **options)
    )


def test_top_k_1_top_p_0_and_a_tiny_temperature_are_greedy(fake):
    model = fake()
    greedy = lists(generate(model, [[1], [2, 3]], max_length=20))
    for option in ({"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-9}):
        assert (
            lists(generate(model, [[1], [2, 3]], max_length=20, do_sample=True, **option)) == greedy
        )


def test_the_call_of_the_model_card(fake):
    """`do_sample=20` is a truth value, the lengths and the eos come from the model's settings."""
    model = fake(
        eos_token_id=30,
        bos_token_id=30,
        pad_token_id=30,
        max_decode_length=11,
        do_sample=False,
        top_k=5,
    )
    assert all(len(row) <= 11 for row in generate(model, [[1, 2], [3]], do_sample=20, seed=1))
    padded = [[1, 2, 30, 30], [3, 4, 5, 30]]
    assert lists(generate(model, padded)) == lists(generate(model, [[1, 2], [3, 4, 5]]))
    assert lists(generate(model, padded, max_length=9)) == [
        oracle(model, [1, 2], 9, (30,)), oracle(model, [3, 4, 5], 9, (30,))
    ]  # fmt: skip


def test_every_row_gets_max_new_tokens(fake):
    rows = generate(fake(), [[1], [1, 2, 3, 4, 5, 6]], max_new_tokens=4)
    assert [len(row) for row in rows] == [5, 10]


def test_defaults_to_20_new_tokens(fake):
    assert len(generate(fake(positions=64), [1, 2, 3])[0]) == 23


def test_the_context_can_be_filled_to_the_last_place(fake, decoder):
    model = fake(positions=10, **decoder)
    assert lists(generate(model, [[1], list(range(9))], max_length=10)) == [
        oracle(model, [1], 10), oracle(model, range(9), 10)
    ]  # fmt: skip
    assert [len(row) for row in generate(model, [[1], [2, 3]], max_new_tokens=500)] == [10, 10]
    with pytest.raises(GenerationError, match="prompt 0 has 10 tokens"):
        generate(model, list(range(10)), max_new_tokens=1)
    cut = generate(model, list(range(15)), max_new_tokens=3, truncation="left")[0].tolist()
    assert cut == oracle(model, range(8, 15), 10)


def test_stops_when_all_rows_are_finished(fake):
    model = fake(seed=4)
    free = oracle(model, [1, 2], 20)
    eos = free[4]
    assert eos not in free[2:4]
    generate(model, [1, 2], max_length=20, eos_token_id=eos)
    assert model.opened[-1].steps == 2  # three new tokens, the first of them from the prefill
    generate(model, [1, 2], max_length=3)
    assert model.opened[-1].steps == 0


def test_a_row_ends_when_its_answer_is_whole(fake, decoder):
    """The answer alone decides, and rows that go on are not disturbed."""
    model, prompts = fake(seed=3, **decoder), [[1, 2, 3], [4], [5, 6]]
    whole = lists(generate(model, prompts, max_new_tokens=9, eos_token_id=[]))
    asked = []

    def stop(answer):
        asked.append(len(answer))
        return len(answer) == 2 + answer[0] % 5

    found = lists(generate(model, prompts, max_new_tokens=9, eos_token_id=[], stop=stop))
    starts = [len(prompt) for prompt in prompts]
    wanted = [
        row[: start + min(9, 2 + row[start] % 5)] for row, start in zip(whole, starts, strict=True)
    ]
    assert found == wanted and len({len(row) for row in found}) > 1
    assert len(asked) == sum(map(len, found)) - sum(starts)
    with pytest.raises(GenerationError, match="stop: beam search has no answer before its end"):
        generate(model, prompts, num_beams=2, stop=stop)


def test_eos_in_the_prompt_does_not_stop(fake):
    model = fake()
    assert len(generate(model, [7, 7, 7], max_new_tokens=3, eos_token_id=7)[0]) >= 4


def test_an_empty_list_of_eos_never_stops(fake):
    model = fake(eos_token_id=list(range(31)))
    assert len(generate(model, [1], max_length=20)[0]) == 2
    assert len(generate(model, [1], max_length=20, eos_token_id=[])[0]) == 20


def test_a_generation_config_and_options(fake):
    model = fake(max_decode_length=9, repetition_penalty=3.0, eos_token_id=30)
    plain = GenerationConfig()
    assert lists(generate(model, [1, 2], plain)) == [oracle(model, [1, 2], 9, (30,))]
    assert lists(generate(model, [1, 2], plain, max_new_tokens=2)) == [
        oracle(model, [1, 2], 4, (30,))
    ]
    assert lists(generate(model, [1, 2])) == [oracle(model, [1, 2], 9, (30,), 3.0)]
    assert plain == GenerationConfig()


def test_the_mask_of_the_tokenizer(fake):
    model = fake(pad_token_id=30, eos_token_id=30)
    encoded = {"input_ids": [[1, 30], [2, 30]], "attention_mask": [[1, 1], [1, 0]]}
    found = lists(generate(model, **encoded, max_length=8))
    assert found == [oracle(model, [1, 30], 8, (30,)), oracle(model, [2], 8, (30,))]


def test_batches_use_no_more_rows_than_asked(fake):
    model = fake()
    rows = generate(model, [[token] for token in range(7)], max_new_tokens=2, batch_size=3)
    assert [decoder.rows for decoder in model.opened] == [3, 3, 1]
    assert lists(rows) == [oracle(model, [token], 3) for token in range(7)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_kk": 3}, r"top_kk: unknown generation setting; did you mean top_k\?"),
        ({"top_p": 2, "max_length": -1}, "max_length: -1; .*\ntop_p: 2;"),
        ({"batch_size": 0}, "batch_size: 0; must be"),
        ({"eos_token_id": 31}, "eos_token_id: 31 is outside the vocabulary of 31"),
    ],
)
def test_refused(fake, options, message):
    with pytest.raises(GenerationError, match=message):
        generate(fake(), [[1]], **options)


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True}, {"num_beams": 2}, {"repetition_penalty": 1.1}]
)
def test_broken_weights_are_refused(fake, options):
    model = fake()
    model.logits = lambda tokens: np.full(31, np.nan, np.float32)
    with pytest.raises(GenerationError, match="not finite"):
        generate(model, [1], max_length=5, **options)


class Recorder:
    def __init__(self):
        self.puts, self.ends = [], 0

    def put(self, tokens):
        self.puts.append(np.array(tokens).tolist())

    def end(self):
        self.ends += 1


def test_a_streamer_gets_the_prompt_and_each_token(fake, decoder):
    recorder = Recorder()
    (row,) = generate(fake(**decoder), [5, 6], streamer=recorder, max_new_tokens=4)
    assert recorder.puts == [[5, 6], *([token] for token in row[2:].tolist())]
    assert recorder.ends == 1


@pytest.mark.parametrize(
    "wrong", [{"top_p": 9}, {"input_ids": [[1], [2]]}, {"num_beams": 3}, {"input_ids": []}]
)
def test_a_streamer_ends_when_generate_fails(fake, wrong):
    recorder = Recorder()
    with pytest.raises(GenerationError):
        generate(fake(), **{"input_ids": [1], "streamer": recorder, **wrong})
    assert recorder.ends == 1
