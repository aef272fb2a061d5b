"""Settings within a command line: `--key X`, `--key=X` and `key=X`, the last one counting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def value(words: Sequence[str], key: str) -> str | None:
    """What a key is set to; None where it is not."""
    found = [text for _, _, text in _settings(words, key)]
    return found[-1] if found else None


def without(words: Sequence[str], key: str) -> list[str]:
    """The words that do not set a key."""
    gone = {index for start, stop, _ in _settings(words, key) for index in range(start, stop)}
    return [word for index, word in enumerate(words) if index not in gone]


def with_value(words: Sequence[str], key: str, text: str) -> list[str]:
    """The words with a key set anew."""
    return [*without(words, key), f"--{key}", text]


def _settings(words: Sequence[str], key: str) -> Iterator[tuple[int, int, str]]:
    """(first word, one behind the last, value) of each place that sets the key."""
    for index, word in enumerate(words):
        name, separator, text = word.partition("=")
        if separator and name in (key, f"--{key}"):
            yield index, index + 1, text
        elif word == f"--{key}" and index + 1 < len(words):
            yield index, index + 2, words[index + 1]
