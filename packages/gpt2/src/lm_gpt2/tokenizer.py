"""GPT-2's tokenizer: byte-level BPE with one special token that begins, ends and pads texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from lm_core.errors import TokenizerError
from lm_core.tokenizer.base import NAMES
from lm_core.tokenizer.bpe import ByteLevelBpe
from lm_core.tokenizer.files import read_bpe, read_config

END_OF_TEXT = "<|endoftext|>"
_SWITCHES = ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens")


class Gpt2Tokenizer(ByteLevelBpe):
    """Ids equal the original's; `<|endoftext|>` in a text becomes the special token, as there."""

    def __init__(self, vocab: Any, merges: Any, **settings: Any) -> None:
        """Like `ByteLevelBpe`; every named token is `<|endoftext|>` unless given."""
        for name in NAMES:
            if settings.get(name) is None:
                settings[name] = END_OF_TEXT
        super().__init__(vocab, merges, **settings)

    @classmethod
    def from_pretrained(cls, directory: str | Path, **settings: Any) -> Self:
        """Reads vocab.json and merges.txt (or tokenizer.json), and tokenizer_config.json if there.

        Args:
            directory: a folder.
            **settings: what overrides tokenizer_config.json: add_prefix_space, add_bos_token,
                add_eos_token, split_special_tokens, bos_token, eos_token, pad_token, unk_token.

        Raises:
            TokenizerError: files are missing, damaged, or do not fit each other.
        """
        folder = Path(directory)
        (vocab, merges), added = read_bpe(folder)
        config = read_config(folder)
        known = {name: config[name] for name in (*NAMES, *_SWITCHES) if name in config}
        settings = {**known, **settings}
        added = {**added, **config["added_tokens"]}
        named = [settings.get(name) or END_OF_TEXT for name in NAMES]
        special = {**added, **{token: vocab[token] for token in named if token in vocab}}
        try:
            return cls(vocab, merges, special=special, **settings)
        except TokenizerError as error:
            raise TokenizerError(*(f"{folder}: {problem}" for problem in error.problems)) from error

    def settings(self) -> dict[str, Any]:
        outside = {token: index for token, index in self.special.items() if token not in self.vocab}
        added = {
            str(index): {"content": token, "special": True} for token, index in outside.items()
        }
        config = {**super().settings(), "tokenizer_class": "GPT2Tokenizer"}
        return {**config, "added_tokens_decoder": added} if added else config


def load(directory: Path) -> Gpt2Tokenizer:
    """What `ModelSpec.tokenizer` calls."""
    return Gpt2Tokenizer.from_pretrained(directory)
