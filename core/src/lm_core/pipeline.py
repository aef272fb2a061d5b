"""Text in, text out: a model and its tokenizer in one callable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lm_core.config.section import suggest
from lm_core.errors import GenerationError
from lm_core.generation.config import GenerationConfig

BATCH_SIZE = 8
"""Prompts computed at once; changes the speed only."""
TASKS = ("text_generation",)


def pipeline(
    task: str, model: Any = None, tokenizer: Any = None, **defaults: Any
) -> TextGenerationPipeline:
    """`pipeline("text_generation", model="gpt2", max_length=20)(text)`.

    Args:
        task: "text_generation".
        model: see TextGenerationPipeline.
        tokenizer: see TextGenerationPipeline.
        defaults: see TextGenerationPipeline.

    Raises:
        GenerationError: another task, or what TextGenerationPipeline raises.
    """
    if task not in TASKS:
        raise GenerationError(
            f"task: {task!r} has no pipeline; must be text_generation; {suggest(str(task), TASKS)}"
        )
    return TextGenerationPipeline(model, tokenizer, **defaults)


class TextGenerationPipeline:
    """Continues texts.

    Args:
        model: a directory or name for `AutoModel.from_pretrained`, a model, or a
            `mindspore.train.Model` around one.
        tokenizer: a tokenizer, or a directory or name for `AutoTokenizer.from_pretrained`; None for
            the one beside the model's checkpoint.
        batch_size: prompts computed at once.
        add_special_tokens: let the tokenizer put its own tokens around a prompt.
        defaults: settings of GenerationConfig, for every call that does not give them.

    Raises:
        GenerationError: no model, no tokenizer, a wrong setting.
    """

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        batch_size: int = BATCH_SIZE,
        add_special_tokens: bool = True,
        **defaults: Any,
    ) -> None:
        GenerationConfig().replace(**defaults)  # a wrong setting need not wait for the weights
        if tokenizer is None:
            tokenizer = _tokenizer_beside(model)
        self.tokenizer = _loaded(tokenizer, "AutoTokenizer")
        self.model = _loaded(getattr(model, "predict_network", model), "AutoModel")
        self.batch_size, self.add_special_tokens = batch_size, add_special_tokens
        self.defaults = defaults

    def __call__(
        self,
        inputs: str | list[str],
        *,
        batch_size: int | None = None,
        add_special_tokens: bool | None = None,
        streamer: Any = None,
        **options: Any,
    ) -> list[dict[str, list[str]]]:
        """Continues one text or several.

        Args:
            inputs: a text or a list of texts.
            batch_size: instead of the pipeline's.
            add_special_tokens: instead of the pipeline's.
            streamer: receives the tokens of a single text as they come.
            options: settings of GenerationConfig, instead of the pipeline's.

        Returns:
            `{"text_generation_text": [text]}` per input, prompt included, special tokens left out.

        Raises:
            GenerationError: settings or prompts that cannot be.
        """
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        wrong = [number for number, text in enumerate(texts) if not isinstance(text, str)]
        if wrong:
            kind = type(texts[wrong[0]]).__name__
            raise GenerationError(f"inputs[{wrong[0]}]: is {kind}; must be text; decode it first")
        add = self.add_special_tokens if add_special_tokens is None else add_special_tokens
        rows = self.continue_ids(
            self.tokenizer(texts, add_special_tokens=add)["input_ids"] if texts else [],
            batch_size=batch_size,
            streamer=streamer,
            **options,
        )
        return [{"text_generation_text": [self.decode(row)]} for row in rows]

    def continue_ids(
        self,
        ids: list[list[int]],
        *,
        batch_size: int | None = None,
        streamer: Any = None,
        **options: Any,
    ) -> list[np.ndarray]:
        """Continues encoded prompts, no token of which is padding; else as `__call__`."""
        if not ids:
            return []
        settings = GenerationConfig.from_model(self.model.config, **self.defaults)
        return self.model.generate(
            ids,
            settings.replace(**options),
            streamer,
            # Prompts may happen to be equally long and to end in the pad.
            attention_mask=[[1] * len(row) for row in ids],
            batch_size=batch_size or self.batch_size,
        )

    def decode(self, row: np.ndarray) -> str:
        """The text of a row of ids, without special tokens."""
        return self.tokenizer.decode(row, skip_special_tokens=True)


def _loaded(source: Any, loader: str) -> Any:
    if not isinstance(source, str | Path):
        return source
    from lm_core import auto

    return getattr(auto, loader).from_pretrained(source)


def _tokenizer_beside(model: Any) -> Any:
    if model is None:
        raise GenerationError(
            "model: is missing; must be a checkpoint directory or a model; give one"
        )
    if isinstance(model, str | Path):
        return model
    config = getattr(getattr(model, "predict_network", model), "config", None)
    source = getattr(config, "checkpoint_name_or_path", "")
    if not source:
        raise GenerationError(
            "tokenizer: is missing; must be given with a model object; "
            "pass tokenizer=AutoTokenizer.from_pretrained(DIR)"
        )
    return source
