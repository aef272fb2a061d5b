"""What the ranks of a job decide together, so that all of them do the same at the same step."""

from __future__ import annotations

from lm_core.parallel import collectives
from lm_core.parallel.context import ParallelContext


class Agreement:
    """Questions that every rank asks at the same moment; a single process asks itself.

    Args:
        context: the place of this process.
    """

    def __init__(self, context: ParallelContext) -> None:
        self.context = context

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return collectives.agreed(self.context.world_group, flag)

    def all(self, flag: bool) -> bool:
        """Whether the flag is set on all ranks."""
        return not self.any(not flag)

    def of_first(self, value: int) -> int:
        """The number that rank 0 has."""
        return collectives.gathered(self.context, value)[0] if self.several else value

    def newest_common(self, own: list[int]) -> int | None:
        """The greatest number that every rank has; None where there is none.

        Args:
            own: the numbers that this rank has.
        """
        bound = max(own, default=-1)
        while self.several:
            every = collectives.gathered(self.context, bound)
            if min(every) == max(every):
                break
            bound = max((number for number in own if number <= min(every)), default=-1)
        return bound if bound >= 0 else None

    @property
    def several(self) -> bool:
        """Whether there is anybody to ask."""
        return self.context.world_size > 1
