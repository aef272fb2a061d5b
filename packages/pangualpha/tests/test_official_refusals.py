"""What is wrong with a release of PanGu-alpha's authors is told in a line; nothing is written."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from official import CONFIG, contents, strategy_file, whole_tensors, words, write_release

from lm_core.cli import main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "release"
    write_release(folder, whole_tensors())
    return folder


@pytest.fixture
def release(made, tmp_path):
    return shutil.copytree(made, tmp_path / "release")


def refused(capsys, folder, *more, output="out.ckpt", **changed):
    target = folder.parent / output
    assert main(words(folder, target, *more, **changed)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and not target.exists()
    assert not list(folder.parent.glob(".out*"))
    return [line for line in said.splitlines() if line.startswith("error: ")]


def damage_slice(folder):
    path = folder / "parts" / "filerted_5.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shorten(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])


def remove(folder, *names):
    for name in names:
        (folder / name).unlink()


def other_sizes(folder):
    write_release(folder / "x", whole_tensors(CONFIG.copy(hidden_size=64)), "optimizer")
    shutil.copy(folder / "x" / "parts" / "filerted_3.ckpt", folder / "parts")


def other_run(folder, cut):
    write_release(folder / "x", whole_tensors(), cut)
    shutil.copy(folder / "x" / "pangu_alpha_ckpt_strategy.ckpt", folder)


def empty_matrix(folder):
    file = folder / "pangu_alpha_ckpt_strategy.ckpt"
    file.write_bytes(strategy_file({"backbone.layernorm.gamma": ((), (-1,), 0, 0)}))


def save(folder, name, array):
    np.save(folder / "npy" / f"{name}.npy", array)


NPY = "npy/13B_word_embedding.npy"
WRONG = {
    "no part": (
        lambda r: remove(r, *(f"parts/filerted_{rank}.ckpt" for rank in range(8))),
        "parts: holds no filerted_0.ckpt; the parts of all 8 ranks",
    ),
    "parts missing": (
        lambda r: remove(r, "parts/filerted_3.ckpt", "parts/filerted_6.ckpt"),
        "parts: the part of rank 3, 6 is missing; all 8 ranks of",
    ),
    "too many parts": (
        lambda r: shutil.copy(r / "parts/filerted_0.ckpt", r / "parts/filerted_8.ckpt"),
        "parts: holds the parts of 9 ranks and",
    ),
    "a damaged part": (damage_slice, "filerted_5.ckpt: its CRC does not fit its contents"),
    "a part cut short": (
        lambda r: shorten(r, "parts/filerted_1.ckpt"),
        "filerted_1.ckpt: it is no list of tensors",
    ),
    "a part of another model": (other_sizes, "filerted_3.ckpt: backbone."),
    "strategy of fewer ranks": (lambda r: other_run(r, "data"), "is about 4; both must be of one"),
    "strategy of more ranks": (
        lambda r: remove(r, *(f"parts/filerted_{rank}.ckpt" for rank in range(4, 8))),
        "the part of rank 4, 5, 6, 7 is missing",
    ),
    "no strategy": (
        lambda r: remove(r, "pangu_alpha_ckpt_strategy.ckpt"),
        "pangu_alpha_ckpt_strategy.ckpt: holds no strategy file",
    ),
    "a damaged strategy": (
        lambda r: shorten(r, "pangu_alpha_ckpt_strategy.ckpt"),
        "pangu_alpha_ckpt_strategy.ckpt: cannot be read as a strategy file",
    ),
    "a strategy without devices": (
        empty_matrix,
        "backbone.layernorm.gamma is cut by a field, by several axes, or by no devices",
    ),
    "a strategy of something else": (
        lambda r: (r / "pangu_alpha_ckpt_strategy.ckpt").write_bytes(
            strategy_file({"other": ((4, 2), (-1,), 0, 0)})
        ),
        "parts/filerted_0.ckpt: ",
    ),
    "no array": (lambda r: remove(r, NPY), "npy: holds no such file; must hold one whose name"),
    "an array twice": (
        lambda r: save(r, "2.6B_word_embedding", np.zeros((96, 32), np.float32)),
        "npy: holds 13B_word_embedding.npy, 2.6B_word_embedding.npy; must hold one whose name "
        "ends in word_embedding.npy",
    ),
    "an array of another size": (
        lambda r: save(r, "13B_word_embedding", np.zeros((96, 64), np.float32)),
        "word_embedding.embedding_table is [96, 64] and must be [96, 32]",
    ),
    "an array of whole numbers": (
        lambda r: save(r, "13B_word_embedding", np.zeros((96, 32), np.int64)),
        "13B_word_embedding.npy: holds int64; must hold floating-point numbers",
    ),
    "an array of objects": (
        lambda r: save(r, "13B_word_embedding", np.full((96, 32), None)),
        "13B_word_embedding.npy: cannot be read as an array of NumPy",
    ),
    "an array cut short": (
        lambda r: shorten(r, NPY), "13B_word_embedding.npy: cannot be read as an array of NumPy"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_told_in_a_line(release, capsys, kind):
    spoil, expected = WRONG[kind]
    spoil(release)
    (line,) = refused(capsys, release)
    assert expected in line


def test_a_configuration_of_another_size(release, capsys):
    lines = refused(capsys, release, config_path_or_name="pangualpha_tiny")
    assert len(lines) == 1 and "53 wrongly shaped tensors" in lines[0]
    text = (release / "run.yaml").read_text()
    (release / "run.yaml").write_text(text.replace("num_layers: 3", "num_layers: 4"))
    (line,) = refused(capsys, release)
    assert "16 missing tensors: backbone.blocks.2.layernorm1.gamma" in line


OF_FLAGS = {
    "one missing": ({"official_npy_dir": None}, (), "--official_npy_dir: missing; the official"),
    "no sizes": ({"config_path_or_name": None}, (), "--config: is missing; must say the sizes of"),
    "another model": ({"config_path_or_name": "llama_tiny"}, (), "is a LlamaConfig; must say the"),
    "two inputs": ({}, ("--input", "x"), "--npy_dir are both given"),
    "an adapter": ({"ckpt_save_path": "out"}, ("--format", "peft"), "has no adapter"),
}


@pytest.mark.parametrize("kind", OF_FLAGS)
def test_flags_that_do_not_fit(release, capsys, kind):
    changed, more, expected = OF_FLAGS[kind]
    if kind == "another model":
        pytest.importorskip("lm_llama")
    (line,) = refused(capsys, release, *more, **changed)
    assert expected.replace("--npy", "--official_npy") in line


def test_nothing_given(capsys, tmp_path):
    assert main(["convert", "pangualpha", "--output", str(tmp_path / "x.ckpt")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--official_npy_dir are both missing; one of them must say what is converted" in line


@pytest.mark.parametrize("name", ["parts", "parts/filerted_3.ckpt"])
def test_parts_alone_are_no_model(release, capsys, name):
    given = ["--input", str(release / name), "--config", str(release / "run.yaml")]
    assert main(["convert", "pangualpha", *given, "--output", str(release / "x.ckpt")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} is of a release in 8 parts" in line and "give --official_strategy_path" in line


@pytest.mark.parametrize("name", ["parts/filerted_2.ckpt", "pangu_alpha_ckpt_strategy.ckpt"])
def test_the_release_is_never_written_over(release, capsys, name):
    before = contents(release)
    assert main(words(release, release / name, "--overwrite")) == 2
    assert f"{name}: is a file of the official release; it is never" in capsys.readouterr().err
    assert main(words(release, release / "parts", "--overwrite")) == 2
    assert "holds weights without manifest.json" in capsys.readouterr().err
    assert contents(release) == before


def test_only_this_model_has_these_flags(capsys):
    shown = {}
    for model in ("pangualpha", "gpt2"):
        pytest.importorskip(f"lm_{model}")
        with pytest.raises(SystemExit):
            main(["convert", model, "--help"])
        shown[model] = capsys.readouterr().out
    for flag in ("strategy_path", "ckpt_dir", "npy_dir"):
        assert f"--official_{flag}" in shown["pangualpha"]
    assert "official" not in shown["gpt2"] and "ckpt_save_path" not in shown["gpt2"]
    assert "{native,hf,mindformers,peft}" in shown["pangualpha"]
