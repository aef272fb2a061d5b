"""What goes wrong between a client and the server, in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from lm_core.errors import LmError


class ApiError(Exception):  # noqa: N818
    """A request that gets no answer.

    Args:
        status: of HTTP.
        message: one line or several, for whoever wrote the client.
        code: the same in a word, for programs.
        retry_after: seconds after which it may be tried again; None: not so soon.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    @classmethod
    def of(cls, error: LmError) -> ApiError:
        """A request that cannot be met as it is."""
        return cls(400, "\n".join(error.problems))

    @property
    def body(self) -> dict[str, Any]:
        """As clients get it."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else _REQUEST)
        param = self.message.partition(":")[0] if self.status == 400 else None
        return {"error": {"message": self.message, "type": kind, "param": param, "code": self.code}}


_REQUEST = "invalid_request_error"
_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


def closed() -> ApiError:
    """The server ends."""
    return ApiError(503, "server: is shutting down; try another one", "shutting_down", 5)


def ended(reason: str) -> ApiError | None:
    """What it means to the client that an answer ended so; None: it is whole."""
    if reason == "closed":
        return closed()
    if reason.startswith("error: "):
        return ApiError(500, reason.removeprefix("error: "), "generation_failed")
    return None
