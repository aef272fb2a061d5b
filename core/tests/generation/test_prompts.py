"""What counts as a prompt and what as padding; how far each may grow."""

from __future__ import annotations

import numpy as np
import pytest

from lm_core.errors import GenerationError
from lm_core.generation.config import GenerationConfig
from lm_core.generation.prompts import fit, read_prompts

EOS = 9


def read(ids, mask=None, bos=None, pad=EOS):
    rows = read_prompts(ids, mask, vocab_size=10, bos=bos, pad=pad)
    assert all(row.dtype == np.int32 and row.ndim == 1 for row in rows)
    return [row.tolist() for row in rows]


class FakeTensor:
    def __init__(self, values):
        self.array = np.array(values)
        self.ndim = self.array.ndim

    def asnumpy(self):
        return self.array


@pytest.mark.parametrize("kind", [list, tuple, np.array, np.int64, FakeTensor, "i8", "u1"])
def test_one_prompt_in_every_form(kind):
    if isinstance(kind, str):
        flat = np.array([1, 2, 3], kind)
    else:
        flat = [np.int64(1), np.int64(2), np.int64(3)] if kind is np.int64 else kind([1, 2, 3])
    assert read(flat) == [[1, 2, 3]]


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2, 3], [4, 5, 6]], [(1, 2, 3), (4, 5, 6)], np.array([[1, 2, 3], [4, 5, 6]]),
        [np.array([1, 2, 3]), [4, 5, 6]], [FakeTensor([1, 2, 3]), FakeTensor([4, 5, 6])],
        FakeTensor([[1, 2, 3], [4, 5, 6]]),
    ],
)  # fmt: skip
def test_several_prompts_in_every_form(rows):
    assert read(rows) == [[1, 2, 3], [4, 5, 6]]


def test_unequal_prompts_hold_no_padding():
    assert read([[1, 2, EOS, EOS], [3, EOS], [4]]) == [[1, 2, EOS, EOS], [3, EOS], [4]]


def test_rows_padded_to_a_length():
    assert read([[1, 2, EOS, EOS, EOS], [3, 4, 5, EOS, EOS]]) == [[1, 2], [3, 4, 5]]
    assert read([[1, 2, EOS, EOS], [3, 4, EOS, EOS]]) == [[1, 2], [3, 4]]
    assert read(np.array([[1, EOS, EOS]])) == [[1]]
    assert read([1, EOS, EOS]) == [[1]]


def test_rows_padded_to_the_longest():
    assert read([[1, 2, 3], [4, 5, EOS]]) == [[1, 2, 3], [4, 5]]
    assert read([[1, EOS, 3], [EOS, 5, EOS]]) == [[1, EOS, 3], [EOS, 5]]


@pytest.mark.parametrize(
    "ids", [[1, 2, EOS], [[1, 2, EOS]], [[1, EOS], [2, EOS]], [EOS], [[EOS]], [[EOS], [EOS]]]
)
def test_one_eos_at_the_end_of_every_row_is_text(ids):
    assert read(ids) == (ids if isinstance(ids[0], list) else [ids])


def test_without_a_pad_nothing_is_padding():
    assert read([[1, EOS, EOS], [2, 3, EOS]], pad=None) == [[1, EOS, EOS], [2, 3, EOS]]


def test_nothing_but_pads_is_an_empty_prompt():
    assert read([[EOS, EOS], [1, 2]], bos=EOS) == [[EOS], [1, 2]]
    assert read([[EOS, EOS], [1, 2]], bos=0) == [[0], [1, 2]]
    with pytest.raises(GenerationError, match="prompt 0 is empty"):
        read([[EOS, EOS], [1, 2]])


def test_the_mask_decides():
    assert read([[1, 2, EOS], [3, 4, EOS]], [[1, 1, 1], [1, 1, 0]]) == [[1, 2, EOS], [3, 4]]
    assert read([[1, 2, EOS], [3, EOS, EOS]], np.array([[1, 1, 1], [1, 1, 0]])) == [
        [1, 2, EOS],
        [3, EOS],
    ]
    assert read([[EOS, EOS, 1], [3, 4, 5]], [[False, False, True], [True, True, True]]) == [
        [1],
        [3, 4, 5],
    ]
    assert read([1, EOS, EOS], [1, 1, 1]) == [[1, EOS, EOS]]
    assert read([[1, EOS], [2]], [[1, 0], [1]]) == [[1], [2]]


def test_random_batches_give_back_their_prompts():
    """Prompts that do not end in a pad survive padding to any width."""
    rng = np.random.default_rng(3)
    for _ in range(300):
        count = rng.integers(1, 5)
        prompts = [rng.integers(0, 10, rng.integers(1, 8)).tolist() for _ in range(count)]
        prompts = [[*prompt, 3] if prompt[-1] == EOS else prompt for prompt in prompts]
        longest = max(map(len, prompts))
        # One pad behind every row is what rows that end in the EOS look like; a batch never does.
        width = (
            longest + rng.choice([0, 2, 3])
            if len({*map(len, prompts)}) == 1
            else longest + rng.integers(0, 4)
        )
        padded = [prompt + [EOS] * (width - len(prompt)) for prompt in prompts]
        assert read(padded) == read(np.array(padded)) == read(prompts) == prompts
        mask = [[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts]
        assert read(padded, mask, pad=None) == prompts


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("text", r"is str; must be token ids; use tokenizer\(text\)"),
        ({"input_ids": [1]}, "is dict; must be token ids"),
        ([1.5, 2.0], "holds float64"),
        ([[1, 2], "ab"], "input_ids"),
        ([1, [2]], "mixes ids and lists"),
        ([[[1]]], r"has shape \[1, 1, 1\]"),
        (np.zeros((0, 4), int), r"has shape \[0, 4\]"),
        (5, r"has shape \[\]"),
        (None, "input_ids"),
        ([1, 10], "prompt 0 has id 10 at position 1; must be from 0 to 9"),
        ([[1, 2], [3, -1]], "prompt 1 has id -1 at position 1"),
        ([1, 2**40], "has id 1099511627776"),
        ([1, 2**70], "input_ids"),
        ([], "prompt 0 is empty; must hold a token"),
        ([[1], []], "prompt 1 is empty"),
    ],
)
def test_refused(ids, message):
    with pytest.raises(GenerationError, match=message):
        read(ids)


def test_an_empty_prompt_begins_with_bos():
    assert read([], bos=4) == [[4]]
    assert read([[1], []], bos=4) == [[1], [4]]
    assert read([[7, 7]], [[0, 0]], bos=4) == [[4]]


@pytest.mark.parametrize("mask", [[[1, 1]], [[1, 1], [1]], [1, 1, 1], [[1, 1], [1, 1], [1, 1]]])
def test_a_mask_of_another_shape(mask):
    with pytest.raises(
        GenerationError, match="attention_mask: has rows of .* but input_ids of 2, 2"
    ):
        read([[1, 2], [3, 4]], mask)


def test_a_large_batch_reports_a_few_rows_only():
    with pytest.raises(GenerationError) as error:
        read([[99]] * 100)
    assert len(error.value.problems) == 8


def fitted(lengths, context=16, **settings):
    prompts = [np.arange(length, dtype=np.int32) for length in lengths]
    rows, limits = fit(prompts, GenerationConfig(**settings), context)
    return [row.tolist() for row in rows], limits.tolist()


@pytest.mark.parametrize(
    ("lengths", "settings", "limits"),
    [
        ([3, 5], {"max_length": 9}, [9, 9]),
        ([3, 5], {"max_new_tokens": 4}, [7, 9]),
        ([3, 5], {"max_new_tokens": 4, "max_length": 8}, [7, 8]),
        ([3, 14], {"max_new_tokens": 4}, [7, 16]),
        ([3, 15], {"max_length": 99}, [16, 16]),
        ([1], {"max_length": 2}, [2]),
    ],
)
def test_limits(lengths, settings, limits):
    rows, found = fitted(lengths, **settings)
    assert found == limits
    assert [len(row) for row in rows] == lengths


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_length": 5},
            "prompt 1 has 5 tokens; must be fewer than max_length 5, which counts the prompt",
        ),
        ({"max_new_tokens": 1, "max_length": 4}, "prompt 1 has 5 tokens"),
        ({"max_length": 3}, "prompt 0 has 3 tokens"),
    ],
)
def test_a_prompt_that_fills_max_length(settings, message):
    with pytest.raises(GenerationError, match=message):
        fitted([3, 5], **settings)


@pytest.mark.parametrize("length", [16, 17, 40])
def test_a_prompt_that_fills_the_context(length):
    with pytest.raises(
        GenerationError,
        match=f"prompt 0 has {length} tokens; .* context of 16; .*truncation='left'",
    ):
        fitted([length], max_new_tokens=1)


@pytest.mark.parametrize(
    ("length", "settings", "first", "limit"),
    [
        (20, {"max_new_tokens": 4}, 8, 16),
        (20, {"max_length": 10}, 11, 10),
        (14, {"max_new_tokens": 4}, 2, 16),
        (12, {"max_new_tokens": 4}, 0, 16),
        (20, {"max_new_tokens": 99}, 19, 16),
        (20, {"max_new_tokens": 2, "max_length": 10}, 12, 10),
    ],
)
def test_truncation_keeps_the_end_and_room_for_the_answer(length, settings, first, limit):
    rows, limits = fitted([length], truncation="left", **settings)
    assert rows == [list(range(first, length))]
    assert limits == [limit]
