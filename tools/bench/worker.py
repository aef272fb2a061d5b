"""The process of one contender: answers requests from stdin until it is closed."""

from __future__ import annotations

import json
import os
import resource
import sys
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


def main() -> None:
    """Reads {"method": ..., "arguments": {...}}, writes {"result": ...} or {"error": ...}."""
    # Libraries print to stdout; answers go to a copy that they do not know.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    served = contender(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        if request["method"] == "peak_memory":
            result: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        else:
            try:
                result = getattr(served, request["method"])(**request["arguments"])
            except NotImplementedError as error:
                answers.write(json.dumps({"error": str(error)}) + "\n")
                continue
        answers.write(json.dumps({"result": result}) + "\n")


if __name__ == "__main__":
    main()
