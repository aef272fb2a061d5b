"""`lm chat gpt2`, were GPT-2 trained to chat: a program for tests of the verb with a real model.

Loads nothing that starts threads, as the commands of packages do not either.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from lm_core import cli
from lm_core import spec as registry
from lm_gpt2 import SPEC


def chatty(folder: Path) -> Any:
    """A tokenizer for which a question and its answer are a line each."""
    from lm_core.tokenizer.messages import Conversation
    from lm_gpt2.tokenizer import Gpt2Tokenizer

    class Chatty(Gpt2Tokenizer):
        def apply_chat_template(self, messages, add_generation_prompt=True):
            talk = Conversation.of_messages(messages)
            rounds = [text for pair in talk.rounds for text in pair]
            lines = [talk.system, *rounds, talk.question or "", ""]
            return self.encode("\n".join(lines), split_special_tokens=True)

    return Chatty.from_pretrained(folder)


CHATTY = dataclasses.replace(SPEC, chat=True, tokenizer=chatty)


def main() -> int:
    registry.installed = lambda: {"gpt2": CHATTY}
    return cli.run_verb("chat", CHATTY, sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
