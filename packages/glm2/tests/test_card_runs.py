"""Every value of both run files of the ChatGLM2-6B card is accepted and kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cards import Card, Differs, kept, written

from lm_core.cli import run_verb
from lm_core.config.load import dump_run, load_run
from lm_core.errors import ConfigError
from lm_core.spec import read_run
from lm_glm2 import SPEC
from lm_glm2.config import PRESETS

HERE = Path(__file__).parent
CARD = Card.read(HERE / "card" / "glm2.yaml")
DIFFERS = (
    Differs("model.model_config.pre_seq_len", "None", None, "a text that stands for nothing"),
    Differs("model.model_config.layernorm_epsilon", "1e-5", 1e-5, "YAML 1.1 reads a text"),
)
OTHER_NAMES = {
    "padded_vocab_size": "vocab_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_heads",
}


@pytest.mark.parametrize("name", CARD.files)
def test_run_files_load_value_for_value(name: str, tmp_path: Path):
    values = CARD.run(name)
    sizes = values["model"]["model_config"]
    for theirs, ours in OTHER_NAMES.items():
        sizes[ours] = sizes.pop(theirs)
    kept(values, SPEC, tmp_path, DIFFERS)
    # By the card's own names it is the same run.
    ours = load_run(written(tmp_path, values), family=SPEC)
    theirs = load_run(written(tmp_path, CARD.run(name)), family=SPEC)
    assert dump_run(ours) == dump_run(theirs)


@pytest.mark.parametrize("name", CARD.files)
def test_the_packaged_runs_are_those_of_the_card(name: str, tmp_path: Path):
    """What decides the result of a run; the rest is said by the packaged ones in fewer words."""
    theirs = load_run(written(tmp_path, CARD.run(name)), family=SPEC)
    ours = read_run(name.removeprefix("run_"))
    for section in ("optimizer", "lr_schedule", "runner_wrapper", "recompute_config"):
        assert getattr(ours, section) == getattr(theirs, section), section
    assert ours.runner_config.epochs == theirs.runner_config.epochs == 1
    assert ours.runner_config.batch_size == theirs.runner_config.batch_size == 8
    for one, other in (
        (ours.train_dataset, theirs.train_dataset),
        (ours.eval_dataset, theirs.eval_dataset),
    ):
        for key in ("max_source_length", "max_target_length", "ignore_pad_token_for_loss"):
            assert getattr(one, key) == getattr(other, key)
        assert one.data_loader.type == other.data_loader.type
        assert one.data_loader.phase == other.data_loader.phase
    sizes = ("num_layers", "hidden_size", "num_heads", "kv_heads", "head_dim", "seq_length")
    for key in (*sizes, "vocab_size", "intermediate_size", "max_decode_length", "eos_token_id"):
        assert getattr(ours.model.config, key) == getattr(theirs.model.config, key), key
    lora, adapter = theirs.model.config.pet_config, ours.model.config.pet_config
    assert (lora is None) == (adapter is None)
    if lora is not None:
        for key in ("lora_rank", "lora_alpha", "lora_dropout"):
            assert getattr(lora, key) == getattr(adapter, key)
    assert [item.type for item in ours.metric] == [item.type for item in theirs.metric]
    assert ours.degrees.data_parallel == theirs.degrees.data_parallel


def test_a_size_by_both_of_its_names(tmp_path: Path):
    """The same number twice is one; two numbers are refused, whichever is on the command line."""
    path = written(tmp_path, CARD.run("run_glm2_6b"))
    size = "model.model_config.num_heads"
    assert load_run(path, [f"{size}=32"], family=SPEC).model.config.num_heads == 32
    with pytest.raises(ConfigError) as caught:
        load_run(path, [f"{size}=16"], family=SPEC)
    assert "num_attention_heads: is given, and so is num_heads" in str(caught.value)
    changed = "model.model_config.num_attention_heads=16"
    config = load_run(path, [changed, "model.model_config.kv_channels=256"], family=SPEC)
    assert config.model.config.num_heads == 16


def test_a_misspelt_size_is_told_the_cards_name(tmp_path: Path):
    values = CARD.run("run_glm2_6b")
    values["model"]["model_config"]["padded_vocab_sise"] = 5
    with pytest.raises(ConfigError, match="did you mean padded_vocab_size"):
        load_run(written(tmp_path, values), family=SPEC)


def test_the_layout_of_the_card(capsys):
    """Eight cards, each with the whole model and its part of the optimizer's state."""
    assert run_verb("plan", SPEC, ["--config", "glm2_6b", "use_parallel=True"]) == 0
    shown = capsys.readouterr().out
    assert "glm2_6b: 6,243,584,000 parameters" in shown
    assert "8 ranks, rank = (stage x 8 + dp) x 1 + tp" in shown


def test_the_table_of_the_readme():
    """Each preset has a row, and the row says what the preset is."""
    text = (HERE.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(PRESETS)
    for name, rest in rows:
        config = PRESETS[name]
        count, *numbers = (cell.strip() for cell in rest.split("|"))
        size = float(count[:-1]) * {"B": 1e9, "K": 1e3}[count[-1]]
        assert size == pytest.approx(config.parameter_count(), rel=5e-3)
        heads = f"{config.num_heads} ({config.kv_heads}) x {config.head_dim}"
        sizes = (config.num_layers, config.hidden_size, heads, config.intermediate_size)
        assert numbers[:5] == [*map(str, sizes), str(config.vocab_size)], name
