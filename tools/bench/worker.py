"""The process of one contender: answers requests from stdin until it is closed."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any


def contender(name: str) -> Any:
    """The contender's object; its library is imported here."""
    if name == "lm":
        from contenders.lm import Lm

        return Lm()
    if name == "transformers":
        from contenders.peer_transformers import Transformers

        return Transformers()
    from contenders.peer_llama import Llama

    return Llama()


def memory(field: str) -> int:
    """Bytes of this process; "VmRSS" now, "VmHWM" at its fullest.

    Not `ru_maxrss`: that begins with the size of the process that started this one.
    """
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, field
    return int(found[1]) * 1024


MEMORY = {"memory": "VmRSS", "peak_memory": "VmHWM"}


def main() -> None:
    """Reads {"method": ..., "arguments": {...}}, writes {"result": ...} or {"error": ...}."""
    # Libraries print to stdout; answers go to a copy that they do not know.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    served = contender(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        if request["method"] in MEMORY:
            result: Any = memory(MEMORY[request["method"]])
        else:
            try:
                result = getattr(served, request["method"])(**request["arguments"])
            except NotImplementedError as error:
                answers.write(json.dumps({"error": str(error)}) + "\n")
                continue
        answers.write(json.dumps({"result": result}) + "\n")


if __name__ == "__main__":
    main()
