"""Answers in a conversation: what of it a model can still read, and the answer as it comes.

Nothing that was said is forgotten by cutting: each question is asked with as many of the newest
rounds as leave room for an answer, and always with the system message.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TextIO

from lm_core.errors import GenerationError
from lm_core.generation.config import GenerationConfig
from lm_core.generation.streamer import TextStreamer
from lm_core.tokenizer.messages import Conversation


class AnswerStopped(Exception):  # noqa: N818
    """Somebody asked to stop; what was generated until then is with the streamer."""


def chat_settings(config: Any, **options: Any) -> GenerationConfig:
    """Settings of every answer: `options`, else the model's; without a length, all that fits.

    Raises:
        GenerationError: wrong settings, or beam search, which cannot be shown as it comes.
    """
    settings = GenerationConfig.from_model(config, **options)
    lengths = (settings.max_length, settings.max_new_tokens, config.max_length)
    if not any((*lengths, config.max_decode_length, config.max_new_tokens)):
        settings = settings.replace(max_length=config.seq_length)
    if settings.num_beams > 1:
        raise GenerationError(
            f"num_beams: {settings.num_beams}; must be 1 to chat, as beam search knows its answer "
            f"only at the end; use num_beams=1"
        )
    return settings.completed(config)


class Answerer:
    """A model, its tokenizer, and how to generate.

    Args:
        model: a CausalLM.
        tokenizer: one with a chat format.
        settings: of `chat_settings`; each answer draws with the next seed.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: GenerationConfig) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        context = model.config.seq_length
        self.longest = min(settings.max_length or context, context)
        wanted = settings.max_new_tokens or self.longest // 4
        self.reserve = max(1, min(wanted, self.longest // 2))
        self.answers = 0

    def prompt(self, conversation: Conversation) -> tuple[list[int], int]:
        """The ids that ask the open question, and how many of the oldest rounds they leave out.

        As many as leave `reserve` tokens for the answer; a question alone has to leave one.

        Raises:
            GenerationError: the question and the system message are too long by themselves.
            TokenizerError: the format cannot hold what was said.
        """

        def ids(skip: int) -> list[int]:
            return self.tokenizer.apply_chat_template(conversation.messages(skip))

        def fits(skip: int) -> bool:
            return len(ids(skip)) <= self.longest - self.reserve

        rounds = len(conversation.rounds)
        skip = bisect_left(range(rounds), True, key=fits)
        found = ids(skip)
        if len(found) >= self.longest:
            beside = " with the system message" if conversation.system else ""
            raise GenerationError(
                f"message: has {len(found)} tokens{beside}; must have at most {self.longest - 1} "
                f"to leave room for an answer; shorten it"
            )
        return found, skip

    def generate(self, ids: list[int], streamer: Any = None) -> None:
        """Generates an answer; on all ranks at once, where there are several."""
        settings = self.settings
        if settings.seed is not None:
            settings = replace(settings, seed=settings.seed + self.answers)
        self.answers += 1
        self.model.generate([ids], settings, streamer, attention_mask=[[1] * len(ids)])


class AnswerStreamer(TextStreamer):
    """Shows an answer without the white space before it, and keeps it.

    Args:
        tokenizer: turns ids into text.
        stopped: asked before each token; when it says so, `put` raises AnswerStopped.
        stream: a text file; None for the standard output of the moment.

    Attributes:
        text: the answer so far.
    """

    def __init__(
        self, tokenizer: Any, stopped: Callable[[], bool], stream: TextIO | None = None
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, stream=stream)
        self.stopped = stopped
        self.text = ""

    def put(self, tokens: Any) -> None:
        """Takes the prompt, then the new tokens."""
        if self.stopped():
            raise AnswerStopped
        super().put(tokens)

    def on_text(self, text: str, end: bool = False) -> None:
        """Shows a piece; the end of the answer is the end of a line."""
        text = text if self.text else text.lstrip()
        self.text += text
        if end and not self.text.endswith("\n"):
            text += "\n"
        super().on_text(text)
