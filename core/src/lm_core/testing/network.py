"""What the core expects of every network, of one architecture of a package, as tests to inherit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from lm_core.testing import parity, tiny
from lm_core.testing.parity import TOLERANCES
from lm_core.train.batch import causal_batch

if TYPE_CHECKING:
    from lm_core.nn.decoder import CausalLM
    from lm_core.spec import ModelSpec

SHAPE = (2, 9)
"""Of token ids wherever the shape does not matter: a graph is compiled for each."""


class NetworkContract:
    """Part of `ModelContract`, and for further architectures of a package.

    A subclass gives `spec`, and `sizes` where it is not the tiny preset as it is.
    """

    spec: ClassVar[ModelSpec]
    sizes: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> CausalLM:
        """One tiny model for all tests that do not change it: graphs are compiled once."""
        return tiny.model(cls.spec, **cls.sizes)

    def test_logits_are_numbers(self, model: CausalLM) -> None:
        """Their shape, type, and that they are numbers."""
        ids = tiny.token_ids(model.config.vocab_size, SHAPE)
        logits = logits_of(model, ids)
        assert logits.shape == (*SHAPE, model.config.vocab_size)
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()
        assert logits.std() > 0.01

    def test_no_token_sees_a_later_one(self, model: CausalLM) -> None:
        """Changing token t leaves all logits before t as they are, and changes those at t."""
        ids = tiny.token_ids(model.config.vocab_size, SHAPE, seed=3)
        changed = ids.copy()
        changed[:, 5] = (ids[:, 5] + 1) % model.config.vocab_size
        before, after = logits_of(model, ids), logits_of(model, changed)
        np.testing.assert_array_equal(before[:, :5], after[:, :5])
        assert np.abs(before[:, 5:] - after[:, 5:]).max(axis=(0, 2)).min() > 1e-6

    @pytest.mark.parametrize("blocks", [False, True])
    def test_documents_of_a_record_are_alone(self, blocks: bool) -> None:
        """Each document of a packed record has the logits that it has by itself.

        By itself it stands at the start of a record, and what is behind it is not seen.
        """
        built = tiny.model(self.spec, use_flash_attention=blocks, **self.sizes)
        ids = tiny.token_ids(built.config.vocab_size, (2, 9), seed=4)
        segments = np.array([[1, 1, 1, 1, 2, 2, 3, 3, 3], [1, 1, 1, 1, 1, 1, 2, 0, 0]], np.int32)
        inputs, _ = causal_batch(
            {"input_ids": np.pad(ids, ((0, 0), (0, 1))), "segment_ids": segments[:, [*range(9), 8]]}
        )
        together = logits_of(built, inputs)
        places = ((0, 0, 4), (0, 4, 6), (0, 6, 9), (1, 0, 6), (1, 6, 7))
        starts = np.zeros((len(places), 6), np.int32)
        for own, (row, first, end) in zip(starts, places, strict=True):
            own[: end - first] = ids[row, first:end]
        for own, (row, first, end) in zip(logits_of(built, starts), places, strict=True):
            np.testing.assert_allclose(
                together[row, first:end], own[: end - first], rtol=0, atol=TOLERANCES.cached
            )

    @pytest.mark.parametrize("length", [5, 40])
    def test_blockwise_attention_is_attention(
        self, length: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`use_flash_attention`: loss, logits and gradients, over several blocks and bands."""
        from lm_core.nn import block_sizes

        monkeypatch.setattr(block_sizes, "_MOST", 8)
        sizes = {**self.sizes, "num_layers": 1}
        model = tiny.model(self.spec, **sizes)
        built = tiny.model(self.spec, **sizes, use_flash_attention=True)
        ids = tiny.token_ids(model.config.vocab_size, (2, length), seed=length)
        np.testing.assert_allclose(
            logits_of(built, ids), logits_of(model, ids), rtol=0, atol=TOLERANCES.cached
        )
        expected_loss, expected = parity.gradients(model, ids, ids)
        loss, found = parity.gradients(built, ids, ids)
        assert loss == pytest.approx(expected_loss, abs=TOLERANCES.loss)
        for name, gradient in expected.items():
            np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-5, err_msg=name)

    def test_loss_is_the_mean_over_trained_tokens(self, model: CausalLM) -> None:
        """Against NumPy in float64; labels are shifted inside and -100 is left out."""
        ids = tiny.token_ids(model.config.vocab_size, SHAPE, seed=5)
        labels = ids.copy()
        labels[0, :5] = -100
        logits = logits_of(model, ids)[:, :-1].astype(np.float64)
        expected = _cross_entropy(logits, labels[:, 1:])
        assert float(model.loss(ids, labels).asnumpy()) == pytest.approx(expected, abs=5e-6)

    def test_every_parameter_gets_a_gradient(self, model: CausalLM) -> None:
        """A weight that the loss does not depend on is a mistake in the network."""
        ids = tiny.token_ids(model.config.vocab_size, (2, 8), seed=6)
        _, found = parity.gradients(model, ids, ids)
        assert set(found) == set(model.named_parameters())
        for name, gradient in found.items():
            assert np.isfinite(gradient).all(), name
            assert np.abs(gradient).max() > 0, name

    def test_initial_values_depend_on_the_seed_alone(self) -> None:
        """The same seed gives the same bytes; another seed others."""
        first, again, other = (self._fresh(seed) for seed in (7, 7, 8))
        parity.assert_same(again, first)
        assert parity.differences(other, first)

    def _fresh(self, seed: int) -> dict[str, np.ndarray]:
        built = tiny.model(self.spec, **self.sizes)
        built.initialize(seed)
        return tiny.weights(built)

    # Generation.

    def test_cached_is_uncached(self, model: CausalLM) -> None:
        """Greedy tokens with the cache, against whole forward passes."""
        prompt = tiny.token_ids(model.config.vocab_size, (6,), seed=9)
        expected = tiny.greedy(model, prompt, 10)
        assert _generate(model, [prompt], 10)[0].tolist() == expected

    def test_batch_is_alone(self, model: CausalLM) -> None:
        """Prompts of unequal lengths in one batch give what each gives alone."""
        vocabulary = model.config.vocab_size
        prompts = [tiny.token_ids(vocabulary, (n,), seed=n) for n in (1, 4, 9)]
        together = _generate(model, prompts, 8)
        for prompt, row in zip(prompts, together, strict=True):
            np.testing.assert_array_equal(row, _generate(model, [prompt], 8)[0])

    def test_requests_that_come_and_go_are_alone(self, model: CausalLM) -> None:
        """Each gives what it gives alone, whoever shares the cache with it and when."""
        from lm_core.generation.slots import Slots

        news, starts = (16, 3, 2), (0, 1, 5)
        prompts = [tiny.token_ids(model.config.vocab_size, (n,), seed=n) for n in (7, 2, 5)]
        found = [prompt.tolist() for prompt in prompts]
        slots, rows = Slots(model, 2, 32), {}
        for turn in range(max(news)):
            if turn in starts:
                number = starts.index(turn)
                rows[number], logits = slots.open(prompts[number])
                found[number].append(int(logits.argmax()))
            fed = {row: (found[n][-1], len(found[n]) - 1) for n, row in rows.items()}
            tokens = slots.step(fed, greedy=True)
            for number, row in list(rows.items()):
                if len(found[number]) == len(prompts[number]) + news[number]:
                    slots.close(rows.pop(number))
                else:
                    found[number].append(int(tokens[row]))
        for prompt, new, row in zip(prompts, news, found, strict=True):
            assert _generate(model, [prompt], new)[0].tolist() == row

    def test_cached_logits_are_those_of_the_whole_sequence(self, model: CausalLM) -> None:
        """The numbers behind the tokens, at every position."""
        from lm_core.generation.cache import CachedDecoder

        ids = tiny.token_ids(model.config.vocab_size, SHAPE, seed=11)
        expected = logits_of(model, ids)
        decoder = CachedDecoder(model, 2, 16)
        steps = [decoder.prefill(ids[:, :4], np.array([4, 4]))]
        steps += [decoder.step(ids[:, t], np.array([t, t])) for t in range(4, SHAPE[1])]
        actual = np.stack(steps, axis=1)
        np.testing.assert_allclose(actual, expected[:, 3:], rtol=0, atol=TOLERANCES.cached)

    def test_half_wide_weights_are_decoded(self) -> None:
        """A residual stream of float16 beside caches of float32; 11 bits are 3 digits."""
        from lm_core.generation.cache import CachedDecoder

        sizes: dict[str, Any] = {**self.sizes, "num_layers": 1, "param_init_type": "float16"}
        half = tiny.model(self.spec, **sizes)
        ids = tiny.token_ids(half.config.vocab_size, SHAPE, seed=12)
        expected = logits_of(half, ids)[:, 3:]
        decoder = CachedDecoder(half, 2, 16)
        steps = [decoder.prefill(ids[:, :4], np.array([4, 4]))]
        steps += [decoder.step(ids[:, t], np.array([t, t])) for t in range(4, SHAPE[1])]
        error = np.abs(np.stack(steps, axis=1) - expected).max()
        assert error < 0.01 * np.abs(expected).max()

    # Graphs in files.

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_exported_graphs_are_the_model(
        self, model: CausalLM, dynamic: bool, tmp_path: Path
    ) -> None:
        """Logits of 12 cached steps behind unequal prompts, and tokens: greedy, drawn, by beams."""
        from lm_core.export.exported import ExportedModel
        from lm_core.generation.cache import CachedDecoder

        found = ExportedModel(exported(model, tmp_path / "export", 4, 32, dynamic))
        # Always three rows of four, so that graphs of open sizes are compiled twice only.
        ids = tiny.token_ids(model.config.vocab_size, (3, 18), seed=13)
        lengths = np.array([3, 6, 1])
        decoders = found.decoder(3, 32), CachedDecoder.for_model(model, 3, 32)
        steps = [[decoder.prefill(ids[:, :6], lengths)] for decoder in decoders]
        for number in range(12):
            for decoder, own in zip(decoders, steps, strict=True):
                own.append(decoder.step(ids[:, 6 + number], lengths + number))
        np.testing.assert_allclose(*map(np.stack, steps), rtol=0, atol=TOLERANCES.cached)
        prompts = [ids[0, :1].tolist(), ids[1, :7].tolist(), ids[0, 3:6].tolist()]
        for options in ({}, {"do_sample": True, "seed": 4}, {"num_beams": 3}):
            settings: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": [], **options}
            given = prompts[1:2] if options.get("num_beams") else prompts
            pairs = zip(
                found.generate(given, **settings), model.generate(given, **settings), strict=True
            )
            assert all(np.array_equal(*pair) for pair in pairs), options


def exported(model: CausalLM, folder: Path, rows: int, length: int, dynamic: bool = False) -> Path:
    """The folder of a new export, without a tokenizer."""
    from lm_core.checkpoint.atomic import new_directory
    from lm_core.export.description import Description
    from lm_core.export.folder import fill

    description = Description(
        model=model.spec_name, batch_size=rows, seq_length=length, dynamic=dynamic
    )
    with new_directory(folder) as made:
        fill(made, model, description, {})
    return folder


def logits_of(model: CausalLM, ids: np.ndarray) -> np.ndarray:
    """Of a whole pass: ids int32 [B, S]. Returns float32 [B, S, V]."""
    from mindspore import Tensor

    return model(Tensor(ids)).asnumpy()


def _generate(model: CausalLM, prompts: list[np.ndarray], new: int) -> list[np.ndarray]:
    return model.generate(prompts, max_new_tokens=new, do_sample=False, eos_token_id=[])


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """logits: [B, S, V]; labels: [B, S], aligned, -100 ignored."""
    kept = labels != -100
    rows, targets = logits[kept], labels[kept]
    top = rows.max(axis=-1, keepdims=True)
    normaliser = np.log(np.exp(rows - top).sum(axis=-1)) + top[:, 0]
    return float(np.mean(normaliser - rows[np.arange(len(rows)), targets]))
