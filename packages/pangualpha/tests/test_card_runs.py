"""Every value of the four run files of the PanguAlpha card is accepted and kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cards import Card, kept, places, written

from lm_core.cli import run_verb
from lm_core.config.load import load_run
from lm_core.spec import read_run
from lm_pangualpha import SPEC
from lm_pangualpha.config import PRESETS

HERE = Path(__file__).parent
CARD = Card.read(HERE / "card" / "pangualpha.yaml")


@pytest.mark.parametrize("name", CARD.files)
def test_run_files_load_value_for_value(name: str, tmp_path: Path):
    kept(CARD.run(name), SPEC, tmp_path)


@pytest.mark.parametrize("name", CARD.files)
def test_the_packaged_runs_are_those_of_the_card(name: str, tmp_path: Path):
    """What decides the result of a run; the rest is said by the packaged ones in fewer words."""
    theirs = load_run(written(tmp_path, CARD.run(name)), family=SPEC)
    ours = read_run(name.removeprefix("run_"))
    for section in ("optimizer", "lr_schedule", "runner_wrapper"):
        assert getattr(ours, section) == getattr(theirs, section), section
    assert ours.runner_config.epochs == theirs.runner_config.epochs
    assert ours.runner_config.batch_size == theirs.runner_config.batch_size
    sizes = ("num_layers", "hidden_size", "num_heads", "seq_length", "vocab_size", "ffn_size")
    tokens = ("pad_token_id", "eos_token_id", "eod_token_id", "max_decode_length")
    others = ("hidden_act", "repetition_penalty", "max_new_tokens", "num_labels")
    for key in (*sizes, *tokens, *others):
        if key == "num_labels" and "prompt" not in name:
            continue
        assert getattr(ours.model.config, key) == getattr(theirs.model.config, key), key
    assert ours.eval_dataset.input_columns in (None, theirs.eval_dataset.input_columns)
    assert [item.type for item in ours.metric] == [item.type for item in theirs.metric]
    for key in ("data_parallel", "model_parallel", "pipeline_stage", "vocab_emb_dp"):
        assert getattr(ours.degrees, key) == getattr(theirs.degrees, key), key


CHANGES = {
    "for one card": (
        "context:\n  mode: 0\n  max_device_memory: '57GB'\n  device_id: 0\n"
        "runner_config:\n  epochs: 1\n  batch_size: 2\n  sink_mode: True\n  sink_size: 2\n",
        {"context.max_device_memory": "57GB", "runner_config.batch_size": 2},
    )
}


def test_the_changes_for_one_card(tmp_path: Path):
    """What the card has users write for training on a single card."""
    text, expected = CHANGES["for one card"]
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: pangualpha_2_6b\n{text}", encoding="utf-8")
    run = load_run(path, ["use_parallel=False"], family=SPEC)
    assert run.context.max_device_memory == expected["context.max_device_memory"]
    assert run.runner_config.batch_size == expected["runner_config.batch_size"]
    assert run.optimizer == read_run("pangualpha_2_6b").optimizer


def test_the_settings_of_faster_prediction(tmp_path: Path):
    """The card's note, pasted where users paste it."""
    fragment = (
        "use_past: True\nuse_moe: False\nexpert_num: 1\nper_token_num_experts_chosen: 1\n"
        'checkpoint_name_or_path: "pangualpha_2_6b"\nrepetition_penalty: 1\n'
        "max_decode_length: 1024\ntop_k: 3\ntop_p: 1\ndo_sample: False\n"
    )
    text = places(fragment, "pangualpha_2_6b")["in its section"]
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_run(path, family=SPEC).model.config
    assert (config.use_past, config.top_k, config.do_sample) == (True, 3, False)


def test_the_layouts_of_the_card(capsys):
    """8 and 16 cards, and those that the comments of the 13B file name."""
    layouts = [("pangualpha_2_6b", {}, 8), ("pangualpha_13b", {}, 16)]
    many = {"data_parallel": 4, "model_parallel": 2, "pipeline_stage": 4, "micro_batch_num": 32}
    more = {"data_parallel": 16, "model_parallel": 1, "pipeline_stage": 8, "micro_batch_num": 80}
    layouts += [("pangualpha_13b", many, 32), ("pangualpha_13b", more, 128)]
    for name, degrees, ranks in layouts:
        words = [f"parallel_config.{key}={value}" for key, value in degrees.items()]
        assert run_verb("plan", SPEC, ["--config", name, "use_parallel=True", *words]) == 0
        assert f"{ranks} ranks, rank = " in capsys.readouterr().out


def test_the_table_of_the_readme():
    """Each preset has a row, and the row says what the preset is."""
    text = (HERE.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(PRESETS)
    for name, rest in rows:
        config = PRESETS[name]
        count, *numbers = (cell.strip() for cell in rest.split("|"))
        size = float(count[:-1]) * {"B": 1e9, "M": 1e6}[count[-1]]
        assert size == pytest.approx(config.parameter_count(), rel=2e-2)
        sizes = (config.num_layers, config.hidden_size, config.num_heads, config.ffn_size)
        assert numbers[:4] == [*map(str, sizes)], name
