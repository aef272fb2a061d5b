"""Text, tokenizer, records, a GPT-2 from scratch, its perplexity and its words, in a few minutes.

    hatch run demo [--fresh] [--steps N] ...

Each stage leaves a file or folder that is there whole or not at all, so the demo can be stopped at
any moment. Run again, it skips what is done, and training goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import demo_corpus
import yaml

if TYPE_CHECKING:
    from lm_core.nn.decoder import CausalLM
    from lm_core.tokenizer.base import Tokenizer

PROMPTS = ("def read(self", "The following example", "import ")
FINAL = "demo"


@dataclass(frozen=True)
class Settings:
    """What decides the result. A folder holds the result of one of these."""

    steps: int = 600
    megabytes: float = 3.0
    vocab_size: int = 2048
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 6
    seq_length: int = 128
    batch_size: int = 16
    learning_rate: float = 2e-3
    seed: int = 0


class Demo:
    """The stages, in order; each is a method that does nothing if its result is there."""

    def __init__(self, output: Path, settings: Settings) -> None:
        """`output` holds all results."""
        self.output, self.settings = output, settings
        self.start = time.perf_counter()

    def run(self) -> None:
        """All stages."""
        self.check_settings()
        self.say(f"Results go to {self.output}. Ctrl-C stops; the same command goes on.")
        self.build("text", self.write_text)
        self.build("tokenizer", self.train_tokenizer)
        self.build("records", self.write_records)
        self.build("run.yaml", self.write_run)
        self.build("before.json", self.evaluate_untrained)
        self.train()
        self.build("after.json", self.evaluate_trained)
        self.build("loss_curve.csv", self.write_curve)
        self.build("loss_curve.png", self.draw_curve)
        self.generate()
        self.conclude()

    def check_settings(self) -> None:
        """Refuses to mix two demos in one folder."""
        path = self.output / "settings.json"
        wanted = {**asdict(self.settings), "python": "{}.{}".format(*sys.version_info)}
        found = json.loads(path.read_text()) if path.exists() else wanted
        if found != wanted:
            changed = ", ".join(name for name in wanted if found.get(name) != wanted[name])
            sys.exit(f"{self.output} holds a demo with other settings ({changed}); add --fresh")
        self.output.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            self.build(path.name, lambda target: target.write_text(json.dumps(wanted)))

    def build(self, name: str, make: Callable[[Path], Any]) -> None:
        """Makes a file or folder under another name and renames it when it is complete."""
        target = self.output / name
        scratch = self.output / f"unfinished-{name}"
        if target.exists():
            return
        remove(scratch)
        make(scratch)
        os.rename(scratch, target)

    def write_text(self, folder: Path) -> None:
        """Collects the corpus: a file for each document."""
        corpus = demo_corpus.collect(self.settings.megabytes)
        self.say(f"Text: {corpus}, from the documentation and sources of this Python.")
        for part, texts in (("train", corpus.train), ("held_out", corpus.held_out)):
            (folder / part).mkdir(parents=True)
            for name, text in texts.items():
                file = folder / part / f"{name.replace('/', '-').removesuffix('.py')}.txt"
                file.write_text(text, encoding="utf-8")

    def train_tokenizer(self, folder: Path) -> None:
        """Learns a byte-level BPE from the training text."""
        from lm_core.tokenizer.bpe_train import train_bpe
        from lm_gpt2.tokenizer import Gpt2Tokenizer

        self.say(f"Tokenizer: a byte-level BPE of {self.settings.vocab_size} tokens.")
        files = sorted((self.output / "text" / "train").iterdir())
        texts = (file.read_text(encoding="utf-8") for file in files)
        vocab, merges = train_bpe(texts, self.settings.vocab_size)
        Gpt2Tokenizer(vocab, merges).save_pretrained(folder)

    def write_records(self, folder: Path) -> None:
        """Text to records of seq_length + 1 tokens."""
        self.say("Records: the texts as rows of token ids.")
        folder.mkdir()
        for part in ("train", "held_out"):
            command(
                "preprocess", "gpt2", "text",
                "--input_file", self.output / "text" / part,
                "--output_file", folder / f"{part}.mindrecord",
                "--max_length", self.settings.seq_length + 1,
                "--tokenizer", self.output / "tokenizer",
            )  # fmt: skip

    def write_run(self, path: Path) -> None:
        """The run file, as a user would write it."""
        path.write_text(yaml.safe_dump(self.run_file(), sort_keys=False), encoding="utf-8")

    def run_file(self) -> dict[str, Any]:
        """The run: a small GPT-2, one pass over the text."""
        wanted = self.settings
        sizes = ("hidden_size", "num_layers", "num_heads", "seq_length")
        rates = ("embedding_dropout_prob", "hidden_dropout_rate", "attention_dropout_rate")
        vocab = json.loads((self.output / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
        model = {
            "preset": "gpt2_tiny",
            "vocab_size": len(vocab),
            **{name: getattr(wanted, name) for name in sizes},
            **dict.fromkeys(rates, 0.0),  # every token is seen about once
        }
        every = max(1, wanted.steps // 6)
        return {
            "base": "gpt2_tiny",
            "seed": wanted.seed,
            "output_dir": str(self.output / "run"),
            "model": {"model_config": model},
            "runner_config": {
                "epochs": 1000, "max_steps": wanted.steps, "batch_size": wanted.batch_size,
            },
            "lr_schedule": {
                "type": "cosine", "learning_rate": wanted.learning_rate, "warmup_ratio": 0.05,
            },
            "train_dataset": {"data_loader": {"dataset_dir": self.records("train")}},
            "eval_dataset": {"data_loader": {"dataset_dir": self.records("held_out")}},
            "do_eval": True,
            "eval_step_interval": every,
            "callbacks": [
                {"type": "LossMonitor", "per_print_times": max(1, wanted.steps // 30)},
                {
                    "type": "CheckpointMonitor", "prefix": FINAL,
                    "save_checkpoint_steps": every, "keep_checkpoint_max": 2,
                },
            ],
        }  # fmt: skip

    def evaluate_untrained(self, path: Path) -> None:
        """Held-out loss of random weights."""
        from lm_core import AutoConfig, AutoModel

        config = AutoConfig.from_pretrained(self.output / "run.yaml")
        count = config.parameter_count() / 1e6
        self.say(f"Model: GPT-2 with {count:.1f} million parameters, random weights.")
        self.evaluate(AutoModel.from_config(config, seed=self.settings.seed), path)

    def train(self) -> None:
        """Pre-trains, or goes on where it was stopped."""
        if self.final().exists():
            self.say("Training was finished before; its checkpoint is used (--fresh starts again).")
            return
        self.say(f"Training: {self.settings.steps} steps.")
        run = self.output / "run.yaml"
        command("pretrain", "gpt2", "--config", run, "--resume_training", "True")

    def evaluate_trained(self, path: Path) -> None:
        """Held-out loss of the checkpoint, in a model that has nothing but the checkpoint."""
        from lm_core import AutoModel

        self.say("Evaluation of the saved checkpoint, loaded into a fresh model.")
        self.evaluate(AutoModel.from_pretrained(self.final()), path)

    def evaluate(self, model: CausalLM, path: Path) -> None:
        """Writes {"loss": ..., "PPL": ...} over all held-out tokens."""
        from lm_core.data.pipeline import RecordDataset
        from lm_core.train.evaluation import Evaluator

        records = RecordDataset(self.records("held_out"))
        result = Evaluator(model, records, self.settings.batch_size)()
        path.write_text(json.dumps(result))
        print(f"held-out loss {result['loss']:.3f}, perplexity {result['PPL']:.1f}", flush=True)

    def write_curve(self, path: Path) -> None:
        """Training and held-out losses by step, for a spreadsheet."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "loss", "held_out_loss"])
            writer.writerow([0, "", self.result("before")["loss"]])
            for step, loss, held_out in self.history():
                writer.writerow([step, loss, held_out])

    def history(self) -> list[tuple[int, float | str, float | str]]:
        """A row for each step: its loss, and the held-out loss where it was measured."""
        lines = (self.output / "run/log/rank_0/metrics.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        held_out = {entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}
        losses = {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
        return [(step, loss, held_out.get(step, "")) for step, loss in losses.items()]

    def draw_curve(self, path: Path) -> None:
        """The same as a picture."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        history = self.history()
        measured = [(step, value) for step, _, value in history if value != ""]
        figure, axes = plt.subplots(figsize=(8, 5))
        axes.plot([row[0] for row in history], [row[1] for row in history], label="training", lw=1)
        points = [(0, self.result("before")["loss"]), *measured]
        axes.plot(*zip(*points, strict=True), "o-", label="held out")
        axes.set(xlabel="step", ylabel="loss (nats per token)", title="GPT-2 from scratch")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, format="png", dpi=120)
        plt.close(figure)

    def generate(self) -> None:
        """Continues some beginnings with the key-value cache, and measures the speed."""
        from lm_core import AutoModel, AutoTokenizer, pipeline

        self.say("Generation with the key-value cache:")
        model = AutoModel.from_pretrained(self.final())
        tokenizer = AutoTokenizer.from_pretrained(self.output / "tokenizer")
        talk = pipeline("text_generation", model=model, tokenizer=tokenizer)
        room = self.settings.seq_length - max(len(tokenizer.encode(text)) for text in PROMPTS)
        answers = talk(
            list(PROMPTS), do_sample=True, top_k=40, temperature=0.8, max_new_tokens=room, seed=1
        )
        for answer in answers:
            print("-" * 72 + "\n" + answer["text_generation_text"][0])
        print("-" * 72)
        print(f"decode speed: {decode_speed(model, tokenizer):.0f} tokens/s at batch 1", flush=True)

    def conclude(self) -> None:
        """What came out."""
        before, after = self.result("before"), self.result("after")
        print(
            f"\nheld-out loss        {before['loss']:8.3f} -> {after['loss']:.3f}\n"
            f"held-out perplexity  {before['PPL']:8.1f} -> {after['PPL']:.1f}\n"
            f"checkpoint           {self.final()}\n"
            f"loss curve           {self.output / 'loss_curve.csv'}, loss_curve.png\n"
            f"time of this run     {time.perf_counter() - self.start:.0f} s\n\n"
            f"Talk to it:  hatch run python -m lm_gpt2.predict --load_checkpoint {self.final()} "
            f'--tokenizer {self.output / "tokenizer"} --predict_data "class "'
        )

    def say(self, text: str) -> None:
        """A heading with the time."""
        print(f"\n[{time.perf_counter() - self.start:4.0f} s] {text}", flush=True)

    def records(self, part: str) -> str:
        """The record file of "train" or "held_out"."""
        return str(self.output / "records" / f"{part}.mindrecord")

    def final(self) -> Path:
        """The checkpoint of the last step."""
        return self.output / f"run/checkpoint/rank_0/{FINAL}-{self.settings.steps}"

    def result(self, when: str) -> dict[str, float]:
        """What was measured "before" or "after"."""
        return json.loads((self.output / f"{when}.json").read_text())


def decode_speed(model: CausalLM, tokenizer: Tokenizer) -> float:
    """Tokens per second of greedy decoding, compilation left out."""
    prompt = tokenizer.encode("def ")
    new = model.config.seq_length - len(prompt)
    for _ in range(2):
        start = time.perf_counter()
        model.generate([prompt], max_new_tokens=new, do_sample=False, eos_token_id=[])
    return new / (time.perf_counter() - start)


def command(*words: object) -> None:
    """Runs a command line of `lm` in this process, and shows it."""
    from lm_core.cli import main as lm

    arguments = [str(word) for word in words]
    print(f"$ lm {' '.join(arguments)}", flush=True)
    status = lm(arguments)
    if status in (130, 143):
        raise KeyboardInterrupt
    if status:
        sys.exit(status)


def remove(path: Path) -> None:
    """Deletes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Runs what is not done yet; 130 when it was stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"), metavar="DIR")
    parser.add_argument("--fresh", action="store_true", help="delete the folder and start again")
    for field in fields(Settings):
        parser.add_argument(
            f"--{field.name}", type=type(field.default), default=field.default,
            metavar="N", help=f"default: {field.default}",
        )  # fmt: skip
    args = parser.parse_args(argv)
    chosen = {field.name: getattr(args, field.name) for field in fields(Settings)}
    try:
        if args.fresh:
            remove(args.output)
        Demo(args.output, Settings(**chosen)).run()
    except KeyboardInterrupt:
        print("\nStopped. Nothing is lost: the same command goes on from here.", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
