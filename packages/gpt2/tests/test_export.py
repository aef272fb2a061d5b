"""Exports as folders: what is in them, who can read them, and what is said of wrong ones."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from jobs import Jobs

from lm_core import AutoModel, AutoTokenizer, Trainer, pipeline
from lm_core.cli import run_verb
from lm_core.errors import CheckpointError, ConfigError
from lm_core.export.exported import ExportedModel
from lm_core.testing import tiny
from lm_core.tokenizer.bpe_train import train_bpe
from lm_gpt2 import SPEC
from lm_gpt2.tokenizer import Gpt2Tokenizer

TEXTS = ["The red fox", "our teacher", "A"]
SIZES = {"--batch_size": "2", "--seq_length": "48"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A model of one layer whose weights two ranks can share, and its tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2") / "checkpoint"
    tokenizer = Gpt2Tokenizer(*train_bpe([tiny.text(60)], 300))
    ids = {f"{name}_token_id": tokenizer.eos_token_id for name in ("bos", "eos", "pad", "unk")}
    model = tiny.model(SPEC, vocab_size=tokenizer.vocab_size, num_layers=1, **ids)
    model.save_pretrained(folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "exported"
    assert export(checkpoint, folder) == 0
    return folder


def export(checkpoint: Path, folder: Path, *more: str, **options: str) -> int:
    given = SIZES | {f"--{name}": value for name, value in options.items()}
    words = [word for pair in given.items() for word in pair]
    return run_verb(
        "export", SPEC, ["--load_checkpoint", str(checkpoint), "--output_dir", str(folder),
                         *words, *more],
    )  # fmt: skip


def predict(*words: str | Path) -> int:
    return run_verb("predict", SPEC, [str(word) for word in words])


def answers(capsys) -> list[str]:
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    return [ast.literal_eval(line)[0]["text_generation_text"][0] for line in lines]


def problem(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    "more", [(), ("--do_sample", "--seed", "5", "--top_k", "0"), ("--stream",)]
)
def test_predict_says_what_the_model_says(checkpoint, exported, more, capsys):
    words = ("--max_new_tokens", "14", *more, "--predict_data", *TEXTS)
    assert predict("--load_checkpoint", checkpoint, *words) == 0
    expected = capsys.readouterr().out
    assert predict("--mindir", exported, *words) == 0
    assert capsys.readouterr().out == expected
    assert len(expected) > sum(map(len, TEXTS)) + 14


def test_the_folder_is_enough(checkpoint, exported, tmp_path, capsys):
    """Moved, without the checkpoint and its name, from Python."""
    moved = shutil.copytree(exported, tmp_path / "elsewhere")
    model = AutoModel.from_pretrained(checkpoint)
    expected = pipeline("text_generation", model)(TEXTS[:2], max_new_tokens=9, do_sample=False)
    found = pipeline("text_generation", ExportedModel(moved))
    assert found(TEXTS[:2], max_new_tokens=9, do_sample=False) == expected
    description = json.loads((moved / "export.json").read_text())
    assert description["graphs"] == {
        "prefill": "prefill.mindir", "increment": "increment.mindir", "both": "",
    }  # fmt: skip
    assert description["inputs"]["prefill"] == {"input_ids": [2, 48], "lengths": [2]}
    assert description["tokens"] == AutoTokenizer.from_pretrained(moved).vocab_size
    assert str(checkpoint) not in "".join(p.read_text() for p in moved.glob("*.json"))


def test_weights_in_a_folder_are_stored_once(checkpoint, tmp_path, monkeypatch, capsys):
    """As MindSpore writes them above 1 GB; half as wide, which the graphs compute from, too."""
    monkeypatch.setattr("mindspore.train.serialization.TOTAL_SAVE", 0)
    half = "model.model_config.param_init_type=float16"
    assert export(checkpoint, tmp_path / "large", half) == 0
    graphs = json.loads((tmp_path / "large" / "export.json").read_text())["graphs"]
    assert graphs["prefill"] == "prefill_graph.mindir"
    (weights,) = (tmp_path / "large" / "prefill_variables").iterdir()
    (other,) = (tmp_path / "large" / "increment_variables").iterdir()
    assert weights.samefile(other)
    words = ("--max_new_tokens", "9", "--predict_data", *TEXTS)
    assert predict("--load_checkpoint", checkpoint, *words, half) == 0
    expected = answers(capsys)[-3:]
    assert predict("--mindir", tmp_path / "large", *words) == 0
    assert answers(capsys) == expected


def test_open_sizes_with_an_adapter(checkpoint, tmp_path, capsys):
    from lm_core import LoraConfig, get_pet_model

    model = get_pet_model(AutoModel.from_pretrained(checkpoint), LoraConfig(lora_rank=2))
    for name, parameter in model.named_parameters().items():
        if name.endswith("lora_b"):
            parameter.set_data(parameter + 0.3)
    expected = model.generate([[5, 6, 7]], max_new_tokens=9, do_sample=False)[0]
    bare = AutoModel.from_pretrained(checkpoint).generate([[5, 6, 7]], max_new_tokens=9)[0]
    assert not np.array_equal(expected, bare)
    model.save_pretrained(tmp_path / "adapted", tokenizer=AutoTokenizer.from_pretrained(checkpoint))
    assert export(tmp_path / "adapted", tmp_path / "open", "--dynamic", batch_size="1") == 0
    found = ExportedModel(tmp_path / "open").generate([[5, 6, 7]], max_new_tokens=9)[0]
    np.testing.assert_array_equal(found, expected)
    assert not (tmp_path / "open" / "lite.ini").exists()


def test_run_files_say_the_sizes(checkpoint, tmp_path, capsys):
    keys = ("infer.infer_seq_length=24", "model.model_config.is_dynamic=True",
            "model.model_config.batch_size=3", "run_mode=export")  # fmt: skip
    words = ["--load_checkpoint", str(checkpoint), f"output_dir={tmp_path}", *keys]
    assert run_verb("export", SPEC, words) == 0
    found = json.loads((tmp_path / "mindir" / "export.json").read_text())
    assert (found["batch_size"], found["seq_length"], found["dynamic"]) == (3, 24, True)
    assert found["inputs"]["both"]["input_ids"] == [-1, -1]
    assert "without effect" not in capsys.readouterr().err


def test_trainers_export(checkpoint, exported, tmp_path, capsys):
    """Weights that are named, those in memory, and a tokenizer that is."""
    made = Trainer(model=str(checkpoint)).export(
        output_dir=tmp_path / "named", batch_size=2, seq_length=48
    )
    assert made == tmp_path / "named"
    names = {path.name for path in exported.iterdir()}
    assert {path.name for path in made.iterdir()} == names and "vocab.json" in names
    model = AutoModel.from_pretrained(checkpoint)
    trainer = Trainer(
        {"base": "gpt2_tiny", "output_dir": str(tmp_path)}, model=model,
        tokenizer=AutoTokenizer.from_pretrained(checkpoint),
    )  # fmt: skip
    bias = model.named_parameters()["norm.bias"]
    bias.set_data(bias + 0.5)
    expected = trainer.predict(TEXTS, max_new_tokens=9, do_sample=False)
    made = trainer.export(dynamic=True)
    assert made == tmp_path / "mindir" and not (made / "lite.ini").exists()
    model = ExportedModel(made)
    assert model.description.seq_length == trainer.network.config.seq_length
    found = [pipeline("text_generation", model)(text, max_new_tokens=9) for text in TEXTS]
    assert sum(found, []) == expected
    with pytest.raises(CheckpointError, match="pass --overwrite"):
        trainer.export()
    with pytest.raises(ConfigError, match="seq_length: is 999; must be at most the model's 128"):
        trainer.export(seq_length=999, overwrite=True)
    with pytest.raises(ConfigError, match="batch_size: "):
        trainer.export(batch_size=0, overwrite=True)
    with pytest.raises(CheckpointError, match="load_checkpoint: is missing"):
        Trainer(model="gpt2_tiny").export()


def test_an_export_is_replaced_only_if_asked(checkpoint, exported, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "export")
    before = (folder / "manifest.json").read_bytes()
    assert export(checkpoint, folder) == 2
    assert "pass --overwrite" in problem(capsys)
    assert export(checkpoint, folder, "--dynamic", "--overwrite", seq_length="16") == 0
    assert (folder / "manifest.json").read_bytes() != before
    assert sorted(path.name for path in folder.glob("*.mindir")) == ["append.mindir"]
    assert [path.name for path in folder.parent.iterdir()] == ["export"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--mindir", "nothing"), "mindir: nothing: no such directory; must be what `export`"),
        (("--mindir", "CHECKPOINT"), "has no export.json; must be a directory that `export` wrote"),
        (("--mindir", "EXPORT", "--config", "gpt2"), "config: is with mindir, and an export has"),
        (("--mindir", "EXPORT", "--predict_batch_size", "3"), "predict_batch_size: 3 rows at once"),
        (("--mindir", "EXPORT", "--num_beams", "3"), "(prompts x beams); the export has 2; lower"),
        (("--mindir", "EXPORT", "--predict_data", "a b " * 30), "must be fewer than the model's"),
        (("--mindir", "EXPORT", "--lite", "lite.ini"), "lite: mindspore_lite is not installed; "),
        (("--load_checkpoint", "CHECKPOINT", "--lite", "x"), "lite: runs graphs; must have"),
        (("--mindir", "EXPORT", "--tokenizer", "OTHER"), "tokenizer: OTHER has 280 tokens; the"),
    ],
)  # fmt: skip
def test_wrong_ways_to_predict(words, line, checkpoint, exported, tmp_path, capsys):
    Gpt2Tokenizer(*train_bpe([tiny.text(60)], 280)).save_pretrained(tmp_path)
    capsys.readouterr()
    names = {"CHECKPOINT": checkpoint, "EXPORT": exported, "OTHER": tmp_path}
    given = [str(names.get(word, word)) for word in words]
    more = () if "--predict_data" in words else ("--predict_data", "The red")
    assert predict(*given, "--max_new_tokens", "40", *more) == 2
    assert line.replace("OTHER", str(tmp_path)) in problem(capsys)


def test_damage_is_said(exported, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "damaged")
    graph = folder / "increment.mindir"
    data = bytearray(graph.read_bytes())
    data[1000] ^= 1
    graph.write_bytes(data)
    words = ("--mindir", folder, "--predict_data", "The red")
    assert predict(*words) == 2
    assert "increment.mindir: is not as it was written (SHA-256" in problem(capsys)
    graph.unlink()
    assert predict(*words) == 2
    assert "increment.mindir: missing; manifest.json lists it" in problem(capsys)
    (folder / "manifest.json").unlink()
    assert predict(*words) == 2
    assert "increment.mindir: missing; export.json names it; export again" in problem(capsys)
    graph.write_bytes(b"no graph")
    assert predict(*words) == 2
    assert "cannot load it" in problem(capsys)
    (folder / "export.json").write_text('{"version": 1}')
    assert predict(*words) == 2
    assert "export.json: model: is missing" in problem(capsys)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--seq_length", "129"), "seq_length: is 129; must be at most the model's 128"),
        (("model.model_config.task=text_classification",), "text_classification"),
        (("--tokenizer", "/"), "tokenizer: / has no vocabulary; must be a folder with one"),
        (("--seq_length", "0"), "--seq_length"),
    ],
)
def test_wrong_ways_to_export(more, line, checkpoint, tmp_path, capsys):
    try:
        status = export(checkpoint, tmp_path / "never", *more)
    except SystemExit as end:  # argparse's own
        status = end.code
    assert status == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_and_their_parts(checkpoint, exported, tmp_path, capsys):
    """Exports of both ranks answer as one process; parts that were split are merged for one."""
    parts = ["--src_ckpt_dir", str(checkpoint), "--dst_ckpt_dir", str(tmp_path / "parts")]
    assert run_verb("transform", SPEC, [*parts, "parallel_config.model_parallel=2"]) == 0
    capsys.readouterr()
    words = ("--max_new_tokens", "14", "--predict_data", *TEXTS)
    assert predict("--mindir", exported, *words) == 0
    expected = capsys.readouterr().out
    assert export(tmp_path / "parts", tmp_path / "merged") == 0
    assert predict("--mindir", tmp_path / "merged", *words) == 0
    assert expected in capsys.readouterr().out
    shutil.copytree(exported, tmp_path / "two")
    jobs = Jobs(tmp_path)
    try:
        made = jobs.run(
            "export", "--load_checkpoint", checkpoint, "--output_dir", tmp_path / "two",
            "--batch_size", "2", "--seq_length", "48", "--use_parallel", "True",
            "parallel_config.model_parallel=2", "parallel_config.vocab_emb_dp=False", "--overwrite",
            NPROC=2,
        )  # fmt: skip
        assert made.status == 0, made
        found = jobs.run("predict", "--mindir", tmp_path / "two", *words, NPROC=2)
        assert found.status == 0, found
    finally:
        jobs.close()
    assert expected in found.out
    assert predict("--mindir", tmp_path / "two", *words) == 2
    assert "start 2 processes" in problem(capsys)
    with pytest.raises(ConfigError, match="was exported for model_parallel 2"):
        ExportedModel(tmp_path / "two")
    script = (tmp_path / "two" / "rank_0" / "run_lite.sh").read_text()
    assert "i < 2" in script and 'RANK_ID="$i"' in script
    made = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert made == ["manifest.json", "rank_0", "rank_1"]
    assert export(checkpoint, tmp_path / "two") == 2
    assert "two: holds a checkpoint; it is replaced only if asked; pass --overwrite" in problem(
        capsys
    )
    assert export(checkpoint, tmp_path / "two", "--overwrite") == 0
    assert not list((tmp_path / "two").glob("rank_*"))
