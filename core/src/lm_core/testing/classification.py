"""What the core expects of a model whose package has text classification, as tests to inherit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from lm_core.checkpoint.layout import Memory, stream
from lm_core.testing import parity, tiny

if TYPE_CHECKING:
    from lm_core.nn.classifier import SequenceClassifier
    from lm_core.spec import ModelSpec

CLASSES = 3


class ClassifierContract:
    """A part of `ModelContract`; skipped for packages that have language models alone."""

    spec: ClassVar[ModelSpec]

    @pytest.fixture(scope="class")
    @classmethod
    def classifier(cls) -> SequenceClassifier:
        """One tiny classifier for all tests; graphs are compiled once."""
        if "text_classification" not in cls.spec.config_class.architectures.values():
            pytest.skip(f"{cls.spec.name} has no text classification")
        return tiny.model(
            cls.spec, task="text_classification", num_labels=CLASSES, label_names=["a", "b", "c"]
        )

    def test_the_head_reads_the_last_token(self, classifier: SequenceClassifier) -> None:
        """Against NumPy in float64, from the decoder's output."""
        ids, mask, lengths = _texts(classifier)
        hidden = classifier.decoder.hidden(_tensor(ids)).asnumpy().astype(np.float64)
        last = hidden.reshape((*ids.shape, -1))[np.arange(len(ids)), lengths - 1]
        expected = last @ classifier.score.weight.asnumpy().astype(np.float64)
        actual = classifier(_tensor(ids), _tensor(mask)).asnumpy()
        assert actual.shape == (len(ids), CLASSES) and actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
        assert np.abs(expected[0] - expected[1]).max() > 1e-3

    def test_padding_and_neighbours_do_not_matter(self, classifier: SequenceClassifier) -> None:
        """A row of a batch is the row alone, whatever ids stand behind its end."""
        ids, mask, lengths = _texts(classifier)
        other = np.where(mask == 1, ids, (ids + 7) % classifier.config.vocab_size)
        actual = classifier(_tensor(ids), _tensor(mask)).asnumpy()
        np.testing.assert_array_equal(
            classifier(_tensor(other.astype(np.int32)), _tensor(mask)).asnumpy(), actual
        )
        rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        for size in (1, 2, 8):
            np.testing.assert_allclose(classifier.classify(rows, size), actual, rtol=0, atol=1e-5)

    def test_the_loss_is_that_of_the_rows(self, classifier: SequenceClassifier) -> None:
        """Sum over rows of the cross entropy; rows without a class count nothing."""
        from lm_core.train.batch import class_batch, fill_rows
        from lm_core.train.evaluation import LossTerms

        ids, mask, _ = _texts(classifier)
        classes = np.array([[2], [0], [1]], np.int32)
        columns = {"input_ids": ids, "attention_mask": mask, "labels": classes}
        total, count = LossTerms(classifier)(*map(_tensor, fill_rows(class_batch(columns), 5)))
        logits = classifier(_tensor(ids), _tensor(mask)).asnumpy().astype(np.float64)
        norm = np.log(np.exp(logits).sum(1))
        expected = (norm - logits[np.arange(3), classes[:, 0]]).sum()
        assert float(total.asnumpy()) == pytest.approx(expected, abs=5e-6)
        assert float(count.asnumpy()) == 3

    def test_every_parameter_of_a_classifier_learns(self, classifier: SequenceClassifier) -> None:
        """Its names and shapes are those of the tables, and the loss depends on each."""
        shapes = self.spec.tables["hf"].shapes(classifier.config)
        actual = {name: tuple(p.shape) for name, p in classifier.named_parameters().items()}
        assert {name: tuple(shape) for name, shape in shapes.items()} == actual
        count = sum(int(np.prod(shape)) for shape in actual.values())
        assert classifier.config.parameter_count() == count
        ids, mask, _ = _texts(classifier)
        _, found = class_gradients(classifier, ids, mask, np.array([1, 1, 2]))
        assert all(np.abs(gradient).max() > 0 for gradient in found.values())

    @pytest.mark.parametrize("layout", ["native", "hf", "mindformers"])
    def test_a_classifier_is_kept_by_every_layout(
        self, classifier: SequenceClassifier, layout: str, tmp_path: Path
    ) -> None:
        """Its weights, task, and the names of its classes."""
        from lm_core.auto import AutoModel

        if layout == "native":
            classifier.save_pretrained(tmp_path)
        elif layout == "hf":
            tiny.write_hf(classifier, self.spec, tmp_path)
        else:
            table, ours = self.spec.tables[layout], tiny.weights(classifier)
            theirs = Memory(dict(stream(table.save(Memory(ours), classifier.config))))
            back = dict(stream(table.load(theirs, classifier.config)))
            assert all(np.array_equal(back[name], array) for name, array in ours.items())
            return
        loaded = AutoModel.from_pretrained(tmp_path)
        assert loaded.config.label_names == ["a", "b", "c"] and loaded.config.is_classifier
        ours, theirs = tiny.weights(classifier), tiny.weights(loaded)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(theirs[name], array) for name, array in ours.items())

    @pytest.mark.parametrize("tied", [True, False])
    def test_a_language_model_gets_a_new_head(self, tied: bool, tmp_path: Path) -> None:
        """Only when asked to; everything but the head is kept, the old head is left off."""
        from lm_core.auto import AutoModel
        from lm_core.errors import CheckpointError

        if "tie_word_embeddings" not in self.spec.config_class.model_fields:
            pytest.skip(f"{self.spec.name} has one kind of head")
        model = tiny.model(self.spec, tie_word_embeddings=tied)
        model.save_pretrained(tmp_path / "native")
        tiny.write_hf(model, self.spec, tmp_path / "hf")
        for name in ("native", "hf"):
            asked: dict[str, Any] = {"task": "text_classification", "num_labels": CLASSES}
            with pytest.raises(CheckpointError, match="lacks score.weight, it is a language model"):
                AutoModel.from_pretrained(tmp_path / name, **asked)
            made = AutoModel.from_pretrained(tmp_path / name, **asked, new_head=True, seed=4)
            ours, theirs = tiny.weights(made), tiny.weights(model)
            assert ours.keys() - theirs.keys() == {"score.weight"}
            assert theirs.keys() - ours.keys() == (set() if tied else {"head.weight"})
            kept = ours.keys() & theirs.keys()
            parity.assert_same({n: ours[n] for n in kept}, {n: theirs[n] for n in kept})
            again = AutoModel.from_pretrained(tmp_path / name, **asked, new_head=True, seed=4)
            assert np.array_equal(tiny.weights(again)["score.weight"], ours["score.weight"])
            assert ours["score.weight"].std() > 0.005


def class_gradients(
    classifier: SequenceClassifier, ids: np.ndarray, mask: np.ndarray, classes: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean loss over rows and its gradient for every parameter, by our names."""
    from lm_core.train.batch import class_batch

    columns = {"input_ids": ids, "attention_mask": mask, "labels": classes.reshape(-1, 1)}
    inputs, labels = class_batch(columns)
    # A column more at either side: `parity.gradients` shifts as for a language model.
    return parity.gradients(
        classifier, np.pad(inputs, ((0, 0), (0, 1))), np.pad(labels, ((0, 0), (1, 0)))
    )


def _texts(classifier: SequenceClassifier) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.array([9, 1, 5])
    ids = tiny.token_ids(classifier.config.vocab_size, (3, 9), seed=2)
    return ids, (np.arange(9) < lengths[:, None]).astype(np.int32), lengths


def _tensor(array: np.ndarray) -> Any:
    from mindspore import Tensor

    return Tensor(array)
