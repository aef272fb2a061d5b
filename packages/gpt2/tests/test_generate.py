"""Generation with a real network: recorded tokens; batched and cached = alone and uncached."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from lm_core import AutoModel
from lm_core.parallel.context import ParallelContext
from lm_gpt2 import SPEC
from lm_gpt2.config import Gpt2Config

HERE = Path(__file__).parent
GOLDEN = HERE / "goldens" / "gpt2"


@pytest.fixture(scope="module")
def golden():
    return AutoModel.from_pretrained(GOLDEN)


def build(**sizes):
    config = Gpt2Config(**{"initializer_range": 0.4, "eos_token_id": None, **sizes})
    return SPEC.build(config, ParallelContext.local())


@pytest.fixture(scope="module")
def small():
    """Odd sizes, 3 layers, dropout that must be off while generating."""
    ids = dict.fromkeys(("bos_token_id", "pad_token_id", "unk_token_id"))
    sizes = {"vocab_size": 53, "hidden_size": 24, "num_layers": 3, "num_heads": 3}
    return build(**sizes, **ids, seq_length=40, expand_ratio=2)


def next_logits(model, tokens) -> np.ndarray:
    """Float64 [V], from a pass over the whole sequence, one prompt, no cache."""
    padded = np.zeros((1, model.config.seq_length), np.int32)
    padded[0, : len(tokens)] = tokens
    return model(Tensor(padded)).asnumpy()[0, len(tokens) - 1].astype(np.float64)


def by_hand(model, prompt, limit, eos=(), penalty=1.0) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < limit:
        scores = next_logits(model, tokens)
        seen = sorted(set(tokens))
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        tokens.append(int(scores.argmax()))
        if tokens[-1] in eos:
            break
    return tokens


def lists(rows) -> list[list[int]]:
    return [row.tolist() for row in rows]


def random_prompts(model, count, longest, seed=0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    return [rng.integers(0, model.config.vocab_size, length).tolist() for length in lengths]


@pytest.mark.parity
@pytest.mark.parametrize("use_past", [True, False])
def test_golden_greedy_tokens(golden, use_past):
    case = np.load(GOLDEN / "golden.npz")
    prompt, expected = case["greedy_prompt"], case["greedy_tokens"]
    new = expected.shape[1] - prompt.shape[1]
    for ids in (prompt, prompt.tolist(), prompt[0], Tensor(prompt.astype(np.int32))):
        rows = golden.generate(ids, max_new_tokens=new, eos_token_id=[], use_past=use_past)
        assert isinstance(rows, list) and rows[0].dtype == np.int32
        assert lists(rows) == expected.tolist()


@pytest.mark.parity
def test_beam_search_of_transformers(golden):
    cases = json.loads((HERE / "beam_search.json").read_text())["cases"]
    assert len(cases) == 75
    for case in cases:
        prompt, expected = case.pop("prompt"), case.pop("tokens")
        assert golden.generate(prompt, **case)[0].tolist() == expected, (prompt, case)


def test_greedy_batch_equals_each_prompt_by_hand(small):
    prompts = random_prompts(small, 5, 12)
    assert len({len(prompt) for prompt in prompts}) > 2
    expected = [by_hand(small, prompt, len(prompt) + 15) for prompt in prompts]
    assert lists(small.generate(prompts, max_new_tokens=15)) == expected
    assert lists(small.generate(prompts, max_new_tokens=15, use_past=False)) == expected
    assert [small.generate(prompt, max_new_tokens=15)[0].tolist() for prompt in prompts] == expected


def test_several_eos_and_penalty(small):
    prompts = random_prompts(small, 5, 12, seed=1)
    free = [by_hand(small, prompt, 30, penalty=1.4) for prompt in prompts]
    # Ends that come at different times in different rows, and a row that goes on to the limit.
    eos = [free[0][len(prompts[0]) + 1], free[1][len(prompts[1]) + 6]]
    options = {"max_length": 30, "eos_token_id": eos, "repetition_penalty": 1.4}
    expected = [by_hand(small, prompt, 30, eos, 1.4) for prompt in prompts]
    assert len({len(row) for row in expected}) > 1
    for use_past in (True, False):
        assert lists(small.generate(prompts, use_past=use_past, **options)) == expected
    assert [small.generate(prompt, **options)[0].tolist() for prompt in prompts] == expected


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": 7, "top_p": 0.8}, {"top_p": 0.9}])
def test_sampled_batch_equals_alone_and_uncached(small, options):
    prompts = random_prompts(small, 5, 12, seed=2)
    options = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 15, "seed": 5, **options}
    batch = lists(small.generate(prompts, **options))
    assert batch == lists(small.generate(prompts, use_past=False, **options))
    alone = [small.generate(prompt, use_past=False, **options)[0].tolist() for prompt in prompts]
    assert batch == alone
    assert batch == lists(small.generate(prompts, **options))
    assert batch != lists(small.generate(prompts, **{**options, "seed": 6}))


def test_padding_changes_nothing(small):
    prompts = random_prompts(small, 5, 12, seed=3)
    width = 17
    padded = np.array([prompt + [50] * (width - len(prompt)) for prompt in prompts])
    mask = np.array([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
    for options in ({}, {"do_sample": True, "seed": 1}, {"repetition_penalty": 2.0}):
        expected = lists(small.generate(prompts, max_new_tokens=15, **options))
        for more in ({"attention_mask": mask}, {"pad_token_id": 50}):
            assert lists(small.generate(padded, max_new_tokens=15, **more, **options)) == expected


def test_the_whole_context(small):
    context = small.config.seq_length
    prompts = [[1], random_prompts(small, 1, 60, seed=4)[0][: context - 1], list(range(20))]
    prompts[1] = (prompts[1] * context)[: context - 1]
    expected = [by_hand(small, prompt, context) for prompt in prompts]
    assert [len(row) for row in expected] == [context] * 3
    for options in ({"max_length": context}, {"max_new_tokens": 1000}, {"max_length": 10**9}):
        assert lists(small.generate(prompts, **options)) == expected
    assert lists(small.generate(prompts, max_length=context, use_past=False)) == expected


def test_beams_of_a_batch_equal_alone_and_uncached(small):
    prompts = random_prompts(small, 3, 12, seed=5)
    options = {"num_beams": 3, "max_new_tokens": 12, "eos_token_id": [3, 9, 27, 41]}
    batch = lists(small.generate(prompts, **options))
    assert batch == lists(small.generate(prompts, use_past=False, **options))
    assert batch == [small.generate(prompt, **options)[0].tolist() for prompt in prompts]


def test_sampling_follows_the_softmax_of_the_logits(small):
    rows = small.generate([[7, 8]] * 64, batch_size=64, do_sample=True, top_k=0, max_new_tokens=1)
    assert len({int(row[-1]) for row in rows}) > 1  # no seed: copies differ
    logits = next_logits(small, [7, 8]) / 3.0
    exact = np.exp(logits - logits.max())
    exact /= exact.sum()
    options = {"do_sample": True, "top_k": 0, "temperature": 3.0, "max_new_tokens": 1}
    drawn = small.generate([[7, 8]] * 6400, batch_size=64, seed=0, **options)
    counts = np.bincount([row[-1] for row in drawn], minlength=53)
    expected = 6400 * exact
    wide = expected > 5
    distance = ((counts - expected) ** 2 / expected)[wide].sum()
    assert abs(distance - wide.sum()) / np.sqrt(2 * wide.sum()) < 4


def test_earlier_calls_leave_nothing_behind(small):
    first, second = random_prompts(small, 2, 12, seed=6)
    expected = by_hand(small, first, 30), by_hand(small, second, 14)
    for _ in range(2):
        assert small.generate(first, max_length=30)[0].tolist() == expected[0]
        assert small.generate(second, max_length=14)[0].tolist() == expected[1]


def test_new_weights_and_training_mode():
    """A model that is being trained: its newest weights count, and dropout is off."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    ids = dict.fromkeys(("bos_token_id", "pad_token_id", "unk_token_id"))
    model = build(**sizes, **ids, seq_length=16, hidden_dropout_rate=0.5)
    before = model.generate([1, 2], max_length=16)[0].tolist()
    model.set_train(True)
    model.set_dropout(1, 1)
    assert model.generate([1, 2], max_length=16)[0].tolist() == before
    model.initialize(99)
    model.set_train(True)
    after = model.generate([1, 2], max_length=16)[0].tolist()
    assert after != before
    assert after == by_hand(model, [1, 2], 16)


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_heads": 1, "hidden_size": 8, "num_layers": 1, "seq_length": 33},
        {"num_heads": 6, "hidden_size": 30, "num_layers": 2, "seq_length": 130, "vocab_size": 999},
        {"num_heads": 2, "hidden_size": 20, "post_layernorm_residual": True, "seq_length": 64},
        {"tie_word_embeddings": False, "max_position_embeddings": 100, "hidden_act": "gelu_exact"},
    ],
)
def test_other_sizes(sizes):
    ids = dict.fromkeys(("bos_token_id", "pad_token_id", "unk_token_id"))
    usual = {"vocab_size": 40, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "seq_length": 48}
    model = build(**{**usual, **ids, **sizes})
    prompts = random_prompts(model, 3, 30, seed=8)
    limit = model.config.seq_length
    expected = [by_hand(model, prompt, limit) for prompt in prompts]
    assert lists(model.generate(prompts, max_length=limit)) == expected
