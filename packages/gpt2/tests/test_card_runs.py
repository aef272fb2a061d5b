"""Every value of every run file of the GPT2 model card is accepted and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from cards import Card, Differs, kept, places

from lm_core.config.load import load_run
from lm_core.spec import read_run
from lm_gpt2 import SPEC
from lm_gpt2.config import Gpt2Config

HERE = Path(__file__).parent / "card"
WRITTEN = HERE / "run_gpt2.yaml"
CARD = Card.read(HERE / "gpt2.yaml")
DIFFERENT = (
    Differs(
        "model.model_config.hidden_act", "gelu", "gelu_tanh", "there are two; GPT-2 means this one"
    ),
)


@pytest.mark.parametrize("name", CARD.files)
def test_run_files_load_value_for_value(name: str, tmp_path: Path):
    run = kept(CARD.run(name), SPEC, tmp_path, DIFFERENT)
    assert run.loss_scale.loss_scale_value == 2.0**32


def test_the_file_as_it_is_written():
    """With its anchors: what is changed in a data set is changed for its task."""
    override = "train_dataset.data_loader.dataset_dir=there"
    run = load_run(WRITTEN, [override], family=SPEC)
    assert run.train_dataset.data_loader.dataset_dir == "there"
    assert run.model.config == Gpt2Config(
        use_past=False,
        compute_dtype="float16",
        checkpoint_name_or_path="gpt2",
        max_decode_length=1024,
        top_k=5,
        do_sample=True,
    )
    lines = WRITTEN.read_text(encoding="utf-8").splitlines()
    assert run.origin("optimizer.eps").endswith(f":{lines.index('  eps: 1.e-8') + 1}")


OPTIMIZERS = ("FusedAdamWeightDecay", "FP32StateAdamWeightDecay", "AdamW")
SCHEDULES = {
    "polynomial": "polynomial",
    "PolynomialWithWarmUpLR": "polynomial",
    "CosineWithWarmUpLR": "cosine",
    "ConstantWarmUpLR": "constant",
    "LinearWithWarmUpLR": "linear",
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_optimizers_and_schedules_of_the_cards(optimizer: str, schedule: str):
    words = [f"optimizer.type={optimizer}", f"lr_schedule.type={schedule}"]
    run = load_run(WRITTEN, words, family=SPEC)
    assert (run.optimizer.type, run.lr_schedule.type) == ("adamw", SCHEDULES[schedule])


FRAGMENT = """\
# model config
use_past: True          # 开启增量推理
use_moe: False
expert_num: 1
per_token_num_experts_chosen: 1
checkpoint_name_or_path: "gpt2"
repetition_penalty: 1
max_decode_length: 1024
top_k: 3
top_p: 1
do_sample: True
"""
"""The card's note on faster inference."""


PLACES = {"alone": FRAGMENT, **places(FRAGMENT, "gpt2")}


@pytest.mark.parametrize("where", PLACES)
def test_the_fragment_of_the_card(where: str, tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text(PLACES[where], encoding="utf-8")
    config = read_run(path).model.config
    assert (config.use_past, config.top_k, config.do_sample) == (True, 3, True)
    assert (config.max_decode_length, config.hidden_size, config.num_layers) == (1024, 768, 12)
