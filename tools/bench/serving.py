"""Clients of our server, which ask at the same time, beside `generate` on the same prompts."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from driver import ContenderError

BATCH = 8
"""Requests that the server computes at once; `generate` gets as many in a call."""


def seconds(port: int, prompts: Sequence[list[int]], new: int) -> float:
    """Until all clients, one for each prompt, have their whole answers.

    Raises:
        ContenderError: a client got none, or a shorter one.
    """
    with ThreadPoolExecutor(len(prompts)) as clients:
        start = time.perf_counter()
        counts = list(clients.map(lambda prompt: _asked(port, prompt, new), prompts))
        found = time.perf_counter() - start
    if set(counts) != {new}:
        raise ContenderError(f"serve: gave {counts} tokens; must be {new} each")
    return found


def _asked(port: int, prompt: list[int], new: int) -> Any:
    """How many tokens one client gets."""
    body = {"model": "bench", "prompt": prompt, "max_tokens": new, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        reply = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if "usage" not in reply:
        raise ContenderError(f"serve: {reply}")
    return reply["usage"]["completion_tokens"]
