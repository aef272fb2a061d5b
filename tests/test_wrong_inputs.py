"""What users get wrong: each gives one clear line (or a line for each mistake), exit status 2.

Each row is a command line and words of its answer: where it is, what is wrong, what to do.
"""

from __future__ import annotations

import json
import shutil
import socket

import numpy as np
import pytest

from lm_core import cli
from lm_core.data.mindrecord import RecordWriter
from lm_core.parallel import machine
from lm_core.testing import tiny
from lm_core.tokenizer.bpe import train_bpe

RUN = """
base: gpt2_tiny
model: {model_config: {preset: gpt2_tiny, vocab_size: 400, seq_length: 16, max_decode_length: 16}}
runner_config: {max_steps: 1, batch_size: 1}
"""
FILES = {
    "run.yaml": RUN,
    "misspelt.yaml": RUN + "optimiser: {type: AdamW}\n",
    "inner.yaml": RUN.replace("batch_size", "batchsize"),
    "types.yaml": RUN.replace("batch_size: 1", "batch_size: many") + "seed: [1]\n",
    "broken.yaml": "model: {model_config: [}\n",
    "tabs.yaml": "base: gpt2_tiny\nmodel:\n\tmodel_config:\n\t\tpreset: gpt2_tiny\n",
    "two.yaml": RUN.replace("batch_size: 1", "batch_sise: 1, epochs: -1"),
    "twice.yaml": RUN + "seed: 1\nseed: 2\n",
    "list.yaml": "- a\n- b\n",
    "base.yaml": "base: gpt3\n",
    "heads.yaml": RUN.replace("seq_length: 16", "seq_length: 16, num_heads: 5"),
    "long.yaml": RUN.replace("seq_length: 16", "seq_length: 16, max_position_embeddings: 8"),
    "degrees.yaml": RUN + "use_parallel: True\nparallel_config: {data_parallel: 3}\n",
    "loops.yaml": "base: loops.yaml\n",
    "nothing.txt": "\n \n",
    "text.txt": "some words to read\n" * 4,
    "pairs.json": '{"content": "a"}\n{"content": "", "summary": "b"}\n',
    "no.json": "{\n",
    "latin.yaml": None,
}

TRAIN = "pretrain gpt2 --config run.yaml --output_dir out"
READ = f"{TRAIN} --train_dataset_dir"
WRITE = "preprocess gpt2 text --tokenizer gpt2 --output_file o.mindrecord --input_file"
ASK = "predict gpt2 --predict_data x --load_checkpoint"
CASES = {
    # The command line.
    "a verb": ("pretran gpt2", "'pretran' is not a verb; did you mean pretrain?"),
    "a model": ("pretrain gtp2", "no installed package knows 'gtp2'", "did you mean gpt2?"),
    "no model": ("pretrain --config run.yaml", "the model is missing before --config"),
    "a flag": (f"{TRAIN} --traindataset_dir x", "did you mean --train_dataset_dir?"),
    "a flag's value": ("predict gpt2 --predict_batch_size none", "--predict_batch_size"),
    "a flag without value": ("convert gpt2 --input", "command line: --input", "--help"),
    "a choice": ("convert gpt2 --input gpt2 --output o --format gguf", "invalid choice: 'gguf'"),
    "a missing flag": ("preprocess gpt2 text --output_file o.mindrecord", "required: --input_file"),
    "a data set": ("preprocess gpt2 wikipedia", "invalid choice: 'wikipedia'"),
    # Run files and settings.
    "no run file": ("pretrain gpt2 --config no.yaml", "no.yaml"),
    "a misspelt section": ("pretrain gpt2 --config misspelt.yaml", "misspelt.yaml:5", "optimizer?"),
    "a misspelt key": ("pretrain gpt2 --config inner.yaml", "inner.yaml:4", "mean batch_size?"),
    "two wrong types": ("pretrain gpt2 --config types.yaml", "batch_size", "\nerror: ", "seed"),
    "broken YAML": ("pretrain gpt2 --config broken.yaml", "broken.yaml:1"),
    "a key twice": ("pretrain gpt2 --config twice.yaml", "seed", "line 5"),
    "no mapping": ("pretrain gpt2 --config list.yaml", "list.yaml"),
    "an unknown base": ("pretrain gpt2 --config base.yaml", "gpt3"),
    "its own base": ("pretrain gpt2 --config loops.yaml", "loops.yaml"),
    "no UTF-8": ("pretrain gpt2 --config latin.yaml", "latin.yaml", "is not UTF-8"),
    "sizes": ("pretrain gpt2 --config heads.yaml", "num_heads: 5 does not divide hidden_size 64"),
    "positions": ("pretrain gpt2 --config long.yaml", "16 is more than the 8 positions"),
    "degrees": ("pretrain gpt2 --config degrees.yaml", "3 processes"),
    "an override": (f"{TRAIN} runner_config.epoch=2", "did you mean epochs?"),
    "a number": (f"{TRAIN} lr_schedule.learning_rate=fast", "learning_rate", "fast"),
    "a schedule": (f"{TRAIN} lr_schedule.type=cosinus", "lr_schedule.type", "cosine"),
    "an optimizer": (f"{TRAIN} optimizer.type=Adan", "optimizer.type"),
    "a metric": (f"{TRAIN} metric.type=BLEU", "command line: metric[0].type", "EmF1Metric"),
    "a run of another model": ("pretrain llama --config run.yaml", "llama"),
    "tabs": ("pretrain gpt2 --config tabs.yaml", "tabs.yaml:3: not YAML", "indentation"),
    "two mistakes": ("pretrain gpt2 --config two.yaml", "is -1", "\nerror: ", "batch_size?"),
    "a folder as a run": ("pretrain gpt2 --config empty", "'empty' is neither a file nor one of"),
    "a negative number": (f"{TRAIN} --max_steps -3", "--max_steps: runner_config.max_steps: is -3"),
    "no number": (f"{TRAIN} lr_schedule.learning_rate=nan", 'is "nan" (text); must be a number'),
    "a key of others": (f"{TRAIN} parallel_config.tensor_parallel=2", "tensor_parallel: unknown"),
    "an adapter of rank 0": ("finetune gpt2 --config gpt2_lora model.model_config.pet_config."
                             "lora_rank=0", "lora_rank: is 0; must be a whole number >= 1"),
    # Records.
    "no records": (TRAIN, "train_dataset.data_loader.dataset_dir: is missing"),
    "missing records": (f"{READ} no.mindrecord", "no.mindrecord"),
    "no record file": (f"{READ} text.txt", "text.txt"),
    "a damaged record file": (f"{READ} damaged.mindrecord", "damaged.mindrecord"),
    "records of another length": (f"{READ} long.mindrecord",
                                  "records hold 20 ids; seq_length 16 needs 17", "--max_length 17"),
    "records of another vocabulary": (f"{READ} high.mindrecord",
                                      "holds the id 900", "vocab_size is 400"),
    "a batch larger than the data": (f"{READ} r.mindrecord --batch_size 64",
                                     "batch_size: 64 is more than the 3 records"),
    "an output that is a file": (f"{READ} r.mindrecord --output_dir text.txt",
                                 "/run.yaml: cannot be written (Not a directory)", "choose"),
    "a folder without records": (f"{READ} empty", "empty: holds no file whose name ends in"),
    # Raw data.
    "a folder without texts": (f"{WRITE} empty", "input_file: empty holds no file ending in .txt"),
    "a length of 0": (f"{WRITE} text.txt --max_length 0", "max_length: 0 leaves no id to predict"),
    "a missing text": (f"{WRITE} no.txt", "input_file: no.txt does not exist"),
    "an empty text": (f"{WRITE} nothing.txt --remainder drop", "there is no row to write"),
    "an output that is there": (f"{WRITE} text.txt --output_file r.mindrecord",
                                "r.mindrecord is there already", "--overwrite"),
    "no vocabulary": (f"{WRITE} text.txt --tokenizer empty", "empty"),
    "rows without answers": ("preprocess glm2 adgen --input_file pairs.json --tokenizer pieces "
                             "--output_file o.mindrecord", "has no row with content and summary"),
    "no JSON": ("preprocess glm2 adgen --input_file no.json --tokenizer pieces "
                "--output_file o.mindrecord", "no JSON: 1"),
    # Checkpoints.
    "no checkpoint": (f"{ASK} nowhere", "nowhere"),
    "no weights": (f"{ASK} empty", "empty"),
    "a damaged checkpoint": (f"{ASK} damaged", "the file is damaged"),
    "weights of other sizes": (f"{ASK} gpt2 --config gpt2_tiny --tokenizer gpt2",
                               "embedding.weight is [64, 400]"),
    "a checkpoint of another model": (ASK.replace("gpt2", "llama") + " gpt2", "gpt2"),
    "a long prompt": ("predict gpt2 --load_checkpoint gpt2 --predict_data " + "word" * 40, "16"),
    "a checkpoint that is there": ("convert gpt2 --input gpt2 --output gpt2 --format native",
                                   "gpt2", "--overwrite"),
    "two layouts": ("convert gpt2 --input gpt2 --output x.ckpt --format hf", "format: is hf"),
    "a vocabulary of another model": (f"{ASK} gpt2 --tokenizer pieces", "must be from 0 to 399"),
    "no prompts": ("predict gpt2 --load_checkpoint gpt2 --predict_data nothing.txt",
                   "predict_data: holds no prompt"),
    "prompts in Latin-1": ("predict gpt2 --load_checkpoint gpt2 --predict_data latin.yaml",
                           "predict_data: latin.yaml is not UTF-8 at byte 11"),
    "a negative temperature": (f"{ASK} gpt2 --temperature -1", "temperature: -1.0; must be"),
    "a share above 1": (f"{ASK} gpt2 --do_sample --top_p 2", "top_p: 2.0; must be"),
    "an export over a file": ("export gpt2 --load_checkpoint gpt2 --output_dir text.txt",
                              "text.txt: is a file; a directory is to be written there"),
    "an export of nothing": ("export gpt2 --config run.yaml", "load_checkpoint: is missing"),
    "an export to serve": ("serve gpt2 --mindir empty", "--mindir: unknown argument"),
    "an export to evaluate": ("evaluate gpt2 --mindir empty", "--mindir: unknown argument"),
    "no adapter": ("merge gpt2 --load_checkpoint gpt2 --output o", "gpt2: has no adapter to merge"),
    "degrees of a model": ("transform gpt2 --src_ckpt_dir gpt2 --dst_ckpt_dir o "
                           "parallel_config.model_parallel=8", "model_parallel: 8 does not divide"),
    "no export": ("predict gpt2 --mindir empty --predict_data x", "empty"),
    # The machine.
    "a port in use": ("serve gpt2 --load_checkpoint gpt2 --port PORT", "port: PORT on 127.0.0.1"),
    "no port": ("serve gpt2 --load_checkpoint gpt2 --port 99999", "'99999' is no port"),
    "a chat of no chat model": ("chat gpt2 --load_checkpoint gpt2", "chat"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny checkpoint with a vocabulary, records, and what is wrong with others."""
    from lm_glm2.tokenizer import ChatGlm2Tokenizer
    from lm_gpt2 import SPEC
    from lm_gpt2.tokenizer import Gpt2Tokenizer

    folder = tmp_path_factory.mktemp("wrong")
    for name, text in FILES.items():
        if text is not None:
            (folder / name).write_text(text)
    (folder / "latin.yaml").write_bytes("seed: 1 # für".encode("latin-1"))
    vocab, merges = train_bpe([tiny.text(50)], 399)
    tokenizer = Gpt2Tokenizer(vocab, merges, special={"<|endoftext|>": 399})
    model = tiny.model(SPEC, vocab_size=400, seq_length=16)
    model.save_pretrained(folder / "gpt2", tokenizer=tokenizer)
    (folder / "empty").mkdir()
    ChatGlm2Tokenizer(tiny.sentencepiece_model()).save_pretrained(folder / "pieces")
    shutil.copytree(folder / "gpt2", folder / "damaged")
    weights = next((folder / "damaged").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    for name, length, highest in (("r", 17, 300), ("long", 20, 300), ("high", 17, 900)):
        with RecordWriter(folder / f"{name}.mindrecord", ("input_ids",)) as writer:
            for _ in range(3):
                writer.write({"input_ids": np.full(length, highest, np.int32)})
    shutil.copy(folder / "r.mindrecord", folder / "damaged.mindrecord")
    (folder / "damaged.mindrecord").write_bytes(b"no records " * 99)
    return folder


@pytest.fixture
def there(place, tmp_path, monkeypatch):
    """A copy that a case may write to."""
    folder = tmp_path / "work"
    shutil.copytree(place, folder)
    monkeypatch.chdir(folder)
    for name in ("MS_WORKER_NUM", "RANK_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return folder


def contents(folder):
    """Of all files but those of the run, which may have begun."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {p: p.read_bytes() for p in files if p.relative_to(folder).parts[0] != "out"}


def answered(capsys, words):
    """The lines of an answer that is an error."""
    capsys.readouterr()
    status = cli.main(words)
    shown = capsys.readouterr().err
    assert status == 2, shown
    assert "Traceback" not in shown
    return [line for line in shown.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("name", CASES)
def test_a_clear_line(name, there, capsys):
    words, *expected = CASES[name]
    before = contents(there)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        lines = answered(capsys, words.replace("PORT", port).split())
    text = "\n".join(lines)
    assert lines and all(word.replace("PORT", port) in text for word in expected), text
    assert len(lines) == 1 + sum(word.count("\nerror: ") for word in expected), text
    for line in lines:
        assert ": " in line.removeprefix("error: ") and len(line) < 500, line
    assert contents(there) == before


def test_the_list_is_long():
    assert len(CASES) >= 70


def test_numpy_2(there, capsys, monkeypatch):
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda name: "2.1.0" if name == "numpy" else real(name))
    (line,) = answered(capsys, ["predict", "gpt2", "--load_checkpoint", "gpt2"])
    assert "numpy" in line and "2.1.0" in line and "pip install" in line


def test_wrong_json_of_a_checkpoint(there, capsys):
    (there / "gpt2" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (line,) = answered(
        capsys, ["predict", "gpt2", "--load_checkpoint", "gpt2", "--predict_data", "x"]
    )
    assert "model_type" in line and "bert" in line
