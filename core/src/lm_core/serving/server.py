"""The process around the application: its socket, and how it ends.

A first SIGTERM or Ctrl-C drains: no new requests, those that are here are answered, then the
process ends. A second one ends their answers where they are.

uvicorn is an extra, so it is imported where it is used.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_core.errors import ConfigError
from lm_core.log import get_logger

if TYPE_CHECKING:
    from lm_core.serving.engine import Engine

SIGNALS = (signal.SIGTERM, signal.SIGINT)
CONNECTIONS = 128
"""Connections beside those whose requests are computed or wait; more get 503 at once."""
CLOSING_SECONDS = 10
"""The last bytes of the last answers are sent within so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a server listens.

    Attributes:
        host: a name or an address.
        port: 0 for any that is free.
    """

    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can reach it."""
        return all(
            address.startswith("127.") or address == "::1" for *_, (address, *_) in self._found()
        )

    def bound(self) -> socket.socket:
        """A socket that is taken for us and does not listen yet.

        Raises:
            ConfigError: it cannot be had.
        """
        family, kind, protocol, _, address = self._found()[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError as error:
            found.close()
            raise ConfigError(
                f"port: {self.port} on {self.host} cannot be had ({error.strerror}); must be free; "
                f"use another with --port, or 0 for any"
            ) from None
        return found

    def _found(self) -> list[Any]:
        try:
            return socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise ConfigError(
                f"host: {self.host!r} is no address of this machine ({error.strerror}); must be "
                f"one; use 127.0.0.1"
            ) from None


def url_of(bound: socket.socket) -> str:
    """What clients call a server, as far as this machine knows."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: Any, engine: Engine, bound: socket.socket, drain_seconds: float) -> None:
    """Serves until a signal comes, and what was asked until then.

    Args:
        app: the application.
        engine: started; closed when this returns.
        bound: of `Place.bound`.
        drain_seconds: requests that take longer after the signal are ended.
    """
    import uvicorn

    most = engine.max_queue + CONNECTIONS
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=most,
            backlog=most,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
    )
    server.capture_signals = nullcontext  # type: ignore[method-assign]  # they are ours
    try:
        asyncio.run(_serve(server, engine, bound, drain_seconds))
    finally:
        engine.close()


async def _serve(server: Any, engine: Engine, bound: socket.socket, drain_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    draining: list[asyncio.Task[None]] = []

    async def drain() -> None:
        engine.drain()
        running, waiting = engine.load
        get_logger(__name__).info(
            f"ending: {running} request(s) are computed, {waiting} wait; at most "
            f"{drain_seconds:g} s more"
        )
        if not await asyncio.to_thread(engine.wait_idle, drain_seconds):
            get_logger(__name__).warning("some requests took too long and are ended")
            engine.stop()
        server.should_exit = True

    def stop() -> None:
        if draining:
            engine.stop()
        else:
            draining.append(loop.create_task(drain()))

    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        await server.serve([bound])
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
