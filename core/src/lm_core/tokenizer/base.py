"""What every tokenizer can do: batches, padding, truncation, special tokens, decoding.

A subclass turns ordinary text into ids and ids into bytes; everything that users call is here, so
it is the same for byte-level BPE and for sentencepiece models. The padding and truncation rules
are the ones that Hugging Face scripts rely on:

    padding="max_length"   pads to `max_length` and does not shorten longer rows
    max_length alone       shortens (neither `padding` nor `truncation` given)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import regex

from lm_core.errors import TokenizerError
from lm_core.tokenizer.forms import Forms
from lm_core.tokenizer.padding import cut_length, pad_length, tensor
from lm_core.tokenizer.values import plain, without_surrogates

NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer(Forms):
    """Text to ids and back; subclasses give `_encode`, `_bytes`, `_id`, `_token` and `_files`.

    Attributes:
        special: every special token and its id. They are found in text before anything else is
            done with it, unless `split_special_tokens` is set, and can be left out of decoding.
        padding_side: "right" or "left".
        truncation_side: "right" or "left": the end at which a row that is too long is cut.
    """

    file_name = "vocab.json"
    """The vocabulary's file, as this kind of tokenizer names it."""
    _beyond = "\N{REPLACEMENT CHARACTER}".encode()
    """What an id shows as that the vocabulary does not have."""
    _skips_special = False
    """Whether decoding leaves special tokens out where nobody says."""

    def __init__(
        self,
        special: Mapping[str, int],
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        unk_token: str | None = None,
        add_bos_token: bool = False,
        add_eos_token: bool = False,
        split_special_tokens: bool = False,
    ) -> None:
        """Args: `special` ids by token; the named tokens must be among them.

        Raises:
            TokenizerError: a named token has no id.
        """
        self.bos_token, self.eos_token = bos_token, eos_token
        self.pad_token, self.unk_token = pad_token, unk_token
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        self.split_special_tokens = split_special_tokens
        self.padding_side = self.truncation_side = "right"
        self.special = dict(special)
        for name in NAMES:
            if (token := getattr(self, name)) is not None and token not in self.special:
                raise TokenizerError(
                    f"{name}: {token!r} has no id in the vocabulary; add it there or name another "
                    f"{name} in tokenizer_config.json"
                )
        # The longest first, so that "<|end|>x" is not taken for "<|end|>".
        ordered = sorted(self.special, key=lambda token: (-len(token), token))
        self._special_pattern = (
            regex.compile("|".join(map(regex.escape, ordered))) if ordered else None
        )
        self._special_text = {index: token for token, index in self.special.items()}

    # What a subclass provides.

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the highest id plus one, special tokens included."""
        raise NotImplementedError

    def _encode(self, text: str) -> Iterable[int]:
        """Ids of text in which no special token is looked for."""
        raise NotImplementedError

    def _encode_after_special(self, text: str) -> Iterable[int]:
        """Ids of what follows a special token that was found in a text, up to the next one."""
        return self._encode(text)

    def _bytes(self, ids: Sequence[int], after: int | None) -> bytes:
        """UTF-8 of consecutive ids, none of them special or outside the vocabulary.

        `after` is the id before them, None where they are the first.
        """
        raise NotImplementedError

    def _id(self, token: str) -> int | None:
        raise NotImplementedError

    def _token(self, index: int) -> str | None:
        raise NotImplementedError

    def _files(self) -> dict[str, str | bytes]:
        """Contents of the vocabulary files that `save_pretrained` writes, by name."""
        raise NotImplementedError

    def cuts_at(self, left: str, right: str) -> bool:
        """Whether `encode_piece` of both gives the ids of `left`, then those of `right`, for sure.

        Long texts are encoded in pieces, several at a time, where this holds.
        """
        return False

    # Text to ids.

    def __call__(
        self,
        text: str | Sequence[str],
        max_length: int | None = None,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        split_special_tokens: bool | None = None,
    ) -> dict[str, Any]:
        """Encodes one text or a list of texts.

        Args:
            text: a text gives flat lists, a list of texts gives one row each.
            max_length: see the module docstring.
            padding: True or "longest", "max_length", False or "do_not_pad".
            truncation: True shortens to `max_length`; None does so when `padding` is not given.
            add_special_tokens: put the tokens that this tokenizer adds around every text.
            return_tensors: "np" or "ms": int32 arrays [B, L], also for a single text.
            return_attention_mask: 1 at tokens, 0 at padding.
            split_special_tokens: "<|eos|>" in the text is ordinary text; None: as constructed.

        Raises:
            TokenizerError: an impossible request, one line.
        """
        texts = [text] if isinstance(text, str) else list(text)
        cut = cut_length(max_length, padding, truncation)
        rows = [self._row(item, cut, add_special_tokens, split_special_tokens) for item in texts]
        masks = [[1] * len(row) for row in rows]
        width = pad_length(rows, max_length, padding)
        if width is not None:
            rows = [self._padded(row, width, self._need_pad()) for row in rows]
            masks = [self._padded(mask, width, 0) for mask in masks]
        columns = {"input_ids": rows}
        if return_attention_mask:
            columns["attention_mask"] = masks
        if return_tensors is not None:
            return {name: tensor(value, return_tensors) for name, value in columns.items()}
        return columns if not isinstance(text, str) else {k: v[0] for k, v in columns.items()}

    def encode(
        self, text: str, add_special_tokens: bool = True, split_special_tokens: bool | None = None
    ) -> list[int]:
        """Ids of one text."""
        return self._row(text, None, add_special_tokens, split_special_tokens)

    def encode_piece(self, text: str) -> np.ndarray:
        """Ids [n] int32 of a piece of a longer text, nothing added; see `cuts_at`."""
        return np.fromiter(self._ids(text, None), np.int32)

    def build_inputs(self, ids: list[int]) -> list[int]:
        """`ids` of a text with the tokens around it that `add_special_tokens` means."""
        end = self.eos_token_id if self.add_eos_token else None
        return [*self.prefix_ids, *ids, *([] if end is None else [end])]

    @property
    def prefix_ids(self) -> list[int]:
        """Ids of the tokens that this tokenizer adds before every text."""
        begin = self.bos_token_id if self.add_bos_token else None
        return [] if begin is None else [begin]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text as the vocabulary spells them."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))

    def _row(self, text: str, cut: int | None, add: bool, split: bool | None) -> list[int]:
        if not isinstance(text, str):
            kind = type(text).__name__
            raise TokenizerError(f"tokenizer: got {kind}; a text or a list of texts is needed")
        ids = list(self._ids(text, split))
        if cut is not None:
            room = cut - (len(self.build_inputs([])) if add else 0)
            if room < 0:
                raise TokenizerError(
                    f"max_length: {cut} has no room for the tokens around a text; use a greater one"
                )
            if len(ids) > room:
                ids = ids[:room] if self.truncation_side == "right" else ids[len(ids) - room :]
        return self.build_inputs(ids) if add else ids

    def _ids(self, text: str, split: bool | None) -> Iterable[int]:
        text = without_surrogates(text)
        split = self.split_special_tokens if split is None else split
        if split or self._special_pattern is None or not self._special_pattern.search(text):
            return self._encode(text)
        return self._ids_between_specials(text)

    def _ids_between_specials(self, text: str) -> list[int]:
        ids, end, encode = [], 0, self._encode
        assert self._special_pattern is not None
        for match in self._special_pattern.finditer(text):
            ids.extend(encode(text[end : match.start()]))
            ids.append(self.special[match.group()])
            end, encode = match.end(), self._encode_after_special
        ids.extend(encode(text[end:]))
        return ids

    # Padding and truncation.

    def _need_pad(self) -> int:
        if self.pad_token_id is None:
            raise TokenizerError(
                "padding: this tokenizer has no pad_token; set tokenizer.pad_token to a token of it"
            )
        return self.pad_token_id

    def _padded(self, row: list[int], width: int, value: int) -> list[int]:
        missing = [value] * (width - len(row))
        return row + missing if self.padding_side == "right" else missing + row

    # Ids to text.

    def decode(self, ids: Any, skip_special_tokens: bool | None = None) -> str | list[str]:
        """Text of one row (an id, a flat list, an array [L]), or a list of texts of several rows.

        Bytes that are not UTF-8 show as U+FFFD; so do ids that the vocabulary does not have (a
        model may have more rows than its tokenizer), or as nothing where the original does that.

        Args:
            ids: ints, lists, NumPy arrays, MindSpore tensors, also lists of arrays.
            skip_special_tokens: leave special tokens out; None: as the original does when it is
                not told.

        Raises:
            TokenizerError: an id is negative or not an integer.
        """
        rows = plain(ids)
        skip = self._skips_special if skip_special_tokens is None else skip_special_tokens
        if isinstance(rows, list) and rows and isinstance(rows[0], list):
            return [self._text(row, skip) for row in rows]
        return self._text(rows if isinstance(rows, list) else [rows], skip)

    def batch_decode(self, rows: Any, skip_special_tokens: bool | None = None) -> list[str]:
        """Texts of several rows."""
        return [str(self.decode(row, skip_special_tokens)) for row in rows]

    def _text(self, ids: list[int], skip: bool) -> str:
        for index in ids:
            if not isinstance(index, int) or index < 0:
                raise TokenizerError(f"decode: {index!r} is not a token id; use ids from 0 up")
        parts: list[bytes] = []
        after = None
        for kind, group in groupby(ids, self._kind):
            run = list(group)
            if kind == "ordinary":
                parts.append(self._bytes(run, after))
            elif kind == "unknown":
                parts.extend([self._beyond] * len(run))
            elif not skip:
                parts.extend(self._shown(index).encode() for index in run)
            after = run[-1]
        return b"".join(parts).decode("utf-8", "replace")

    def _shown(self, index: int) -> str:
        """What a special token that is not left out shows as."""
        return self._special_text[index]

    def _kind(self, index: int) -> str:
        if index in self._special_text:
            return "special"
        return "unknown" if self._token(index) is None else "ordinary"

    # Tokens.

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or a list of them; unknown tokens give `unk_token_id`."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self._named(tokens)
        return self.unk_token_id if index is None else index

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The token of an id, or a list of them; None for an id outside the vocabulary."""
        ids = plain(ids)
        if isinstance(ids, list):
            return [self.convert_ids_to_tokens(index) for index in ids]
        return self._special_text.get(ids) or self._token(ids)

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text."""
        return self._named(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""
        return self._named(self.eos_token)

    @property
    def pad_token_id(self) -> int | None:
        """Id that fills rows up."""
        return self._named(self.pad_token)

    @property
    def unk_token_id(self) -> int | None:
        """Id of what the vocabulary does not have."""
        return self._named(self.unk_token)

    def _named(self, token: str | None) -> int | None:
        if token is None:
            return None
        index = self.special.get(token)
        return self._id(token) if index is None else index

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that `skip_special_tokens` leaves out, sorted."""
        return sorted(self._special_text)

    def __len__(self) -> int:
        return self.vocab_size

    # Files.

    def save_pretrained(self, directory: str | Path) -> list[Path]:
        """Writes the vocabulary and tokenizer_config.json; each file is complete or absent."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(self.settings(), indent=2, ensure_ascii=False) + "\n"
        files: dict[str, str | bytes] = {**self._files(), "tokenizer_config.json": config}
        return [_write(folder / name, text) for name, text in files.items()]

    def settings(self) -> dict[str, Any]:
        """What tokenizer_config.json says."""
        named = {name: getattr(self, name) for name in NAMES}
        switches = {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        return {**named, **switches, "split_special_tokens": self.split_special_tokens}


def _write(path: Path, contents: str | bytes) -> Path:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(contents if isinstance(contents, bytes) else contents.encode("utf-8"))
    os.replace(scratch, path)
    return path
