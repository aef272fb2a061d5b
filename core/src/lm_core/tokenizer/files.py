"""Reads the files of a tokenizer folder: vocab.json and merges.txt, or tokenizer.json; the config.

Every defect is one line that names the file and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_core.errors import TokenizerError
from lm_core.tokenizer.base import NAMES
from lm_core.tokenizer.bpe_train import Bpe


def read_bpe(folder: Path) -> tuple[Bpe, dict[str, int]]:
    """The vocabulary, merges and added special tokens (with ids) of a folder.

    vocab.json with merges.txt is preferred; newer Hugging Face releases write tokenizer.json only.

    Raises:
        TokenizerError: files are missing, unreadable, or of another kind of tokenizer.
    """
    if not folder.is_dir():
        raise TokenizerError(
            f"{folder}: is no folder; name one that holds vocab.json and merges.txt"
        )
    paths = folder / "vocab.json", folder / "merges.txt"
    if any(path.exists() for path in paths) or not (folder / "tokenizer.json").exists():
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise TokenizerError(
                f"{folder}: {' and '.join(missing)} missing; put vocab.json and merges.txt (or "
                f"tokenizer.json) of one tokenizer there"
            )
        return Bpe(read_vocab(paths[0]), read_merges(paths[1])), {}
    return _read_tokenizer_json(folder / "tokenizer.json")


def read_vocab(path: Path) -> dict[str, int]:
    """Ids by token from vocab.json."""
    return _checked_vocab(path, read_json(path))


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Pairs of tokens from merges.txt, a pair a line, the most important first."""
    # Not splitlines(): it also splits at characters that a token may hold.
    lines = [line.rstrip("\r") for line in _text(path).split("\n")]
    start = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip():
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise TokenizerError(
                f"{path}:{number}: {line[:40]!r} is not two tokens with a space between; the file "
                f"is damaged or of another kind, use another copy"
            )
        merges.append((parts[0], parts[1]))
    return merges


def read_config(folder: Path) -> dict[str, Any]:
    """Settings of a tokenizer folder; {} without files.

    tokenizer_config.json, completed by special_tokens_map.json and added_tokens.json. Named tokens
    are plain strings here, and `added_tokens` holds the ids of special tokens.
    """
    config = {
        **read_json(folder / "special_tokens_map.json", missing={}),
        **read_json(folder / "tokenizer_config.json", missing={}),
    }
    added = dict(read_json(folder / "added_tokens.json", missing={}))
    decoder = config.get("added_tokens_decoder") or {}
    try:
        added.update((_content(token), int(index)) for index, token in decoder.items())
        named = {name: _content(config[name]) for name in NAMES if config.get(name) is not None}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'}: a special token is neither a text nor an object "
            f'with "content" ({error!r}); correct it'
        ) from error
    wrong = [token for token, index in added.items() if type(index) is not int or index < 0]
    if wrong:
        raise TokenizerError(
            f"{folder}: the id of the added token {wrong[0]!r} is {added[wrong[0]]!r}; must be a "
            f"whole number from 0 up; correct added_tokens.json or tokenizer_config.json"
        )
    return {**config, **named, "added_tokens": added}


def read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """The object of a JSON file; `missing` when there is no such file."""
    if missing is not None and not path.exists():
        return missing
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(
            f"{path}:{error.lineno}: is not JSON ({error.msg}); the file is damaged, copy it again"
        ) from error
    if not isinstance(value, dict):
        raise TokenizerError(
            f"{path}: holds a {type(value).__name__}; must hold a JSON object; copy it again"
        )
    return value


def _read_tokenizer_json(path: Path) -> tuple[Bpe, dict[str, int]]:
    value = read_json(path)
    model = value.get("model") or {}
    before = value.get("pre_tokenizer") or {}
    kinds = model.get("type", "BPE"), before.get("type"), value.get("normalizer")
    if kinds != ("BPE", "ByteLevel", None) or before.get("use_regex") is False:
        raise TokenizerError(
            f"{path}: is no byte-level BPE of GPT-2's kind (model {kinds[0]}, pre_tokenizer "
            f"{kinds[1]}); use the tokenizer of this model"
        )
    pairs = [tuple(p.split(" ")) if isinstance(p, str) else tuple(p) for p in model["merges"]]
    if any(len(pair) != 2 for pair in pairs):
        raise TokenizerError(
            f"{path}: a merge is not two tokens; the file is damaged, copy it again"
        )
    added = {token["content"]: token["id"] for token in value.get("added_tokens") or []}
    merges = [(first, second) for first, second in pairs]
    return Bpe(_checked_vocab(path, model["vocab"]), merges), added


def _checked_vocab(path: Path, vocab: Mapping[str, Any]) -> dict[str, int]:
    if not vocab or not all(type(index) is int for index in vocab.values()):
        raise TokenizerError(f"{path}: is no map of tokens to whole numbers; use a BPE vocabulary")
    return dict(vocab)


def _content(token: Any) -> str:
    text = token if isinstance(token, str) else token["content"]
    if not isinstance(text, str):
        raise TypeError(text)
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path}: is not UTF-8 (byte {error.start}); the file is damaged, copy it again"
        ) from error
    except OSError as error:
        raise TokenizerError(
            f"{path}: cannot be read ({error.strerror}); name a file that can"
        ) from error
