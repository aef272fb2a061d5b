"""What the core expects of every model package, as tests to inherit.

    class TestGpt2(ModelContract):
        spec = SPEC
        goldens = Path(__file__).parent / "goldens"

A package that must differ overrides a test with `xfail(reason=...)`, where a reviewer sees it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from lm_core import spec as registry
from lm_core.checkpoint.layout import Memory
from lm_core.testing import parity, tiny
from lm_core.testing.adapters import AdapterContract
from lm_core.testing.classification import ClassifierContract
from lm_core.testing.distributed import ParallelContract
from lm_core.testing.parity import TOLERANCES
from lm_core.train.batch import causal_batch

if TYPE_CHECKING:
    from lm_core.nn.decoder import CausalLM
    from lm_core.spec import ModelSpec

VERBS = ("preprocess", "pretrain", "finetune", "evaluate", "predict", "convert", "merge")
LAYOUTS = ("hf", "mindformers")
SHAPE = (2, 9)
"""Of token ids wherever the shape does not matter: a graph is compiled for each."""


class ModelContract(AdapterContract, ClassifierContract, ParallelContract):
    """A subclass gives `spec`, and `goldens`: a directory whose folders are recorded cases."""

    spec: ClassVar[ModelSpec]
    goldens: ClassVar[Path | None] = None

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> CausalLM:
        """One tiny model for all tests that do not change it: graphs are compiled once."""
        return tiny.model(cls.spec)

    # What the package says of itself.

    def test_the_package_is_found_by_all_its_names(self) -> None:
        """By the entry point, the presets and the published model types."""
        assert registry.installed()[self.spec.name] is self.spec
        for name in (
            self.spec.name,
            *self.spec.presets,
            *self.spec.hf_types,
            *self.spec.run_names(),
        ):
            assert registry.find(name) is self.spec, name

    def test_the_spec_is_complete(self) -> None:
        """Nothing that a verb will look for is left out."""
        assert f"{self.spec.name}_tiny" in self.spec.presets
        assert set(LAYOUTS) <= set(self.spec.tables)
        assert self.spec.hf_types
        assert self.spec.preprocessors
        assert self.spec.run_names()

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_verb_is_a_module(self, verb: str) -> None:
        """`python -m lm_x.verb`."""
        assert find_spec(f"lm_{self.spec.name}.{verb}")

    def test_chat_is_a_verb_where_there_is_a_format(self) -> None:
        """`python -m lm_x.chat`, or one line that says why not."""
        from lm_core.cli import run_verb

        assert (find_spec(f"lm_{self.spec.name}.chat") is not None) == self.spec.chat
        if not self.spec.chat:
            assert run_verb("chat", self.spec, []) == 2

    def test_presets_survive_their_dump(self) -> None:
        """A configuration read back from what it says of itself is the same."""
        for name, preset in self.spec.presets.items():
            assert isinstance(preset, self.spec.config_class), name
            assert preset.copy() == preset, name

    def test_parameters_are_counted_without_building(self) -> None:
        """For every preset, also those that no test machine could hold."""
        for name, preset in self.spec.presets.items():
            shapes = self.spec.tables["hf"].shapes(preset)
            total = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
            assert preset.parameter_count() == total, name

    def test_every_preset_goes_through_every_table(self) -> None:
        """Ours, theirs, ours: each shape comes back, and each of their names is known as theirs."""
        nothing = np.dtype([])  # Arrays of any shape that hold no byte.
        for name, preset in self.spec.presets.items():
            for layout, table in self.spec.tables.items():
                ours = table.shapes(preset)
                arrays = {n: np.empty(shape, nothing) for n, shape in ours.items()}
                theirs = table.save(Memory(arrays), preset).specs
                given = {n: np.empty(spec.shape, nothing) for n, spec in theirs.items()}
                back = table.load(Memory(given), preset).specs
                assert {n: spec.shape for n, spec in back.items()} == ours, (name, layout)
                assert table.recognised(theirs) == len(theirs), (name, layout)

    def test_the_network_has_the_shapes_of_the_tables(self, model: CausalLM) -> None:
        """Tables are written without the network; here the two meet."""
        actual = {name: tuple(p.shape) for name, p in model.named_parameters().items()}
        for layout in LAYOUTS:
            shapes = self.spec.tables[layout].shapes(model.config)
            assert {name: tuple(shape) for name, shape in shapes.items()} == actual

    def test_every_run_file_loads_and_survives_its_dump(self, tmp_path: Path) -> None:
        """The resolved run, written and read again, is the same run."""
        from lm_core.config.load import dump_run

        for name in self.spec.run_names():
            run = registry.read_run(name)
            written = tmp_path / f"{name}.yaml"
            written.write_text(dump_run(run), encoding="utf-8")
            assert dump_run(registry.read_run(written)) == dump_run(run), name

    # The network.

    def test_logits(self, model: CausalLM) -> None:
        """Their shape, type, and that they are numbers."""
        ids = tiny.token_ids(model.config.vocab_size, SHAPE)
        logits = _logits(model, ids)
        assert logits.shape == (*SHAPE, model.config.vocab_size)
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()
        assert logits.std() > 0.01

    def test_no_token_sees_a_later_one(self, model: CausalLM) -> None:
        """Changing token t leaves all logits before t as they are, and changes those at t."""
        ids = tiny.token_ids(model.config.vocab_size, SHAPE, seed=3)
        changed = ids.copy()
        changed[:, 5] = (ids[:, 5] + 1) % model.config.vocab_size
        before, after = _logits(model, ids), _logits(model, changed)
        np.testing.assert_array_equal(before[:, :5], after[:, :5])
        assert np.abs(before[:, 5:] - after[:, 5:]).max(axis=(0, 2)).min() > 1e-6

    @pytest.mark.parametrize("blocks", [False, True])
    def test_documents_of_a_record_are_alone(self, blocks: bool) -> None:
        """Each document of a packed record has the logits that it has by itself.

        By itself it stands at the start of a record, and what is behind it is not seen.
        """
        built = tiny.model(self.spec, use_flash_attention=blocks)
        ids = tiny.token_ids(built.config.vocab_size, (2, 9), seed=4)
        segments = np.array([[1, 1, 1, 1, 2, 2, 3, 3, 3], [1, 1, 1, 1, 1, 1, 2, 0, 0]], np.int32)
        inputs, _ = causal_batch(
            {"input_ids": np.pad(ids, ((0, 0), (0, 1))), "segment_ids": segments[:, [*range(9), 8]]}
        )
        together = _logits(built, inputs)
        places = ((0, 0, 4), (0, 4, 6), (0, 6, 9), (1, 0, 6), (1, 6, 7))
        starts = np.zeros((len(places), 6), np.int32)
        for own, (row, first, end) in zip(starts, places, strict=True):
            own[: end - first] = ids[row, first:end]
        for own, (row, first, end) in zip(_logits(built, starts), places, strict=True):
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
        model = tiny.model(self.spec, num_layers=1)
        built = tiny.model(self.spec, num_layers=1, use_flash_attention=True)
        ids = tiny.token_ids(model.config.vocab_size, (2, length), seed=length)
        np.testing.assert_allclose(
            _logits(built, ids), _logits(model, ids), rtol=0, atol=TOLERANCES.cached
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
        logits = _logits(model, ids)[:, :-1].astype(np.float64)
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
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert any(not np.array_equal(first[name], other[name]) for name in first)

    def _fresh(self, seed: int) -> dict[str, np.ndarray]:
        built = tiny.model(self.spec)
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

    # Weights.

    def test_saved_and_loaded_is_the_same(self, model: CausalLM, tmp_path: Path) -> None:
        """Bit for bit, through the format that we write."""
        from lm_core.auto import AutoModel

        model.save_pretrained(tmp_path / "saved")
        loaded = AutoModel.from_pretrained(tmp_path / "saved")
        assert loaded.config.copy(checkpoint_name_or_path="") == model.config
        _assert_same(tiny.weights(loaded), tiny.weights(model))
        ids = tiny.token_ids(model.config.vocab_size, SHAPE)
        np.testing.assert_array_equal(_logits(loaded, ids), _logits(model, ids))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_tables_are_reversible(self, model: CausalLM, layout: str) -> None:
        """Ours, theirs, ours: no bit changes, and none of our numbers is lost on the way."""
        table, ours = self.spec.tables[layout], tiny.weights(model)
        theirs = _read(table.save(Memory(ours), model.config))
        back = _read(table.load(Memory(theirs), model.config))
        _assert_same(back, ours)
        assert sum(a.size for a in theirs.values()) >= sum(a.size for a in ours.values())

    def test_loads_what_others_publish(self, model: CausalLM, tmp_path: Path) -> None:
        """config.json and safetensors under the original names."""
        from lm_core.auto import AutoModel

        loaded = AutoModel.from_pretrained(tiny.write_hf(model, self.spec, tmp_path / "hf"))
        _assert_same(tiny.weights(loaded), tiny.weights(model))

    # Recorded references.

    @pytest.mark.parity
    def test_equals_the_recorded_reference(self, tmp_path: Path) -> None:
        """Logits, loss, gradients and greedy tokens of every case and every weight file of it."""
        from lm_core.auto import AutoModel

        cases = [path.parent for path in sorted((self.goldens or tmp_path).glob("*/golden.npz"))]
        if not cases:
            pytest.skip("this package has no recorded reference")
        for case in cases:
            with np.load(case / "golden.npz", allow_pickle=False) as golden:
                for weight_file in parity.golden_cases(case):
                    target = tmp_path / case.name / weight_file
                    built = AutoModel.from_pretrained(
                        parity.checkpoint_of(case, weight_file, target),
                        adapter=case / "adapter" if (case / "adapter").is_dir() else None,
                    )
                    built.set_train(False)
                    parity.check_forward(built, golden)
                    parity.check_gradients(built, golden)
                    parity.check_greedy(built, golden)

    def test_cached_logits_are_those_of_the_whole_sequence(self, model: CausalLM) -> None:
        """The numbers behind the tokens, at every position."""
        from lm_core.generation.cache import CachedDecoder

        ids = tiny.token_ids(model.config.vocab_size, SHAPE, seed=11)
        expected = _logits(model, ids)
        decoder = CachedDecoder(model, 2, 16)
        steps = [decoder.prefill(ids[:, :4], np.array([4, 4]))]
        steps += [decoder.step(ids[:, t], np.array([t, t])) for t in range(4, SHAPE[1])]
        actual = np.stack(steps, axis=1)
        np.testing.assert_allclose(actual, expected[:, 3:], rtol=0, atol=TOLERANCES.cached)


def _logits(model: CausalLM, ids: np.ndarray) -> np.ndarray:
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


def _read(tensors: object) -> dict[str, np.ndarray]:
    from lm_core.checkpoint.layout import stream

    return dict(stream(tensors))  # type: ignore[arg-type]


def _assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(expected), sorted(set(actual) ^ set(expected))
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
