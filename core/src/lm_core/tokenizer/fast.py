"""tokenizer.json: a sentencepiece model as the `tokenizers` library, and so transformers, reads it.

Transformers 5 makes a tokenizer of its own out of `tokenizer.model`, in which a text that begins
with a space gets no implied one before it, so its ids are others than sentencepiece's. Where the
file lies beside it and tokenizer_config.json names the general class, that file decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_core.log import get_logger
from lm_core.tokenizer.files import read_json
from lm_core.tokenizer.sentencepiece import SPACE, SentencePieceTokenizer
from lm_core.tokenizer.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, Described

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
_GENERAL = {"tokenizer_class": "PreTrainedTokenizerFast"}
_USUAL = {"model_input_names": ["input_ids", "attention_mask"], "padding_side": "left"}
"""Of decoders; the general class would say otherwise."""


def files_beside(directory: Path, kind: type[SentencePieceTokenizer]) -> dict[str, str]:
    """The files, by name, with which transformers gives the ids of the tokenizer in a folder.

    A tokenizer.json that is there is replaced: one in which special tokens count as normalized, as
    Llama's was published, is decoded with them by the general class. Of tokenizer_config.json all
    is kept but the class. {} where the folder has no sentencepiece model, or one that cannot be
    said in that file, of which there is a warning.

    Raises:
        TokenizerError: the files of the folder are damaged.
    """
    if not (directory / kind.file_name).is_file():
        return {}
    tokenizer = kind.from_pretrained(directory)
    if reason := _obstacle(tokenizer):
        get_logger(__name__).warning(
            "%s: no %s is written, because %s; transformers may give other ids",
            directory / kind.file_name, FILE, reason,
        )  # fmt: skip
        return {}
    given = read_json(directory / CONFIG, missing=tokenizer.settings())
    return {
        FILE: json.dumps(described(tokenizer), ensure_ascii=False) + "\n",
        CONFIG: json.dumps({**_USUAL, **given, **_GENERAL}, indent=2, ensure_ascii=False) + "\n",
    }


def _obstacle(tokenizer: SentencePieceTokenizer) -> str:
    """What a model has that is not written here; "" if nothing."""
    model = Described.read(tokenizer.model)
    if not model.merges:
        return "it does not merge pairs (BPE)"
    if not model.plain:
        return "it changes texts before it cuts them"
    kinds = {kind for _, _, kind in model.pieces} - {NORMAL, UNKNOWN, CONTROL, BYTE}
    return "it has pieces that users defined, or unused ones" if kinds else ""


def described(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The contents of tokenizer.json.

    With `legacy=False` and special tokens parsed in texts, a text that begins with a space gets no
    implied one: what puts it before the first part only cannot tell such a text.
    """
    model = Described.read(tokenizer.encoding_model)
    before: dict[str, Any] = {"normalizer": None, "pre_tokenizer": None}
    if tokenizer.legacy or tokenizer.split_special_tokens:
        spelt = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
        first = [{"type": "Prepend", "prepend": SPACE}] if model.prefix else []
        before["normalizer"] = {"type": "Sequence", "normalizers": [*first, *spelt]}
    else:
        scheme = "first" if model.prefix else "never"
        before["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False,
        }  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokenizer.special),
        **before,
        "post_processor": _around(tokenizer),
        "decoder": _decoder(model.prefix),
        "model": _pairs(model, tokenizer.unk_token),
    }


def _added(special: Mapping[str, int]) -> list[dict[str, Any]]:
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ordered = sorted(special.items(), key=lambda item: item[1])
    return [
        {"id": index, "content": token, **switches, "special": True} for token, index in ordered
    ]


def _around(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The tokens that a text gets around it."""
    begin = tokenizer.bos_token if tokenizer.add_bos_token else None
    end = tokenizer.eos_token if tokenizer.add_eos_token else None

    def row(part: str, number: int) -> list[dict[str, Any]]:
        first, last = ([] if token is None else [("SpecialToken", token)] for token in (begin, end))
        parts = [*first, ("Sequence", part), *last]
        return [{what: {"id": name, "type_id": number}} for what, name in parts]

    ids = {token: tokenizer.special[token] for token in (begin, end) if token is not None}
    return {
        "type": "TemplateProcessing",
        "single": row("A", 0),
        "pair": [*row("A", 0), *row("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [index], "tokens": [token]} for token, index in ids.items()
        },
    }


def _decoder(prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _pairs(model: Described, unknown: str | None) -> dict[str, Any]:
    """Sentencepiece merges any two neighbours that make a piece, the piece of best score first."""
    scores = {text: score for text, score, kind in model.pieces if kind == NORMAL}
    merges = []
    for text in sorted(scores, key=lambda text: -scores[text]):
        cuts = ((text[:at], text[at:]) for at in range(1, len(text)))
        merges += [[left, right] for left, right in cuts if left in scores and right in scores]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": any(kind == BYTE for _, _, kind in model.pieces),
        "vocab": {text: index for index, (text, _, _) in enumerate(model.pieces)},
        "merges": merges,
    }
