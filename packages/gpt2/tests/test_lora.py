"""Adapters by command and by Trainer: trained, saved alone, resumed, merged, refused."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lm_core import AutoModel, LoraConfig, Trainer, get_pet_model
from lm_core.checkpoint import atomic, ckpt, io
from lm_core.checkpoint.layout import Memory
from lm_core.cli import main
from lm_core.errors import CheckpointError, ConfigError
from lm_core.peft import files, layout
from lm_core.testing import tiny
from lm_core.testing.adapters import adapted_model
from lm_core.testing.parity import TOLERANCES
from lm_gpt2 import SPEC

pytestmark = pytest.mark.slow
PET = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": ".*dense[13].*"}


@pytest.fixture
def base(tmp_path, sizes) -> Path:
    """A model directory to start from."""
    folder = tmp_path / "base"
    fields = {key: value for key, value in sizes.items() if key != "preset"}
    tiny.model(SPEC, **fields).save_pretrained(folder)
    return folder


@pytest.fixture
def run(data, sizes, tmp_path, base) -> dict:
    return {
        "base": "gpt2_tiny", "seed": 3, "output_dir": str(tmp_path / "out"),
        "load_checkpoint": str(base),
        "model": {"model_config": {**sizes, "pet_config": PET}},
        "runner_config": {"epochs": 3, "batch_size": 4, "gradient_accumulation_steps": 1},
        "lr_schedule": {"type": "constant", "learning_rate": 1e-2, "warmup_steps": 0},
        "train_dataset": {"data_loader": {"dataset_dir": str(data["train"])}},
        "eval_dataset": {"data_loader": {"dataset_dir": str(data["held_out"])}},
        "callbacks": [
            {"type": "CheckpointMonitor", "save_checkpoint_steps": 4, "save_trainable_params": True}
        ],
    }  # fmt: skip


def write(path: Path, run: dict) -> str:
    path.write_text(yaml.safe_dump(run))
    return str(path)


def problems(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    return capsys.readouterr().err


def loss_of(run: dict, weights: Path) -> float:
    return Trainer(run).evaluate(weights)["PerplexityMetric"]["loss"]


def losses(output: Path) -> list[tuple]:
    lines = (output / "log/rank_0/metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["loss"], r["grad_norm"]) for r in map(json.loads, lines)]


def test_trained_saved_alone_and_used(run, base, tmp_path, capsys, data):
    """`finetune`, `evaluate`, `merge` and `convert`, with the numbers of each the same."""
    config = write(tmp_path / "run.yaml", run)
    assert main(["finetune", "gpt2", "--config", config]) == 0
    said = capsys.readouterr().err
    # q and v of one layer: rank x (in + out) each.
    assert f"LoRA on 2 layers: {2 * 4 * 32:,} of" in said and "are trained" in said
    out = tmp_path / "out"
    last = out / "checkpoint" / "rank_0" / "CKP-15"
    assert not (last / "model.safetensors").exists()
    assert (last / "adapter_model.safetensors").stat().st_size < 20_000
    assert main(["evaluate", "gpt2", "--config", config, "--load_checkpoint", str(out)]) == 0
    tuned = capsys.readouterr().out
    assert main(["evaluate", "gpt2", "--config", config, "--load_adapter", str(last)]) == 0
    assert capsys.readouterr().out == tuned
    plain = {**run, "model": {"model_config": {**run["model"]["model_config"]}}}
    plain["model"]["model_config"].pop("pet_config")
    tuned = ast.literal_eval(tuned.split(": ", 1)[1])["PerplexityMetric"]["loss"]
    assert loss_of(plain, base) > tuned + 0.01
    merged = tmp_path / "merged"
    words = ["--load_checkpoint", str(base), "--load_adapter", str(last), "--output", str(merged)]
    assert main(["merge", "gpt2", *words]) == 0
    assert "the adapter on 2 layers is merged" in capsys.readouterr().out
    assert loss_of(plain, merged) == pytest.approx(tuned, abs=1e-5)
    # From the run's output, too, and in the layout of others.
    as_hf = tmp_path / "as_hf"
    words = ["--load_checkpoint", str(out), "--output", str(as_hf), "--format", "hf"]
    assert main(["merge", "gpt2", *words]) == 0
    assert loss_of(plain, as_hf) == pytest.approx(loss_of(plain, merged), abs=1e-7)


def test_the_base_is_never_changed(run, base):
    before = (base / "model.safetensors").read_bytes()
    trainer = Trainer(run)
    trainer.finetune(base)
    expected = dict(load_file(base / "model.safetensors"))
    for name, array in tiny.weights(trainer.network).items():
        assert layout.is_adapter_name(name) or np.array_equal(array, expected[name]), name
    assert (base / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("alone", [True, False])
def test_resumed_is_never_stopped(run, base, tmp_path, alone):
    """Twice, in an epoch and across its end, with dropout and accumulation; bit for bit."""
    run["callbacks"][0]["save_trainable_params"] = alone
    run["runner_config"] |= {"batch_size": 2, "gradient_accumulation_steps": 2}
    last = Trainer({**run, "output_dir": str(tmp_path / "whole")}).finetune(base)
    for steps in (4, 8):
        part = {**run, "runner_config": {**run["runner_config"], "max_steps": steps}}
        Trainer({**part, "resume_training": steps > 4}).finetune(base)
        assert losses(tmp_path / "out") == losses(tmp_path / "whole")[:steps]
    resumed = Trainer({**run, "resume_training": True}).finetune(base)
    assert resumed.name == last.name
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    name = "adapter_model.safetensors" if alone else "model.safetensors"
    for file in (name, "optimizer.safetensors"):
        assert (resumed / file).read_bytes() == (last / file).read_bytes()


def test_pet_method(data, base, monkeypatch, tmp_path):
    """`Trainer(pet_method="lora")` takes the settings of the packaged run."""
    trainer = Trainer(model="gpt2", pet_method="lora", train_dataset=data["train"])
    pet = trainer.run.model.config.pet_config
    assert (pet.lora_rank, pet.lora_alpha, pet.lora_dropout) == (64, 128.0, 0.1)
    assert trainer.run.learning_rate == 1e-3
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(model=str(base), pet_method="lora", train_dataset=data["train"])
    trainer.run.runner_config.max_steps = 2
    trainer.run.runner_config.batch_size = 2
    trainer.finetune()
    assert trainer.network.config.pet_config == LoraConfig()
    with pytest.raises(ConfigError, match="pet_method: 'prefix' is unknown; must be 'lora'"):
        Trainer(model="gpt2", pet_method="prefix")


def test_peft_reads_and_writes_by_hand(tmp_path):
    """An adapter under PEFT's names against W + s (B A)^T computed here."""
    model = tiny.model(SPEC)
    hidden = model.config.hidden_size
    tiny.write_hf(model, SPEC, tmp_path / "hf")
    rng = np.random.default_rng(0)
    weights = dict(load_file(tmp_path / "hf" / "model.safetensors"))
    shapes = {"attn.c_attn": (hidden, 3 * hidden), "mlp.c_proj": (4 * hidden, hidden)}
    adapter, folder = {}, tmp_path / "adapter"
    for layer in range(2):
        for name, (inputs, outputs) in shapes.items():
            rank = 6 if name == "mlp.c_proj" and layer == 1 else 4
            a, b = rng.normal(0, 0.1, (rank, inputs)), rng.normal(0, 0.1, (outputs, rank))
            start = f"base_model.model.transformer.h.{layer}.{name}"
            adapter[f"{start}.lora_A.weight"] = a.astype(np.float32)
            adapter[f"{start}.lora_B.weight"] = b.astype(np.float32)
            alpha = 3.0 if rank == 6 else 8.0
            weights[f"transformer.h.{layer}.{name}.weight"] += (alpha / rank * (b @ a).T).astype(
                "f4"
            )
    folder.mkdir()
    save_file(adapter, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "bias": "none",
        "target_modules": ["c_attn", "mlp.c_proj"], "rank_pattern": {"h.1.mlp.c_proj": 6},
        "alpha_pattern": {"1.mlp.c_proj": 3},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(weights, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    expected = AutoModel.from_pretrained(tmp_path / "hf")
    adapted = get_pet_model(tiny.model(SPEC), folder)
    ids = tiny.token_ids(model.config.vocab_size, (2, 9))
    from mindspore import Tensor

    actual = adapted(Tensor(ids)).asnumpy()
    np.testing.assert_allclose(actual, expected(Tensor(ids)).asnumpy(), rtol=0, atol=1e-5)
    assert np.abs(actual - tiny.model(SPEC)(Tensor(ids)).asnumpy()).max() > 0.05


def test_predict_uses_the_adapter_it_is_given(tmp_path, capsys):
    """Not the base alone in silence: by folder, by a run's output; refused on other weights."""
    from lm_core.checkpoint.io import Parameters
    from lm_core.tokenizer.bpe_train import train_bpe
    from lm_gpt2.tokenizer import Gpt2Tokenizer

    Gpt2Tokenizer(*train_bpe([tiny.text(20)], 280)).save_pretrained(tmp_path / "vocabulary")
    base = tiny.model(SPEC, vocab_size=281)  # every id is a piece of text
    base.save_pretrained(tmp_path / "base")
    tiny.model(SPEC, seed=9, vocab_size=281).save_pretrained(tmp_path / "other")
    model = adapted_model(SPEC, vocab_size=281)
    base_sum = files.checksum(Parameters(base.named_parameters()))
    adapter = files.Adapter(model.config.pet_config, adapter_arrays(model), "base", base_sum)
    folder = tmp_path / "run" / "checkpoint" / "rank_0" / "CKP-3"
    with atomic.new_directory(folder) as scratch:
        files.write(scratch, adapter, SPEC, model.config)

    def predict(*words: str, base: str = "base") -> list[str]:
        common = ["--predict_data", "the red fox", "--max_new_tokens", "8"]
        common += ["--tokenizer", str(tmp_path / "vocabulary")]
        return ["predict", "gpt2", "--load_checkpoint", str(tmp_path / base), *common, *words]

    said = []
    for words in ([], ["--load_adapter", str(folder)], ["--load_adapter", str(tmp_path / "run")]):
        capsys.readouterr()
        assert main(predict(*words)) == 0
        said.append(capsys.readouterr().out)
    assert said[0] != said[1] == said[2]
    words = predict("--load_adapter", str(folder), base="other")
    assert "was trained on other weights (base)" in problems(capsys, *words)
    words = predict("--load_adapter", str(tmp_path / "nowhere"))
    assert "nowhere: no such file or directory" in problems(capsys, *words)
    words = predict(base="nowhere")
    assert "nowhere: no such file or directory" in problems(capsys, *words)


@pytest.mark.parity
def test_equals_peft(tmp_path):
    """Logits recorded from PEFT; then through our layout and back to PEFT's."""
    from mindspore import Tensor

    case = Path(__file__).parent / "goldens_lora"
    with np.load(case / "golden.npz", allow_pickle=False) as golden:
        ids, expected = Tensor(golden["ids"].astype(np.int32)), golden["logits"]
    model = AutoModel.from_pretrained(case, adapter=case / "adapter")
    np.testing.assert_allclose(model(ids).asnumpy(), expected, rtol=0, atol=TOLERANCES.logits)
    model.save_pretrained(tmp_path / "ours")
    words = ["--input", str(tmp_path / "ours"), "--output", str(tmp_path / "theirs")]
    assert main(["convert", "gpt2", *words, "--format", "peft"]) == 0
    again = AutoModel.from_pretrained(case, adapter=tmp_path / "theirs")
    np.testing.assert_allclose(again(ids).asnumpy(), expected, rtol=0, atol=TOLERANCES.logits)


def test_written_for_peft(tmp_path, capsys):
    """Names, ranks and scales that PEFT itself would read; q and v alone of a fused layer."""
    model = adapted_model(SPEC, target_modules=r".*attention\.[qv]")
    model.save_pretrained(tmp_path / "saved")
    words = ["--input", str(tmp_path / "saved"), "--output", str(tmp_path / "peft")]
    assert main(["convert", "gpt2", *words, "--format", "peft"]) == 0
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["c_attn"] and settings["fan_in_fan_out"] is True
    assert settings["r"] == 3 and set(settings["rank_pattern"].values()) == {6}
    arrays = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    hidden = model.config.hidden_size
    start = "base_model.model.transformer.h.0.attn.c_attn"
    a, b = arrays[f"{start}.lora_A.weight"], arrays[f"{start}.lora_B.weight"]
    assert a.shape == (6, hidden) and b.shape == (3 * hidden, 6)
    scale = settings["alpha_pattern"]["transformer.h.0.attn.c_attn"] / 6
    ours = tiny.weights(model)
    delta = (scale * b @ a).T
    for part, name in enumerate("qkv"):
        block = delta[:, part * hidden : (part + 1) * hidden]
        if name == "k":
            assert not block.any()
            continue
        layer = f"layers.0.attention.{name}"
        expected = 5.0 / 3 * ours[f"{layer}.lora_a"] @ ours[f"{layer}.lora_b"]
        np.testing.assert_allclose(block, expected, rtol=0, atol=1e-6)
    assert "holds an adapter" not in capsys.readouterr().err
    hf = ["--input", str(tmp_path / "saved"), "--output", str(tmp_path / "hf"), "--format", "hf"]
    assert "merge it (python -m lm_gpt2.merge)" in problems(capsys, "convert", "gpt2", *hf)


def test_one_folder_with_base_and_adapter(tmp_path, base):
    """Beside each other as PEFT's files, and as two .ckpt files of MindFormers."""
    from mindspore import Tensor

    model = adapted_model(SPEC)
    ids = tiny.token_ids(model.config.vocab_size, (2, 6))
    expected = model(Tensor(ids)).asnumpy()
    adapter = files.Adapter(model.config.pet_config, adapter_arrays(model))
    both = tiny.write_hf(tiny.model(SPEC), SPEC, tmp_path / "both")
    files.write(both, adapter, SPEC, model.config, "peft")
    loaded = AutoModel.from_pretrained(both)
    np.testing.assert_allclose(loaded(Tensor(ids)).asnumpy(), expected, rtol=0, atol=1e-5)

    folder = tmp_path / "ckpts"
    folder.mkdir()
    table, plain = SPEC.tables["mindformers"], tiny.model(SPEC)
    ckpt.write(
        folder / "gpt2.ckpt", table.save(io.Parameters(plain.named_parameters()), plain.config)
    )
    arrays, _ = layout.save(adapter.arrays, SPEC, model.config, adapter.config, "mindformers")
    ckpt.write(folder / "lora.ckpt", Memory(arrays))
    loaded = AutoModel.from_pretrained(folder, config=model.config)
    np.testing.assert_allclose(loaded(Tensor(ids)).asnumpy(), expected, rtol=0, atol=1e-5)
    with pytest.raises(CheckpointError, match="holds an adapter .* and the run has none"):
        AutoModel.from_pretrained(folder, config=plain.config)


def adapter_arrays(model) -> dict[str, np.ndarray]:
    return {n: a for n, a in tiny.weights(model).items() if layout.is_adapter_name(n)}


def test_what_is_refused(tmp_path, base, capsys):
    """Bad patterns, adapters of others, incomplete ones: one line each."""
    with pytest.raises(ConfigError, match=r"'.*wq' is the name of no linear layer.*attention\.q"):
        get_pet_model(tiny.model(SPEC), LoraConfig(target_modules=".*wq"))
    with pytest.raises(ConfigError, match="'[(]' is no regular expression"):
        get_pet_model(tiny.model(SPEC), LoraConfig(target_modules="("))
    model = adapted_model(SPEC)
    with pytest.raises(ConfigError, match="has an adapter already"):
        get_pet_model(model, LoraConfig())
    adapter = files.Adapter(model.config.pet_config, adapter_arrays(model))
    files.write(tmp_path, adapter, SPEC, model.config, "peft")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    with pytest.raises(CheckpointError, match="use_dora is True; only False is computed"):
        get_pet_model(tiny.model(SPEC), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    arrays = dict(load_file(tmp_path / "adapter_model.safetensors"))
    more = {**arrays, "base_model.model.transformer.wte.weight": np.zeros((2, 2), np.float32)}
    save_file(more, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="holds base_model.model.transformer.wte.weight"):
        get_pet_model(tiny.model(SPEC), tmp_path)
    arrays.pop(next(name for name in arrays if "lora_B" in name))
    save_file(arrays, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="only one of A and B is there"):
        get_pet_model(tiny.model(SPEC), tmp_path)
    words = ["--load_checkpoint", str(base), "--output", str(tmp_path / "x")]
    assert "has no adapter to merge" in problems(capsys, "merge", "gpt2", *words)
    assert not (tmp_path / "x").exists()
