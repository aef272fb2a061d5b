"""Places for requests that come and go: one batch over them all, each at its own position.

A prompt is computed alone and its keys and values are then copied to its row of the batch. While
nothing else is open it stays where it is: a step of one row costs a fraction of a step of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from lm_core.generation.cache import CachedDecoder
from lm_core.nn.decoder import CausalLM

RETURN_AFTER = 8
"""Steps after which a request that the others have left goes on alone: a copy must pay."""


class _Copy(nn.Cell):
    """Writes all of one decoder's caches into some rows of another's."""

    def __init__(self, source: ParameterTuple, target: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.source, self.target = source, target
        self.scatter = ops.ScatterNdUpdate()

    def construct(self, rows: Tensor) -> Tensor:
        for i in range(len(self.source)):
            self.scatter(self.target[i], rows, self.source[i])
        return rows


class _CopyBack(nn.Cell):
    """Reads some rows of one decoder's caches into all of another's."""

    def __init__(self, source: ParameterTuple, target: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.source, self.target = source, target

    def construct(self, rows: Tensor) -> Tensor:
        for i in range(len(self.source)):
            ops.assign(self.target[i], ops.gather(self.source[i], rows, 0))
        return rows


class Slots:
    """Rows of a key-value cache that are opened, stepped together and closed.

    Rows that are not open are computed as well and change nothing: whatever they write is
    overwritten when they are opened.

    Args:
        model: its weights are shared, not copied.
        rows: B, most that are open at once.
        capacity: C, the longest prompt + answer.
    """

    def __init__(self, model: CausalLM, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self._one = CachedDecoder(model, 1, capacity, "one.")
        self._all = CachedDecoder(model, rows, capacity) if rows > 1 else self._one
        self._copy = _Copy(self._one.caches, self._all.caches)
        self._copy_back = _CopyBack(self._all.caches, self._one.caches)
        self._open: set[int] = set()
        self._alone: int | None = None  # the row whose keys and values are those of _one
        self._steps_left_alone = 0

    @property
    def free(self) -> int:
        """How many more can be opened."""
        return self.rows - len(self._open)

    def compile(self) -> Iterator[None]:
        """Compiles what every request needs, so that none waits for it; prompts of 32 tokens.

        Yields:
            after each graph.
        """
        prompt, several = np.zeros(1, np.int32), min(self.rows, 2)
        for count in range(1, several + 1):
            self.open(prompt)
            yield
            for greedy in (True, False):
                self.step(dict.fromkeys(range(count), (0, 1)), greedy)
                yield
        for row in range(1, several):
            self.close(row)
            self._return()
            yield
        self.close(0)

    def open(self, prompt: np.ndarray) -> tuple[int, np.ndarray]:
        """Computes a prompt.

        Args:
            prompt: int32 [S], S < C.

        Returns:
            the row that holds it now, and float32 logits [V] of its last token.
        """
        row = min(set(range(self.rows)) - self._open)
        if self._alone is not None:
            self._move(self._alone)
        logits = self._one.prefill(prompt[None], np.array([len(prompt)]))[0]
        if self._open:
            self._move(row)
        else:
            self._alone = row
        self._open.add(row)
        return row, logits

    def step(self, fed: Mapping[int, tuple[int, int]], greedy: bool) -> dict[int, np.ndarray]:
        """Feeds one token to each open row.

        Args:
            fed: row to (token, its position).
            greedy: return the most likely next tokens alone, int32 [], instead of logits [V].

        Returns:
            what comes of each row.
        """
        self._return_if_left_alone()
        rows = sorted(fed)
        places = [0] if self._alone is not None else rows
        decoder = self._one if self._alone is not None else self._all
        tokens, positions = np.zeros((2, decoder.batch), np.int32)
        tokens[places] = [fed[row][0] for row in rows]
        positions[places] = [fed[row][1] for row in rows]
        found = (decoder.step_greedy if greedy else decoder.step)(tokens, positions)
        return {row: found[place] for row, place in zip(rows, places, strict=True)}

    def close(self, row: int) -> None:
        """Gives a row back."""
        self._open.discard(row)
        self._steps_left_alone = 0
        if self._alone == row:
            self._alone = None

    def _move(self, row: int) -> None:
        """The caches of _one become a row of the batch."""
        self._copy(Tensor(self._rows(row)[:, None]))
        self._alone = None

    def _return_if_left_alone(self) -> None:
        if len(self._open) == 1 and self._alone is None:
            self._steps_left_alone += 1
            if self._steps_left_alone > RETURN_AFTER:
                self._return()

    def _return(self) -> None:
        """The only open row goes on alone."""
        (row,) = self._open
        self._copy_back(Tensor(self._rows(row)))
        self._alone = row

    def _rows(self, row: int) -> np.ndarray:
        """int32 [G]: the rows of the caches that are those of `row`."""
        heads = self._one.heads
        return np.arange(row * heads, (row + 1) * heads, dtype=np.int32)
