"""Text in, text or classes out: a model and its tokenizer in one callable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_core.config.section import suggest
from lm_core.data.txtcls import class_ids
from lm_core.errors import GenerationError, LmError
from lm_core.generation.config import GenerationConfig
from lm_core.generation.prompts import read_prompts

BATCH_SIZE = 8
"""Prompts computed at once; changes the speed only."""


def pipeline(task: str, model: Any = None, tokenizer: Any = None, **defaults: Any) -> Any:
    """`pipeline("text_generation", model="gpt2", max_length=20)(text)`.

    Args:
        task: "text_generation" or "text_classification".
        model: see TextGenerationPipeline and TextClassificationPipeline.
        tokenizer: see there.
        defaults: see there.

    Raises:
        GenerationError: another task, or what the pipeline raises.
    """
    kinds = {
        "text_generation": TextGenerationPipeline,
        "text_classification": TextClassificationPipeline,
    }
    if task not in kinds:
        raise GenerationError(
            f"task: {task!r} has no pipeline; must be one of {', '.join(kinds)}; "
            f"{suggest(str(task), kinds)}"
        )
    return kinds[task](model, tokenizer, **defaults)


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
        self.tokenizer = _tokenizer(tokenizer, model)
        self.model = _network(model, "text_generation")
        self.batch_size, self.add_special_tokens = batch_size, add_special_tokens
        self.defaults = defaults

    def __call__(
        self,
        inputs: str | list[str] | list[dict[str, str]],
        *,
        batch_size: int | None = None,
        add_special_tokens: bool | None = None,
        streamer: Any = None,
        **options: Any,
    ) -> list[dict[str, list[str]]]:
        """Continues one text or several, or answers the last message of a conversation.

        Args:
            inputs: a text, a list of texts, or messages as of `tokenizer.apply_chat_template`.
            batch_size: instead of the pipeline's.
            add_special_tokens: instead of the pipeline's.
            streamer: receives the tokens of a single text as they come.
            options: settings of GenerationConfig, instead of the pipeline's.

        Returns:
            `{"text_generation_text": [text]}` per input, prompt included, special tokens left out;
            for a conversation its answer alone.

        Raises:
            GenerationError: settings or prompts that cannot be.
            TokenizerError: messages for a tokenizer that has no chat format, or wrong ones.
        """
        if isinstance(inputs, list) and any(isinstance(item, Mapping) for item in inputs):
            ids = self.tokenizer.apply_chat_template(inputs)
            (row,) = self.continue_ids([ids], streamer=streamer, **options)
            return [{"text_generation_text": [self.decode(row[len(ids) :]).strip()]}]
        texts = _texts(inputs)
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
        stop: Any = None,
        **options: Any,
    ) -> list[np.ndarray]:
        """Continues encoded prompts, no token of which is padding; else as `__call__`.

        `stop` says of the ids of an answer so far whether it is whole.
        """
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
            **({} if stop is None else {"stop": stop}),
        )

    def decode(self, row: np.ndarray) -> str:
        """The text of a row of ids, without special tokens."""
        return self.tokenizer.decode(row, skip_special_tokens=True)


class TextClassificationPipeline:
    """Says the classes of texts.

    Args:
        model: a directory or name for `AutoModel.from_pretrained`, or a classifier.
        tokenizer: a tokenizer, or a directory or name for `AutoTokenizer.from_pretrained`; None for
            the one beside the model's checkpoint.
        batch_size: texts computed at once; changes the speed only.
        truncation: True or "right" reads the beginning of a text that is too long; False reports
            it.
        top_k: how many classes to name; None: the most likely one, without a list around it.

    Raises:
        GenerationError: no model, one that is no classifier, no tokenizer.
    """

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        batch_size: int = BATCH_SIZE,
        truncation: bool | str = False,
        top_k: int | None = None,
    ) -> None:
        self.tokenizer = _tokenizer(tokenizer, model)
        self.model = _network(model, "text_classification")
        self.batch_size, self.truncation, self.top_k = batch_size, truncation, top_k

    def __call__(
        self,
        inputs: str | list[str],
        *,
        batch_size: int | None = None,
        truncation: bool | str | None = None,
        top_k: int | None = None,
    ) -> list[Any]:
        """Classifies one text or several; the arguments replace the pipeline's.

        Returns:
            `{"label": name, "score": probability}` per text; with `top_k` a list of so many, the
            likeliest first.

        Raises:
            GenerationError: no text, one that is too long, a setting that cannot be.
        """
        cut = self.truncation if truncation is None else truncation
        top = self.top_k if top_k is None else top_k
        if cut not in (True, False, "right"):
            raise GenerationError(f"truncation: {cut!r}; must be right or False; change it")
        if top is not None and top < 1:
            raise GenerationError(f"top_k: {top}; must be at least 1 or None; change it")
        rows = self._fitting(_texts(inputs), bool(cut))
        if not rows:
            return []
        logits = self.model.classify(rows, batch_size or self.batch_size).astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = odds / odds.sum(axis=1, keepdims=True)
        ranked = [self._ranked(row) for row in scores]
        return [row[0] for row in ranked] if top is None else [row[:top] for row in ranked]

    def _fitting(self, texts: list[str], cut: bool) -> list[list[int]]:
        """The encoded texts, as preprocessing encodes them."""
        config = self.model.config
        rows = [class_ids(self.tokenizer, text) for text in texts]
        if rows:
            read_prompts(rows, None, vocab_size=config.vocab_size, bos=None, pad=None)
        limit = config.seq_length
        problems = [
            f"inputs[{number}]: has {len(row)} tokens; must have at most {limit}, seq_length; "
            f"shorten it, or read its beginning with truncation right"
            for number, row in enumerate(rows)
            if len(row) > limit and not cut
        ]
        if problems:
            raise GenerationError(*problems)
        return [row[:limit] for row in rows]

    def _ranked(self, scores: np.ndarray) -> list[dict[str, Any]]:
        names = self.model.config.class_names
        order = np.argsort(-scores, kind="stable")
        return [{"label": names[k], "score": float(scores[k])} for k in order]


def _texts(inputs: str | Sequence[Any]) -> list[str]:
    texts: list[Any] = [inputs] if isinstance(inputs, str) else list(inputs)
    wrong = [number for number, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        kind = type(texts[wrong[0]]).__name__
        raise GenerationError(f"inputs[{wrong[0]}]: is {kind}; must be text; decode it first")
    return texts


def _network(source: Any, task: str) -> Any:
    """The model, which must be one for the task."""
    model = getattr(source, "predict_network", source)
    if isinstance(model, str | Path):
        from lm_core.auto import AutoModel

        model = AutoModel.from_pretrained(model)
    own = getattr(getattr(model, "config", None), "task", task)
    if own != task:
        raise GenerationError(
            f"model: is one for {own}; must be one for {task}; give another, or use "
            f"pipeline({own!r})"
        )
    return model


def _tokenizer(source: Any, model: Any) -> Any:
    """The tokenizer; one of the model's family where its folder does not say whose it is."""
    if source is None:
        source = _tokenizer_beside(model)
    if not isinstance(source, str | Path):
        return source
    from lm_core.auto import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, family=_config_of(model))


def _config_of(model: Any) -> Any:
    """The configuration of a model; None: what is wrong with a name is said when it is loaded."""
    from lm_core.checkpoint import hub

    network = getattr(model, "predict_network", model)
    if not isinstance(network, str | Path):
        return getattr(network, "config", None)
    try:
        return hub.resolve(network).config
    except LmError:
        return None


def _tokenizer_beside(model: Any) -> Any:
    if model is None:
        raise GenerationError(
            "model: is missing; must be a checkpoint directory or a model; give one"
        )
    if isinstance(model, str | Path):
        return model
    source = getattr(_config_of(model), "checkpoint_name_or_path", "")
    if not source:
        raise GenerationError(
            "tokenizer: is missing; must be given with a model object; "
            "pass tokenizer=AutoTokenizer.from_pretrained(DIR)"
        )
    return source
