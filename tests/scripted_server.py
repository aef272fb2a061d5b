"""A server on a model that says what is written here: for tests, and as a process of its own."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from lm_core.errors import TokenizerError
from lm_core.generation.config import GenerationConfig
from lm_core.serving import server
from lm_core.serving.app import LOCAL, build
from lm_core.serving.calls import Limits, Service
from lm_core.serving.engine import Engine

SAYS = " The cat sat on the mat. \N{LATIN SMALL LETTER E WITH ACUTE}t\N{HIRAGANA LETTER A}."
END, VOCABULARY, ROOM = 3, 256, 120


class Bytes:
    """Ids are bytes; 3 ends. `endless` in a prompt makes `Script` never end."""

    def __call__(self, text):
        return {"input_ids": list(text.encode())}

    def apply_chat_template(self, messages, add_generation_prompt=True):
        texts = [f"{message['role'][0]}:{message['content']}\n" for message in messages]
        if "#" in "".join(texts):
            raise TokenizerError("messages: hold #; must not; leave it out")
        return list("".join(texts).encode())

    def decode(self, ids, skip_special_tokens=False):
        return bytes(token for token in ids if token != END).decode(errors="replace")

    def convert_ids_to_tokens(self, index):
        return f"<{index:02x}>"


@dataclass
class Script:
    """Says SAYS after every prompt, a byte a step, and then ends; the likeliest other byte is z."""

    rows: int = 2
    pause: float = 0.0
    said: dict[int, tuple[bytes, int]] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.rows - len(self.said)

    def compile(self):
        return ()

    def open(self, prompt):
        row = min(set(range(self.rows)) - set(self.said))
        endless = b"endless" in bytes(prompt.tolist())
        text = b"la" * ROOM if endless else SAYS.encode() + bytes([END])
        self.said[row] = (text, 0)
        return row, self._logits(row)

    def step(self, fed, greedy):
        time.sleep(self.pause)
        found = {}
        for row in fed:
            text, place = self.said[row]
            self.said[row] = (text, place + 1)
            logits = self._logits(row)
            found[row] = logits.argmax().astype(np.int32) if greedy else logits
        return found

    def close(self, row):
        del self.said[row]

    def _logits(self, row):
        text, place = self.said[row]
        logits = np.zeros(VOCABULARY, np.float32)
        logits[ord("z")], logits[text[place]] = 6.0, 9.0
        return logits


def application(engine, api_key=None, chats=True, **limits):
    """What answers, with a model of ROOM tokens that is called toy."""
    config = SimpleNamespace(vocab_size=VOCABULARY, bos_token_id=1, seq_length=ROOM)
    own = GenerationConfig(max_length=ROOM, eos_token_id=END, pad_token_id=0)
    service = Service(engine, Bytes(), config, own, "toy", Limits(**limits), chats)
    return build(service, api_key, LOCAL if api_key is None else None)


def main(pause: str, drain_seconds: str) -> None:
    """Serves until a signal comes; says where."""
    engine = Engine(Script(pause=float(pause)), 8)
    engine.start()
    bound = server.Place(port=0).bound()
    bound.listen()
    print(bound.getsockname()[1], flush=True)
    server.run(application(engine), engine, bound, float(drain_seconds))
    print("ended", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
