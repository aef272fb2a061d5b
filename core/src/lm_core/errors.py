"""Errors that a user can mend; the command line prints each problem on a line and exits with 2."""

from collections.abc import Callable, Sequence
from typing import Any


class LmError(ValueError):
    """One or more problems, each one line: *where: what is; what must be; what to change*.

    Attributes:
        problems: the lines, in the order in which they were found.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(LmError):
    """A run file, a flag or a model configuration is wrong."""


class CheckpointError(LmError):
    """Weights are missing, unexpected, wrongly shaped, corrupt or of another model."""


class DataError(LmError):
    """A data set cannot be read or does not fit the model."""


class TokenizerError(LmError):
    """A vocabulary cannot be read or a text cannot be encoded as asked."""


class GenerationError(LmError):
    """A prompt or a generation setting is impossible."""


class SandboxError(LmError):
    """Programs of a model cannot be run safely here."""


def some(names: Sequence[str], separator: str = ", ") -> str:
    """A few names, and how many more there are."""
    shown = separator.join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def all_of(*makers: Callable[[], Any]) -> list[Any]:
    """What each of them returns; if some fail, one error with the problems of all."""
    found, errors = [], []
    for make in makers:
        try:
            found.append(make())
        except LmError as error:
            errors.append(error)
    if errors:
        problems = [problem for error in errors for problem in error.problems]
        raise (type(errors[0]) if len({type(e) for e in errors}) == 1 else LmError)(*problems)
    return found
