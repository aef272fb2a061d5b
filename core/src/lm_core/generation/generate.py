"""Continues prompts: the loop around a decoder, which knows nothing of how the logits come about.

Every row has its own length and random stream, so a batch gives what each prompt gives alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from lm_core.errors import GenerationError
from lm_core.generation import sampling
from lm_core.generation.beam import beam_search
from lm_core.generation.config import GenerationConfig
from lm_core.generation.prompts import fit, read_prompts

__all__ = ["GenerationConfig", "generate"]


Stop = Callable[[np.ndarray], bool]


class Decoder(Protocol):
    """What computes logits for B rows; may also have `step_greedy`, see `CachedDecoder`."""

    def prefill(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray: ...
    def step(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray: ...
    def reorder(self, index: np.ndarray) -> None: ...


class Streamer(Protocol):
    """What receives tokens as they come: the prompt first, then one array per token, then `end`."""

    def put(self, tokens: np.ndarray) -> None: ...
    def end(self) -> None: ...


def generate(
    model: Any,
    input_ids: Any,
    generation_config: GenerationConfig | None = None,
    streamer: Streamer | None = None,
    *,
    attention_mask: Any = None,
    batch_size: int | None = None,
    stop: Stop | None = None,
    **options: Any,
) -> list[np.ndarray]:
    """Continues each prompt.

    Lengths: `max_length` counts the prompt, `max_new_tokens` does not and is the same for every
    row; with both, whichever is reached first; with neither, the model's `max_length` (or
    `max_decode_length`) and `max_new_tokens`, and where it has none of them 20 new tokens. Nothing
    grows past the model's `seq_length`.

    Args:
        model: a CausalLM.
        input_ids: one prompt or several; `prompts.read_prompts` says what counts as padding.
        generation_config: all settings; None for those of `model.config`.
        streamer: receives the tokens of a single prompt as they come; `end` is called in any case.
        attention_mask: like input_ids, 0 at padding.
        batch_size: most rows computed at once; None for all. Changes no result.
        stop: says of an answer so far, int32 [S], whether it is whole; asked after each token, and
            on all ranks alike.
        options: single settings, see GenerationConfig.

    Returns:
        int32 arrays, one per prompt: prompt, new tokens and the EOS that ended them; no padding.

    Raises:
        GenerationError: settings or prompts that cannot be, or a model in pipeline stages.
    """
    try:
        _check_whole(model)
        settings = generation_config or GenerationConfig.from_model(model.config)
        settings = settings.replace(**options).completed(model.config)
        prompts = read_prompts(
            input_ids,
            attention_mask,
            vocab_size=model.config.vocab_size,
            bos=model.config.bos_token_id,
            pad=settings.pad_token_id,
        )
        prompts, limits = fit(prompts, settings, model.config.seq_length)
        _check(settings, len(prompts), streamer, batch_size, stop)
        random = sampling.streams(prompts, _seed(model, settings)) if settings.do_sample else []
        size = batch_size or len(prompts)
        found: list[np.ndarray] = []
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            batch = (prompts[part], limits[part], settings, random[part], streamer, stop)
            found += _batch(model, *batch)
        return found
    finally:
        if streamer is not None:
            streamer.end()


def _check_whole(model: Any) -> None:
    stages = getattr(getattr(model, "context", None), "pipeline_stage", 1)
    if stages > 1:
        raise GenerationError(
            f"pipeline_stage: is {stages}; must be 1, generation knows no pipeline; use "
            f"model_parallel"
        )


def _seed(model: Any, settings: GenerationConfig) -> int | None:
    """A fresh seed must be the same on all ranks that compute one answer together."""
    context = getattr(model, "context", None)
    if settings.seed is not None or context is None or context.world_size == 1:
        return settings.seed
    from lm_core.parallel import collectives

    return collectives.gathered(context, secrets.randbits(32))[0]


def _check(
    settings: GenerationConfig, rows: int, streamer: Any, batch_size: int | None, stop: Any
) -> None:
    found = []
    if stop is not None and settings.num_beams > 1:
        found.append("stop: beam search has no answer before its end; use num_beams=1")
    if streamer is not None and rows > 1:
        found.append(f"streamer: got {rows} prompts; must be one; call generate once per prompt")
    if streamer is not None and settings.num_beams > 1:
        found.append("streamer: beam search knows its tokens only at the end; use num_beams=1")
    if batch_size is not None and batch_size < 1:
        found.append(f"batch_size: {batch_size}; must be a whole number from 1")
    if found:
        raise GenerationError(*found)


def _batch(
    model: Any,
    prompts: list[np.ndarray],
    limits: np.ndarray,
    settings: GenerationConfig,
    random: list[np.random.Generator],
    streamer: Streamer | None,
    stop: Stop | None,
) -> list[np.ndarray]:
    rows = len(prompts) * settings.num_beams
    decoder = open_decoder(model, rows, int(limits.max()), settings.use_past)
    if settings.num_beams > 1:
        return beam_search(decoder, prompts, limits, settings)
    batch = Rows(prompts, limits, settings.eos_ids, stop)
    _decode(decoder, batch, chooser(settings, random), streamer)
    return batch.found()


def open_decoder(model: Any, rows: int, length: int, use_past: bool) -> Decoder:
    """What computes the logits of `model` for `rows` rows of up to `length` tokens.

    A model that is no network says it itself (`lm_core.export.exported.ExportedModel`).
    """
    own = getattr(model, "decoder", None)
    if own is not None:
        return own(rows, length)
    if use_past:
        from lm_core.generation.cache import CachedDecoder

        return CachedDecoder.for_model(model, rows, length)
    from lm_core.generation.uncached import UncachedDecoder

    return UncachedDecoder(model, rows, length)


class Rows:
    """The tokens of a batch while it grows.

    Attributes:
        tokens: int32 [B, C]; row b holds lengths[b] tokens.
        lengths: int [B].
        last: int32 [B], each row's newest token.
        open: bool [B], rows that still grow.
    """

    def __init__(
        self,
        prompts: list[np.ndarray],
        limits: np.ndarray,
        eos: tuple[int, ...],
        stop: Stop | None = None,
    ) -> None:
        self.lengths = np.array([len(prompt) for prompt in prompts])
        self.starts, self.stop = self.lengths.copy(), stop
        self.tokens = np.zeros((len(prompts), int(limits.max())), np.int32)
        for row, prompt in zip(self.tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        self.prompt = self.tokens[:, : self.lengths.max()].copy()
        self.limits, self.eos = limits, eos
        self.index = np.arange(len(prompts))
        self.last = self.tokens[self.index, self.lengths - 1]
        self.open = np.ones(len(prompts), bool)

    def append(self, chosen: np.ndarray) -> bool:
        """Adds chosen[b] to each open row b; says whether any row is still open.

        A finished row keeps its last token: to feed that again, at the same position, is harmless.
        """
        index = self.index[self.open]
        new = chosen[index]
        self.tokens[index, self.lengths[index]] = self.last[index] = new
        self.lengths[index] += 1
        ended = self.lengths[index] >= self.limits[index]
        for token in self.eos:
            ended |= new == token
        if self.stop is not None:
            answers = (self.tokens[row, self.starts[row] : self.lengths[row]] for row in index)
            ended |= np.array([self.stop(answer) for answer in answers])
        self.open[index] = ~ended
        return not ended.all()

    def found(self) -> list[np.ndarray]:
        """Prompt and answer of each row."""
        return [row[:length].copy() for row, length in zip(self.tokens, self.lengths, strict=True)]


Chooser = Callable[[np.ndarray, Rows], np.ndarray]


def _decode(decoder: Any, rows: Rows, choose: Chooser | None, streamer: Streamer | None) -> None:
    """Grows the rows to their ends; without a chooser by the most likely token.

    That one a decoder may find by itself (`step_greedy`), and no logits travel.
    """
    logits = decoder.prefill(rows.prompt, rows.lengths)
    sampling.check_finite(logits.max(axis=-1))
    greedy = getattr(decoder, "step_greedy", None) if choose is None else None
    choose = choose or _most_likely
    if streamer is not None:
        streamer.put(rows.prompt[0])
    chosen = choose(logits, rows)
    while True:
        more = rows.append(chosen)
        if streamer is not None:
            streamer.put(chosen)
        if not more:
            return
        if greedy is not None:
            chosen = greedy(rows.last, rows.lengths - 1)
        else:
            chosen = choose(decoder.step(rows.last, rows.lengths - 1), rows)


def _most_likely(logits: np.ndarray, rows: Rows) -> np.ndarray:
    return logits.argmax(axis=-1).astype(np.int32)


def chooser(settings: GenerationConfig, random: list[np.random.Generator]) -> Chooser | None:
    """Picks the next token of every open row from float32 logits [B, V]; None: the most likely."""
    penalty = float(settings.repetition_penalty)
    if penalty == 1.0 and not settings.do_sample:
        return None
    limits = (settings.temperature, settings.top_k, settings.top_p)

    def choose(logits: np.ndarray, rows: Rows) -> np.ndarray:
        chosen = rows.last.copy()
        for row in rows.index[rows.open]:
            scores = logits[row]
            if penalty != 1.0:
                scores = sampling.penalize(scores, rows.tokens[row, : rows.lengths[row]], penalty)
            if settings.do_sample:
                ids, weights = sampling.candidates(scores, *limits)
                chosen[row] = sampling.draw(ids, weights, len(scores), random[row])
            else:
                chosen[row] = scores.argmax()
        return chosen

    return choose
