"""This project, through what users call."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lm_core import AutoModel, LoraConfig, get_pet_model

sys.path.append(str(Path(__file__).parents[2]))  # tools: demo_corpus


class _Numbers:
    """Spells ids as numbers: the models of the benchmark have no vocabulary."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(f" {index}" for index in ids)


class Lm:
    """Our models."""

    def version(self) -> str:
        """Versions of what computes."""
        import mindspore

        import lm_core

        return f"lm {lm_core.__version__}, mindspore {mindspore.__version__}"

    def load(self, folder: str, blocks: bool | None = None) -> None:
        """Reads the model.

        Args:
            folder: where it is.
            blocks: whether attention goes block by block; None: as the model has it.
        """
        self.folder = folder
        changes = {} if blocks is None else {"use_flash_attention": blocks}
        self.model = AutoModel.from_pretrained(folder, **changes)
        # Outside of training long sequences are read in blocks unasked.
        self.model.set_train(blocks is False)

    def export(self, folder: str, length: int) -> None:
        """Writes what was read as graphs of fixed sizes: one row of so many tokens.

        Args:
            folder: where to.
            length: of a prompt and its answer.
        """
        from lm_core.cli import main

        status = main(
            [
                "export", self.model.spec_name, "--load_checkpoint", self.folder,
                "--batch_size", "1", "--seq_length", str(length), "--output_dir", folder,
            ]
        )  # fmt: skip
        assert status == 0, "export failed"

    def load_graphs(self, folder: str) -> None:
        """Goes on with the graphs that `export` wrote, as `predict --mindir` does."""
        from lm_core.export.exported import ExportedModel

        self.model = ExportedModel(folder)

    def decode(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """Greedy tokens of a whole generation, and its seconds."""
        start = time.perf_counter()
        rows = self.model.generate(prompts, max_new_tokens=new, do_sample=False, eos_token_id=[])
        seconds = time.perf_counter() - start
        return {"tokens": [row[len(prompts[0]) :].tolist() for row in rows], "seconds": seconds}

    def serve(self, batch: int, longest: int) -> int:
        """Starts a server in threads of this process; its port.

        Args:
            batch: requests computed at once.
            longest: tokens of a prompt and its answer.
        """
        import asyncio
        from threading import Thread

        import uvicorn

        from lm_core.generation.config import GenerationConfig
        from lm_core.generation.slots import Slots
        from lm_core.serving.app import LOCAL, build
        from lm_core.serving.calls import Limits, Service
        from lm_core.serving.engine import Engine
        from lm_core.serving.server import Place

        engine = Engine(Slots(self.model, batch, longest), max_queue=64)
        engine.start()
        own = GenerationConfig(max_length=longest, eos_token_id=[])
        service = Service(engine, _Numbers(), self.model.config, own, "bench", Limits(), False)
        bound = Place(port=0).bound()
        bound.listen()
        server = uvicorn.Server(uvicorn.Config(build(service, None, LOCAL), log_config=None))
        Thread(target=lambda: asyncio.run(server.serve([bound])), daemon=True).start()
        return int(bound.getsockname()[1])

    def forward(self, rows: list[list[int]]) -> dict[str, Any]:
        """Seconds until the logits of all positions are there, and the last best tokens."""
        from mindspore import Tensor

        ids = np.asarray(rows, np.int32)
        start = time.perf_counter()
        logits = self.model(Tensor(ids)).asnumpy()
        seconds = time.perf_counter() - start
        return {"tokens": logits[-1:, -8:].argmax(-1).tolist(), "seconds": seconds}

    def start_training(self, learning_rate: float, variant: str) -> None:
        """Compiles nothing yet. "lora" trains an adapter as the run gpt2_lora does."""
        from lm_core.train.optimizer import AdamW
        from lm_core.train.step import TrainStep, trained_parameters

        if variant == "lora":
            lora = LoraConfig(lora_rank=64, lora_alpha=128.0, lora_dropout=0.1)
            get_pet_model(self.model, lora)
        self.rate = learning_rate
        optimizer = AdamW(trained_parameters(self.model), weight_decay=0.0)
        self.step = TrainStep(self.model, optimizer, max_grad_norm=1.0)

    def train(self, rows: list[list[int]]) -> dict[str, float]:
        """One step; its loss and seconds."""
        ids = np.asarray(rows, np.int32)
        batch = (np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:]))
        start = time.perf_counter()
        result = self.step([batch], self.rate)
        return {"seconds": time.perf_counter() - start, "loss": result.loss}

    def pretrain(self, run: dict[str, Any], folder: str) -> None:
        """Two updates of a run from random weights, on random records, as `lm pretrain` does it."""
        from lm_core import Trainer
        from lm_core.data.mindrecord import RecordWriter
        from lm_core.spec import read_run

        settings = read_run(run)
        config, runner = settings.model.config, settings.runner_config
        records = Path(folder) / "random.mindrecord"
        records.parent.mkdir(parents=True)
        rows = 2 * runner.batch_size * runner.gradient_accumulation_steps
        rng = np.random.default_rng(0)
        with RecordWriter(records, ("input_ids",)) as writer:
            for _ in range(rows):
                ids = rng.integers(0, config.vocab_size, config.seq_length + 1)
                writer.write({"input_ids": ids.astype(np.int32)})
        settings.output_dir = str(Path(folder) / "output")
        Trainer(settings, train_dataset=records).train()

    def prepare_text(self, folder: str) -> None:
        """Text that is on every machine, and a vocabulary learnt from it."""
        import demo_corpus

        from lm_core.tokenizer.bpe_train import train_bpe
        from lm_gpt2.tokenizer import Gpt2Tokenizer

        corpus = demo_corpus.collect(8.0)
        texts = Path(folder) / "texts"
        texts.mkdir(parents=True)
        for number, text in enumerate(corpus.train.values()):
            (texts / f"{number}.txt").write_text(text, encoding="utf-8")
        learnt = train_bpe(list(corpus.train.values())[::4], 8192)
        Gpt2Tokenizer(*learnt).save_pretrained(Path(folder) / "tokenizer")

    def preprocess(self, folder: str) -> float:
        """Tokens per second from text files to a file of records, on one process."""
        from lm_core.cli import main
        from lm_core.data.pipeline import RecordDataset

        target = Path(folder) / f"records-{time.monotonic_ns()}.mindrecord"
        start = time.perf_counter()
        status = main(
            [
                "preprocess", "gpt2", "text",
                "--input_file", str(Path(folder) / "texts"), "--output_file", str(target),
                "--tokenizer", str(Path(folder) / "tokenizer"),
                "--max_length", "1025", "--num_process", "1",
            ]
        )  # fmt: skip
        seconds = time.perf_counter() - start
        assert status == 0, "preprocess failed"
        records = RecordDataset(target)
        return len(records) * records.row_length / seconds
