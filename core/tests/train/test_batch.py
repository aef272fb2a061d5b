import numpy as np
import pytest

from lm_core.metrics.accuracy import Accuracy
from lm_core.metrics.perplexity import Perplexity
from lm_core.train.batch import causal_batch, class_batch, fill_rows, split_rows

EOS, PAD = 9, 0
IDS = np.array([[1, EOS, 2, 3, EOS, EOS, EOS], [4, 5, 6, 7, 8, 1, 2]], np.int32)


def labels(columns, **tokens):
    inputs, found = causal_batch(columns, **tokens)
    np.testing.assert_array_equal(inputs, columns["input_ids"][:, :-1])
    assert inputs.dtype == found.dtype == np.int32
    assert inputs.flags["C_CONTIGUOUS"]
    return found.tolist()


def test_every_token_follows_its_input():
    assert labels({"input_ids": IDS}) == IDS[:, 1:].tolist()


def test_mask_excludes_targets_and_nothing_else():
    mask = np.ones_like(IDS)
    mask[0, 5:] = 0
    found = labels({"input_ids": IDS, "attention_mask": mask}, pad_token_id=EOS, eos_token_id=EOS)
    assert found == [[EOS, 2, 3, EOS, -100, -100], IDS[1, 1:].tolist()]


def test_labels_are_aligned_with_the_inputs():
    given = IDS.copy()
    given[1, :4] = -100
    before = given.copy()
    found = labels({"input_ids": IDS, "labels": given}, pad_token_id=EOS)
    assert found[1] == [-100, -100, -100, 8, 1, 2]
    np.testing.assert_array_equal(given, before)  # not changed in place


def test_labels_and_mask_must_agree():
    given, mask = IDS.copy(), np.ones_like(IDS)
    given[1, :4], mask[1, 6] = -100, 0
    found = labels({"input_ids": IDS, "labels": given, "attention_mask": mask})
    assert found[1] == [-100, -100, -100, 8, 1, -100]


def test_end_of_text_inside_a_record_is_a_target_and_the_first_at_its_end_too():
    found = labels({"input_ids": IDS}, pad_token_id=EOS, eos_token_id=EOS)
    assert found == [[EOS, 2, 3, EOS, -100, -100], IDS[1, 1:].tolist()]
    found = labels({"input_ids": IDS}, pad_token_id=EOS, eos_token_id=[3, EOS])
    assert found[0] == [EOS, 2, 3, EOS, -100, -100]


def test_a_pad_of_its_own_is_never_a_target():
    ids = np.array([[1, PAD, 2, EOS, PAD, PAD], [PAD] * 6], np.int32)
    found = labels({"input_ids": ids}, pad_token_id=PAD, eos_token_id=EOS)
    assert found == [[PAD, 2, EOS, -100, -100], [-100] * 5]


def test_rows_that_fill_a_batch_are_not_trained():
    batch = causal_batch({"input_ids": IDS})
    ids, targets = fill_rows(batch, 5)
    assert ids.shape == targets.shape == (5, 6)
    assert (targets[2:] == -100).all()
    np.testing.assert_array_equal(ids[:2], batch[0])
    assert fill_rows(batch, 2) is batch
    empty = (np.zeros((0, 6), np.int32), np.zeros((0, 6), np.int32))
    assert fill_rows(empty, 3)[0].dtype == np.int32


def test_micro_batches_are_all_of_the_batch():
    batch = causal_batch({"input_ids": np.arange(60, dtype=np.int32).reshape(6, 10)})
    parts = split_rows(batch, 3)
    assert [part[0].shape for part in parts] == [(2, 9)] * 3
    for column in (0, 1):
        np.testing.assert_array_equal(np.concatenate([p[column] for p in parts]), batch[column])


def test_perplexity_weighs_tokens_and_not_batches():
    losses = np.random.default_rng(0).exponential(3.0, 1000)
    results = []
    for sizes in ([1000], [1] * 1000, [999, 1], [10, 490, 500]):
        metric = Perplexity()
        for part in np.split(losses, np.cumsum(sizes)[:-1]):
            metric.update(part.sum(), float(len(part)))
        results.append(metric.result())
    for result in results:
        assert result["loss"] == pytest.approx(losses.mean(), rel=1e-12)
        assert result["PPL"] == pytest.approx(np.exp(losses.mean()), rel=1e-12)


def test_perplexity_at_the_edges():
    assert np.isnan(Perplexity().result()["loss"])
    huge = Perplexity()
    huge.update(1e6, 1)
    assert huge.result() == {"loss": 1e6, "PPL": float("inf")}


def test_the_class_of_a_row_stands_at_its_last_token():
    mask = np.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]], np.int32)
    labels = np.array([[2], [0]], np.int32)
    ids, found = class_batch({"input_ids": IDS, "attention_mask": mask, "labels": labels})
    assert ids.tolist() == IDS.tolist()
    assert found.tolist() == [[-100, -100, 2, -100, -100, -100, -100], [-100] * 6 + [0]]
    assert ids.dtype == found.dtype == np.int32


def test_accuracy_counts_rows_however_they_are_batched():
    logits = np.random.default_rng(0).normal(0, 30, (50, 4)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 4, 50)
    log_p = logits - np.logaddexp.reduce(logits.astype(np.float64), axis=1)[:, None]
    expected = {
        "loss": pytest.approx(-log_p[np.arange(50), labels].mean()),
        "accuracy": (logits.argmax(1) == labels).mean(),
    }
    for size in (1, 7, 50):
        metric = Accuracy()
        for start in range(0, 50, size):
            metric.update(logits[start : start + size], labels[start : start + size])
        assert metric.result() == expected


SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 0, 0, 0]], np.int32)


@pytest.mark.parametrize("pad", [None, EOS, PAD])
def test_no_document_is_predicted_from_another_and_no_padding(pad):
    columns = {"input_ids": IDS, "segment_ids": SEGMENTS}
    inputs, found = causal_batch(columns, pad_token_id=pad, eos_token_id=EOS)
    assert inputs[:, 0].tolist() == IDS[:, :-1].tolist()
    assert inputs[:, 1].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 0, 1]]
    assert found.tolist() == [[EOS, 2, -100, EOS, -100, EOS], [5, -100, 7, -100, -100, -100]]
    assert inputs[:, 2].tolist() == SEGMENTS[:, :-1].tolist()
    assert inputs.flags["C_CONTIGUOUS"]
    assert inputs.dtype == np.int32


def test_labels_and_segments_must_agree():
    columns = {"input_ids": IDS, "labels": IDS.copy(), "segment_ids": SEGMENTS}
    columns["labels"][0, 1] = -100
    found = causal_batch(columns)[1]
    assert found.tolist() == [[-100, 2, -100, EOS, -100, EOS], [5, -100, 7, -100, -100, -100]]


def test_segments_go_with_their_rows():
    batch = causal_batch({"input_ids": IDS, "segment_ids": SEGMENTS})
    filled = fill_rows(batch, 4)
    for part, whole, value in zip(batch, filled, (0, -100), strict=True):
        assert whole[:2].tolist() == part.tolist()
        assert (whole[2:] == value).all() and whole.shape == (4, *part.shape[1:])
    first, second = split_rows(filled, 2)
    for one, two, whole in zip(first, second, filled, strict=True):
        assert [*one.tolist(), *two.tolist()] == whole.tolist()
