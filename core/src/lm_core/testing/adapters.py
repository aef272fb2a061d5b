"""What the core expects of adapters on every model; a part of `ModelContract`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from lm_core.checkpoint.layout import Memory, Transpose
from lm_core.config.model import LoraConfig
from lm_core.errors import CheckpointError
from lm_core.peft import files, layout, targets
from lm_core.testing import tiny

if TYPE_CHECKING:
    from lm_core.config.model import ModelConfig
    from lm_core.nn.decoder import CausalLM
    from lm_core.spec import ModelSpec

RANK, ALPHA = 3, 5.0
_ONE_LAYER = {"num_layers": 1}
"""Where names of several layers are not what is looked at: graphs are compiled in half the time."""


class AdapterContract:
    """LoRA on the tiny model: what it computes, trains, writes and reads."""

    spec: ClassVar[ModelSpec]

    @pytest.fixture(scope="class")
    @classmethod
    def adapted(cls) -> CausalLM:
        """A tiny model with an adapter on all layers whose values are not at their start."""
        return adapted_model(cls.spec)

    def test_a_new_adapter_changes_nothing(self) -> None:
        """No logit, bit for bit, before it is trained; nor what is in the model's own weights."""
        from lm_core.peft.lora import get_pet_model

        model = tiny.model(self.spec, **_ONE_LAYER)
        before, weights = _logits(model), tiny.weights(model)
        get_pet_model(model, LoraConfig(lora_rank=RANK, target_modules=".*"))
        np.testing.assert_array_equal(_logits(model), before)
        after = tiny.weights(model)
        assert all(np.array_equal(after[name], array) for name, array in weights.items())
        assert all((after[n] == 0).all() for n in after if n.endswith("lora_b"))
        assert all(after[n].std() > 0 for n in after if n.endswith("lora_a"))

    def test_parameters_of_an_adapter_are_known_without_a_network(self, adapted: CausalLM) -> None:
        """Names, shapes and number: rank x (in + out) for each layer."""
        actual = {n: a.shape for n, a in tiny.weights(adapted).items() if layout.is_adapter_name(n)}
        config = adapted.config.pet_config
        assert config is not None
        assert targets.adapter_shapes(self.spec, adapted.config, config) == actual
        layers = targets.linear_layers(self.spec, adapted.config)
        count = sum(int(np.prod(shape)) for shape in actual.values())
        assert count == RANK * sum(map(sum, layers.values()))

    def test_only_the_adapter_is_trained(self) -> None:
        """Three steps: the base is bit-identical, and every part of the adapter has moved."""
        from lm_core.train.optimizer import AdamW
        from lm_core.train.step import TrainStep, trained_parameters

        model = adapted_model(self.spec, **_ONE_LAYER)
        before = {name: array.copy() for name, array in tiny.weights(model).items()}
        step = TrainStep(model, AdamW(trained_parameters(model), weight_decay=0.1))
        ids = tiny.token_ids(model.config.vocab_size, (2, 9), seed=2)
        losses = [step([(ids[:, :-1], ids[:, 1:])], 1e-2).loss for _ in range(3)]
        assert losses[2] < losses[0]
        for name, array in tiny.weights(model).items():
            same = np.array_equal(array, before[name])
            assert same != layout.is_adapter_name(name), name

    def test_a_merged_adapter_computes_the_same(self) -> None:
        """Logits to 1e-5, without the adapter's parameters; every name and shape as before it."""
        from lm_core.peft.lora import merge_adapter

        model, base = (adapted_model(self.spec, **_ONE_LAYER), tiny.model(self.spec, **_ONE_LAYER))
        plain = {name: p.shape for name, p in base.named_parameters().items()}
        before = _logits(model)
        merge_adapter(model)
        np.testing.assert_allclose(_logits(model), before, rtol=0, atol=1e-5)
        assert {name: p.shape for name, p in model.named_parameters().items()} == plain
        assert np.abs(_logits(base) - before).max() > 1e-2
        assert all(p.requires_grad for p in model.named_parameters().values())

    def test_generates_with_an_adapter(self, adapted: CausalLM) -> None:
        """Cached tokens are those of whole passes."""
        prompt = tiny.token_ids(adapted.config.vocab_size, (5,), seed=4)
        expected = tiny.greedy(adapted, prompt, 6)
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": []}
        assert adapted.generate([prompt], **options)[0].tolist() == expected

    @pytest.mark.parametrize("kind", ["native", "peft", "mindformers"])
    def test_layouts_of_adapters_lose_nothing(
        self, adapted: CausalLM, kind: layout.Layout, tmp_path: Path
    ) -> None:
        """Written and put on the base again: the same logits, and in our layout the same bits."""
        from lm_core.peft.lora import adapter_of, get_pet_model

        adapter = adapter_of(adapted)
        if kind == "mindformers":
            _write_ckpt(tmp_path / "a.ckpt", adapter, self.spec, adapted)
        else:
            files.write(tmp_path, adapter, self.spec, adapted.config, kind)
        base = tiny.model(self.spec)
        if kind == "mindformers":
            base.config.pet_config = adapted.config.pet_config
        get_pet_model(base, tmp_path / "a.ckpt" if kind == "mindformers" else tmp_path)
        np.testing.assert_allclose(_logits(base), _logits(adapted), rtol=0, atol=1e-5)
        if kind == "native":
            expected = tiny.weights(adapted)
            for name, array in tiny.weights(base).items():
                np.testing.assert_array_equal(array, expected[name], err_msg=name)

    def test_an_adapter_of_some_parts_of_a_fused_layer(self, tmp_path: Path) -> None:
        """PEFT has one layer where we have several, of which only one is adapted."""
        from lm_core.peft.lora import adapter_of, get_pet_model

        first = next(iter(targets.linear_layers(self.spec, tiny.config(self.spec))))
        model = adapted_model(self.spec, target_modules=[first], **_ONE_LAYER)
        files.write(tmp_path, adapter_of(model), self.spec, model.config, "peft")
        base = get_pet_model(tiny.model(self.spec, **_ONE_LAYER), tmp_path)
        np.testing.assert_allclose(_logits(base), _logits(model), rtol=0, atol=1e-5)

    def test_an_adapter_that_peft_wrote_for_fused_layers(self, tmp_path: Path) -> None:
        """One A for all parts of a matrix; NumPy adds the product to the published weights.

        Back in PEFT's layout it has the same numbers, under the same names.
        """
        from safetensors.numpy import load_file, save_file

        from lm_core.auto import AutoModel
        from lm_core.peft.lora import adapter_of

        model = tiny.model(self.spec, **_ONE_LAYER)
        fused = _fused(self.spec, model.config)
        if not fused:
            pytest.skip(f"{self.spec.name} is published without fused layers")
        for name in ("base", "merged"):
            tiny.write_hf(model, self.spec, tmp_path / name)
        weights, pairs = load_file(tmp_path / "merged" / "model.safetensors"), {}
        generator, flipped = np.random.default_rng(5), not all(fused.values())
        for name, is_out_in in fused.items():
            rows, columns = weights[f"{name}.weight"].shape[:: 1 if is_out_in else -1]
            a, b = (
                generator.normal(0.0, 0.1, shape).astype(np.float32)
                for shape in ((RANK, columns), (rows, RANK))
            )
            weights[f"{name}.weight"] += 2.0 * (b @ a if is_out_in else (b @ a).T)
            pairs[name] = {"A": a, "B": b}
        save_file(weights, tmp_path / "merged" / "model.safetensors")
        given = {
            f"base_model.model.{name}.lora_{half}.weight": array
            for name, halves in pairs.items()
            for half, array in halves.items()
        }
        _write_peft(tmp_path / "peft", given, [name.rpartition(".")[2] for name in fused], flipped)
        found = AutoModel.from_pretrained(tmp_path / "base", adapter=tmp_path / "peft")
        expected = AutoModel.from_pretrained(tmp_path / "merged")
        np.testing.assert_allclose(_logits(found), _logits(expected), rtol=0, atol=2e-5)
        (tmp_path / "back").mkdir()
        files.write(tmp_path / "back", adapter_of(found), self.spec, found.config, "peft")
        written = load_file(tmp_path / "back" / "adapter_model.safetensors")
        assert written.keys() == given.keys()
        for name, array in given.items():
            np.testing.assert_array_equal(written[name], array, err_msg=name)

    def test_saved_and_loaded_with_its_adapter(self, adapted: CausalLM, tmp_path: Path) -> None:
        """A model directory holds both, and says so."""
        from lm_core.auto import AutoModel

        adapted.save_pretrained(tmp_path / "saved")
        loaded = AutoModel.from_pretrained(tmp_path / "saved")
        np.testing.assert_array_equal(_logits(loaded), _logits(adapted))
        assert loaded.config.pet_config == adapted.config.pet_config

    def test_an_adapter_refuses_other_weights(self, adapted: CausalLM, tmp_path: Path) -> None:
        """By the checksum of the weights that it was trained on."""
        from lm_core.checkpoint.io import Parameters
        from lm_core.peft.lora import adapter_of, get_pet_model

        base_sum = files.checksum(Parameters(tiny.model(self.spec).named_parameters()))
        adapter = adapter_of(adapted, "somewhere", base_sum)
        files.write(tmp_path, adapter, self.spec, adapted.config)
        get_pet_model(tiny.model(self.spec), tmp_path)
        with pytest.raises(CheckpointError, match="was trained on other weights .somewhere."):
            get_pet_model(tiny.model(self.spec, seed=9), tmp_path)


def adapted_model(
    spec: ModelSpec, target_modules: str | list[str] = ".*", **changes: Any
) -> CausalLM:
    """A tiny model and an adapter with random values."""
    from lm_core.checkpoint import io
    from lm_core.peft.lora import get_pet_model

    settings = LoraConfig(
        lora_rank=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=target_modules
    )
    model = get_pet_model(tiny.model(spec, **changes), settings)
    generator = np.random.default_rng(3)
    names = [name for name in model.named_parameters() if layout.is_adapter_name(name)]
    values = {
        name: generator.normal(0.0, 0.1, model.named_parameters()[name].shape).astype(np.float32)
        for name in names
    }
    io.assign(model.named_parameters(), Memory(values))
    return model


def _fused(spec: ModelSpec, config: ModelConfig) -> dict[str, bool]:
    """Published linear layers that are several of ours -> whether they are stored [out, in]."""
    layers = targets.linear_layers(spec, config)
    found = {}
    for row in spec.tables["hf"].expand(config):
        ours = [name.removesuffix(".weight") for name in row.ours]
        if len(ours) > 1 and len(row.theirs) == 1 and all(name in layers for name in ours):
            stored = any(isinstance(op, Transpose) for op in row.ops)
            found[row.theirs[0].removesuffix(".weight")] = stored
    return found


def _write_peft(
    folder: Path, arrays: dict[str, np.ndarray], modules: list[str], flipped: bool
) -> None:
    from safetensors.numpy import save_file

    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0, "target_modules": sorted(set(modules)), "bias": "none",
        "fan_in_fan_out": flipped,
    }  # fmt: skip
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(arrays, folder / "adapter_model.safetensors")


def _write_ckpt(path: Path, adapter: files.Adapter, spec: ModelSpec, model: CausalLM) -> None:
    from lm_core.checkpoint import ckpt

    arrays, _ = layout.save(adapter.arrays, spec, model.config, adapter.config, "mindformers")
    assert all("mindpet_delta_lora_" in name for name in arrays)
    ckpt.write(path, Memory(arrays))


def _logits(model: CausalLM, ids: np.ndarray | None = None) -> np.ndarray:
    from mindspore import Tensor

    if ids is None:
        ids = tiny.token_ids(model.config.vocab_size, (2, 7), seed=8)
    model.set_train(False)
    return model(Tensor(ids)).asnumpy()
