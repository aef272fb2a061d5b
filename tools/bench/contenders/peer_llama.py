"""llama.cpp through the functions of its C interface. It does not train."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from driver import THREADS

CONTEXT, MOST = 640, 512
"""Tokens of a sequence, and of one call."""


class Llama:
    """A float32 GGUF file of the same weights."""

    def version(self) -> str:
        """Versions of what computes."""
        return f"llama-cpp-python {llama_cpp.__version__}"

    def load(self, folder: str) -> None:
        """Reads the model."""
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self._kept = quiet
        llama_cpp.llama_log_set(quiet, None)
        llama_cpp.llama_backend_init()
        path = str(Path(folder) / "model.gguf").encode()
        self.model = llama_cpp.llama_model_load_from_file(
            path, llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError("llama.cpp cannot read the model")
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.rows = 0

    def _open(self, rows: int) -> None:
        """A context for so many sequences."""
        if rows == self.rows:
            return
        if self.rows:
            llama_cpp.llama_free(self.context)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = CONTEXT * rows
        settings.n_batch = settings.n_ubatch = MOST
        settings.n_seq_max = rows
        settings.n_threads = settings.n_threads_batch = THREADS
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.batch = llama_cpp.llama_batch_init(MOST, 0, 1)
        self.rows = rows

    def decode(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """Greedy tokens of a whole generation, and its seconds."""
        self._open(len(prompts))
        start = time.perf_counter()
        self._forget()
        tokens: list[list[int]] = [[] for _ in prompts]
        for row, prompt in enumerate(prompts):
            place = self._feed([(token, p, row) for p, token in enumerate(prompt)], last_only=True)
            tokens[row].append(self._best(place))
        for step in range(1, new):
            position = len(prompts[0]) + step - 1
            self._feed([(tokens[row][-1], position, row) for row in range(len(prompts))])
            for row in range(len(prompts)):
                tokens[row].append(self._best(row))
        return {"tokens": tokens, "seconds": time.perf_counter() - start}

    def forward(self, rows: list[list[int]]) -> dict[str, Any]:
        """Seconds until the logits of all positions are there, and the last best tokens."""
        self._open(len(rows))
        start = time.perf_counter()
        self._forget()
        for row, ids in enumerate(rows):
            end = self._feed([(token, p, row) for p, token in enumerate(ids)]) + 1
            llama_cpp.llama_synchronize(self.context)
        seconds = time.perf_counter() - start
        best = [self._best(place) for place in range(end - 8, end)]
        return {"tokens": [best], "seconds": seconds}

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _feed(self, items: list[tuple[int, int, int]], last_only: bool = False) -> int:
        """Computes (token, position, sequence) items; returns the place of the last."""
        batch = self.batch
        batch.n_tokens = len(items)
        for i, (token, position, row) in enumerate(items):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = not last_only or i == len(items) - 1
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp cannot decode")
        return len(items) - 1

    def _best(self, place: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, place)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax())

    def start_training(self, learning_rate: float, variant: str) -> None:
        """Not there."""
        raise NotImplementedError("llama.cpp does not train")
