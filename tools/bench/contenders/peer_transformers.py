"""Hugging Face transformers on PyTorch."""

from __future__ import annotations

import time
from typing import Any

import torch
from driver import THREADS
from transformers import AutoModelForCausalLM


class Transformers:
    """AutoModelForCausalLM in float32."""

    def __init__(self) -> None:
        torch.set_num_threads(THREADS)

    def version(self) -> str:
        """Versions of what computes."""
        import transformers

        return f"transformers {transformers.__version__}, torch {torch.__version__}"

    def load(self, folder: str) -> None:
        """Reads the model."""
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()

    def decode(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """Greedy tokens of a whole generation, and its seconds."""
        start = time.perf_counter()
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            rows = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        seconds = time.perf_counter() - start
        return {"tokens": rows[:, ids.shape[1] :].tolist(), "seconds": seconds}

    def forward(self, rows: list[list[int]]) -> dict[str, Any]:
        """Seconds until the logits of all positions are there, and the last best tokens."""
        ids = torch.tensor(rows)
        start = time.perf_counter()
        with torch.inference_mode():
            logits = self.model(ids, use_cache=False).logits
        seconds = time.perf_counter() - start
        return {"tokens": logits[-1:, -8:].argmax(-1).tolist(), "seconds": seconds}

    def start_training(self, learning_rate: float, variant: str) -> None:
        """variant: "plain" or "fused" AdamW."""
        self.model.train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, weight_decay=0.0, fused=variant == "fused"
        )

    def train(self, rows: list[list[int]]) -> dict[str, float]:
        """One step; its loss and seconds."""
        start = time.perf_counter()
        ids = torch.tensor(rows)
        logits = self.model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "seconds": time.perf_counter() - start}
