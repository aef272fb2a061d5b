"""A server in a thread, and what tests want to know of it."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest
from scripted_server import SAYS, Script, application

from lm_core.serving.engine import Engine
from lm_core.serving.server import Place


@pytest.fixture
def serve():
    """`serve(rows=, pause=, max_queue=, api_key=, **limits)` starts a server; it ends by itself."""
    uvicorn = pytest.importorskip("uvicorn")
    ends = []

    def start(rows=2, pause=0.0, max_queue=8, api_key=None, chats=True, **limits):
        engine = Engine(Script(rows, pause), max_queue)
        engine.start()
        app = application(engine, api_key, chats, **limits)
        bound = Place(port=0).bound()
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="critical"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
        thread.start()

        def end():
            server.should_exit = server.force_exit = True
            engine.close()
            thread.join()

        ends.append(end)
        while not server.started:
            time.sleep(0.01)
        port = bound.getsockname()[1]
        return SimpleNamespace(
            engine=engine,
            port=port,
            url=f"http://127.0.0.1:{port}",
            says=SAYS,
            idle=lambda: _idle(engine),
        )

    yield start
    for end in ends:
        end()


def _idle(engine) -> bool:
    """Whether nothing is left soon, in the queue and in the rows."""
    return engine.wait_idle(5) and engine.places.free == engine.places.rows
