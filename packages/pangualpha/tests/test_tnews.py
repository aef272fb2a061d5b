"""TNEWS from the published file to the accuracy, and what the accuracy is made of."""

from __future__ import annotations

import ast
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from jobs import Jobs
from mindspore import Tensor
from outside import DATA
from sources import ROOT

from lm_core import Trainer
from lm_core.cli import main
from lm_core.data.mindrecord import RecordWriter
from lm_core.data.pipeline import RecordDataset
from lm_core.errors import DataError
from lm_core.metrics.prompt_accuracy import PromptAccuracy
from lm_core.nn.loss import CrossEntropy
from lm_core.testing import tiny
from lm_core.train.objective import PromptChoice, objective
from lm_pangualpha import SPEC

COLUMNS = ("input_ids", "labels", "attention_mask")
CHOICES, RUN = 4, "pangualpha_2_6b_prompt_txtcls"
REAL = {"vocab_size": 40000, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
SMALL = {**REAL, "vocab_size": 61, "num_heads": 4, "seq_length": 16, "eos_token_id": 1}
FIRST = 40
"""Of the published file."""


def needed(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not here")
    return DATA / name


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """Records of the first headlines of dev.json, with one shot of train.json."""
    folder, source = tmp_path_factory.mktemp("tnews"), needed("tnews")
    with (source / "dev.json").open(encoding="utf-8") as file:
        (folder / "dev.json").write_text("".join(islice(file, FIRST)), encoding="utf-8")
    words = ["--input_file", folder / "dev.json", "--label_file", source / "labels.json"]
    words += ["--shot_file", source / "fewclue" / "train_few_all.json"]
    words += ["--output_file", folder / "tnews.mindrecord", "--tokenizer", needed("pangu_alpha")]
    assert main(["preprocess", "pangualpha", "tnews", *map(str, words)]) == 0
    return folder / "tnews.mindrecord"


def write(path: Path, count: int, seed: int = 0) -> Path:
    """Random rows of 12 ids, of which 1 to 11 count."""
    rng = np.random.default_rng(seed)
    at = np.arange(12)
    with RecordWriter(path, COLUMNS) as writer:
        for _ in range(count):
            ends = rng.integers(2, 13, (CHOICES, 1))
            mask = (at < ends) & (at >= rng.integers(1, ends))
            ids = rng.integers(0, 61, mask.shape)
            columns = (ids.reshape(-1), rng.integers(0, CHOICES, 1), mask.reshape(-1))
            pairs = zip(COLUMNS, columns, strict=True)
            writer.write({name: value.astype(np.int32) for name, value in pairs})
    return path


class Kept(PromptAccuracy):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[np.ndarray] = []

    def update(self, losses: np.ndarray, labels: np.ndarray) -> None:
        self.losses.append(losses)
        super().update(losses, labels)


def scored(model, path: Path, batch_size: int, **changes):
    """The losses of all prompts, [records, C], and the scores."""
    task, kept = PromptChoice(model.config), Kept()
    records = RecordDataset(path, COLUMNS, single=("labels",))
    task.check(records, training=False)
    evaluator = task.evaluator(model, records, batch_size)
    evaluator.metric = lambda: kept
    for name, value in changes.items():
        setattr(evaluator, name, value)
    return evaluator()["accuracy"], np.concatenate(kept.losses), kept.result()


def by_hand(model, path: Path) -> tuple[np.ndarray, int]:
    """In NumPy in float64, from the logits of each row alone; and how many answers are right."""
    records = RecordDataset(path, COLUMNS, single=("labels",))
    found, right = [], 0
    for row in records.stream(range(len(records))):
        losses = []
        for ids, mask in zip(*(np.split(row[n], CHOICES) for n in COLUMNS[::2]), strict=True):
            logits = model(Tensor(ids[None])).asnumpy()[0].astype(np.float64)
            surprise = np.log(np.exp(logits).sum(1))[:-1] - logits[np.arange(len(ids) - 1), ids[1:]]
            losses.append(sum(surprise[t - 1] for t in np.flatnonzero(mask)) / mask.sum())
        found.append(losses)
        right += int(np.argmin(losses)) == row["labels"][0]
    return np.array(found), right


def test_ids_and_mask_of_real_headlines(real):
    """What is scored is the headline to the id, behind prompts with the shot and four labels."""
    tokenizer = SPEC.tokenizer(needed("pangu_alpha"))
    sentences = [ast.literal_eval(line)["sentence"] for line in (real.parent / "dev.json").open()]
    records = RecordDataset(real, COLUMNS, single=("labels",))
    assert len(records) == FIRST
    heads = set()
    for sentence, row in zip(sentences, records.stream(range(FIRST)), strict=True):
        wanted = tokenizer.encode(sentence)
        prompts = []
        for ids, mask in zip(*(np.split(row[n], CHOICES) for n in COLUMNS[::2]), strict=True):
            assert ids[mask == 1].tolist() == wanted
            start = int(mask.argmax())
            assert set(ids[start + len(wanted) :].tolist()) <= {tokenizer.pad_token_id}
            shot, _, prompt = tokenizer.decode(ids[:start]).rpartition("\n")
            heads.add(shot)
            assert prompt.startswith("这是关于") and prompt.endswith("的文章:")
            prompts.append(prompt)
        assert len(set(prompts)) == CHOICES
    (shot,) = heads
    assert shot.startswith("这是关于") and len(shot) > 10


def test_batches_are_rows_one_by_one_on_real_headlines(real):
    model = tiny.model(SPEC, **REAL)
    wanted, right = by_hand(model, real)
    assert (np.sort(wanted, 1)[:, 1] - np.sort(wanted, 1)[:, 0]).min() > 1e-5  # no ties
    for batch_size in (1, 16):
        accuracy, losses, result = scored(model, real, batch_size)
        np.testing.assert_allclose(losses, wanted, rtol=0, atol=5e-6)
        assert result == {"accuracy": accuracy, "total_acc_num": right, "total_num": FIRST}
        assert accuracy == right / FIRST


class Told:
    """In the place of the losses of a model: logits that favour what follows in the true rows.

    Args:
        path: the records, of which it knows the labels.
        favour: logit of the next id of a true row; that of all other ids is 0.
    """

    def __init__(self, path: Path, favour: float) -> None:
        records = RecordDataset(path, COLUMNS, single=("labels",)).read(range(FIRST))
        self.known = np.unique(records["input_ids"])
        rows = records["input_ids"].reshape(FIRST, CHOICES, -1)
        right = records["labels"][:, 0]
        self.true = {row[:-1].tobytes() for row in rows[np.arange(FIRST), right]}
        self.favour, self.cross_entropy = favour, CrossEntropy()

    def __call__(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        ids, last = input_ids.asnumpy(), labels.asnumpy()[:, -1:]
        follows = np.searchsorted(self.known, np.concatenate((ids[:, 1:], last), 1))
        logits = np.zeros((ids.size, len(self.known)), np.float32)
        told = np.repeat([self.favour * (row.tobytes() in self.true) for row in ids], ids.shape[1])
        logits[np.arange(ids.size), follows.reshape(-1)] = told
        aims = np.where(labels.asnumpy() < 0, -100, np.searchsorted(self.known, labels.asnumpy()))
        losses, _ = self.cross_entropy.of_tokens(
            Tensor(logits), Tensor(aims.reshape(-1).astype(np.int32))
        )
        return losses.reshape(labels.shape)


def test_who_is_told_the_answer_is_right_and_who_is_told_to_shun_it_is_wrong(real):
    model = tiny.model(SPEC, **REAL)
    for favour, accuracy in ((5.0, 1.0), (-5.0, 0.0)):
        told = Told(real, favour)
        found, losses, _ = scored(model, real, 8, losses=told)
        assert found == accuracy
        others = np.sort(losses, 1)[:, 1:] if accuracy else np.sort(losses, 1)[:, :-1]
        np.testing.assert_allclose(others, np.log(len(told.known)), rtol=0, atol=1e-5)


def test_only_the_scored_ids_count(tmp_path):
    """What stands behind them may be anything; what stands before them may not."""
    model = tiny.model(SPEC, **SMALL)
    path = write(tmp_path / "x.mindrecord", 9)
    wanted, right = by_hand(model, path)
    for batch_size in (4, 30):
        _, losses, result = scored(model, path, batch_size)
        np.testing.assert_allclose(losses, wanted, rtol=0, atol=5e-6)
        assert (result["total_acc_num"], result["total_num"]) == (right, 9)
    rows = RecordDataset(path, COLUMNS, single=("labels",)).read(range(9))
    other = tmp_path / "y.mindrecord"
    mask = rows["attention_mask"].reshape(9, CHOICES, -1)
    behind = np.cumsum(mask[:, :, ::-1], 2)[:, :, ::-1] == 0
    with RecordWriter(other, COLUMNS) as writer:
        for k in range(9):
            ids = np.where(behind[k].reshape(-1), 7, rows["input_ids"][k])
            writer.write({**{n: rows[n][k] for n in COLUMNS}, "input_ids": ids.astype(np.int32)})
    np.testing.assert_array_equal(scored(model, other, 30)[1], losses)


@pytest.fixture
def trainer(tmp_path):
    """`trainer(**changes)` of a run as the model card's, with a tiny model that was saved."""
    tiny.model(SPEC, **SMALL).save_pretrained(tmp_path / "model")
    records = write(tmp_path / "x.mindrecord", 9)

    def make(**changes) -> Trainer:
        values = {"base": RUN, "model": {"model_config": {"preset": "pangualpha_tiny", **SMALL}}}
        values |= {"load_checkpoint": str(tmp_path / "model"), **changes}
        return Trainer(values, eval_dataset=records)

    return make


def test_the_trainer_and_the_command_say_it(trainer, tmp_path, capsys, caplog, monkeypatch):
    model = tiny.model(SPEC, **SMALL)
    _, _, wanted = scored(model, tmp_path / "x.mindrecord", 9)
    with caplog.at_level("INFO", logger="lm_core"):
        assert trainer(runner_config={"batch_size": 4}).evaluate() == {"PromptAccMetric": wanted}
    right, rounded = wanted["total_acc_num"], f"{wanted['accuracy']:.3f}"
    assert f"ACC: {rounded}, total_acc_num: {right}, total_num: 9" in caplog.text
    # The directory says the sizes, and the records how many prompts there are.
    words = ["--load_checkpoint", tmp_path / "model", "metric.type=PromptAccMetric"]
    words += ["--eval_dataset_dir", tmp_path / "x.mindrecord", "--output_dir", tmp_path / "out"]
    assert main(["evaluate", "pangualpha", *map(str, words)]) == 0
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("PromptAccMetric")]
    assert ast.literal_eval(line.partition(": ")[2]) == {"PromptAccMetric": wanted}
    words.append("model.model_config.num_labels=15")
    assert main(["evaluate", "pangualpha", *map(str, words)]) == 2
    errors = [s for s in capsys.readouterr().err.splitlines() if "error" in s]
    assert len(errors) == 1 and "hold 4 scored texts each; num_labels 15 must be" in errors[0]


def test_a_run_in_training_is_scored_by_it(trainer, tmp_path, capsys):
    with RecordWriter(tmp_path / "train.mindrecord", ("input_ids",)) as writer:
        for k in range(4):
            writer.write({"input_ids": tiny.token_ids(61, (17,), seed=k)})
    made = trainer(
        output_dir=str(tmp_path / "out"), do_eval=True, eval_step_interval=2, runner_wrapper={},
        runner_config={"batch_size": 2, "epochs": 1},
        train_dataset={"data_loader": {"dataset_dir": str(tmp_path / "train.mindrecord")}},
    )  # fmt: skip
    made.finetune(tmp_path / "model")
    lines = (tmp_path / "out/log/rank_0/metrics.jsonl").read_text().splitlines()
    last = ast.literal_eval(lines[-1])
    wanted = made.evaluate()["PromptAccMetric"]
    assert last == {"step": 2, **{f"eval_{name}": value for name, value in wanted.items()}}
    # What was trained says how it is measured, and that can be changed.
    words = ["--load_checkpoint", str(tmp_path / "out"), "metric.type=PerplexityMetric"]
    words += ["--eval_dataset_dir", str(tmp_path / "train.mindrecord")]
    capsys.readouterr()
    for extra, name in ((words[:2], "PromptAccMetric"), (words, "PerplexityMetric")):
        assert main(["evaluate", "pangualpha", *extra, "eval_dataset.input_columns=null"]) == 0
        assert capsys.readouterr().out.startswith(f"{name}: ")


def test_records_are_of_one_kind(trainer, tmp_path):
    with pytest.raises(DataError, match="records hold one label each; .* metric.type: PromptAcc"):
        trainer(metric={"type": "PerplexityMetric"}).evaluate()
    assert type(objective(trainer().run.model.config)).__name__ == "NextToken"


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_find_what_one_finds(trainer, tmp_path):
    """Of the last batch's record one of two ranks gets none; or both share the vocabulary."""
    wanted = trainer().evaluate()["PromptAccMetric"]
    jobs = Jobs(tmp_path, ROOT / "packages" / "pangualpha" / "launch.sh")
    words = ["--load_checkpoint", tmp_path / "model", "metric.type=PromptAccMetric"]
    words += ["--eval_dataset_dir", tmp_path / "x.mindrecord", "--batch_size", "2"]
    try:
        for degree in ("data_parallel", "model_parallel"):
            ended = jobs.run(
                "evaluate", *words, "--output_dir", degree, f"parallel_config.{degree}=2", NPROC=2
            )
            assert ended.status == 0, ended
            (line,) = [s for s in ended.out.splitlines() if s.startswith("PromptAccMetric")]
            assert ast.literal_eval(line.partition(": ")[2]) == {"PromptAccMetric": wanted}
    finally:
        jobs.close()
